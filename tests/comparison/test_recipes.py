"""Every comparison that ships is whole: each cell is a valid recipe, and fits the budget."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from tests.evaluation.test_evaluate import save_reward_model
from tests.tiny_models import tiny_model
from tests.tiny_runs import write_rows

from trimtab.cli import main
from trimtab.comparison.digests import Digests
from trimtab.comparison.plan import make_plan
from trimtab.comparison.recipe import read_recipe
from trimtab.models.save import save_model
from trimtab.models.tokenizers import train_byte_level_bpe
from trimtab.world.corpus import preference_rows as pairs
from trimtab.world.corpus import pretrain_documents, sft_rows, train_requests

RECIPES = sorted((Path(__file__).parents[2] / "recipes" / "compare").glob("*.yaml"))


class Names(Digests):
    """Hashes of names: the files themselves are made by the demo."""

    def _once(self, kind: str, what: str, find: Any) -> str:
        return hashlib.sha256(f"{kind}:{what}".encode()).hexdigest()


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_cell_resolves(path: Path) -> None:
    plan = make_plan(read_recipe([str(path)]), digests=Names())
    recipe = plan.recipe
    runs = [cell for cell in plan.cells if cell.kind == "run"]
    assert len({cell.key for cell in runs}) == len(runs), "no two cells are the same work"
    assert {cell.seed for cell in runs} == set(recipe.seeds)
    for cell in runs:
        assert cell.resolved is not None
        assert max(cell.examined) == cell.resolved.recipe.max_steps
        assert 1 <= len(cell.examined) <= recipe.checkpoints
    assert not plan.notes, "the budget is whole steps for all"
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert any(f"trimtab compare recipes/compare/{path.name}" in line for line in header)


def test_there_are_recipes() -> None:
    assert {"tiny", "world"} <= {path.stem for path in RECIPES}


def save_demo(folder: Path) -> None:
    """What the recipe takes from the demo: rows of its world, and random models in place of its."""
    documents = pretrain_documents(100)
    tokenizer: Any = train_byte_level_bpe(documents, 500, chat_template=None)
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos")}
    save_model(tiny_model("llama", vocab_size=len(tokenizer), **ids), tokenizer, folder / "sft")
    save_reward_model(folder / "reward", folder / "sft", seed=0)
    data = folder / "data"
    data.mkdir()
    write_rows(data / "pairs.jsonl", [dict(row) for row in pairs(64)])
    write_rows(data / "prompts.jsonl", [{"prompt": one} for one in train_requests(64)])
    held_out = sft_rows(8, split="held_out")
    write_rows(data / "answers_eval.jsonl", [dict(row) for row in held_out])
    write_rows(data / "text.jsonl", [{"text": one} for one in documents])
    write_rows(data / "text_eval.jsonl", [{"text": one} for one in documents[:8]])


@pytest.mark.slow
def test_the_tiny_comparison_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a small budget (three steps of dpo, one rollout of ppo) and short responses."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "cache"))
    save_demo(tmp_path / "runs" / "demo")
    less = ["--budget.amount", "48", "--max-completion-length", "40"]
    assert main(["compare", "recipes/compare/tiny.yaml", *less, "--quiet"]) == 0
    whole = json.loads((tmp_path / "runs" / "compare-tiny" / "comparison.json").read_text())
    last = {(one["method"], one["label"]): one["step"] for one in whole["points"] if one["final"]}
    assert last == {
        ("dpo", "beta 0.1"): 3,
        ("dpo", "beta 0.5"): 3,
        ("ppo", "kl_coef 0.05"): 4,
        ("best of n", "n 1"): 0,
        ("best of n", "n 4"): 0,
    }
    assert whole["failed"] == [] and whole["left_out"] == []
    trained = [one for one in whole["points"] if one["method"] in ("dpo", "ppo")]
    assert all(one["kl"]["mean"] > 0 for one in trained), "every run went somewhere"
