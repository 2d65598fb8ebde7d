"""fp32 masters under bf16 weights: small updates arrive, gradients add up in fp32."""

import pytest
import torch
from torch import nn

from trimtab.training.optim import build_optimizer, set_learning_rate
from trimtab.training.precision import MasterWeights, choose_precision


def layer(dtype: torch.dtype) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(64, 64, bias=False).to(dtype)


def changed_after(net: nn.Linear, parameters: dict[str, nn.Parameter], after) -> float:
    """Share of weights that ten AdamW steps at 1e-6 change, as seen by the optimizer's weights."""
    optimizer = build_optimizer(parameters, name="adamw", weight_decay=0.0)
    start = {k: p.detach().clone() for k, p in parameters.items()}
    for seed in range(10):
        x = torch.randn(8, 64, generator=torch.Generator().manual_seed(seed)).to(net.weight.dtype)
        net(x).float().square().mean().backward()
        set_learning_rate(optimizer, 1e-6)
        optimizer.step()
        after()
    moved = [(p.detach() != start[k]).float().mean() for k, p in parameters.items()]
    return torch.stack(moved).mean().item()


def test_masters_receive_small_updates() -> None:
    net = layer(torch.bfloat16)
    masters = MasterWeights(net)

    def after() -> None:
        masters.cast_to_working()
        masters.clear_gradients()

    assert changed_after(net, masters.masters, after) > 0.95


def test_pure_bf16_loses_them() -> None:
    """The wrong variant: bf16 weights in the optimizer round most updates of 1e-6 away."""
    net = layer(torch.bfloat16)
    assert changed_after(net, dict(net.named_parameters()), net.zero_grad) < 0.2


def test_gradients_accumulate_in_fp32() -> None:
    net = layer(torch.bfloat16)
    masters = MasterWeights(net)
    x = torch.randn(4, 64).bfloat16()
    expected = torch.zeros(64, 64)
    for scale in (1.0, 1e-3):  # bf16 sums would lose the second one almost everywhere
        (net(x).float().sum() * scale).backward()
        part = (torch.ones(4, 64).bfloat16() * scale).t() @ x
        expected += part.float()
    gradient = masters.masters["weight"].grad
    assert gradient is not None and gradient.dtype == torch.float32
    assert net.weight.grad is None
    torch.testing.assert_close(gradient, expected, rtol=1e-2, atol=1e-3)
    in_bf16 = expected.bfloat16().float()
    assert (gradient - in_bf16).abs().max() > 0


def test_fp32_masters_are_the_parameters() -> None:
    net = layer(torch.float32)
    masters = MasterWeights(net)
    assert masters.masters["weight"] is net.weight


def test_round_trip_casts_to_working() -> None:
    net = layer(torch.bfloat16)
    masters = MasterWeights(net)
    new = torch.randn(64, 64)
    masters.load({"weight": new})
    assert torch.equal(masters.masters["weight"], new)
    assert torch.equal(net.weight, new.bfloat16())


def test_clipping_scales_to_the_norm() -> None:
    net = layer(torch.float32)
    masters = MasterWeights(net)
    net.weight.grad = torch.full((64, 64), 2.0)
    norm = masters.gradient_norm()
    assert norm.item() == pytest.approx(128.0)
    masters.clip(norm, 1.0)
    assert masters.gradient_norm().item() == pytest.approx(1.0, rel=1e-5)


def test_precision_says_why() -> None:
    assert choose_precision("bf16", torch.device("cpu"), 64).dtype == torch.bfloat16
    auto = choose_precision("auto", torch.device("cpu"), 64)
    assert auto.name in ("fp32", "bf16") and "GFLOP/s" in auto.reason


@pytest.mark.parametrize(("half", "expected"), [(2.0, "80.0 times as fast"), (320.0, "asked for")])
def test_slow_bf16_is_said(monkeypatch: pytest.MonkeyPatch, half: float, expected: str) -> None:
    """Asked for by name it is taken all the same, but a CPU without instructions for it crawls."""
    from trimtab.training import precision

    rates = {torch.float32: 160.0, torch.bfloat16: half}
    monkeypatch.setattr(precision, "gemm_rate", lambda dtype, *_, **__: rates[dtype])
    choice = choose_precision("bf16", torch.device("cpu"), 64)
    assert choice.dtype == torch.bfloat16
    assert choice.reason.endswith(expected) or f"{expected} here" in choice.reason
