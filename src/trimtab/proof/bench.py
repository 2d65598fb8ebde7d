"""The single checks of ``verify``: what a loss's numbers do, on made-up inputs in float64.

Every check gives a ``Check``: ``hard`` ones must pass, the others say what kind of loss it is.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from trimtab.losses.contract import LossSpec, example, with_gradient
from trimtab.losses.types import Pair, PairValues, Ranking, SequenceLogprobs
from trimtab.proof.differences import differences

Status = Literal["passed", "failed", "note", "yes", "no", "does not apply"]
SIZE = 24  # pairs, responses or rankings of a made-up batch
FAR = (10.0, 100.0, 1e3, 1e4)  # nats
F64 = torch.float64


class Check(NamedTuple):
    """One line of the report; ``value`` is the number behind it, if there is one."""

    name: str
    status: Status
    detail: str
    hard: bool = False
    value: float | None = None


@dataclasses.dataclass(frozen=True)
class Bench:
    """A loss on the bench: its declaration, and ``make(**changes)`` for a fresh one.

    ``changes`` are hyper-parameters to change, on top of the ``parameters`` it is verified with.
    """

    spec: LossSpec
    make: Callable[..., Any]
    parameters: Mapping[str, Any]

    def inputs(self, seed: int = 0, dtype: torch.dtype = F64, size: int = SIZE) -> dict[str, Any]:
        """Made-up inputs of a call."""
        made = example(self.spec, size=size, seed=seed, dtype=dtype)
        return {name: made[name] for name in self.spec.needs}

    def at_reference(self, seed: int = 0) -> dict[str, Any]:
        """The same with the policy equal to its reference; without one, as they are."""
        inputs = self.inputs(seed)
        if "reference" in inputs:
            inputs["policy"] = inputs["reference"]
        if "sequence_kl" in inputs:
            inputs["sequence_kl"] = PairValues(*map(torch.zeros_like, inputs["sequence_kl"]))
        return inputs


# ---------------------------------------------------------------------- inputs of any kind


def map_sums(policy: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """The same policy or reference with every tensor of sums replaced."""
    if isinstance(policy, Pair):
        return Pair(*(side._replace(sum=function(side.sum)) for side in policy))
    return policy._replace(sum=function(policy.sum))


def sums_of(policy: Any) -> list[Tensor]:
    """The tensors of sums of a policy of any kind."""
    return [side.sum for side in policy] if isinstance(policy, Pair) else [policy.sum]


def rows(value: Any, index: Tensor) -> Any:
    """Rows of any loss input, in the order of ``index``."""
    if isinstance(value, Tensor):
        return value[index]
    return type(value)(*(rows(part, index) for part in value))


def gradients(loss: Any, inputs: dict[str, Any]) -> tuple[Tensor, list[Tensor]]:
    """Losses, and d sum(losses) / d each tensor of the policy's sums (0 where there is none)."""
    policy = with_gradient(inputs["policy"])
    losses = loss(**{**inputs, "policy": policy}).losses
    leaves = sums_of(policy)
    found = torch.autograd.grad(losses.sum(), leaves, allow_unused=True)
    slopes = [torch.zeros_like(x) if g is None else g for x, g in zip(leaves, found, strict=True)]
    return losses.detach(), slopes


# ---------------------------------------------------------------------- hard checks


def check_gradient(bench: Bench) -> Check:
    """Autograd against finite differences in float64 (P1 of a loss's properties)."""
    name = "gradient = finite differences"
    worst_plain, worst_held = 0.0, 0.0
    for seed, stretch in ((0, 1.0), (1, 5.0), (2, 0.1)):
        loss, inputs = bench.make(), bench.inputs(seed, size=8)
        policy = map_sums(inputs["policy"], lambda s, k=stretch: k * s)

        def losses(
            *sums: Tensor, policy: Any = policy, loss: Any = loss, i: Any = inputs
        ) -> Tensor:
            queue = list(sums)
            return loss(**{**i, "policy": map_sums(policy, lambda _: queue.pop(0))}).losses

        found = differences(losses, sums_of(policy))
        worst_plain, worst_held = max(worst_plain, found.plain), max(worst_held, found.held)
    if worst_plain < 1e-6:
        detail = f"worst relative error {worst_plain:.1e}"
        return Check(name, "passed", detail, True, worst_plain)
    if worst_held < 1e-6:
        # Whether that is meant nobody can say; a wrong direction is for the next check.
        return Check(
            name,
            "note",
            f"only with what the loss detaches held constant (worst error {worst_held:.1e}): it "
            "stops gradients of the policy; see that this is meant",
            True,
            worst_held,
        )
    detail = f"worst relative error {worst_plain:.1e}: autograd's gradient is another"
    return Check(name, "failed", detail, True, worst_plain)


