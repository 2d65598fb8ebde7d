"""``trimtab verify-loss``: a preference loss on the bench.

Hard checks are a right gradient, a push in the right direction, finite numbers at extreme inputs,
and rows that do not depend on each other. The rest says what kind of loss it is: which invariances
it has, and where it leads when its exact expectation is minimised beside known optima.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from trimtab.algorithms.recipe_loss import recipe_loss
from trimtab.config.recipes import LossChoice
from trimtab.losses.contract import LossSpec
from trimtab.proof.bench import Bench, Check
from trimtab.proof.optimum import Optimum, find_optimum
from trimtab.proof.traits import CHECKS


class Verdict(NamedTuple):
    """All that the bench found. ``beta`` is the strength that pi* and IPO's optimum are for."""

    spec: LossSpec
    parameters: Mapping[str, Any]
    checks: tuple[Check, ...]
    beta: float
    optimum: Optimum

    @property
    def failed(self) -> tuple[Check, ...]:
        """The hard checks that failed."""
        return tuple(check for check in self.checks if check.hard and check.status == "failed")

    def as_record(self) -> dict[str, Any]:
        """Plain JSON."""
        optimum = {
            name: value.tolist() if hasattr(value, "tolist") else value
            for name, value in self.optimum._asdict().items()
        }
        return {
            "loss": self.spec.name,
            "kind": self.spec.kind,
            "needs": sorted(self.spec.needs | self.spec.prepare_needs),
            "parameters": dict(self.parameters),
            "passed": not self.failed,
            "checks": [check._asdict() for check in self.checks],
            "optimum": {"beta": self.beta, **optimum},
        }


def verify(choice: LossChoice) -> Verdict:
    """Put a loss on the bench. RecipeError where it is no loss that could be trained with."""
    found = recipe_loss(choice)
    parameters = found.parameters
    bench = Bench(found.spec, found.make, parameters)
    beta = _strength(parameters)
    checks = tuple(check(bench) for check in CHECKS)
    return Verdict(found.spec, parameters, checks, beta, find_optimum(found.spec, found.make, beta))


def _strength(parameters: Mapping[str, Any]) -> float:
    """beta, under whichever name a loss has it; of a sum, that of the first that has one."""
    for key, value in parameters.items():
        name = key.rpartition(".")[2]
        if name in ("beta", "tau"):
            return float(value)
        if name == "eta":
            return 1 / float(value)
    return 1.0
