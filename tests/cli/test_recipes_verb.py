"""``trimtab recipes``, and the tiny recipes run: three steps each, one on top of the other."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from tests.tiny_runs import answers, pairs, texts, write_rows

from trimtab.cli import main
from trimtab.config.recipe_files import recipe_files

ROWS = {"pretrain": texts, "sft": answers, "dpo": pairs}


def test_ls_show_and_cp(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "ls"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("\t")[:2] for line in lines if line.startswith("tiny/")] == [
        ["tiny/dpo", "dpo"],
        ["tiny/pretrain", "pretrain"],
        ["tiny/sft", "sft"],
    ]
    for name, verb, sentence in (line.split("\t") for line in lines):
        assert re.fullmatch(r"[A-Z].{20,200}[^.]\.", sentence) and ". " not in sentence, (
            name,
            verb,
        )
    assert main(["recipes", "ls", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert len(rows) == len(lines) and all(row["about"] for row in rows)

    assert main(["recipes", "show", "recipes/tiny/dpo.yaml"]) == 0
    text = capsys.readouterr().out
    copy = tmp_path / "new" / "mine.yaml"
    assert main(["recipes", "cp", "tiny/dpo", str(copy)]) == 0
    assert copy.read_text() == text
    assert capsys.readouterr().out == f"{copy}: now trimtab dpo {copy}\n"

    copy.write_text("mine")
    assert main(["recipes", "cp", "tiny/dpo", str(copy)]) == 2
    assert "exists already; name another file, or --overwrite" in capsys.readouterr().err
    assert copy.read_text() == "mine"
    assert main(["recipes", "cp", "tiny/dpo", str(copy), "--overwrite"]) == 0
    assert copy.read_text() == text

    assert main(["recipes", "cp", "smollm2/grpo", str(tmp_path)]) == 0
    assert "it names recipes/smollm2/cheerful.py" in capsys.readouterr().out
    assert (tmp_path / "grpo.yaml").is_file()
    assert main(["recipes", "show", "tiny/dop"]) == 2
    assert "no such recipe (trimtab recipes ls). Did you mean tiny/dpo?" in capsys.readouterr().err


def test_the_tiny_recipes_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a folder without recipes, as after ``pip install``; the rows are the test's own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "cache"))
    tiny = {one.verb for one in recipe_files() if one.name.startswith("tiny/")}
    assert tiny == set(ROWS)
    for verb, rows in ROWS.items():
        data = write_rows(tmp_path / f"{verb}.jsonl", rows(96))
        words = [verb, f"recipes/tiny/{verb}.yaml", "--dataset-name", str(data), "--quiet"]
        smaller = ["--new-tokenizer.vocab-size", "300"] if verb == "pretrain" else []
        assert main([*words, *smaller, "--max-steps", "3", "--logging-steps", "1"]) == 0
        folder = tmp_path / "runs" / "tiny" / verb
        logged = (folder / "metrics.jsonl").read_text().splitlines()
        losses = [row["loss"] for row in map(json.loads, logged) if "loss" in row]
        assert len(losses) == 3
        assert (folder / "model.safetensors").is_file()
        if verb == "pretrain":
            assert losses[2] < losses[0]  # near ln 300 at first, and 1e-3 moves it at once
