"""The commands of docs/tutorial.md are run: in this process and small, and as they stand."""

from __future__ import annotations

import json
import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
from tests.docs.scripts_of import ROOT, page

from trimtab.cli import main

BASH = re.compile(r"```bash\n(.*?)```", re.DOTALL)
HERE_DOCUMENT = re.compile(r"^cat > (\S+) <<'END'\n(.*?)^END\n", re.DOTALL | re.MULTILINE)
# What makes it long, and what it is here; each stands in the page.
SMALL = {
    "--rows 1000 --eval-rows 50": "--rows 24 --eval-rows 4",
    "{vocab_size: 1024}": "{vocab_size: 384}",
    "hidden_size: 128": "hidden_size: 32",
    "max_steps: 600": "max_steps: 3",
    "--max-steps 80": "--max-steps 2",
    "--max-rows 100": "--max-rows 6",
    "--max-completion-length 120": "--max-completion-length 12",
    "--num-train-epochs 4": "--num-train-epochs 1",
}


def commands() -> str:
    """The shell blocks of the page, one after the other."""
    return "".join(BASH.findall(page("tutorial.md")))


def end_all(path: Path) -> None:
    """Responses of a model of three steps never end, and what was cut off makes no pair."""
    lines = [json.dumps({**row, "ended": [True] * len(row["ended"])}) for row in rows_of(path)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def rows_of(path: Path) -> list[Any]:
    """A file of JSON lines."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_its_commands_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    text = commands()
    for long, short in SMALL.items():
        assert long in text, long
        text = text.replace(long, short)
    text = text.replace("\\\n", " ")
    # A model of three steps says anything; that stories differ at all is the least there is to ask.
    while text:
        if document := HERE_DOCUMENT.match(text):
            content = document[2]
            if document[1] == "taste.py":
                content += "    return [float(sum(map(ord, text)) % 97) for text in completions]\n"
                content = content.replace("    return [sum(", "    _ = [sum(")
            Path(document[1]).write_text(content, encoding="utf-8")
            text = text[document.end() :]
            continue
        line, _, text = text.partition("\n")
        tool, *words = shlex.split(line)
        if tool == "trimtab":
            code = main(words)
            assert code == 0, f"{line}\n{capsys.readouterr().err}"
            if words[0] == "sample":
                end_all(Path(words[words.index("--output") + 1]))
        elif words[:2] == ["-m", "trimtab.world"]:
            monkeypatch.setattr(sys, "argv", ["trimtab.world", *words[2:]])
            sys.modules.pop("trimtab.world.__main__", None)  # another test may have imported it
            runpy.run_module("trimtab.world", run_name="__main__")
        elif words == ["ask.py"]:
            runpy.run_path("ask.py")
        else:
            assert tool == "head" and Path(words[-1]).exists(), line
    said = capsys.readouterr().out
    assert "Tell a story about Zoe the duck" in said, "the model folder is one of transformers'"
    assert {"prompt", "chosen", "rejected"} <= rows_of(Path("pairs.jsonl"))[0].keys()
    assert "rewards/margins" in said and Path("runs/kind/model.safetensors").exists()
    assert "[kind] " in said and "[sft] " in said, "chat"
    assert "vllm serve" in said and Path("exported/model.safetensors").exists()


@pytest.mark.slow
def test_it_gives_what_it_promises(tmp_path: Path) -> None:
    """By bash, as a reader does; the model gets kinder, at a price."""
    lines = ["set -e", f'trimtab() {{ "{sys.executable}" -m trimtab "$@"; }}']
    lines += [f'python() {{ "{sys.executable}" "$@"; }}', commands()]
    done = subprocess.run(
        ["bash", "-c", "\n".join(lines)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src"), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    before, after = (
        mean(score for row in rows_of(tmp_path / f"{name}_scored.jsonl") for score in row["scores"])
        for name in ("before", "after")
    )
    print(done.stdout, done.stderr, before, after)
    assert before < 0 and after > before + 1.5
    (loss,) = re.findall(r"the difference is \+(0\.\d+) ", done.stdout)
    assert 0 < float(loss) < 0.1
    metrics = rows_of(tmp_path / "runs" / "kind" / "metrics.jsonl")
    held_out = [one["eval_rewards/accuracies"] for one in metrics if "eval_loss" in one]
    assert held_out[0] == 0 and held_out[-1] > 0.6
