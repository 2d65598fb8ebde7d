"""What kind of loss it is: the checks of ``verify`` whose answer is neither right nor wrong."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from trimtab.losses.types import (
    Pair,
    PairTokens,
    PairValues,
    Ranking,
    SequenceLogprobs,
    TokenLogprobs,
)
from trimtab.proof.bench import (
    F64,
    SIZE,
    Bench,
    Check,
    check_direction,
    check_extremes,
    check_gradient,
    check_rows,
    map_sums,
    with_policy,
    with_reference,
)

_KNOWN = {"ln 2": math.log(2), "2 ln 2": 2 * math.log(2), "1/2": 0.5}


def value_at_reference(bench: Bench) -> Check:
    """The loss where the policy is its reference: what the first step logs."""
    name = "value at policy = reference"
    if "reference" not in bench.spec.needs:
        return Check(name, "does not apply", "it names no reference")
    inputs = bench.at_reference()
    losses = bench.make()(**inputs).losses.detach()
    if bench.spec.kind == "ranking":
        sizes = inputs["policy"].mask.sum(1)
        if torch.allclose(losses, torch.lgamma(sizes + 1.0).to(F64), rtol=1e-6):
            return Check(name, "yes", "ln K! for K responses")
        if torch.allclose(losses, sizes.to(F64).log(), rtol=1e-6):
            return Check(name, "yes", "ln K for K responses")
    low, high = losses.min().item(), losses.max().item()
    if high - low > 1e-9 * max(1.0, abs(high)):
        return Check(name, "note", f"differs by row, from {low:.9g} to {high:.9g}", value=low)
    words = next((f" ({w})" for w, v in _KNOWN.items() if math.isclose(v, low, rel_tol=1e-9)), "")
    return Check(name, "yes", f"{low:.9g}{words}", value=low)


def _same(bench: Bench, changed: dict[str, Any], inputs: dict[str, Any], **changes: Any) -> float:
    """Largest change of a loss, relative to 1 or the loss, when its inputs are changed."""
    before = bench.make()(**inputs).losses
    after = bench.make(**changes)(**changed).losses
    return ((after - before).abs() / before.abs().clamp(min=1.0)).max().item()


def _holds(name: str, gap: float, yes: str, no: str) -> Check:
    holds = gap < 1e-9
    return Check(
        name, "yes" if holds else "no", yes if holds else f"{no} (by {gap:.2g})", value=gap
    )


def translation(bench: Bench) -> Check:
    """P3: one constant added to all responses of a comparison or ranking."""
    name = "unchanged by translation"
    if bench.spec.kind == "unpaired":
        return Check(name, "does not apply", "nothing is compared with anything")
    inputs = bench.inputs()

    def add(sums: Tensor) -> Tensor:
        shift = torch.linspace(-3, 3, SIZE, dtype=F64)
        return sums + (shift[:, None] if sums.ndim == 2 else shift)

    moved = with_policy(inputs, map_sums(inputs["policy"], add))
    gap = _same(bench, moved, inputs)
    return _holds(name, gap, "only differences of log-probs count", "absolute log-probs count")


def needs_reference(bench: Bench) -> Check:
    """Whether there is a reference, and whether only log-ratios to it count."""
    name = "needs a reference"
    if "reference" not in bench.spec.needs:
        return Check(name, "no", "it names none, and none is loaded")
    inputs = bench.inputs()

    def moved(value: Any) -> Any:
        """Every response by a constant of its own."""
        generator = torch.Generator().manual_seed(1)
        return map_sums(value, lambda s: s + torch.randn(s.shape, generator=generator, dtype=F64))

    alone = with_reference(inputs, moved(inputs["reference"]))
    if _same(bench, alone, inputs) < 1e-9:
        return Check(name, "note", "it names one, and the reference's log-probs change nothing")
    both = with_policy(alone, moved(inputs["policy"]))
    only = _same(bench, both, inputs) < 1e-9
    detail = "only log-ratios to it count" if only else "and reads log-probs beside log-ratios"
    return Check(name, "yes", detail)


def swap(bench: Bench) -> Check:
    """P2: is L(l, w) - L(w, l) the difference of the implicit rewards, as a likelihood has it?"""
    name = "swapping: L(l,w) - L(w,l) = reward margin"
    if bench.spec.kind != "pair":
        return Check(name, "does not apply", "it has no two sides to swap")
    inputs = bench.inputs()
    turned = {
        key: value._replace(chosen=value.rejected, rejected=value.chosen)
        if isinstance(value, (Pair, PairTokens, PairValues))
        else value
        for key, value in inputs.items()
    }
    there, back = bench.make()(**inputs), bench.make()(**turned)
    margin = there.chosen_rewards - there.rejected_rewards
    gap = (back.losses - there.losses - margin).abs() / margin.abs().clamp(min=1.0)
    return _holds(
        name,
        gap.max().item(),
        "as the negative log-likelihood of Bradley-Terry with its rewards has it",
        "it is no Bradley-Terry likelihood of its own rewards",
    )


def scaling(bench: Bench) -> Check:
    """P4: beta doubled and all log-probs halved."""
    name = "beta only scales log-probs"
    if "beta" not in bench.spec.hyperparameters:
        return Check(name, "does not apply", "it has no beta")
    inputs = bench.inputs()
    halved = dict(inputs)
    for key in inputs.keys() & {"policy", "reference"}:
        halved[key] = map_sums(inputs[key], lambda s: s / 2)
    for key in inputs.keys() & {"policy_tokens", "reference_tokens"}:
        halved[key] = PairTokens(*(t._replace(logp=t.logp / 2) for t in inputs[key]))
    if "sequence_kl" in inputs:
        halved["sequence_kl"] = PairValues(*(part / 2 for part in inputs["sequence_kl"]))
    gap = _same(bench, halved, inputs, beta=2 * bench.parameters["beta"])
    return _holds(
        name,
        gap,
        "2 beta with half of the log-probs is the same",
        "beta acts elsewhere, too: 2 beta with half of the log-probs is another loss",
    )


def lengths(bench: Bench) -> Check:
    """Whether the numbers of tokens count, and whether only means per token do."""
    name = "depends on lengths"
    inputs = bench.inputs()
    gap = _same(bench, _longer(inputs, (2, 3)), inputs)
    if gap < 1e-9:
        return Check(name, "no", "sums of log-probs count, however many tokens they are of")
    means = _same(bench, _longer(inputs, (3, 3), repeated=True), inputs) < 1e-9
    detail = "only log-probs per token count" if means else f"changes by {gap:.2g} with them"
    return Check(name, "yes", detail, value=gap)


def _longer(
    inputs: dict[str, Any], factors: tuple[int, int], repeated: bool = False
) -> dict[str, Any]:
    """Responses of more tokens: the same log-prob over ``factors`` times as many, or repeated.

    The first factor is for chosen responses, the second for rejected and for all others.
    """

    def whole(of: Any, factor: int) -> Any:
        return of._replace(length=of.length * factor, sum=of.sum * factor if repeated else of.sum)

    def tokens(of: TokenLogprobs, factor: int) -> TokenLogprobs:
        logp = of.logp if repeated else of.logp / factor
        return TokenLogprobs(*(x.repeat_interleave(factor, -1) for x in (logp, of.mask)))

    def values(of: Tensor, factor: int) -> Tensor:
        return of * factor if repeated else of

    first, second = factors
    found = dict(inputs)
    for key, value in inputs.items():
        if isinstance(value, (SequenceLogprobs, Ranking)):
            found[key] = whole(value, second)
        elif isinstance(value, Pair):
            found[key] = Pair(whole(value.chosen, first), whole(value.rejected, second))
        elif isinstance(value, PairTokens):
            found[key] = PairTokens(tokens(value.chosen, first), tokens(value.rejected, second))
        elif isinstance(value, PairValues):
            found[key] = PairValues(values(value.chosen, first), values(value.rejected, second))
    return found


CHECKS: tuple[Callable[[Bench], Check], ...] = (
    check_gradient,
    check_direction,
    check_extremes,
    check_rows,
    value_at_reference,
    needs_reference,
    translation,
    swap,
    scaling,
    lengths,
)
