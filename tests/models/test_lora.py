"""Adapters: the reference is the start of the stage, all of them learn, names are checked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.models.small_models import CONFIGS, IDS, logits, small, tokenizer
from torch import Tensor, nn

from trimtab.errors import RecipeError
from trimtab.models.load import checkpoint_activations, load_model
from trimtab.models.logprobs import LogitHead, token_stats
from trimtab.models.lora import (
    attach,
    continue_adapter,
    reference_context,
    trainable_parameters,
)
from trimtab.models.save import save_model


def logprobs(model: Any) -> Tensor:
    """Fused log-probs of ``IDS``, as training computes them."""
    inner = model.get_base_model()
    hidden = inner.base_model(input_ids=IDS[None], use_cache=False).last_hidden_state[0]
    return token_stats(hidden[:-1], LogitHead.of(model), IDS[1:]).logp


def step(model: Any, rate: float = 0.5) -> None:
    """One step of gradient ascent on the text."""
    model.train()
    logprobs(model).mean().backward()
    with torch.no_grad():
        for parameter in trainable_parameters(model).values():
            assert parameter.grad is not None
            parameter.add_(rate * parameter.grad)
            parameter.grad = None


def sft_adapter(folder: Path, name: str = "llama", **settings: Any) -> Path:
    """A trained adapter on disk, and its base."""
    save_model(small(name), tokenizer(), folder / "base")
    model = attach(load_model(folder / "base"), r=2, seed=3, **settings)
    for _ in range(3):
        step(model)
    save_model(model, tokenizer(), folder / "sft")
    return folder / "sft"


# --- the reference (C1) -------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONFIGS)
def test_fresh_adapter_starts_at_the_base(name: str) -> None:
    plain = logits(small(name))
    model = attach(small(name), r=4, seed=0)
    assert torch.equal(logits(model), plain)
    start = logprobs(model).detach()
    step(model)
    assert not torch.equal(logprobs(model), start)
    with reference_context(model), torch.no_grad():
        assert torch.equal(logprobs(model), start)  # log-ratio exactly 0 against the start


@pytest.mark.parametrize("modules_to_save", [(), ("lm_head",)], ids=["lora", "lora+head"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_continued_adapter_is_measured_from_itself(
    dtype: torch.dtype, modules_to_save: tuple[str, ...], tmp_path: Path
) -> None:
    folder = sft_adapter(tmp_path, modules_to_save=modules_to_save)
    model = continue_adapter(load_model(folder, dtype=dtype))
    start = logprobs(model).detach()
    with reference_context(model), torch.no_grad():
        assert torch.equal(logprobs(model), start)
    for _ in range(2):
        step(model)
    assert (logprobs(model) - start).abs().max() > 1e-3
    with reference_context(model), torch.no_grad():
        assert torch.equal(logprobs(model), start)
    assert torch.equal(logprobs(load_model(folder, dtype=dtype)).detach(), start)


def test_rejects_the_bare_base_as_reference(tmp_path: Path) -> None:
    """What LLaMA-Factory#8459 and TRL#495 did: the log-ratio at step 0 is far from 0."""
    model = continue_adapter(load_model(sft_adapter(tmp_path)))
    policy = logprobs(model).detach()
    with model.disable_adapter(), torch.no_grad():
        bare = logprobs(model)
    assert (policy - bare).abs().mean() > 0.05
    with reference_context(model), torch.no_grad():
        assert (policy - logprobs(model)).abs().max() == 0.0


@pytest.mark.parametrize("continued", [False, True])
def test_reference_context_leaves_everything_as_it_was(continued: bool, tmp_path: Path) -> None:
    folder = sft_adapter(tmp_path, modules_to_save=["lm_head"])
    model = (
        continue_adapter(load_model(folder))
        if continued
        else attach(load_model(tmp_path / "base"), r=2, seed=0, modules_to_save=["lm_head"])
    )
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    before = logprobs(model)
    with pytest.raises(KeyError), reference_context(model):
        raise KeyError
    with reference_context(model), torch.no_grad():
        logprobs(model)
    assert {name: p.requires_grad for name, p in model.named_parameters()} == flags
    before.sum().backward()  # a graph from before the visit still reaches every adapter tensor
    assert all(p.grad is not None for p in trainable_parameters(model).values())
    assert torch.equal(logprobs(model), before)


def test_reference_is_frozen_and_out_of_the_optimizer(tmp_path: Path) -> None:
    model = continue_adapter(load_model(sft_adapter(tmp_path)))
    names = trainable_parameters(model)
    assert names and all(".default." in name for name in names)
    frozen = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
    assert any(".reference." in name for name in frozen)
    step(model)
    for name, parameter in model.named_parameters():
        if name in frozen:
            assert torch.equal(parameter, frozen[name]), name


