"""A frozen linear layer with one LoRA adapter on it, as one node.

PEFT adds ``lora_B(lora_A(x)) * scaling`` to the layer's output: two more tensors of the size of
the output in each direction. Here the low-rank product is added within the matrix product's own
output, and the gradient of x likewise.

Shapes: x [..., d], weight [o, d], A [r, d], B [o, r] (arXiv:2106.09685, section 4.1).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


class LoraLinearFunction(torch.autograd.Function):
    """y = x W^T + b + scale * (x A^T) B^T, with gradients of x, A and B; W and b are frozen."""

    @staticmethod
    def forward(  # noqa: D102
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float
    ) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        low = rows @ a.T
        y = F.linear(rows, weight, bias).addmm_(low, b.T, alpha=scale)
        ctx.save_for_backward(rows, weight, a, b, low)
        ctx.scale = scale
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # noqa: D102
        rows, weight, a, b, low = ctx.saved_tensors
        g = gradient.reshape(-1, gradient.shape[-1])
        of_low = (g @ b).mul_(ctx.scale)
        of_x = None
        if ctx.needs_input_grad[0]:
            of_x = (g @ weight).addmm_(of_low, a).view(*gradient.shape[:-1], -1)
        of_a = of_low.T @ rows if ctx.needs_input_grad[3] else None
        of_b = (g.T @ low).mul_(ctx.scale) if ctx.needs_input_grad[4] else None
        return of_x, None, None, of_a, of_b, None


def is_lora_linear(module: nn.Module) -> bool:
    """Whether a module is peft's plain LoRA on a linear layer (not a subclass, quantised, say)."""
    kind = type(module)
    return kind.__name__ == "Linear" and kind.__module__ == "peft.tuners.lora.layer"


def lora_forward(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Forward of peft's ``Linear``; what it is now decides whether one node can compute it."""
    name = None if args or kwargs else _only_adapter(self, x)
    if name is None:
        return type(self).forward(self, x, *args, **kwargs)
    result: Any = LoraLinearFunction.apply(
        x,
        self.base_layer.weight,
        self.base_layer.bias,
        self.lora_A[name].weight,
        self.lora_B[name].weight,
        self.scaling[name],
    )
    return result


def _only_adapter(layer: Any, x: Tensor) -> str | None:
    """The one plain adapter that is switched on, or None where there is more to it."""
    if layer.disable_adapters or layer.merged:
        return None
    active = [name for name in layer.active_adapters if name in layer.lora_A]
    if len(active) != 1 or active[0] in getattr(layer, "lora_variant", {}):
        return None
    (name,) = active
    base, low, high = layer.base_layer, layer.lora_A[name], layer.lora_B[name]
    dropout = getattr(layer.lora_dropout[name], "p", 0.0) if layer.training else 0.0
    frozen = not base.weight.requires_grad and (base.bias is None or not base.bias.requires_grad)
    same = x.dtype == base.weight.dtype == low.weight.dtype == high.weight.dtype
    plain = type(base) is nn.Linear and low.bias is None and high.bias is None
    return name if plain and same and frozen and not dropout else None
