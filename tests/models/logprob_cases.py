"""Hidden states, heads and targets to take log-probs of, for their tests."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from trimtab.models.logprobs import (
    LogitHead,
    TokenStats,
)

TOKENS, VOCABULARY, WIDTH = 13, 37, 8

ONE_ROW = 1  # chunk_bytes: one token a chunk


class Case(NamedTuple):
    hidden: Tensor
    head: LogitHead
    targets: Tensor
    reference: tuple[Tensor, LogitHead]

    def leaves(self) -> list[Tensor]:
        tensors = [self.hidden, self.head.weight, self.head.bias]
        return [t for t in tensors if t is not None and t.requires_grad]


def make_case(
    dtype: torch.dtype = torch.float64,
    *,
    tokens: int = TOKENS,
    vocabulary: int = VOCABULARY,
    bias: bool = True,
    scale: float = 1.0,
    softcap: float | None = None,
    frozen: bool = False,
    size: float = 1.0,
) -> Case:
    g = torch.Generator().manual_seed(3)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    hidden = (size * draw(tokens, WIDTH)).to(dtype).requires_grad_()
    weight = draw(vocabulary, WIDTH).to(dtype).requires_grad_(not frozen)
    offset = draw(vocabulary).to(dtype).requires_grad_(not frozen) if bias else None
    targets = torch.randint(vocabulary, (tokens,), generator=g)
    other = LogitHead(draw(vocabulary, WIDTH).to(dtype), None, 0.7, softcap)
    head = LogitHead(weight, offset, scale, softcap)
    return Case(hidden, head, targets, (draw(tokens, WIDTH).to(dtype), other))


def objective(stats: TokenStats) -> Tensor:
    """A scalar in which every differentiable output of every token has a coefficient of its own."""
    ramp = torch.linspace(-1, 2, stats.logp.numel(), dtype=torch.float64)
    total = (ramp * stats.logp).sum()
    if stats.entropy is not None:
        total = total + (ramp.flip(0) * stats.entropy).sum()
    if stats.kl is not None:
        total = total + (ramp.cos() * stats.kl).sum()
    return total


def run(function: Any, case: Case, **options: Any) -> tuple[TokenStats, list[Tensor]]:
    stats = function(case.hidden, case.head, case.targets, **options)
    return stats, list(torch.autograd.grad(objective(stats), case.leaves()))
