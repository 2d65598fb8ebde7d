"""The head of real architectures, taken apart and checked against the models' own logits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tests.models.small_models import IDS, foreign, logits, small
from torch import nn

from trimtab.errors import RecipeError, RunError
from trimtab.models import head as head_module
from trimtab.models.head import LogitHead, check_head
from trimtab.models.logprobs import token_stats

FAMILIES: dict[str, tuple[dict[str, Any], float, float | None]] = {
    "cohere": ({"logit_scale": 0.25, "pad_token_id": 0}, 0.25, None),
    "granite": ({"logits_scaling": 4.0}, 0.25, None),
    "gemma2": ({"final_logit_softcapping": 1.5, "head_dim": 8}, 1.0, 1.5),
    "gemma3_text": ({"final_logit_softcapping": 1.5, "head_dim": 8}, 1.0, 1.5),
    "phi": ({}, 1.0, None),
    "gptj": ({"n_embd": 16, "n_layer": 2, "n_head": 2, "rotary_dim": 4}, 1.0, None),
}


def family(name: str) -> Any:
    settings = dict(FAMILIES[name][0])
    model = foreign(name, **settings)
    with torch.no_grad():
        for parameter in model.parameters():  # biases start at 0, which would hide a lost one
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("name", FAMILIES)
def test_families(name: str) -> None:
    model = family(name)
    head = LogitHead.of(model)
    assert (head.scale, head.softcap) == FAMILIES[name][1:]
    assert (head.bias is not None) == (name in ("phi", "gptj"))
    check = check_head(model, IDS)
    assert check.tokens == len(IDS) - 1
    assert check.difference < 1e-5


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3", "gpt2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_our_own_families(name: str, dtype: torch.dtype) -> None:
    model = small(name, dtype=dtype)
    assert check_head(model, IDS).difference < (1e-5 if dtype != torch.bfloat16 else 1e-2)
    embedding = model.get_input_embeddings().weight
    assert (LogitHead.of(model).weight is embedding) == (name != "llama")


@pytest.mark.parametrize("name", ["cohere", "granite"])
def test_check_rejects_missing_scale(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head_module, "_SCALES", {})
    with pytest.raises(RunError, match="are not its output head"):
        check_head(family(name), IDS)


def test_check_rejects_inverted_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(head_module._SCALES, "granite", ("logits_scaling", "multiply"))
    with pytest.raises(RunError, match="are not its output head"):
        check_head(family("granite"), IDS)


@pytest.mark.parametrize("name", ["gemma2", "gemma3_text"])
def test_check_rejects_missing_softcap(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head_module, "_SOFTCAPS", ())
    with pytest.raises(RunError, match="are not its output head"):
        check_head(family(name), IDS)


def test_head_logits_are_the_models() -> None:
    model = family("gemma2")
    seen: list[torch.Tensor] = []
    hook = model.lm_head.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    own = logits(model)
    hook.remove()
    torch.testing.assert_close(LogitHead.of(model).logits(seen[0][0]), own)


def test_unknown_heads_are_refused() -> None:
    class Packed(nn.Linear):
        """Stands for bitsandbytes' 4-bit linear, a subclass whose weight is not [V, d]."""

    model = small("llama")
    model.lm_head = Packed(16, 280)
    with pytest.raises(RecipeError, match="output head is a Packed"):
        LogitHead.of(model)


# --- adapters -------------------------------------------------------------------------------------


def adapted(**settings: Any) -> Any:
    model = get_peft_model(
        small("llama"),
        LoraConfig(r=4, task_type="CAUSAL_LM", **{"target_modules": ["q_proj"], **settings}),
    )
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    "settings",
    [{}, {"target_modules": ["q_proj", "lm_head"]}, {"modules_to_save": ["lm_head"]}],
    ids=["body", "lora-head", "saved-head"],
)
def test_peft_models(settings: dict[str, Any]) -> None:
    model = adapted(**settings)
    assert check_head(model, IDS).difference < 1e-5
    trained = LogitHead.of(model)
    with model.disable_adapter():
        assert check_head(model, IDS).difference < 1e-5
        frozen = LogitHead.of(model)
    assert torch.equal(trained.weight, frozen.weight) == (settings == {})
    assert trained.trains == (settings != {})
    assert not frozen.trains


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_lora_on_the_head_gets_its_gradients() -> None:
    model = adapted(target_modules=["lm_head"])
    hidden = torch.randn(5, 16)
    targets = torch.arange(5)
    token_stats(hidden, LogitHead.of(model), targets).logp.sum().backward()
    layer = model.get_base_model().lm_head
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    fused = [a.grad.clone(), b.grad.clone()]
    model.zero_grad()
    layer(hidden).log_softmax(-1).gather(1, targets[:, None]).sum().backward()
    torch.testing.assert_close(fused[0], a.grad, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(fused[1], b.grad, rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_lora_dropout_on_the_head_is_refused() -> None:
    model = adapted(target_modules=["lm_head"], lora_dropout=0.1)
    LogitHead.of(model.eval())
    with pytest.raises(RecipeError, match=r"lora_target_modules: .* dropout 0.1"):
        LogitHead.of(model.train())
    with pytest.raises(RecipeError, match="LoRA variant"):
        LogitHead.of(adapted(target_modules=["lm_head"], use_dora=True))
