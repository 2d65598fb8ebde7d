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
log_square             PairValues, each [P]                  sum over tokens log sum_v policy(v)^2
policy_tokens          PairTokens, each [P, T]               of which policy's sums are, gradient
reference_tokens       PairTokens, each [P, T]               of which the reference's sums are
margins                Tensor [P]                            the data's margin of each pair
labels                 Tensor [N] bool                       True = desirable
scores                 Tensor [R, K]                         the data's scores, best to worst
mismatched_policy      SequenceLogprobs                      prompts with responses of other rows
mismatched_reference   SequenceLogprobs                      the same rows under the reference
generator              torch.Generator                       for random draws, one per step
=====================  ====================================  =====================================

Margins, KLs, squares and tokens are those of pairs, labels those of unpaired losses, scores those
of rankings; ``log_square`` has no gradient. The last three are for ``prepare``, which gives None or
weights of the step's pairs. A loss that changes over steps has ``state_dict`` and
``load_state_dict`` of plain floats, and starts from an instance that has prepared nothing:
evaluation calls such a one.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from trimtab.losses.types import (
    Pair,
    PairTokens,
    PairValues,
    PreferenceTerms,
    Ranking,
    RankingTerms,
    SequenceLogprobs,
    TokenLogprobs,
    UnpairedTerms,
)

Kind = Literal["pair", "unpaired", "ranking"]
KINDS: dict[str, Kind] = {"Pair": "pair", "SequenceLogprobs": "unpaired", "Ranking": "ranking"}
CALL_INPUTS: dict[Kind, frozenset[str]] = {
    "pair": frozenset(
        {
            "policy",
            "reference",
            "sequence_kl",
            "log_square",
            "policy_tokens",
            "reference_tokens",
            "margins",
        }
    ),
    "unpaired": frozenset({"policy", "reference", "labels"}),
    "ranking": frozenset({"policy", "reference", "scores"}),
}
# Computed with the gradient, which comes after ``prepare``.
OF_THE_CALL = frozenset({"sequence_kl", "log_square", "policy_tokens", "reference_tokens"})
STEP_INPUTS = frozenset({"mismatched_policy", "mismatched_reference", "generator"})
INPUTS = STEP_INPUTS | {name for inputs in CALL_INPUTS.values() for name in inputs}
TERMS: dict[Kind, type[PreferenceTerms | UnpairedTerms | RankingTerms]] = {
    "pair": PreferenceTerms,
    "unpaired": UnpairedTerms,
    "ranking": RankingTerms,
}
_UNITS: dict[Kind, str] = {"pair": "pair", "unpaired": "response", "ranking": "ranking"}


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
    named = isinstance(name_or_callable, str)
    name = name_or_callable if named else getattr(loss, "__name__", type(loss).__name__)
    is_class = inspect.isclass(loss)
    call: Any = loss.__call__ if is_class else loss
    settings: Any = loss.__init__ if is_class else loss
    if settings is object.__init__:  # a class without one of its own
        settings = _nothing
    prepare: Any = getattr(loss, "prepare", None)
    parameters = list(_parameters(call))
    policy = next((p for p in parameters if p.name == "policy"), None)
    annotation = getattr(policy, "annotation", None)
    written = str(getattr(annotation, "__name__", annotation)).rpartition(".")[2]
    kind = KINDS.get(written)
    if kind is None:
        raise ValueError(f"{name}: annotate its parameter policy with one of {', '.join(KINDS)}")
    if is_class:
        _only_hyperparameters(name, _parameters(settings))
    of_step = CALL_INPUTS[kind] - OF_THE_CALL | STEP_INPUTS
    return LossSpec(
        name,
        kind,
        needs=_inputs(name, kind, parameters, CALL_INPUTS[kind]),
        prepare_needs=_inputs(f"{name}.prepare", kind, _parameters(prepare), of_step)
        if prepare
        else frozenset(),
        hyperparameters={p.name: p.default for p in _parameters(settings) if _has_default(p)},
        stateful=hasattr(loss, "state_dict"),
    )


def bind(
    name_or_callable: str | Callable[..., Any], hyperparameters: Mapping[str, Any]
) -> Callable[..., Any]:
    """The loss with its hyper-parameters set; call it with its ``needs`` by name.

    ValueError for an unknown hyper-parameter or an impossible value, and for a loss that does not
    give what it has to: it is tried on made-up inputs here, before anybody loads a weight.
    """
    spec = describe(name_or_callable)
    for key in hyperparameters:
        if key not in spec.hyperparameters:
            known = ", ".join(spec.hyperparameters) or "none at all"
            raise ValueError(f"{key}: {spec.name} has no such hyper-parameter, only {known}")
    loss = _look_up(name_or_callable)
    bound: Any = functools.partial(loss, **hyperparameters)
    is_class = inspect.isclass(loss)
    try_out(spec, bound() if is_class else bound)
    return bound() if is_class else bound


def try_out(spec: LossSpec, loss: Any) -> None:
    """Call a loss on made-up inputs; ValueError where its answers are not what they have to be.

    ``loss`` is used up: where it has a ``prepare``, that is called, too.
    """
    for size in (2, 1):
        _call(spec, loss, size)
    if not spec.prepare_needs:
        return
    frozen = example(spec, seed=1)
    with torch.no_grad():
        weights = loss.prepare(**{key: frozen[key] for key in spec.prepare_needs})
    if weights is not None and (spec.kind != "pair" or tuple(weights.shape) != (2,)):
        raise ValueError(f"{spec.name}.prepare: gives None, or a weight for each pair of the step")
    _call(spec, loss, 2)
    if spec.stateful:
        state = loss.state_dict()
        if not all(isinstance(value, float) for value in state.values()):
            raise ValueError(f"{spec.name}.state_dict: holds plain floats, by name; gave {state}")
        loss.load_state_dict(state)


