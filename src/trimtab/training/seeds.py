"""Randomness as a function of (seed, purpose, counters), never of how work was batched.

There is no generator state to lose: what a draw depends on is written at the place of the draw, so
that a resumed run draws what the undisturbed one would have drawn.
"""

from __future__ import annotations

import hashlib

import torch


def derive(seed: int, purpose: str, *counters: int) -> int:
    """A 63-bit seed from the run's seed, a purpose ("dropout", "filter", ...) and counters."""
    text = ":".join([str(seed), purpose, *map(str, counters)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(seed: int, purpose: str, *counters: int) -> torch.Generator:
    """A CPU generator seeded by ``derive``."""
    return torch.Generator().manual_seed(derive(seed, purpose, *counters))
