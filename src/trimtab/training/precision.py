"""Precision: fp32 masters and fp32 gradients always, bf16 working weights where bf16 is chosen.

The forward and backward passes run in the working dtype; gradients are added up over micro-batches
in fp32, the optimizer updates fp32 masters, and the working weights are cast from them once per
optimizer step. Pure bf16 weights would round small updates away (an update below |w| / 256 is
lost, which is most of them at a learning rate of 1e-6), and autocast would cast every weight in
every call.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn


class PrecisionChoice(NamedTuple):
    """The working dtype and, in words, why it was taken."""

    name: str
    dtype: torch.dtype
    reason: str


def wait_for(device: torch.device) -> None:
    """Return when all work that was given to a device is done: a clock tells nothing before."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def gemm_rate(dtype: torch.dtype, device: torch.device, width: int, *, tokens: int = 512) -> float:
    """Measured rate of a dense layer (``tokens``, width -> 4 width), in GFLOP/s."""
    out = 4 * width
    x = torch.randn(tokens, width, device=device).to(dtype)
    weight = torch.randn(out, width, device=device).to(dtype)
    best = float("inf")
    began = time.perf_counter()
    tried = 0
    # The first ones wake threads, and other programs come between: a tenth of a second settles it.
    while tried < 6 or (tried < 200 and time.perf_counter() - began < 0.1):
        tried += 1
        start = time.perf_counter()
        y = nn.functional.linear(x, weight)
        wait_for(device)
        best = min(best, time.perf_counter() - start)
        del y
    return 2 * tokens * width * out / best / 1e9


def choose_precision(requested: str, device: torch.device, width: int) -> PrecisionChoice:
    """``fp32``, ``bf16``, or ``auto``: bf16 where its products run at least 1.5 times as fast."""
    if requested == "fp32":
        return PrecisionChoice("fp32", torch.float32, "asked for")
    if requested == "bf16":
        return PrecisionChoice("bf16", torch.bfloat16, "asked for" + _warning(device))
    full = gemm_rate(torch.float32, device, width)
    half = gemm_rate(torch.bfloat16, device, width)
    name = "bf16" if half >= 1.5 * full else "fp32"
    reason = f"measured {full:.0f} GFLOP/s in fp32, {half:.0f} in bf16 at width {width}"
    return PrecisionChoice(name, torch.bfloat16 if name == "bf16" else torch.float32, reason)


def _warning(device: torch.device) -> str:
    """What to know where bf16 was asked for: without instructions for it a CPU crawls."""
    if device.type != "cpu":
        return ""
    full, half = (gemm_rate(x, device, 256, tokens=64) for x in (torch.float32, torch.bfloat16))
    if 1.5 * half >= full:  # a small product: what is near may be the call's own cost
        return ""
    return f", though fp32 is {full / half:.1f} times as fast here: consider precision=auto"


class MasterWeights:
    """The trainable weights of a model in fp32, and the fp32 gradients that the optimizer sees.

    With an fp32 model the masters *are* its parameters. Otherwise a hook moves every gradient into
    the master's fp32 one as soon as it is complete, so that low-precision gradients never add up.
    """

    def __init__(self, model: nn.Module) -> None:
        self.working: dict[str, nn.Parameter] = {
            name: p for name, p in model.named_parameters() if p.requires_grad
        }
        self.masters: dict[str, nn.Parameter] = {}
        for name, parameter in self.working.items():
            if parameter.dtype == torch.float32 or parameter.dtype == torch.float64:
                self.masters[name] = parameter
                continue
            master = nn.Parameter(parameter.detach().to(torch.float32, copy=True))
            self.masters[name] = master
            parameter.register_post_accumulate_grad_hook(_mover(master))

    def __iter__(self) -> Iterator[tuple[str, nn.Parameter]]:
        return iter(self.masters.items())

    def cast_to_working(self) -> None:
        """Cast the masters into the working weights; once per optimizer step."""
        with torch.no_grad():
            for name, master in self.masters.items():
                if master is not self.working[name]:
                    self.working[name].copy_(master)

    def clear_gradients(self) -> None:
        """Forget all gradients."""
        for name, master in self.masters.items():
            master.grad = None
            self.working[name].grad = None

    def gradient_norm(self) -> Tensor:
        """Global L2 norm of the gradients, a scalar; weights without a gradient count as zero."""
        gradients = [m.grad for m in self.masters.values() if m.grad is not None]
        return torch.nn.utils.get_total_norm(gradients)

    def clip(self, norm: Tensor, max_norm: float) -> None:
        """Scale all gradients so that their global norm is at most ``max_norm``."""
        torch.nn.utils.clip_grads_with_norm_(list(self.masters.values()), max_norm, norm)

    def tensors(self) -> dict[str, Tensor]:
        """The masters by parameter name, for a checkpoint."""
        return {name: master.detach() for name, master in self.masters.items()}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Take the masters of a checkpoint and cast them into the working weights."""
        missing = self.masters.keys() ^ tensors.keys()
        assert not missing, f"the checkpoint's trainable weights differ: {sorted(missing)[:3]}"
        with torch.no_grad():
            for name, master in self.masters.items():
                master.copy_(tensors[name])
        self.cast_to_working()


def _mover(master: nn.Parameter):
    def move(parameter: Tensor) -> None:
        gradient = parameter.grad
        if gradient is None:
            return
        if master.grad is None:
            master.grad = gradient.to(torch.float32)
        else:
            master.grad.add_(gradient)
        parameter.grad = None

    return move
