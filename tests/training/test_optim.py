"""Optimizer state as named tensors: what is put back continues with the same bits."""

import pytest
import torch
from torch import nn

from trimtab.training.optim import (
    build_optimizer,
    load_optimizer_tensors,
    optimizer_tensors,
    set_learning_rate,
)


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 2))


def step(net: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    x = torch.randn(16, 4, generator=torch.Generator().manual_seed(seed))
    optimizer.zero_grad()
    net(x).square().mean().backward()
    set_learning_rate(optimizer, 1e-2)
    optimizer.step()


@pytest.mark.parametrize("name", ["adamw", "rmsprop", "sgd"])
def test_state_round_trip_is_bit_exact(name: str) -> None:
    net = model()
    optimizer = build_optimizer(dict(net.named_parameters()), name=name, weight_decay=0.1)
    for seed in range(3):
        step(net, optimizer, seed)
    saved = {
        k: v.clone() for k, v in optimizer_tensors(optimizer, dict(net.named_parameters())).items()
    }
    weights = {k: v.clone() for k, v in net.state_dict().items()}
    for seed in range(3, 6):
        step(net, optimizer, seed)

    other = model()
    other.load_state_dict(weights)
    resumed = build_optimizer(dict(other.named_parameters()), name=name, weight_decay=0.1)
    load_optimizer_tensors(resumed, dict(other.named_parameters()), saved)
    for seed in range(3, 6):
        step(other, resumed, seed)
    for key, value in net.state_dict().items():
        assert torch.equal(value, other.state_dict()[key]), key


def test_forgetting_the_state_is_noticed() -> None:
    """The wrong variant of the test above: without the moments the weights differ."""
    net, other = model(), model()
    optimizers = []
    for one in (net, other):
        optimizer = build_optimizer(dict(one.named_parameters()), name="adamw", weight_decay=0.0)
        step(one, optimizer, 0)
        optimizers.append(optimizer)
    optimizers[1] = build_optimizer(dict(other.named_parameters()), name="adamw", weight_decay=0.0)
    step(net, optimizers[0], 1)
    step(other, optimizers[1], 1)
    assert not torch.equal(net[0].weight, other[0].weight)


def test_norms_and_biases_do_not_decay() -> None:
    net = model()
    optimizer = build_optimizer(dict(net.named_parameters()), name="adamw", weight_decay=0.5)
    decay = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    assert decay[id(net[0].weight)] == 0.5
    assert decay[id(net[0].bias)] == decay[id(net[1].weight)] == 0.0


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_a_part_with_a_rate_of_its_own(name: str) -> None:
    """Its first step is that many times as long, and nothing else's is."""
    moved: list[dict[str, torch.Tensor]] = []
    for factors in ({}, {"0.": 10.0}):
        net = model()
        before = {k: v.clone() for k, v in net.named_parameters()}
        optimizer = build_optimizer(
            dict(net.named_parameters()), name=name, weight_decay=0.0, rate_factors=factors
        )
        step(net, optimizer, 0)
        moved.append({k: v.detach() - before[k] for k, v in net.named_parameters()})
    plain, faster = moved
    assert any(key.startswith("0.") for key in plain) and any(key[0] != "0" for key in plain)
    for key, value in plain.items():
        factor = 10.0 if key.startswith("0.") else 1.0
        assert torch.allclose(faster[key], factor * value, atol=1e-6), key
