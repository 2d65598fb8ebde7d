"""Optimizers of torch over named fp32 masters, and their state as plain named tensors."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


def build_optimizer(
    parameters: Mapping[str, nn.Parameter],
    *,
    name: str,
    weight_decay: float,
    betas: tuple[float, float] = (0.9, 0.999),
    epsilon: float = 1e-8,
    rate_factors: Mapping[str, float] | None = None,
) -> torch.optim.Optimizer:
    """``adamw``, ``rmsprop`` or ``sgd``; biases and norms (tensors of one axis) do not decay.

    The learning rate is set before every step by the loop, from the schedule: times a factor where
    ``rate_factors`` has one for how a parameter's name begins.
    """
    members: dict[tuple[float, float], list[nn.Parameter]] = {}
    for factor in (1.0, *(rate_factors or {}).values()):
        members |= {(weight_decay, factor): [], (0.0, factor): []}
    for label, parameter in parameters.items():
        found = [f for start, f in (rate_factors or {}).items() if label.startswith(start)]
        decay = weight_decay if parameter.ndim >= 2 else 0.0
        members[decay, found[0] if found else 1.0].append(parameter)
    groups = [
        {"params": some, "weight_decay": decay, "rate_factor": factor}
        for (decay, factor), some in members.items()
        if some
    ]
    if name == "adamw":
        fused = all(p.device.type in ("cpu", "cuda", "mps") for p in parameters.values())
        return torch.optim.AdamW(groups, lr=0.0, betas=betas, eps=epsilon, fused=fused)
    if name == "rmsprop":
        return torch.optim.RMSprop(groups, lr=0.0, eps=epsilon)
    assert name == "sgd", f"unknown optimizer {name!r}"
    return torch.optim.SGD(groups, lr=0.0)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the rate of all groups, each times its factor."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["rate_factor"]


def optimizer_tensors(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]
) -> dict[str, Tensor]:
    """The state as ``<parameter>//<slot>`` -> tensor; counters are tensors too."""
    found: dict[str, Tensor] = {}
    for name, parameter in parameters.items():
        for slot, value in optimizer.state.get(parameter, {}).items():
            found[f"{name}//{slot}"] = torch.as_tensor(value).detach()
    return found


def load_optimizer_tensors(
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[str, nn.Parameter],
    tensors: Mapping[str, Tensor],
) -> None:
    """Put back what ``optimizer_tensors`` gave."""
    state: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        name, _, slot = key.rpartition("//")
        state.setdefault(name, {})[slot] = tensor
    assert state.keys() <= parameters.keys(), "the optimizer state is of other parameters"
    for name, slots in state.items():
        parameter = parameters[name]
        # Moments live beside their parameter; so do counters, but of the plain (unfused) kernels.
        fused = bool(optimizer.defaults.get("fused"))
        optimizer.state[parameter] = {
            slot: value.clone() if value.ndim == 0 and not fused else value.to(parameter.device)
            for slot, value in slots.items()
        }