def check_direction(bench: Bench) -> Check:
    """Whether the wanted responses' log-probs are pushed up and the unwanted ones' down."""
    name, kind = "raises what is wanted", bench.spec.kind
    inputs = bench.at_reference()
    _, slopes = gradients(bench.make(), inputs)
    if kind == "pair":
        up, down = slopes
        wanted, unwanted = "the chosen", "the rejected"
    elif kind == "unpaired":
        if "labels" not in inputs:
            return Check(name, "does not apply", "it reads no labels")
        up, down = slopes[0][inputs["labels"]], slopes[0][~inputs["labels"]]
        wanted, unwanted = "the desirable", "the undesirable"
    else:
        last = inputs["policy"].mask.sum(1, keepdim=True) - 1
        up, down = slopes[0][:, 0], slopes[0].gather(1, last)[:, 0]
        wanted, unwanted = "the best", "the worst"
    where = "at the reference" if "reference" in inputs else "on random inputs"
    raised, lowered = _share(up < 0), _share(down > 0)
    detail = f"{where}: raises {wanted} in {raised:.0%}, lowers {unwanted} in {lowered:.0%} of rows"
    push = (down.mean() - up.mean()).item()
    if not push > 0:
        return Check(name, "failed", f"{detail}: it trains towards {unwanted}", True, push)
    both = raised == lowered == 1
    return Check(name, "passed" if both else "note", detail, True, push)


def _share(hits: Tensor) -> float:
    return hits.double().mean().item()


def check_extremes(bench: Bench) -> Check:
    """Losses and gradients in fp32, with log-ratios up to 1e4 nats and with certain responses."""
    name = "finite at extreme inputs"
    for far in FAR:
        for inputs in _far_inputs(bench, far):
            losses, slopes = gradients(bench.make(), inputs)
            if not all(bool(part.isfinite().all()) for part in (losses, *slopes)):
                bad = "NaN" if any(bool(p.isnan().any()) for p in (losses, *slopes)) else "infinity"
                detail = f"{bad} at log-ratios of {far:g} nats in fp32"
                return Check(name, "failed", detail, True, far)
    return Check(name, "passed", f"up to {FAR[-1]:g} nats, in fp32", True, FAR[-1])


def _far_inputs(bench: Bench, far: float) -> Iterator[dict[str, Any]]:
    """Policies ``far`` above and below the reference: together, and on either side alone."""
    inputs = bench.inputs(dtype=torch.float32)
    sides = len(sums_of(inputs["policy"]))
    patterns = ([0.0], [far]) if sides == 1 else ([0.0, far], [far, 0.0], [far, far], [0.0, 0.0])
    for pattern in patterns:
        moved = list(inputs.items())
        queue, other = list(pattern), [far - shift for shift in pattern]
        found = dict(moved)
        found["policy"] = map_sums(
            inputs["policy"], lambda s, q=queue: torch.zeros_like(s) - q.pop(0)
        )
        if "reference" in inputs:
            found["reference"] = map_sums(
                inputs["reference"], lambda s, q=other: torch.zeros_like(s) - q.pop(0)
            )
        yield found


def check_rows(bench: Bench) -> Check:
    """Whether a batch is its rows one by one, in any order: micro-batches then change nothing."""
    name = "every row for itself"
    loss, inputs = bench.make(), bench.inputs()
    whole = loss(**inputs).losses
    order = torch.randperm(SIZE, generator=torch.Generator().manual_seed(0))
    permuted = loss(**{key: rows(value, order) for key, value in inputs.items()}).losses
    gap = (permuted - whole[order]).abs().max().item()
    for row in range(SIZE):
        one = torch.tensor([row])
        alone = loss(**{key: rows(value, one) for key, value in inputs.items()}).losses
        gap = max(gap, (alone - whole[one]).abs().max().item())
    close = gap <= 1e-9 * max(1.0, whole.abs().max().item())
    detail = "permuting or splitting a batch changes nothing"
    if not close:
        detail = f"a row's loss depends on its neighbours (by {gap:.2g}): micro-batches would count"
    return Check(name, "passed" if close else "failed", detail, True, gap)


# ---------------------------------------------------------------------- what kind of loss it is

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

    moved = {**inputs, "policy": map_sums(inputs["policy"], add)}
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

    alone = {**inputs, "reference": moved(inputs["reference"])}
    if _same(bench, alone, inputs) < 1e-9:
        return Check(name, "note", "it names one, and the reference's log-probs change nothing")
    both = {**alone, "policy": moved(inputs["policy"])}
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
        if isinstance(value, (Pair, PairValues))
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
    names = [key for key in ("policy", "reference") if key in inputs]

    def longer(value: Any, factor: Any) -> Any:
        if isinstance(value, Pair):
            return Pair(longer(value.chosen, 2), longer(value.rejected, factor))
        assert isinstance(value, (SequenceLogprobs, Ranking))
        return value._replace(length=value.length * factor)

    gap = _same(bench, {**inputs, **{k: longer(inputs[k], 3) for k in names}}, inputs)
    if gap < 1e-9:
        return Check(name, "no", "sums of log-probs count, however many tokens they are of")
    repeated = {
        k: map_sums(
            Pair(longer(inputs[k].chosen, 3), longer(inputs[k].rejected, 3))
            if isinstance(inputs[k], Pair)
            else longer(inputs[k], 3),
            lambda s: 3 * s,
        )
        for k in names
    }
    means = _same(bench, {**inputs, **repeated}, inputs) < 1e-9
    detail = "only log-probs per token count" if means else f"changes by {gap:.2g} with them"
    return Check(name, "yes", detail, value=gap)


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
