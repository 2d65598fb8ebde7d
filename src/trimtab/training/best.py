"""Which evaluation was the best one so far, and when there has been no better one for too long.

What is kept of it is part of the run's state (``loop.RunState``), so that a run that goes on from a
checkpoint judges as the undisturbed one does.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from trimtab.errors import RecipeError

# Last words of metrics that are better when they are smaller.
SMALLER = ("loss", "perplexity", "bpb", "nll", "kl", "disagreement", "repetition")
SMALLER += ("/elsewhere", "/both_fell")
NEITHER = (
    "length",
    "/longer_rewarded",
    "/chosen_longer",
    "/compared",
)  # and of those that are better at no end


@dataclasses.dataclass
class Best:
    """The best evaluation: after which step, its value, and how many have come since."""

    step: int | None = None
    value: float | None = None
    since: int = 0


@dataclasses.dataclass(frozen=True)
class BestRule:
    """``metric`` of the evaluations, named without ``eval_``; which way is better; how patient."""

    metric: str
    greater: bool
    patience: int | None = None

    @classmethod
    def of(cls, name: str, greater: bool | None, patience: int | None) -> BestRule:
        """From recipe keys; ``greater`` None decides by the metric's name, or is a RecipeError."""
        metric = name.removeprefix("eval_")
        if greater is None and metric.endswith(NEITHER):
            raise RecipeError(
                f"metric_for_best_model={name!r}: longer is neither better nor worse by itself; "
                "give greater_is_better"
            )
        if greater is None:
            greater = not metric.endswith(SMALLER)
        return cls(metric, greater, patience)

    def improves(self, best: Best, found: Mapping[str, Any], step: int) -> bool:
        """Take an evaluation into ``best``; whether it is the best one now.

        NaN is never better. Raises RecipeError where the evaluation has no such number.
        """
        value = found.get(self.metric)
        if isinstance(value, bool) or not isinstance(value, int | float):
            known = [n for n, v in found.items() if isinstance(v, int | float)]
            raise RecipeError(
                f"metric_for_best_model={self.metric!r}: the evaluations have no such number; they "
                f"have {', '.join(known)}"
            )
        better = best.value is None or (value > best.value if self.greater else value < best.value)
        if math.isnan(value) or not better:
            best.since += 1
            return False
        best.step, best.value, best.since = step, float(value), 0
        return True

    def out_of_patience(self, best: Best) -> str | None:
        """Why to stop, in words; None while there is patience."""
        if self.patience is None or best.since < self.patience:
            return None
        said = "never was a number" if best.value is None else f"was {best.value:.4g}"
        return (
            f"{self.metric} has not improved in {best.since} evaluations (its best {said}, after "
            f"step {best.step})"
        )
