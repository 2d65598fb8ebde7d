"""Random draws that are the same on every machine and every Python.

Only ``random.Random.random()`` is used, the one method whose sequence Python promises to keep for
a given seed; ``choice``, ``shuffle`` and the like carry no such promise. A draw is keyed by what it
is for, so that row 17 of a corpus is the same whether 18 rows are asked for or 18,000.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


class Draw:
    """A stream of draws that is a pure function of ``key`` (strings and integers)."""

    def __init__(self, *key: str | int) -> None:
        digest = hashlib.sha256("\x1f".join(str(part) for part in key).encode()).digest()
        self._random = random.Random(int.from_bytes(digest, "big"))

    def uniform(self) -> float:
        """Return a float in [0, 1)."""
        return self._random.random()

    def chance(self, probability: float) -> bool:
        """Return True with this probability."""
        return self.uniform() < probability

    def below(self, bound: int) -> int:
        """Return an integer in 0 .. bound-1; ``bound`` is far below 2**53."""
        return int(self.uniform() * bound)

    def pick(self, items: Sequence[T]) -> T:
        """Return one of the items, all equally likely."""
        return items[self.below(len(items))]

    def pick_other(self, items: Sequence[T], *taken: T) -> T:
        """Return one of the items that is none of ``taken``."""
        return self.pick([item for item in items if item not in taken])

    def weighted(self, items: Sequence[T], weights: Sequence[float]) -> T:
        """Return one of the items with probability proportional to its weight."""
        left = self.uniform() * sum(weights)
        for item, weight in zip(items, weights, strict=True):
            left -= weight
            if left < 0:
                return item
        return items[-1]

    def some(self, items: Sequence[T], count: int) -> list[T]:
        """Return ``count`` different positions' items, in their own order."""
        rest = list(range(len(items)))
        chosen = sorted(rest.pop(self.below(len(rest))) for _ in range(count))
        return [items[position] for position in chosen]

    def gumbel(self) -> float:
        """Return a standard Gumbel variate; the difference of two is standard logistic."""
        uniform = self.uniform()
        while uniform == 0.0:
            uniform = self.uniform()
        return -math.log(-math.log(uniform))
