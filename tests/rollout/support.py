"""Tiny models, prompts and independent readers for the tests of sampling."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch
from tests.tiny_models import VOCABULARY, tiny_model

from trimtab.data.batch import pack
from trimtab.data.trees import Branch, Origin, TokenTree
from trimtab.models.forward import Layout, hidden_states
from trimtab.models.logprobs import LogitHead, token_stats
from trimtab.rollout import Rollout

FOUR = ("llama", "qwen3", "gemma3_text", "gpt2")
"""The architectures that are promised; Gemma 3 has windows of 4, shorter than most prompts."""

STOPS = (2, 5, 11, 17, 30, 42)
"""Enough of 97 tokens for natural ends after some ten."""


def model_of(name: str, **overrides: Any) -> Any:
    """A tiny model in evaluation mode."""
    return tiny_model(name, **overrides).eval()


def prompts_of(seed: int, count: int = 5, longest: int = 21) -> list[list[int]]:
    """Random prompts of unequal lengths; the last one has a single token."""
    rng = random.Random(seed)
    lengths = [rng.randint(2, longest) for _ in range(count - 1)] + [1]
    return [[rng.randrange(3, VOCABULARY) for _ in range(length)] for length in lengths]


def trees_of(
    prompts: Sequence[Sequence[int]], rollouts: Sequence[Sequence[Rollout]]
) -> list[TokenTree]:
    """What a trainer makes of them: a tree a prompt, a branch a rollout."""
    return [
        TokenTree(
            Branch(tuple(prompt), (False,) * len(prompt)),
            tuple(Branch(one.ids, (True,) * len(one.ids)) for one in own),
            (),
            Origin("rollouts", number + 1),
        )
        for number, (prompt, own) in enumerate(zip(prompts, rollouts, strict=True))
    ]


@torch.no_grad()
def trained_logprobs(
    model: Any,
    prompts: Sequence[Sequence[int]],
    rollouts: Sequence[Sequence[Rollout]],
    *,
    temperature: float = 1.0,
    layout: Layout = "shared",
) -> list[float]:
    """Log-probs of all sampled tokens as a trainer computes them, in the order of the trees."""
    batch = pack(trees_of(prompts, rollouts))
    hidden = hidden_states(model, batch, layout).targets()
    stats = token_stats(hidden, LogitHead.of(model), batch.target_ids, temperature=temperature)
    return stats.logp.tolist()


def sampled_logprobs(rollouts: Sequence[Sequence[Rollout]]) -> list[float]:
    """Log-probs as they were recorded, in the same order."""
    return [value for own in rollouts for one in own for value in one.logprobs]


def apart(found: Sequence[float], expected: Sequence[float]) -> float:
    """Largest difference."""
    assert len(found) == len(expected) > 0
    return max(abs(a - b) for a, b in zip(found, expected, strict=True))


def ids_of(rollouts: Sequence[Sequence[Rollout]]) -> list[list[tuple[int, ...]]]:
    """The tokens alone."""
    return [[one.ids for one in own] for own in rollouts]
