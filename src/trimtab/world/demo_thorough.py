"""``trimtab demo --thorough``: after the demo the comparison of all methods, on the demo's models.

It is ``trimtab compare recipes/compare/world.yaml`` with the paths of this demo: ten methods and
the best of n over their grids, five seeds, in ``comparison/`` of the demo's folder. The same
command goes on where it was stopped, in the demo or in the comparison.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from trimtab.comparison.command import compare
from trimtab.shipped import RECIPES, shipped
from trimtab.world.compare_data import Settings, make

RECIPE = f"{RECIPES}/compare/world.yaml"


def tokens_of(demo: Path) -> list[str]:
    """The words of ``trimtab compare`` for the demo in this folder."""
    recipe = shipped(RECIPE)
    assert recipe is not None, f"{RECIPE} comes with trimtab"
    data, held_out = demo / "data", demo / "held_out"
    keys = {
        "model-name-or-path": demo / "sft",
        "preferences": data / "pairs.jsonl",
        "prompts": data / "prompts.jsonl",
        "reward-model": demo / "reward",
        "eval-prompts": held_out / "prompts_eval.jsonl",
        "eval-text": held_out / "text_eval.jsonl",
        "methods.ppo.mix.dataset-name": data / "text.jsonl",
        "output-dir": demo / "comparison",
        "jobs": os.cpu_count() or 1,
    }
    return [
        str(recipe),
        *(word for key, value in keys.items() for word in (f"--{key}", str(value))),
    ]


def run_thorough(demo: Path, seed: int) -> int:
    """The comparison of a finished demo; returns the exit code of ``trimtab compare``."""
    print(
        "\ncomparison: ten methods and the best of n, four settings each, five seeds; some three "
        "hours of one thread in all, fewer with more cores. It can be stopped, and the same "
        "command goes on.",
        file=sys.stderr,
        flush=True,
    )
    make(demo, demo / "held_out", Settings(seed=seed), [])
    return compare(tokens_of(demo))
