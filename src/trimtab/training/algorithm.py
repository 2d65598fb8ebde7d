"""What the loop asks of an algorithm, and what an algorithm hands to the loop.

Algorithms know data and models; the loop knows optimisation. Neither looks into the other.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn

from trimtab.data.batch import TreeBatch
from trimtab.training.terms import Metric, Term


@dataclasses.dataclass
class Micro:
    """One micro-batch: trees that are pushed through the model together.

    ``rows`` are the numbers of its trees in the stage's own store (for messages and caches);
    ``reference`` holds cached reference log-probs [N]; ``pair_weight`` [P] is what ``prepare``
    decided about its comparisons (a filter), on top of the data's own weights. ``tokens`` [M] and
    ``responses`` [N] are what an on-policy algorithm knows of its targets and branches;
    ``beside`` counts, by unit, what belongs to the step and was left out of the forward pass.
    """

    batch: TreeBatch
    rows: tuple[int, ...]
    stream: str = "main"
    reference: Tensor | None = None
    pair_weight: Tensor | None = None
    tokens: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)
    responses: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)
    beside: Mapping[str, float] = dataclasses.field(default_factory=dict)


class Outcome(NamedTuple):
    """The objective's terms over one micro-batch, with gradient, and what is logged of it."""

    terms: list[Term]
    metrics: dict[str, Metric]


class Algorithm(Protocol):
    """One stage of the ladder.

    ``micros(step)`` must be a pure function of the step (and of what ``state_dict`` holds), so that
    a resumed run sees what the undisturbed one saw.
    """

    model: nn.Module
    total_steps: int

    def epoch(self, step: int) -> float:
        """Epochs done after ``step`` optimizer steps."""
        ...

    def counted(self, step: int) -> dict[str, int]:
        """What else is counted up to ``step`` optimizer steps, for the log."""
        ...

    def micros(self, step: int) -> Sequence[Micro]:
        """The micro-batches of optimizer step ``step``, counted from 0."""
        ...

    def prepare(self, step: int, micros: Sequence[Micro]) -> dict[str, Metric]:
        """Whatever needs the whole step before any backward pass; no gradients. May log."""
        ...

    def counts(self, micro: Micro) -> Mapping[str, float]:
        """The count of every term of ``terms(micro)``, by name, without a forward pass."""
        ...

    def terms(self, micro: Micro) -> Outcome:
        """Forward pass of one micro-batch."""
        ...

    def evaluate(self, step: int) -> dict[str, Any]:
        """Metrics on the held-out rows after ``step`` steps, named without their ``eval_``."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """All that changes during a run, as JSON."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what ``state_dict`` gave."""
        ...
