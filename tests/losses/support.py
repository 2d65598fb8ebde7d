"""Builders of loss inputs and readers of their gradients, for the tests of this folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trimtab.losses import (
    Pair,
    PairTokens,
    PairValues,
    Ranking,
    SequenceLogprobs,
    TokenLogprobs,
)

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "losses.json").read_text("utf-8"))

F64 = torch.float64
_PARTS = (Pair, PairTokens, PairValues, Ranking, SequenceLogprobs, TokenLogprobs)


def leaf(values: Any, dtype: torch.dtype = F64) -> Tensor:
    """A tensor that collects a gradient."""
    return torch.tensor(values, dtype=dtype).requires_grad_()


def responses(sums: Tensor | Sequence[float], length: Any = 8) -> SequenceLogprobs:
    """Sequence log-probs over ``length`` tokens each (one number, or one a response)."""
    total = sums if isinstance(sums, Tensor) else torch.tensor(sums, dtype=F64)
    return SequenceLogprobs(total, torch.as_tensor(length).expand(total.shape))


def pair(chosen: Any, rejected: Any, nw: Any = 8, nl: Any = 10) -> Pair:
    """A pair from sums, with the golden cases' lengths by default."""
    return Pair(responses(chosen, nw), responses(rejected, nl))


def golden_case(name: str, dtype: torch.dtype = F64) -> tuple[Pair, Pair, list[Tensor]]:
    """Policy, reference and the policy's two leaves, for case A, B or C."""
    case = GOLDEN["cases"][name]
    leaves = [leaf([case["policy_chosen"]], dtype), leaf([case["policy_rejected"]], dtype)]
    lengths = (case["chosen_length"], case["rejected_length"])
    reference = pair(
        torch.tensor([case["reference_chosen"]], dtype=dtype),
        torch.tensor([case["reference_rejected"]], dtype=dtype),
        *lengths,
    )
    return pair(*leaves, *lengths), reference, leaves


def ranking(sums: Tensor, mask: Tensor | None = None, length: int = 8) -> Ranking:
    """Rankings [R, K], all places taken unless a mask says otherwise."""
    mask = torch.ones(sums.shape, dtype=torch.bool) if mask is None else mask
    return Ranking(sums, torch.full(sums.shape, length), mask)


def gradients(losses: Tensor, *leaves: Tensor) -> list[Tensor]:
    """d sum(losses) / d leaf, zeros where the loss does not depend on it."""
    found = torch.autograd.grad(losses.sum(), leaves, allow_unused=True, retain_graph=True)
    return [torch.zeros_like(x) if g is None else g for x, g in zip(leaves, found, strict=True)]


def slopes_agree(function: Callable[[Tensor], Tensor], at: Tensor) -> bool:
    """Autograd's gradient of the sum of an fp64 function against central differences."""
    point = at.detach()
    found = gradients(function(leaf := point.clone().requires_grad_()), leaf)[0]
    steps = 1e-6 * torch.eye(len(point), dtype=F64)
    wanted = [(function(point + h) - function(point - h)).sum() / 2e-6 for h in steps]
    return close(found, torch.stack(wanted), 1e-7, 1e-7)


def close(actual: Any, wanted: Any, rtol: float, atol: float = 0.0) -> bool:
    """Whether all numbers agree to a relative tolerance."""
    a, b = torch.as_tensor(actual, dtype=F64), torch.as_tensor(wanted, dtype=F64)
    return bool(torch.isclose(a, b, rtol=rtol, atol=atol).all())


def arguments(spec: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    """Those of the made-up inputs that a call of the loss takes."""
    return {name: inputs[name] for name in spec.needs}


def map_sums(policy: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """The same policy with every tensor of sums replaced."""
    if isinstance(policy, Pair):
        return Pair(*(side._replace(sum=function(side.sum)) for side in policy))
    return policy._replace(sum=function(policy.sum))


def sums_of(policy: Any) -> list[Tensor]:
    """The tensors of sums of a policy of any kind."""
    return [side.sum for side in policy] if isinstance(policy, Pair) else [policy.sum]


def select(value: Any, index: Tensor) -> Any:
    """Rows of any loss input, in the order of ``index``; a generator stays as it is."""
    if isinstance(value, Tensor):
        return value[index]
    if isinstance(value, _PARTS):
        return type(value)(*(select(part, index) for part in value))
    return value


def move(value: Any, device: str) -> Any:
    """Any loss input on another device; a generator stays where it is."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, _PARTS):
        return type(value)(*(move(part, device) for part in value))
    return value