def test_a_loaded_adapter_has_no_reference_until_continued(tmp_path: Path) -> None:
    model = load_model(sft_adapter(tmp_path))
    with pytest.raises(AssertionError, match="continue_adapter"), reference_context(model):
        pass


# --- gradients (C4) -----------------------------------------------------------------------------


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("name", CONFIGS)
def test_every_adapter_tensor_learns(name: str, checkpointed: bool, tmp_path: Path) -> None:
    model = attach(small(name), r=2, seed=0)
    if checkpointed:
        checkpoint_activations(model)
    step(model)  # B starts at 0, so A's gradient is 0 in the first step and only there
    model.train()
    logprobs(model).sum().backward()
    for key, parameter in trainable_parameters(model).items():
        assert parameter.grad is not None and parameter.grad.any(), key
    assert all(p.grad is None for p in model.parameters() if not p.requires_grad)


def test_checkpointing_changes_no_adapter_gradient() -> None:
    grads = []
    for checkpointed in (False, True):
        model = attach(small("llama"), r=2, seed=0)
        if checkpointed:
            checkpoint_activations(model)
        step(model)
        logprobs(model.train()).sum().backward()
        grads.append([p.grad for p in trainable_parameters(model).values()])
    for a, b in zip(*grads, strict=True):
        assert a is not None and torch.equal(a, b)


def test_rejects_reentrant_checkpointing() -> None:
    """The kind that PEFT#1142 is about: without gradients at the embeddings nothing learns."""
    model = attach(small("llama"), r=2, seed=0).train()
    inner = model.get_base_model()
    inner._set_gradient_checkpointing(
        True,
        lambda f, *args, **kw: (
            torch.utils.checkpoint.checkpoint(f, *args, use_reentrant=True, **kw)
            if not kw
            else torch.utils.checkpoint.checkpoint(
                lambda *a: f(*a, **kw), *args, use_reentrant=True
            )
        ),
    )
    with pytest.warns(UserWarning, match="None of the inputs have requires_grad"):
        logp = logprobs(model)
    assert not logp.requires_grad


# --- making them ----------------------------------------------------------------------------------


def test_fresh_adapters_depend_on_the_seed_alone() -> None:
    def weights(seed: int) -> list[Tensor]:
        return [
            p.detach()
            for p in trainable_parameters(attach(small("llama"), r=2, seed=seed)).values()
        ]

    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    first = weights(0)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(2)
    assert all(torch.equal(a, b) for a, b in zip(first, weights(0), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, weights(1), strict=True))


def test_all_linear_is_every_matrix_but_the_head() -> None:
    model = attach(small("llama"), r=2, seed=0, target_modules=["all-linear"])
    adapted = {n.split(".lora_A")[0] for n in trainable_parameters(model) if ".lora_A" in n}
    linear = {
        f"base_model.model.{n}"
        for n, m in small("llama").named_modules()
        if isinstance(m, nn.Linear) and n != "lm_head"
    }
    assert adapted == linear


def test_adapter_has_the_models_dtype() -> None:
    model = attach(small("llama", dtype=torch.bfloat16), r=2, seed=0, modules_to_save=["lm_head"])
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def test_scale_is_alpha_over_r() -> None:
    model = attach(small("llama"), r=4, alpha=10, seed=0, target_modules=["q_proj"])
    layer = model.get_base_model().model.layers[0].self_attn.q_proj
    nn.init.ones_(layer.lora_B["default"].weight)
    x = torch.randn(3, 16)
    added = layer(x) - layer.base_layer(x)
    wanted = 10 / 4 * (x @ layer.lora_A["default"].weight.T).sum(-1, keepdim=True)
    torch.testing.assert_close(added, wanted.expand_as(added))


def test_dropout_acts_only_while_training_and_only_where_asked(tmp_path: Path) -> None:
    def noisy(model: Any) -> bool:
        model.train()
        return not torch.equal(logprobs(model), logprobs(model))

    model = attach(small("llama"), r=2, seed=0, dropout=0.5)
    step(model)
    assert noisy(model) and not noisy_in_eval(model)
    folder = sft_adapter(tmp_path, dropout=0.5)
    assert not noisy(load_model(folder))
    assert noisy(continue_adapter(load_model(folder), dropout=0.5))
    assert not noisy(continue_adapter(load_model(folder)))


def noisy_in_eval(model: Any) -> bool:
    model.eval()
    return not torch.equal(logprobs(model), logprobs(model))


def test_wrong_names_are_refused_with_a_suggestion() -> None:
    def refused(**settings: Any) -> str:
        with pytest.raises(RecipeError) as caught:
            attach(small("llama"), r=2, seed=0, **settings)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert refused(target_modules=["q_prj"]) == (
        "lora_target_modules: the model has no module 'q_prj'; did you mean 'q_proj'?"
    )
    assert "lora_modules_to_save: the model has no module 'score'" in refused(
        modules_to_save=["score"]
    )
    assert "lora_target_modules" in refused(target_modules=["input_layernorm"])
