"""Smaller backbones: the first layers are the model's own, narrow copies keep what is largest."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.tiny_models import tiny_model

from trimtab.errors import RecipeError
from trimtab.models import cut

IDS = torch.tensor([[5, 6, 7, 8, 9, 10]])


def hidden(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.base_model(IDS).last_hidden_state


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3_text", "gpt2"])
def test_first_layers_compute_what_they_did(name: str) -> None:
    model: Any = tiny_model(name, seed=1)
    base = model.base_model
    with torch.no_grad():
        inner = model.base_model(IDS, output_hidden_states=True).hidden_states[2]
        norm = base.ln_f if name == "gpt2" else base.norm
        expected = norm(inner)
    small = cut.keep_first_layers(model, 2)
    assert torch.allclose(hidden(small), expected, atol=1e-6)
    assert small.config.num_hidden_layers == 2
    assert len(getattr(small.config, "layer_types", None) or [0, 0]) == 2


def test_last_layers_are_rejected() -> None:
    """The wrong variant: the last two instead of the first two."""
    model: Any = tiny_model("llama", seed=1)
    first = hidden(cut.keep_first_layers(tiny_model("llama", seed=1), 2))
    model.base_model.layers = model.base_model.layers[1:]
    assert not torch.allclose(hidden(model), first, atol=1e-2)


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3_text"])
def test_full_sizes_are_the_same_model(name: str) -> None:
    model: Any = tiny_model(name, seed=2)
    sizes = {n: getattr(model.config, n) for n in cut.WIDTHS}
    assert torch.equal(hidden(cut.narrow(model, sizes)), hidden(model))


@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_what_does_nothing_can_be_cut(name: str) -> None:
    """Neurons and heads that write nothing leave with no change at all."""
    model: Any = tiny_model(name, seed=3)
    idle, alive = torch.arange(0, 48, 4), torch.arange(48)
    with torch.no_grad():
        for layer in model.base_model.layers:
            layer.mlp.down_proj.weight[:, idle] = 0.0
            layer.self_attn.v_proj.weight[:8] = 0.0  # the first key head, of width 8
            layer.self_attn.o_proj.weight[:, :16] = 0.0  # its two query heads
    small = cut.narrow(model, {"intermediate_size": 36, "num_attention_heads": 2})
    assert torch.allclose(hidden(small), hidden(model), atol=1e-5)
    assert len(alive) - len(idle) == small.config.intermediate_size
    other = cut.narrow(model, {"intermediate_size": 35, "num_attention_heads": 2})
    assert not torch.allclose(hidden(other), hidden(model), atol=1e-3)


def test_the_largest_channels_stay() -> None:
    """Channels that nothing writes to are dropped: RMSNorm alone sees the new width."""
    model: Any = tiny_model("llama", seed=4, tie_word_embeddings=True)
    idle = torch.arange(1, 32, 4)
    kept = torch.tensor([i for i in range(32) if i % 4 != 1])
    with torch.no_grad():
        model.base_model.embed_tokens.weight[:, idle] = 0.0
        for layer in model.base_model.layers:
            layer.self_attn.o_proj.weight[idle] = 0.0
            layer.mlp.down_proj.weight[idle] = 0.0
    small = cut.narrow(model, {"hidden_size": 24})
    with torch.no_grad():  # mean of squares over 24 channels instead of 32
        for module in small.modules():
            if type(module).__name__ == "LlamaRMSNorm":
                module.weight.mul_((32 / 24) ** 0.5)
                module.variance_epsilon *= 32 / 24
    found = hidden(small)
    assert torch.allclose(found, hidden(model)[..., kept], atol=1e-5)


@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3_text"])
def test_fit_keeps_its_share(name: str, share: float) -> None:
    model: Any = tiny_model(name, seed=0, num_hidden_layers=3)
    whole = cut.parameter_count(model)
    depth, sizes = cut.fit(model, share)
    model = cut.keep_first_layers(model, depth)
    if sizes:
        model = cut.narrow(model, sizes)
    kept = cut.parameter_count(cut.backbone(model))
    assert 0.5 * share * whole < kept <= share * whole


def test_fit_prefers_layers_and_takes_all_of_them_for_everything() -> None:
    deep: Any = tiny_model("llama", num_hidden_layers=12, seed=0)
    depth, sizes = cut.fit(deep, 0.5)
    assert 4 <= depth < 12 and not sizes
    assert cut.fit(deep, 1.0) == (12, {})


def test_refusals_name_the_key() -> None:
    with pytest.raises(RecipeError, match=r"backbone.num_hidden_layers=9: the model has 3"):
        cut.keep_first_layers(tiny_model("llama"), 9)
    with pytest.raises(RecipeError, match=r"backbone.hidden_size=999: the model has 32"):
        cut.narrow(tiny_model("llama"), {"hidden_size": 999})
    with pytest.raises(RecipeError, match=r"must be a multiple of 2"):
        cut.narrow(tiny_model("llama"), {"num_attention_heads": 3})
    with pytest.raises(RecipeError, match=r"widths of GPT2LMHeadModel cannot be cut"):
        cut.narrow(tiny_model("gpt2"), {"hidden_size": 16})
