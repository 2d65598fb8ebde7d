"""RMSNorm, the gated SiLU and LoRA as one node each, with backward passes of their own.

transformers writes both as chains of small operations, and autograd keeps what lies between them:
of a Llama layer that is a third of all that is kept for the backward pass, written once and read
once more than needed. Here the norm keeps its input and one number a token, the gate its two
inputs.

``install_fused`` puts them into the modules whose forward is, instruction for instruction, the one
that is replaced (most architectures of transformers share Llama's), and leaves all others alone.
``attention.install`` calls it and ``plain_attention`` undoes it, so that the canary and the
self-check compare with the model as its authors wrote it.

Shapes: [..., d] activations, [d] weight of a norm.
"""

from __future__ import annotations

import inspect
import types
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm

from trimtab.models.attention_kernels import compute_dtype
from trimtab.models.fused_lora import is_lora_linear, lora_forward


class RMSNormFunction(torch.autograd.Function):
    """y = w * x / sqrt(mean(x^2) + eps) (arXiv:1910.07467, eq. 4), or (1 + w) * ... for Gemma.

    Computed in fp32 (fp64 for fp64). Llama rounds x / rms to the working dtype before it is
    multiplied by the weight, Gemma after; so does this.
    """

    @staticmethod
    def forward(  # noqa: D102
        ctx: Any, x: Tensor, weight: Tensor, eps: float, gemma: bool
    ) -> Tensor:
        dtype = compute_dtype(x.dtype)
        wide = x.to(dtype)
        # Not vector_norm: it sums one after the other, and is the less exact for it.
        inverse = wide.square().mean(-1, keepdim=True).add_(eps).rsqrt_()
        y = wide * inverse
        ctx.save_for_backward(x, weight, inverse)
        ctx.gemma = gemma
        if gemma:
            return y.mul_(weight.to(dtype) + 1).to(x.dtype)
        return y.mul_(weight) if x.dtype == weight.dtype == dtype else weight * y.to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # noqa: D102
        x, weight, inverse = ctx.saved_tensors
        dtype, size = inverse.dtype, x.shape[-1]
        wide, factor = x.to(dtype), weight.to(dtype) + (1 if ctx.gemma else 0)
        g = gradient.to(dtype)
        of_product = (wide * inverse).mul_(g)
        of_weight = None
        if ctx.needs_input_grad[1]:
            of_weight = of_product.reshape(-1, size).sum(0).to(weight.dtype)
        if not ctx.needs_input_grad[0]:
            return None, of_weight, None, None
        # d x = inverse * (g w - xhat * mean(g w xhat)) with xhat = x * inverse
        mean = (of_product @ factor).div_(size)[..., None]
        of_x = (g * inverse).mul_(factor).addcmul_(wide, mean.mul_(inverse.square()), value=-1)
        return of_x.to(x.dtype), of_weight, None, None


class GatedSiLUFunction(torch.autograd.Function):
    """silu(gate) * up (SwiGLU, arXiv:2002.05202); silu is made again in the backward pass."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:  # noqa: D102
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:  # noqa: D102
        gate, up = ctx.saved_tensors
        of_up = F.silu(gate).mul_(gradient)
        of_gate = torch.ops.aten.silu_backward.default(gradient * up, gate)
        return of_gate, of_up


def _llama_norm(self: Any, hidden_states: Tensor) -> Tensor:
    result: Any = RMSNormFunction.apply(hidden_states, self.weight, self.variance_epsilon, False)
    return result


def _gemma_norm(self: Any, x: Tensor) -> Tensor:
    result: Any = RMSNormFunction.apply(x, self.weight, self.eps, True)
    return result


def _gated_mlp(self: Any, x: Tensor) -> Tensor:
    return self.down_proj(GatedSiLUFunction.apply(self.gate_proj(x), self.up_proj(x)))


_REPLACED = (
    (LlamaRMSNorm, _llama_norm),
    (GemmaRMSNorm, _gemma_norm),
    (LlamaMLP, _gated_mlp),
)


_OURS = frozenset({lora_forward, *(fused for _, fused in _REPLACED)})


def install_fused(model: nn.Module) -> int:
    """Replace the forward of every module that has one of the known; returns how many have it."""
    count = 0
    for module in model.modules():
        if "forward" in vars(module):
            count += getattr(module.forward, "__func__", None) in _OURS
            continue
        fused = _fused_forward(module)
        if fused is not None:
            module.forward = types.MethodType(fused, module)
            count += 1
    return count


def uninstall_fused(model: nn.Module) -> None:
    """Give every module its own forward back."""
    for module in model.modules():
        if getattr(vars(module).get("forward"), "__func__", None) in _OURS:
            del module.forward


def _fused_forward(module: nn.Module) -> Any | None:
    if is_lora_linear(module):
        return lora_forward
    for original, fused in _REPLACED:
        if not same_code(type(module), original, "forward"):
            continue
        if original is LlamaMLP and not _is_silu(module.act_fn):
            continue
        # A Gemma norm keeps its arithmetic in a second method.
        if original is GemmaRMSNorm and not same_code(type(module), original, "_norm"):
            continue
        return fused
    return None


def same_code(one: type, other: type, method: str) -> bool:
    """Whether two classes have, instruction for instruction, the same method below decorators."""
    codes = []
    for kind in (one, other):
        function = getattr(kind, method, None)
        code = getattr(function and inspect.unwrap(function), "__code__", None)
        if code is None:
            return False
        codes.append((code.co_code, code.co_names, code.co_consts))
    return codes[0] == codes[1]


def _is_silu(activation: Any) -> bool:
    return isinstance(activation, nn.SiLU) or type(activation).__name__ == "SiLUActivation"
