"""What both sides of an on-policy case share. Imports neither trainer nor torch.

Two trainers that draw their own responses train on different ones, and their losses say nothing of
each other. So the first rollout, which is not timed, is sampled as every other one and then thrown
away: both sides go on with the same responses of random tokens. What they report of these (rewards,
log-probs, values, KL, the first loss, the norm of its gradient) has to agree.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

VERBS = ("ppo", "grpo")

# Below are special tokens and single bytes, in every tokenizer here.
FIRST_WORD = 512

# Both sides' name of the reward: ``module:function``.
REWARD = "benchmarks.on_policy:vowels"


def fixed_responses(count: int, tokens: int, vocabulary: int, seed: int) -> list[list[int]]:
    """``count`` responses of ``tokens`` random tokens, in the order of prompts and samples."""
    draws = random.Random(seed)
    words = range(FIRST_WORD, vocabulary)
    return [draws.choices(words, k=tokens) for _ in range(count)]


def vowels(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float]:
    """A cheap reward: the share of vowels among a response's characters, times 10."""
    texts = [one if isinstance(one, str) else one[-1]["content"] for one in completions]
    return [10.0 * sum(c in "aeiou" for c in text) / max(1, len(text)) for text in texts]


# Largest difference of what is reported of the fixed responses before any update. The KL is exactly
# 0 for identical models; sums over 64 tokens of fp32 log-probs may be off by rounding.
CHECKS: Mapping[str, float] = {
    "reward": 1e-4,  # mean
    "logps": 1e-4,  # mean log-prob of a token, by the policy
    "kl": 1e-4,  # mean of a response, to the reference
    "values": 1e-4,  # mean of a token (PPO)
    "loss": 1e-4,  # of the first optimizer step
    # Of that step, relative. TRL whitens PPO's advantages by n - 1 and trimtab by n: 5e-4 for 1,024
    # tokens, 4e-3 for the 128 of --quick.
    "grad_norm": 5e-3,
}


def gaps(first: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, float]:
    """Differences of two runs' ``checks``, by name; the norm's is relative.

    Raises ValueError where one side reports what the other does not.
    """
    ours, theirs = first["checks"], other["checks"]
    if set(ours) != set(theirs):
        raise ValueError(f"one side checks {sorted(ours)}, the other {sorted(theirs)}")
    found = {name: abs(ours[name] - theirs[name]) for name in ours}
    found["grad_norm"] /= abs(theirs["grad_norm"])
    return found


def disagreement(found: Mapping[str, float]) -> str | None:
    """Why two sides have not computed the same, in words; None where they have."""
    for name, value in found.items():
        if not value <= CHECKS[name]:
            return f"{name} differs by {value:.2g}, more than {CHECKS[name]:g}"
    return None
