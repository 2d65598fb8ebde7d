"""The bench of ``verify``, and its hard checks: a loss's numbers on made-up inputs in float64.

Every check gives a ``Check``: the ``hard`` ones here must pass, those of ``traits.py`` say what
kind of loss it is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from trimtab.losses.contract import LossSpec, example, spread, with_gradient, with_policy
from trimtab.losses.types import Pair, PairValues
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
        if "policy_tokens" in inputs:
            inputs["policy_tokens"] = spread(inputs["policy"], inputs["reference_tokens"])
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


def with_reference(inputs: dict[str, Any], reference: Any) -> dict[str, Any]:
    """The same inputs for another reference; its token log-probs, if any, follow it."""
    found = {**inputs, "reference": reference}
    if "reference_tokens" in inputs:
        found["reference_tokens"] = spread(reference, inputs["reference_tokens"])
    return found


def gradients(loss: Any, inputs: dict[str, Any]) -> tuple[Tensor, list[Tensor]]:
    """Losses, and d sum(losses) / d each tensor of the policy's sums (0 where there is none)."""
    policy = with_gradient(inputs["policy"])
    losses = loss(**with_policy(inputs, policy)).losses
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
            return loss(**with_policy(i, map_sums(policy, lambda _: queue.pop(0)))).losses

        found = differences(losses, sums_of(policy))
        worst_plain, worst_held = max(worst_plain, found.plain), max(worst_held, found.held)
    if worst_plain < 1e-6:
        found = f"{worst_plain:.1e}" if worst_plain else "0, but for the rounding of the losses"
        detail = f"worst relative error {found}"
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
    name, inputs = "raises what is wanted", bench.at_reference()
    if bench.spec.kind == "unpaired" and "labels" not in inputs:
        return Check(name, "does not apply", "it reads no labels")
    wanted, unwanted = _SIDES[bench.spec.kind]
    up, down = _pushes(bench, inputs)
    where = "at the reference" if "reference" in inputs else "on random inputs"
    raised, lowered = _share(up < 0), _share(down > 0)
    detail = f"{where}: raises {wanted} in {raised:.0%}, lowers {unwanted} in {lowered:.0%} of rows"
    push = (down.mean() - up.mean()).item()
    if push > 0:
        both = raised == lowered == 1
        return Check(name, "passed" if both else "note", detail, True, push)
    up, down = _pushes(bench, bench.inputs())
    if (down.mean() - up.mean()).item() > 0:
        detail += f": it trains towards {unwanted} there, and towards {wanted} elsewhere"
        return Check(name, "note", detail, True, push)
    return Check(name, "failed", f"{detail}: it trains towards {unwanted}", True, push)


_SIDES = {
    "pair": ("the chosen", "the rejected"),
    "unpaired": ("the desirable", "the undesirable"),
    "ranking": ("the best", "the worst"),
}


def _pushes(bench: Bench, inputs: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Slopes by the log-probs of wanted and of unwanted responses."""
    _, slopes = gradients(bench.make(), inputs)
    if bench.spec.kind == "pair":
        return slopes[0], slopes[1]
    if bench.spec.kind == "unpaired":
        return slopes[0][inputs["labels"]], slopes[0][~inputs["labels"]]
    last = inputs["policy"].mask.sum(1, keepdim=True) - 1
    return slopes[0][:, 0], slopes[0].gather(1, last)[:, 0]


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
        queue, other = list(pattern), [far - shift for shift in pattern]
        policy = map_sums(inputs["policy"], lambda s, q=queue: torch.zeros_like(s) - q.pop(0))
        found = with_policy(inputs, policy)
        if "reference" in inputs:
            reference = map_sums(
                inputs["reference"], lambda s, q=other: torch.zeros_like(s) - q.pop(0)
            )
            found = with_reference(found, reference)
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
