"""What a preference loss says about itself by its signature.

A loss is a function, or a class whose instances are called with micro-batches and whose
``prepare`` sees the whole optimizer step first, without gradient. The annotation of ``policy``
says what it compares; the other parameters name what has to be computed for it; keyword-only
parameters with a default are hyper-parameters (of a class: those of ``__init__``). For P pairs, N
responses, R rankings of at most K:

=====================  ====================================  =====================================
policy                 Pair | SequenceLogprobs | Ranking     with gradient
reference              as policy                             the frozen reference, no gradient
sequence_kl            PairValues, each [P]                  sum over tokens KL(reference||policy)
margins                Tensor [P]                            the data's margin of each pair
labels                 Tensor [N] bool                       True = desirable
mismatched_policy      SequenceLogprobs                      prompts with responses of other rows
mismatched_reference   SequenceLogprobs                      the same rows under the reference
generator              torch.Generator                       for random draws, one per step
=====================  ====================================  =====================================

``prepare`` gives None, or weights of the step's pairs. A loss that changes over steps has
``state_dict`` and ``load_state_dict`` of plain floats.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from trimtab.losses.types import Pair, PairValues, Ranking, SequenceLogprobs

Kind = Literal["pair", "unpaired", "ranking"]
KINDS: dict[str, Kind] = {"Pair": "pair", "SequenceLogprobs": "unpaired", "Ranking": "ranking"}
INPUTS = frozenset(
    {
        "policy",
        "reference",
        "sequence_kl",
        "margins",
        "labels",
        "mismatched_policy",
        "mismatched_reference",
        "generator",
    }
)


class LossSpec(NamedTuple):
    """A loss's declaration; ``needs`` of each call, ``prepare_needs`` (empty: no ``prepare``)."""

    name: str
    kind: Kind
    needs: frozenset[str]
    prepare_needs: frozenset[str]
    hyperparameters: dict[str, Any]
    stateful: bool


def describe(name_or_callable: str | Callable[..., Any]) -> LossSpec:
    """Read a loss's declaration: a key of ``PREFERENCE_LOSSES``, a function or a class.

    ValueError where a parameter is neither an input known here nor a hyper-parameter.
    """
    loss = _look_up(name_or_callable)
    name = name_or_callable if isinstance(name_or_callable, str) else loss.__name__
    is_class = inspect.isclass(loss)
    call: Any = loss.__call__ if is_class else loss
    settings: Any = loss.__init__ if is_class else loss
    prepare: Any = getattr(loss, "prepare", None)
    parameters = list(_parameters(call))
    policy = next((p for p in parameters if p.name == "policy"), None)
    annotation = getattr(policy, "annotation", None)
    kind = KINDS.get(getattr(annotation, "__name__", str(annotation)))
    if kind is None:
        raise ValueError(f"{name}: annotate its parameter policy with one of {', '.join(KINDS)}")
    return LossSpec(
        name,
        kind,
        needs=_inputs(name, parameters),
        prepare_needs=_inputs(name, _parameters(prepare)) if prepare else frozenset(),
        hyperparameters={p.name: p.default for p in _parameters(settings) if _has_default(p)},
        stateful=hasattr(loss, "state_dict"),
    )


def bind(name: str, hyperparameters: Mapping[str, Any]) -> Callable[..., Any]:
    """The registered loss with its hyper-parameters set; call it with its ``needs`` by name.

    ValueError for an unknown hyper-parameter or an impossible value: the loss is tried on made-up
    inputs here, before anybody loads a weight.
    """
    spec = describe(name)
    for key in hyperparameters:
        if key not in spec.hyperparameters:
            known = ", ".join(spec.hyperparameters)
            raise ValueError(f"{key}: {name} has no such hyper-parameter, only {known}")
    loss = _look_up(name)
    bound: Any = functools.partial(loss, **hyperparameters)
    if inspect.isclass(loss):
        bound = bound()
    inputs = example(spec)
    bound(**{key: inputs[key] for key in spec.needs})
    return bound


def example(
    spec: LossSpec, *, size: int = 2, seed: int = 0, dtype: torch.dtype = torch.float32
) -> dict[str, Any]:
    """Made-up inputs for ``size`` pairs, responses or rankings: all that the loss names."""
    generator = torch.Generator().manual_seed(seed)
    shape = (size, 4) if spec.kind == "ranking" else (size,)

    def uniform(low: float, high: float) -> Tensor:
        values = torch.rand(shape, generator=generator, dtype=torch.float64)
        return (low + (high - low) * values).to(dtype)

    def responses(length: Tensor) -> SequenceLogprobs:
        return SequenceLogprobs(-uniform(0.5, 2.0) * length, length)

    lengths = [torch.randint(3, 13, shape, generator=generator) for _ in range(2)]
    # Rankings of 2, 3, 4, 2, ... responses.
    mask = torch.arange(4) < (2 + torch.arange(size) % 3)[:, None]

    def side() -> Pair | SequenceLogprobs | Ranking:
        if spec.kind == "pair":
            return Pair(responses(lengths[0]), responses(lengths[1]))
        if spec.kind == "unpaired":
            return responses(lengths[0])
        return Ranking(*responses(lengths[0]), mask)

    made: dict[str, Callable[[], Any]] = {
        "policy": side,
        "reference": side,
        "sequence_kl": lambda: PairValues(uniform(0.0, 1.0), uniform(0.0, 1.0)),
        "margins": lambda: uniform(0.0, 1.0),
        "labels": lambda: torch.arange(size) % 2 == 0,
        "mismatched_policy": lambda: responses(lengths[1]),
        "mismatched_reference": lambda: responses(lengths[1]),
        "generator": lambda: generator,
    }
    wanted = spec.needs | spec.prepare_needs
    return {key: make() for key, make in made.items() if key in wanted}


def _look_up(name_or_callable: str | Callable[..., Any]) -> Any:
    if not isinstance(name_or_callable, str):
        return name_or_callable
    # Late: the package imports this module before it has filled the registry.
    from trimtab.losses import PREFERENCE_LOSSES

    if name_or_callable not in PREFERENCE_LOSSES:
        known = ", ".join(PREFERENCE_LOSSES)
        raise ValueError(f"{name_or_callable}: no such preference loss, only {known}")
    return PREFERENCE_LOSSES[name_or_callable]


def _parameters(function: Callable[..., Any]) -> Iterator[inspect.Parameter]:
    parameters = inspect.signature(function).parameters.values()
    return (p for p in parameters if p.name != "self")


def _has_default(parameter: inspect.Parameter) -> bool:
    return (
        parameter.kind is inspect.Parameter.KEYWORD_ONLY
        and parameter.default is not inspect.Parameter.empty
    )


def _inputs(name: str, parameters: Iterable[inspect.Parameter]) -> frozenset[str]:
    inputs = frozenset(p.name for p in parameters if not _has_default(p))
    if unknown := inputs - INPUTS:
        raise ValueError(
            f"{name}: nobody computes {', '.join(sorted(unknown))}; "
            f"a loss can ask for {', '.join(sorted(INPUTS))}"
        )
    return inputs
