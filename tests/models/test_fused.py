"""Fused norms and gates against the modules that they replace: values, gradients, who gets them."""

from __future__ import annotations

import copy
from typing import Any

import peft
import pytest
import torch
from tests.models.small_models import IDS, logits, small
from torch import Tensor, nn
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaConfig, LlamaMLP, LlamaRMSNorm

from trimtab.models.fused import (
    GatedSiLUFunction,
    RMSNormFunction,
    install_fused,
    uninstall_fused,
)
from trimtab.models.fused_lora import LoraLinearFunction

WIDTH = 48


def norm(kind: type[nn.Module]) -> nn.Module:
    torch.manual_seed(1)
    module = kind(WIDTH, 1e-5)  # type: ignore[call-arg]
    nn.init.normal_(module.weight, 0.7, 0.3)  # type: ignore[arg-type]
    return module


def gated() -> nn.Module:
    torch.manual_seed(1)
    return LlamaMLP(LlamaConfig(hidden_size=WIDTH, intermediate_size=96, num_attention_heads=4))


MAKERS = {
    "llama": lambda: norm(LlamaRMSNorm),
    "gemma": lambda: norm(GemmaRMSNorm),
    "gated": gated,
}


def run(module: nn.Module, x: Tensor) -> list[Tensor]:
    x = x.clone().requires_grad_()
    weight = torch.linspace(-1, 2, x.numel()).view_as(x).to(x.dtype)
    y = module(x)
    found = torch.autograd.grad((y * weight).sum(), [x, *module.parameters()])
    return [y.detach(), *found]


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.float64, 1e-6), (torch.bfloat16, 2e-2)]
)
def test_equals_the_module(name: str, dtype: torch.dtype, tolerance: float) -> None:
    """Forward and gradients; in fp64 as far as the module's own fp32 norm allows."""
    module = MAKERS[name]().to(dtype)
    x = torch.randn(2, 5, WIDTH, generator=torch.Generator().manual_seed(2)).to(dtype)
    expected = run(module, x)
    assert install_fused(module) == 1
    found = run(module, x)
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        assert (a - b).double().norm() <= tolerance * b.double().norm()
    uninstall_fused(module)
    assert all(torch.equal(a, b) for a, b in zip(run(module, x), expected, strict=True))


@pytest.mark.parametrize("gemma", [False, True])
def test_norm_by_finite_differences(gemma: bool) -> None:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(3, 7, generator=generator, dtype=torch.float64, requires_grad=True)
    w = torch.randn(7, generator=generator, dtype=torch.float64, requires_grad=True)

    def function(x: Tensor, w: Tensor) -> Any:
        return RMSNormFunction.apply(x, w, 1e-3, gemma)

    assert torch.autograd.gradcheck(function, (x, w))
    assert torch.autograd.gradcheck(function, (x, w.detach()))  # a frozen weight


def test_gate_by_finite_differences() -> None:
    generator = torch.Generator().manual_seed(4)
    gate, up = (
        torch.randn(3, 7, generator=generator, dtype=torch.float64, requires_grad=True)
        for _ in range(2)
    )
    assert torch.autograd.gradcheck(GatedSiLUFunction.apply, (gate, up))


def test_rejects_a_norm_without_its_mean_term() -> None:
    """The wrong variant: a gradient that takes the rms for a constant fails the comparison."""
    module = norm(LlamaRMSNorm)
    x = torch.randn(2, 5, WIDTH, generator=torch.Generator().manual_seed(2), requires_grad=True)
    y: Any = RMSNormFunction.apply(x, module.weight, 1e-5, False)
    (right,) = torch.autograd.grad(y.sum(), x)
    inverse = (x.square().mean(-1, keepdim=True) + 1e-5).rsqrt()
    wrong = inverse * module.weight  # type: ignore[operator]
    assert (wrong - right).norm() > 0.05 * right.norm()


