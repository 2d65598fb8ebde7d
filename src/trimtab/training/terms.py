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
Kind = Literal["mean", "min", "max"]


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
    """A logged mean: ``sum / count``, both added up over micro-batches, steps and ranks.

    Of kind ``min`` or ``max`` ``sum`` is the least or greatest of a micro-batch and ``count`` 1.
    Such a number is that of a whole step first, then a mean over steps. A count of 0: no number.
    """

    sum: float
    count: float
    kind: Kind = "mean"

    def joined(self, other: Metric) -> Metric:
        """With what another micro-batch of the step has under the same name."""
        assert self.kind == other.kind, "one name, one kind"
        if self.kind == "mean":
            return Metric(self.sum + other.sum, self.count + other.count)
        if not (self.count and other.count):
            return self if self.count else other
        chosen = min if self.kind == "min" else max
        return self._replace(sum=chosen(self.sum, other.sum))
