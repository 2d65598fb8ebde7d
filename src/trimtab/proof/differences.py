"""The gradient of a loss by finite differences, with or without what the loss holds constant.

A loss may stop gradients on purpose (a weight that is a constant for the gradient). Its autograd
gradient then is not the derivative of its value, and yet right: it is the derivative with those
parts held at what they were. ``Held`` replays them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

# Where a number leaves the graph. What is computed under no_grad does, too.
_LEAVES: frozenset[Any] = frozenset(
    {
        Tensor.detach,
        Tensor.detach_,
        Tensor.item,
        Tensor.tolist,
        Tensor.numpy,
        Tensor.__float__,
        Tensor.data.__get__,  # type: ignore[attr-defined]
    }
)
# Five-point stencils of these steps; the better one counts: the long one for smooth losses, the
# short one beside a kink.
STEPS = (1e-3, 1e-5)


class Held(TorchFunctionMode):
    """The first call under it records what leaves the graph; ``replay`` gives the same again."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[Any] = []
        self._next: int | None = None

    def replay(self) -> Held:
        """From now on, and from the beginning, give what was recorded."""
        self._next = 0
        return self

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Record or replay what leaves the graph, and let everything else through."""
        constant = func in _LEAVES or not torch.is_grad_enabled()
        if func is torch._C._set_grad_enabled or not constant:
            return func(*args, **(kwargs or {}))
        if self._next is not None and self._next < len(self.kept):
            self._next += 1
            return self.kept[self._next - 1]
        found = func(*args, **(kwargs or {}))
        if self._next is None:
            self.kept.append(found)
        return found


class Differences(NamedTuple):
    """Worst relative errors of autograd: against plain differences, and with constants held."""

    plain: float
    held: float


def differences(losses: Callable[..., Tensor], points: Sequence[Tensor]) -> Differences:
    """Compare d sum(losses(*points)) / d points by autograd and by central differences in fp64.

    An error is relative to the entry, or to a thousandth of the largest one where that is more: a
    saturated row's gradient is rounding. What the losses' own last digits can make of a difference
    is no error: beside a loss of 1e15 a slope of 1e3 is hardly to be seen.
    """
    leaves = [point.detach().clone().requires_grad_() for point in points]
    found = torch.autograd.grad(losses(*leaves).sum(), leaves, allow_unused=True)
    exact = [
        torch.zeros_like(leaf) if g is None else g for leaf, g in zip(leaves, found, strict=True)
    ]
    held = Held()
    fixed = [point.detach() for point in points]
    with held:
        here = losses(*fixed)

    # Row by row before the sum: a row of 1e16 that does not move would swallow the others' changes.
    def plain(*moved: Tensor) -> float:
        return (losses(*moved) - here).sum().item()

    def constant(*moved: Tensor) -> float:
        with held.replay():
            values = losses(*moved)
        return (values - here).sum().item()

    digits = 2 * torch.finfo(here.dtype).eps * float(here.detach().abs().max())
    return Differences(_worst(plain, fixed, exact, digits), _worst(constant, fixed, exact, digits))


def _worst(
    value: Callable[..., float], points: Sequence[Tensor], exact: Sequence[Tensor], digits: float
) -> float:
    scale = max(float(g.abs().max()) for g in exact)
    worst = 0.0
    for which, gradient in enumerate(exact):
        for place, wanted in enumerate(gradient.flatten().tolist()):
            error = min(
                abs(_slope(value, points, which, place, h) - wanted) - digits / h for h in STEPS
            )
            size = max(abs(wanted), 1e-3 * scale, 1e-12)
            worst = max(worst, error / size)
    return worst


def _slope(
    value: Callable[..., float], points: Sequence[Tensor], which: int, place: int, h: float
) -> float:
    """d value / d one entry, with an error of the order h^4."""

    def at(shift: float) -> float:
        moved = [point.clone() for point in points]
        moved[which].view(-1)[place] += shift
        return value(*moved)

    return (8 * (at(h) - at(-h)) - (at(2 * h) - at(-2 * h))) / (12 * h)
