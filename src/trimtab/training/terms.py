"""Objectives as weighted sums of terms, each divided once by its own count over the whole step.

The loop divides a term by its *global* count: over all micro-batches of the optimizer step (the
last, shorter one included) and all ranks. Mean-of-means, the gradient-accumulation bug, cannot be
written in these terms.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:  # the log's readers need no torch
    from torch import Tensor

Unit = Literal["token", "sequence", "pair", "prompt", "constant"]


class Term(NamedTuple):
    """``weight * sum / count``: a scalar ``sum`` with gradient over ``count`` units of ``unit``.

    ``count`` is a plain number known before the forward pass, so that the divisor of the whole
    step is known before the first backward pass.
    """

    name: str
    sum: Tensor
    count: float
    unit: Unit
    weight: float = 1.0


class Metric(NamedTuple):
    """A logged mean: ``sum / count``, both added up over micro-batches, steps and ranks."""

    sum: float
    count: float
