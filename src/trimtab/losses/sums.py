"""Several losses of one kind as one: their weighted sum, over the same units."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from trimtab.losses.contract import LossSpec, bind, describe


class Member(NamedTuple):
    """One loss of a sum: what it declares, its weight, and itself, ready to be called."""

    spec: LossSpec
    weight: float
    loss: Any


class WeightedSum:
    """sum_i weight_i L_i of losses of one kind; the rewards are those of the first one.

    ``parts`` holds the last call's losses of each, unweighted and without gradient. A member that
    sees the whole step first does so; one that decides which pairs of the step count (``BetaDPO``)
    cannot share the step with others, which ``prepare`` refuses with a ValueError.
    """

    def __init__(self, members: Mapping[str, Member]) -> None:
        self.members = dict(members)
        self.parts: dict[str, Tensor] = {}
        # Only a sum with running state has these two, as with any other loss.
        if any(member.spec.stateful for member in self.members.values()):
            self.state_dict = self._state_dict
            self.load_state_dict = self._load_state_dict

    def prepare(self, **inputs: Any) -> None:
        """Let every member that asks for it see the step."""
        for name, (spec, _, loss) in self.members.items():
            if not spec.prepare_needs:
                continue
            own = {key: inputs[key] for key in spec.prepare_needs}
            if loss.prepare(**own) is not None:
                raise ValueError(
                    f"{name}: decides which pairs of a step count, so it stands alone: it cannot "
                    "be part of a sum"
                )

    def __call__(self, **inputs: Any) -> Any:
        """The sum over the units given, with the first member's rewards."""
        found = {
            name: loss(**{key: inputs[key] for key in spec.needs})
            for name, (spec, _, loss) in self.members.items()
        }
        self.parts = {name: terms.losses.detach() for name, terms in found.items()}
        weighted = [self.members[name].weight * terms.losses for name, terms in found.items()]
        return next(iter(found.values()))._replace(losses=torch.stack(weighted).sum(0))

    @property
    def z0(self) -> float:
        """KTO's estimate of the KL, where KTO is a member (AttributeError where it is not)."""
        for member in self.members.values():
            if hasattr(member.loss, "z0"):
                return member.loss.z0
        raise AttributeError("z0")

    def _state_dict(self) -> dict[str, float]:
        return {
            f"{name}.{key}": value
            for name, member in self.members.items()
            if member.spec.stateful
            for key, value in member.loss.state_dict().items()
        }

    def _load_state_dict(self, state: dict[str, float]) -> None:
        for name, member in self.members.items():
            if member.spec.stateful:
                start = f"{name}."
                own = {k.removeprefix(start): v for k, v in state.items() if k.startswith(start)}
                member.loss.load_state_dict(own)


def describe_sum(weights: Mapping[str, float]) -> LossSpec:
    """What a sum of the registry's losses declares: all that any of them asks for.

    Its hyper-parameters are ``<loss>.<name>``. ValueError for losses of different kinds, whose
    units differ.
    """
    specs = {name: describe(name) for name in weights}
    kinds = {spec.kind for spec in specs.values()}
    if len(kinds) > 1:
        listed = ", ".join(f"{name} ({spec.kind})" for name, spec in specs.items())
        raise ValueError(f"{'+'.join(weights)}: a sum is of losses of one kind, and not {listed}")
    needs: set[str] = set()
    prepare_needs: set[str] = set()
    for spec in specs.values():
        needs |= spec.needs
        prepare_needs |= spec.prepare_needs
    return LossSpec(
        "+".join(weights),
        next(iter(specs.values())).kind,
        frozenset(needs),
        frozenset(prepare_needs),
        {f"{n}.{key}": v for n, spec in specs.items() for key, v in spec.hyperparameters.items()},
        any(spec.stateful for spec in specs.values()),
    )


def bind_sum(
    weights: Mapping[str, float], hyperparameters: Mapping[str, Any]
) -> Callable[..., Any]:
    """The sum with its hyper-parameters (``<loss>.<name>``) set; errors as of ``bind``."""
    members: dict[str, Member] = {}
    for name, weight in weights.items():
        start = f"{name}."
        own = {
            key.removeprefix(start): value
            for key, value in hyperparameters.items()
            if key.startswith(start)
        }
        try:
            members[name] = Member(describe(name), weight, bind(name, own))
        except ValueError as error:
            raise ValueError(f"{name}.{error}") from None
    return WeightedSum(members)
