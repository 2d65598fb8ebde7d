"""Reward functions and short on-policy runs, for the tests of both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.algorithms.stage_world import Run, World

REWARDS = """
def vowels(completions, **_):
    return [sum(map(text.count, "aeiou")) / 10 for text in completions]

def dots(completions, **_):
    return [float(text.count(".")) for text in completions]

def many(completions, **_):
    return [float(sum(map(text.count, "aeiou")) > 1) for text in completions]

def rare(completions, **_):
    return [len(text) / 10 if len(completions) == 12 else None for text in completions]

def none(completions, **_):
    return [None] * len(completions)

def prompt(completions, **_):
    return [len(text) / 10 for text in completions]

def same(completions, **_):
    return [0.5] * len(completions)

def shy(completions, **_):
    return [None if i % 3 == 0 else float(len(text)) / 40 for i, text in enumerate(completions)]

def broken(completions, **_):
    raise ValueError("no")

def short(completions, **_):
    return [1.0]

def nan(completions, **_):
    return [float("nan")] * len(completions)

def text(completions, **_):
    return ["good"] * len(completions)

def picky(completions, solution, **_):
    return [1.0] * len(completions)
"""


@pytest.fixture(scope="module", autouse=True)
def rewards(world: World) -> Path:
    path = world.root / "rewards.py"
    path.write_text(REWARDS)
    return path


def run(world: World, verb: str, function: str = "vowels", **keys: Any) -> Run:
    """Three steps on prompts, or as many as are asked for."""
    common: dict[str, Any] = {
        "reward_funcs": [f"{world.root / 'rewards.py'}:{function}"],
        "max_completion_length": 8,
        "max_grad_norm": 0.0,
        "num_generations": 3,
    }
    if verb == "rloo" or keys.get("reward_model"):
        common |= {"num_generations": 3}
    if keys.get("reward_funcs", 1) is None:
        common.pop("reward_funcs")
        keys.pop("reward_funcs")
    return world.run(verb, "pairs", **{**common, **keys})