def with_gradient(policy: Any) -> Any:
    """The same policy inputs, of any kind, with sums that collect gradients."""
    if isinstance(policy, Pair):
        return Pair(*(with_gradient(side) for side in policy))
    return policy._replace(sum=policy.sum.detach().clone().requires_grad_())


def with_policy(inputs: Mapping[str, Any], policy: Any) -> dict[str, Any]:
    """The same inputs of a call for another ``policy``; its token log-probs, if any, follow it.

    What a response's sum gains is spread evenly over its tokens, with gradient.
    """
    found = {**inputs, "policy": policy}
    if "policy_tokens" in inputs:
        found["policy_tokens"] = spread(policy, inputs["policy_tokens"])
    return found


def spread(pair: Pair, tokens: PairTokens) -> PairTokens:
    """Token log-probs that add up to the sums of ``pair``, each moved by as much."""

    def moved(sums: Tensor, of: TokenLogprobs) -> TokenLogprobs:
        gain = (sums - of.logp.sum(-1)) / of.mask.sum(-1)
        return of._replace(logp=of.logp + gain[:, None] * of.mask)

    return PairTokens(*(moved(side.sum, of) for side, of in zip(pair, tokens, strict=True)))


def _call(spec: LossSpec, loss: Any, size: int) -> None:
    """One finite loss for each of ``size`` units, with a gradient, and rewards of the right shape.

    ValueError otherwise.
    """
    inputs = example(spec, size=size)
    inputs = with_policy(inputs, with_gradient(inputs["policy"]))
    with torch.enable_grad():
        terms: Any = loss(**{key: inputs[key] for key in spec.needs})
    unit, wanted = _UNITS[spec.kind], TERMS[spec.kind]
    if not isinstance(terms, wanted):
        raise ValueError(f"{spec.name}: has to return {wanted.__name__}, not {_of(terms)}")
    fields: dict[str, Any] = terms._asdict()
    losses = fields["losses"]
    if not isinstance(losses, Tensor) or tuple(losses.shape) != (size,):
        raise ValueError(
            f"{spec.name}: gave losses of {_of(losses)} for {size} {unit}s; give one loss for each "
            f"{unit}, never a mean or a sum: the run divides, by all {unit}s of the step"
        )
    if not losses.requires_grad:
        raise ValueError(f"{spec.name}: its losses have no gradient: they do not depend on policy")
    rewards = (size, 4) if spec.kind == "ranking" else (size,)
    for field, value in fields.items():
        shape = (size,) if field == "losses" else rewards
        if not isinstance(value, Tensor) or tuple(value.shape) != shape:
            raise ValueError(f"{spec.name}: gave {field} of {_of(value)}, not of shape {shape}")
        if not bool(value.isfinite().all()):
            raise ValueError(f"{spec.name}: gave {field} that are not finite: {value.detach()}")


def _of(value: Any) -> str:
    """What a wrong answer is, in a few words."""
    return f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


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

    def squares() -> PairValues:
        return PairValues(*(uniform(-1.5, -0.1) * length for length in lengths))

    made: dict[str, Callable[[], Any]] = {
        "policy": side,
        "reference": side,
        "sequence_kl": lambda: PairValues(uniform(0.0, 1.0), uniform(0.0, 1.0)),
        "margins": lambda: uniform(0.0, 1.0),
        "labels": lambda: torch.arange(size) % 2 == 0,
        "scores": lambda: uniform(0.0, 1.0).sort(-1, descending=True).values * mask,
        "log_square": squares,
        "mismatched_policy": lambda: responses(lengths[1]),
        "mismatched_reference": lambda: responses(lengths[1]),
        "generator": lambda: generator,
    }
    wanted = spec.needs | spec.prepare_needs
    found = {key: make() for key, make in made.items() if key in wanted}
    for key in wanted & {"policy_tokens", "reference_tokens"}:
        whole: Any = found.get(key.removesuffix("_tokens")) or side()
        found[key] = PairTokens(*(_tokens(one, generator) for one in whole))
    return found


def _tokens(whole: SequenceLogprobs, generator: torch.Generator) -> TokenLogprobs:
    """Made-up shares of each sum for its tokens, padded to the longest response."""
    mask = torch.arange(int(whole.length.max())) < whole.length[:, None]
    shares = (0.1 + torch.rand(mask.shape, generator=generator, dtype=torch.float64)) * mask
    shares = (shares / shares.sum(-1, keepdim=True)).to(whole.sum.dtype)
    return TokenLogprobs(whole.sum[:, None] * shares, mask)


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


def _nothing() -> None: ...


def _only_hyperparameters(name: str, parameters: Iterable[inspect.Parameter]) -> None:
    for parameter in parameters:
        if not _has_default(parameter):
            raise ValueError(
                f"{name}.__init__: {parameter.name} is no hyper-parameter: it has to stand behind "
                "* and to have a default"
            )


def _inputs(
    name: str, kind: Kind, parameters: Iterable[inspect.Parameter], known: frozenset[str]
) -> frozenset[str]:
    inputs = frozenset(p.name for p in parameters if not _has_default(p))
    if unknown := inputs - known:
        raise ValueError(
            f"{name}: nobody computes {', '.join(sorted(unknown))}; a loss of this kind ({kind}) "
            f"can ask for {', '.join(sorted(known))}; a hyper-parameter stands behind * and has a "
            "default"
        )
    return inputs
