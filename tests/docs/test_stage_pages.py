"""docs/stages/: recipes that are recipes, rows that are rows, tables that are current."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tests.docs.scripts_of import ROOT, script

from trimtab.cli import main
from trimtab.config import VERBS, resolve
from trimtab.config.data_keys import DatasetSpec
from trimtab.data.sources import load_examples

STAGES = sorted((ROOT / "docs" / "stages").glob("*.md"))
PAGES = [*STAGES, *(ROOT / "docs" / name for name in ("from-trl.md", "metrics.md", "tutorial.md"))]


def blocks(page: Path, language: str) -> list[str]:
    """The code blocks of a language."""
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


def command(recipe: str) -> list[str]:
    """The words of the recipe's first line, which is its command."""
    words = recipe.splitlines()[0].removeprefix("# ").split()
    assert words[0] == "trimtab" and len(words) == 3
    return words[1:]


def test_every_verb_has_a_page() -> None:
    told = "".join(page.read_text(encoding="utf-8") for page in STAGES)
    assert all(re.search(rf"\b{verb}\b", told) for verb in VERBS)


@pytest.mark.parametrize("page", STAGES, ids=lambda page: page.stem)
def test_a_page(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = page.read_text(encoding="utf-8")
    assert script("stage_pages").page(text) == text
    monkeypatch.chdir(tmp_path)
    for recipe in blocks(page, "yaml"):
        verb, name = command(recipe)
        Path(name).write_text(recipe, encoding="utf-8")
        (tmp_path / "taste.py").write_text("def kindness(completions, **_):\n    return [0.0]\n")
        assert resolve(verb, [name]).recipe.output_dir is not None
    for number, rows in enumerate(blocks(page, "json")):
        path = tmp_path / f"{number}.jsonl"
        path.write_text(rows, encoding="utf-8")
        report = load_examples([DatasetSpec(path=str(path))]).report.sources[0]
        assert report.used == len(rows.splitlines()) and not report.bad_rows


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(((?!https?:)[^)]+)\)", page.read_text(encoding="utf-8")):
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        assert path.exists(), target
        if anchor:
            titles = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
            slugs = [re.sub(r"[^\w\- ]", "", one.lower()).replace(" ", "-") for one in titles]
            assert anchor in slugs, target


@pytest.mark.slow
def test_the_recipes_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them in the tutorial's order, two steps each, on the world's rows."""
    from trimtab.world.corpus import write_world

    monkeypatch.chdir(tmp_path)
    write_world(tmp_path / "data", rows=40, eval_rows=8)
    order = ("pretrain", "classify", "sft", "reward")
    pages = sorted(STAGES, key=lambda p: order.index(p.stem) if p.stem in order else len(order))
    for page in pages:
        for source in blocks(page, "python"):
            (tmp_path / "taste.py").write_text(source, encoding="utf-8")
        for recipe in blocks(page, "yaml"):
            verb, name = command(recipe)
            Path(name).write_text(recipe, encoding="utf-8")
            dataset = re.findall(r"^dataset_name: (.*)$", recipe, re.MULTILINE)[0]
            if not Path(dataset).exists():  # the page's own rows
                rows = "".join(blocks(page, "json")) * 8
                Path(dataset).write_text(rows, encoding="utf-8")
            few = ["--max-steps", "2", "--per-device-train-batch-size", "4", "--quiet"]
            assert main([verb, name, *few]) == 0, (page.stem, verb)