class Scaled(nn.Module):
    """A norm of the same name and attributes that computes something else."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(WIDTH))
        self.variance_epsilon = 1e-5

    def forward(self, hidden_states: Tensor) -> Tensor:
        return 2 * self.weight * hidden_states


def test_other_modules_are_left_alone() -> None:
    gelu = LlamaMLP(
        LlamaConfig(
            hidden_size=WIDTH, intermediate_size=96, num_attention_heads=4, hidden_act="gelu"
        )
    )
    assert install_fused(nn.ModuleList([Scaled(), gelu, nn.LayerNorm(WIDTH)])) == 0


@pytest.mark.parametrize(
    ("architecture", "count"),
    [("llama", 3), ("qwen3", 5), ("gemma3", 6), ("gpt2", 0)],
)
def test_architectures(architecture: str, count: int) -> None:
    """Per layer: norms, query and key norms, and the gate where it is a SiLU; one norm at last."""
    model = small(architecture)
    layers = model.config.num_hidden_layers
    assert install_fused(model) == (count * layers + 1 if count else 0)
    assert install_fused(model) == (count * layers + 1 if count else 0)  # twice is once
    uninstall_fused(model)
    assert not any("forward" in vars(module) for module in model.modules())


def adapted(dtype: torch.dtype = torch.float64, **settings: Any) -> Any:
    """A model of two layers with adapters that are not zero."""
    torch.manual_seed(5)
    config = peft.LoraConfig(
        r=3, lora_alpha=5, target_modules="all-linear", init_lora_weights=False, **settings
    )
    base = small("llama", dtype=dtype)
    return peft.get_peft_model(base, config, autocast_adapter_dtype=False).to(dtype).train()


def logits_and_gradients(model: Any) -> list[Tensor]:
    model.zero_grad()
    out = model(input_ids=IDS[None], use_cache=False).logits
    out.square().mean().backward()
    found = [p.grad for p in model.parameters() if p.grad is not None]
    return [out.detach(), *(g.clone() for g in found)]


@pytest.mark.filterwarnings("ignore::FutureWarning")  # PEFT uses a deprecated property
@pytest.mark.parametrize("settings", [{}, {"use_dora": True}])
def test_adapters_equal_peft(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain LoRA through one node, variants through peft's own forward; switched off, none."""
    calls: list[int] = []
    apply = LoraLinearFunction.apply
    monkeypatch.setattr(LoraLinearFunction, "apply", lambda *a: calls.append(1) or apply(*a))
    model = adapted(**settings)
    expected = logits_and_gradients(model)
    base = model.get_base_model()
    assert install_fused(base) > 14
    found = logits_and_gradients(model)
    assert len(calls) == (0 if settings else 14)  # seven linear layers in each of two
    for a, b in zip(found, expected, strict=True):
        # The norms are fused too, and transformers' own are fp32.
        assert (a - b).norm() <= 5e-6 * b.norm()
    calls.clear()
    with model.disable_adapter(), torch.no_grad():
        off = model(input_ids=IDS[None], use_cache=False).logits
    assert not calls and (off - found[0]).abs().max() > 1e-3
    uninstall_fused(base)
    assert not any("forward" in vars(module) for module in base.modules())


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_dropout_goes_through_peft(monkeypatch: pytest.MonkeyPatch) -> None:
    def unexpected(*_: Any) -> None:
        raise AssertionError("dropout is not in the node")

    monkeypatch.setattr(LoraLinearFunction, "apply", unexpected)
    model = adapted(lora_dropout=0.5)
    install_fused(model.get_base_model())
    logits_and_gradients(model)


def test_lora_by_finite_differences() -> None:
    generator = torch.Generator().manual_seed(6)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    x, a, b = (draw(*shape).requires_grad_() for shape in ((2, 3, 5), (2, 5), (4, 2)))
    weight, bias = draw(4, 5), draw(4)

    def function(x: Tensor, a: Tensor, b: Tensor) -> Any:
        return LoraLinearFunction.apply(x, weight, bias, a, b, 0.7)

    assert torch.autograd.gradcheck(function, (x, a, b))
    expected = x @ weight.T + bias + 0.7 * (x @ a.T @ b.T)
    torch.testing.assert_close(function(x, a, b), expected, rtol=1e-12, atol=1e-12)


def test_copies_have_their_own() -> None:
    """A deep copy (a frozen reference) computes with its own weights, and a second backward too."""
    model = small("llama")
    install_fused(model)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.mul_(1.5)
        assert not torch.equal(logits(model), logits(twin))
    uninstall_fused(twin)
    assert any("forward" in vars(module) for module in model.modules())
    out = model(input_ids=IDS[None], use_cache=False).logits.square().mean()
    leaf = model.model.layers[0].mlp.gate_proj.weight
    (first,) = torch.autograd.grad(out, leaf, retain_graph=True)
    (second,) = torch.autograd.grad(out, leaf)
    assert torch.equal(first, second)
