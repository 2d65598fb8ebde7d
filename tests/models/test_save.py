"""What is saved is what was trained: bytes, config, end tokens, adapters, merged weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.models.small_models import CONFIGS, IDS, logits, small, tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from trimtab.errors import CheckpointError, RunError
from trimtab.models.attention import ATTENTION_NAME, install
from trimtab.models.load import checkpoint_activations, load_model, load_tokenizer
from trimtab.models.lora import attach, continue_adapter
from trimtab.models.save import merge_adapter, save_model, verify_saved


def config_of(folder: Path, name: str = "config.json") -> dict[str, Any]:
    return json.loads((folder / name).read_text())


def shake(model: Any, size: float = 0.2) -> Any:
    """Move every trainable weight, as training would."""
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.add_((size * noise).to(parameter.dtype))
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", CONFIGS)
def test_plain_transformers_reads_it(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    model = small(name, dtype=dtype)
    save_model(model, tokenizer(), tmp_path)
    verify_saved(tmp_path, model, tokenizer())
    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto")
    assert again.dtype == dtype
    assert torch.equal(logits(again), logits(model))
    assert config_of(tmp_path)["architectures"] == [type(model).__name__]
    assert config_of(tmp_path)["dtype"] == str(dtype).removeprefix("torch.")
    read = AutoTokenizer.from_pretrained(tmp_path)
    assert read("the cat").input_ids == tokenizer()("the cat").input_ids
    assert read.chat_template == tokenizer().chat_template
    assert (tmp_path / "chat_template.jinja").read_text() == tokenizer().chat_template


def test_tied_weights_are_one_tensor_and_stay_tied(tmp_path: Path) -> None:
    for dtype in (None, torch.bfloat16):
        model = small("qwen3")
        save_model(model, tokenizer(), tmp_path, dtype=dtype)
        assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
        verify_saved(tmp_path, model, tokenizer())
        again = load_model(tmp_path)
        assert again.lm_head.weight is again.model.embed_tokens.weight


def test_cast_on_saving(tmp_path: Path) -> None:
    model = small("llama")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    save_model(model, tokenizer(), tmp_path, dtype=torch.bfloat16)
    assert config_of(tmp_path)["dtype"] == "bfloat16"
    for name, value in load_model(tmp_path).state_dict().items():
        assert torch.equal(value, before[name].to(torch.bfloat16))
    assert model.dtype == torch.float32
    assert model.config.dtype in (None, torch.float32)


def test_config_is_the_models_own_not_the_runs(tmp_path: Path) -> None:
    """Tree attention, activation checkpointing, dropout off: of the run, not of the model."""
    model = small("gpt2", resid_pdrop=0.25)
    assert model.config.resid_pdrop == 0.0
    install(model)
    checkpoint_activations(model)
    model.config.use_cache = False
    model.config._name_or_path = "somewhere"
    save_model(model, tokenizer(), tmp_path)
    text = "".join(path.read_text() for path in tmp_path.glob("*.json"))
    assert ATTENTION_NAME not in text and "_attn_implementation" not in text
    assert "somewhere" not in text
    config = config_of(tmp_path)
    assert config["use_cache"] is True
    assert config["resid_pdrop"] == 0.25 and config["attn_pdrop"] == 0.1
    assert model.config.resid_pdrop == 0.0
    assert load_model(tmp_path).config._attn_implementation == "sdpa"


def test_generation_config_keeps_every_end_token(tmp_path: Path) -> None:
    model = small("llama")
    model.generation_config = GenerationConfig(eos_token_id=[7, 9], temperature=0.6, top_p=0.9)
    save_model(model, tokenizer(), tmp_path, stop_ids=[3, 9])
    saved = config_of(tmp_path, "generation_config.json")
    assert saved["eos_token_id"] == [7, 9, 1, 3]
    assert saved["temperature"] == 0.6  # odd without do_sample: transformers itself refuses it
    assert model.generation_config.eos_token_id == [7, 9]
    model.generation_config = GenerationConfig()
    save_model(model, tokenizer(), tmp_path)
    assert config_of(tmp_path, "generation_config.json")["eos_token_id"] == [1]


def test_same_model_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        read = load_tokenizer(tmp_path / "a") if name == "b" else tokenizer()
        save_model(shake(attach(small("llama"), r=2, seed=0)), read, tmp_path / name)
        save_model(small("llama"), read, tmp_path / (name + "-whole"))
    for suffix in ("", "-whole"):
        files = sorted(path.name for path in (tmp_path / f"a{suffix}").iterdir())
        assert files == sorted(path.name for path in (tmp_path / f"b{suffix}").iterdir())
        for file in files:
            left, right = (tmp_path / f"{x}{suffix}" / file for x in "ab")
            assert left.read_bytes() == right.read_bytes(), file


def test_generates_after_reload(tmp_path: Path) -> None:
    save_model(small("llama"), tokenizer(), tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    out = model.generate(
        input_ids=IDS[None], attention_mask=torch.ones_like(IDS)[None], max_length=12
    )
    assert out.shape[1] <= 12


# --- the verifier sees damage -------------------------------------------------------------------


def test_verify_rejects_changed_missing_and_foreign_tensors(tmp_path: Path) -> None:
    model = small("llama")

    def damaged(change: Any) -> str:
        save_model(model, tokenizer(), tmp_path)
        tensors = load_file(tmp_path / "model.safetensors")
        change(tensors)
        save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(CheckpointError) as caught:
            verify_saved(tmp_path, model, tokenizer())
        return str(caught.value)

    def one_bit(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.norm.weight"].view(torch.int32)[5] += 1

    assert "model.norm.weight differs" in damaged(one_bit)
    assert "model.norm.weight" in damaged(lambda tensors: tensors.pop("model.norm.weight"))
    save_model(model, tokenizer(), tmp_path)
    with pytest.raises(CheckpointError, match="differs after reading it back"):
        verify_saved(tmp_path, small("llama", seed=1), tokenizer())


def test_verify_rejects_another_tokenizer(tmp_path: Path) -> None:
    save_model(small("llama"), tokenizer(), tmp_path)
    other = tokenizer()
    other.chat_template = "{{ messages }}"
    with pytest.raises(CheckpointError, match="the tokenizer differs"):
        verify_saved(tmp_path, small("llama"), other)


def test_empty_weights_are_refused(tmp_path: Path) -> None:
    model = small("llama")
    model.model.norm.weight = torch.nn.Parameter(torch.empty(0))
    with pytest.raises(RunError, match=r"save: model.norm.weight is empty"):
        save_model(model, tokenizer(), tmp_path)


# --- adapters -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONFIGS)
def test_adapter_folder(name: str, tmp_path: Path) -> None:
    save_model(small(name), tokenizer(), tmp_path / "base")
    base = load_model(tmp_path / "base")
    model = shake(attach(base, r=2, seed=3))
    save_model(model, tokenizer(), tmp_path / "adapter")
    verify_saved(tmp_path / "adapter", model, tokenizer())
    config = config_of(tmp_path / "adapter", "adapter_config.json")
    assert config["base_model_name_or_path"] == str(tmp_path / "base")
    assert config["inference_mode"] is True
    assert config["peft_type"] == "LORA"
    assert torch.equal(logits(load_model(tmp_path / "adapter")), logits(model))
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert all(".lora_A.weight" in key or ".lora_B.weight" in key for key in tensors)
    with torch.no_grad():
        next(p for p in model.parameters() if p.requires_grad).add_(1)
    with pytest.raises(CheckpointError, match=r"lora_A.weight differs"):
        verify_saved(tmp_path / "adapter", model, tokenizer())


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_plain_peft_reads_it(tmp_path: Path) -> None:
    from peft import PeftModel

    save_model(small("llama"), tokenizer(), tmp_path / "base")
    model = shake(attach(load_model(tmp_path / "base"), r=2, seed=3, modules_to_save=["lm_head"]))
    save_model(model, tokenizer(), tmp_path / "adapter")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    assert torch.equal(
        logits(PeftModel.from_pretrained(plain, tmp_path / "adapter")), logits(model)
    )


def test_reference_adapter_is_not_saved(tmp_path: Path) -> None:
    save_model(small("llama"), tokenizer(), tmp_path / "base")
    first = shake(attach(load_model(tmp_path / "base"), r=2, seed=3))
    save_model(first, tokenizer(), tmp_path / "sft")
    model = shake(continue_adapter(load_model(tmp_path / "sft")))
    save_model(model, tokenizer(), tmp_path / "dpo")
    names = set(load_file(tmp_path / "dpo" / "adapter_model.safetensors"))
    assert names == set(load_file(tmp_path / "sft" / "adapter_model.safetensors"))
    assert not any("reference" in name for name in names)
    assert torch.equal(logits(load_model(tmp_path / "dpo")), logits(model))
    assert not torch.equal(logits(model), logits(first))


# --- merging --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", CONFIGS)
def test_merge(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    save_model(small(name, dtype=dtype), tokenizer(), tmp_path / "base")
    model = shake(attach(load_model(tmp_path / "base"), r=2, seed=3), 0.05)
    before = logits(model)
    merged = merge_adapter(model, IDS)
    save_model(merged, tokenizer(), tmp_path / "merged")
    verify_saved(tmp_path / "merged", merged, tokenizer())
    after = logits(AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype="auto"))
    tolerance = 1e-5 if dtype == torch.float32 else 5e-2
    assert (after - before).abs().max() <= tolerance * before.abs().max()
    assert (before - logits(load_model(tmp_path / "base"))).abs().max() > tolerance


def test_merge_uses_the_trained_adapter_not_the_reference(tmp_path: Path) -> None:
    save_model(small("llama"), tokenizer(), tmp_path / "base")
    first = shake(attach(load_model(tmp_path / "base"), r=2, seed=3))
    save_model(first, tokenizer(), tmp_path / "sft")
    model = shake(continue_adapter(load_model(tmp_path / "sft")))
    before = logits(model)
    torch.testing.assert_close(logits(merge_adapter(model, IDS)), before, rtol=1e-4, atol=1e-4)


def test_merge_of_one_end_of_a_tied_pair(tmp_path: Path) -> None:
    """Training only the head of a tied model unties it; its reload must not tie it again (A20)."""
    save_model(small("qwen3"), tokenizer(), tmp_path / "base")
    model = attach(load_model(tmp_path / "base"), r=2, seed=3, modules_to_save=["lm_head"])
    before = logits(shake(model))
    save_model(model, tokenizer(), tmp_path / "adapter")
    assert torch.equal(logits(load_model(tmp_path / "adapter")), before)
    merged = merge_adapter(model, IDS)
    save_model(merged, tokenizer(), tmp_path / "merged")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits(again), before, rtol=1e-4, atol=1e-4)
    again.tie_weights()
    assert config_of(tmp_path / "merged")["tie_word_embeddings"] is False


def test_merge_that_changes_logits_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = shake(attach(small("llama"), r=2, seed=3))
    from peft.tuners.lora import Linear

    monkeypatch.setattr(Linear, "get_delta_weight", lambda self, name: self.weight * 0)
    with pytest.raises(RunError, match="merge: logits changed"):
        merge_adapter(model, IDS)
