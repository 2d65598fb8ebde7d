"""docs/losses.md, "Your own loss": its example is a file that runs, and says what the docs say."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from tests import tiny_runs

from trimtab.cli import main
from trimtab.config import resolve

DOCS = Path(__file__).parents[2] / "docs" / "losses.md"


def section(title: str) -> str:
    return re.split(r"^## ", DOCS.read_text("utf-8").partition(f"\n## {title}\n")[2], flags=re.M)[0]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the example, a model and pairs."""
    (example,) = re.findall(r"```python\n(# my_loss\.py\n.*?)```", section("Your own loss"), re.S)
    (tmp_path / "my_loss.py").write_text(example)
    tiny_runs.save_tiny_model(tmp_path / "MODEL")
    tiny_runs.write_rows(tmp_path / "pairs.jsonl", tiny_runs.pairs(8))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_example_runs(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = section("Your own loss")
    verify, train = re.findall(r"^trimtab (.*)$", text, re.M)
    assert main(shlex.split(verify)) == 0
    assert "beta 0.1: IPO's optimum" in " ".join(capsys.readouterr().out.split())
    short = ["--max-steps", "1", "--precision", "fp32", "--quiet", "--output-dir", "out"]
    assert main([*shlex.split(train), *short, "--cache-dir", "cache"]) == 0
    (yaml,) = re.findall(r"```yaml\n(.*?)```", text, re.S)
    (here / "recipe.yaml").write_text(yaml)
    places = ["--model", "MODEL", "--dataset", "pairs.jsonl"]
    by_file = resolve("dpo", ["recipe.yaml", *places], env={}).recipe
    by_line = resolve("dpo", shlex.split(train)[1:], env={}).recipe
    assert by_file == by_line


def test_what_is_proven_names_what_is_there() -> None:
    text = section("What is proven")
    assert "`tests/exact`" in text and (DOCS.parents[1] / "tests/exact").is_dir()
    assert "`src/trimtab/proof`" in text and (DOCS.parents[1] / "src/trimtab/proof").is_dir()
