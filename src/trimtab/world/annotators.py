"""Simulated annotators: they compare stories by the gold reward, and err like people do.

An annotator sees ``gold / noise`` plus a standard Gumbel variate for every story and ranks by the
sum, so that the preference between any two stories is Bradley-Terry,

    P(a preferred to b) = sigmoid((gold(a) - gold(b)) / noise),

and the ranking of K stories is Plackett-Luce with the same strengths (Yellott 1977). ``noise`` is
in units of gold reward: 0 never errs (ties are broken by a coin); 0.05 puts a story that is better
by 0.05 first in 73 % of the cases and one that is better by 0.15 in 95 %.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from trimtab.world.draws import Draw
from trimtab.world.gold import gold_reward

NOISE = 0.05


def preference_probability(gold_a: float, gold_b: float, noise: float = NOISE) -> float:
    """Return the probability that an annotator prefers a to b; 1/2 for a tie without noise."""
    gap = gold_a - gold_b
    if noise == 0:
        return 0.5 if gap == 0 else float(gap > 0)
    # Both forms are the sigmoid; each overflows where the other is used.
    small = math.exp(-abs(gap) / noise)
    return 1 / (1 + small) if gap >= 0 else small / (1 + small)


def rank_stories(
    request: str, stories: Sequence[str], draw: Draw, noise: float = NOISE
) -> list[int]:
    """Return the rank of each story in one annotator's eyes: 1 is the best, no ties."""
    strengths: list[tuple[float, float]] = []
    for story in stories:
        gold, error = gold_reward(request, story).total, draw.gumbel()
        # Without noise the error only breaks ties.
        strengths.append((gold, error) if noise == 0 else (gold / noise + error, 0.0))
    order = sorted(range(len(stories)), key=lambda index: strengths[index], reverse=True)
    ranks = [0] * len(stories)
    for place, index in enumerate(order):
        ranks[index] = place + 1
    return ranks


def prefer(
    request: str, first: str, second: str, draw: Draw, noise: float = NOISE
) -> tuple[str, str]:
    """Return the two stories as (chosen, rejected)."""
    ranks = rank_stories(request, (first, second), draw, noise)
    return (first, second) if ranks[0] < ranks[1] else (second, first)
