"""The gold reward as a reward function: what a learned reward is measured against.

    --reward-funcs trimtab.world.reward:gold
    --reward-model runs/reward --watch-funcs trimtab.world.reward:gold

Watched, it is logged beside the learned reward and optimised by nobody.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trimtab.errors import DataError
from trimtab.world.gold import gold_reward


def gold(prompts: Sequence[str], completions: Sequence[str], **_: Any) -> list[float]:
    """The gold reward, 0 to 1, of each story on its request."""
    return [_one(prompt, story) for prompt, story in zip(prompts, completions, strict=True)]


def _one(prompt: str, story: str) -> float:
    try:
        return gold_reward(prompt, story).total
    except ValueError as error:
        raise DataError(f"the gold reward knows requests of the world alone: {error}") from None
