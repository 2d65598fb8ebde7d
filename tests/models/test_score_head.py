"""Models with scores: what is saved is what plain transformers reads, head and offset included."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests import tiny_runs
from transformers import AutoModelForSequenceClassification

from trimtab.errors import CheckpointError, RecipeError
from trimtab.models import load, lora
from trimtab.models.attention import unwrap
from trimtab.models.hub import is_scored, locate
from trimtab.models.load import load_model
from trimtab.models.save import save_model, verify_saved
from trimtab.models.score_head import ScoreHead, attach_head, head_of, without_output_head
from trimtab.models.scored import load_scored

NAMES = ["llama", "qwen3", "gemma3_text", "gpt2"]
LAYERS = {"gemma3_text": {"layer_types": ["sliding_attention", "full_attention"]}}
PAD = 2


def scored(folder: Path, name: str = "llama", head: ScoreHead | None = None) -> tuple[Any, Any]:
    """A tiny language model with a random head, and its tokenizer."""
    if not folder.exists():
        make(folder, name)
    model = load.load_model(folder)
    attach_head(model, head or ScoreHead("reward", (), PAD, 0.25), std=0.3, seed=3)
    return model, load.load_tokenizer(folder)


def make(folder: Path, name: str) -> None:
    from tests.tiny_models import tiny_model

    tokenizer = tiny_runs.make_tokenizer()
    width, layers = (
        ("n_embd", "n_layer") if name == "gpt2" else ("hidden_size", "num_hidden_layers")
    )
    settings: dict[str, Any] = {width: 32, layers: 2, **LAYERS.get(name, {})}
    ids = {n: getattr(tokenizer, n) for n in ("bos_token_id", "eos_token_id", "pad_token_id")}
    model = tiny_model(name, vocab_size=len(tokenizer), **settings, **ids)
    save_model(model, tokenizer, folder)


def own_scores(model: Any, rows: list[list[int]]) -> torch.Tensor:
    """Scores at the last token, one row at a time, nothing padded."""
    inner = unwrap(model)
    with torch.no_grad():
        return torch.cat(
            [
                inner.score(inner.base_model(torch.tensor([r])).last_hidden_state[:, -1])
                for r in rows
            ]
        )


@pytest.mark.parametrize("name", NAMES)
def test_plain_transformers_reads_the_same_scores_of_padded_rows(name: str, tmp_path: Path) -> None:
    model, tokenizer = scored(tmp_path / "lm", name)
    save_model(model, tokenizer, tmp_path / "reward")
    verify_saved(tmp_path / "reward", model, tokenizer)
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "reward")
    rows = [[5, 6, 7, 1], [8, 9, 10, 11, 12, 1], [3, 1]]
    padded = torch.tensor([row + [PAD] * (9 - len(row)) for row in rows])
    with torch.no_grad():
        found = plain(padded, attention_mask=(padded != PAD).long()).logits
    assert torch.allclose(found, own_scores(model, rows), atol=1e-5)
    # The wrong variant: a pad id that also ends the rows makes transformers stop one token early.
    plain.config.pad_token_id = 1
    wrong = plain(torch.tensor([[5, 6, 7, 1], [8, 9, 10, 1]])).logits
    right = own_scores(model, [[5, 6, 7, 1], [8, 9, 10, 1]])
    assert (wrong - right).abs().min() > 1e-3


@pytest.mark.parametrize("name", ["llama", "qwen3"])  # qwen3's output head is its embeddings
def test_a_reward_model_is_no_language_model(name: str, tmp_path: Path) -> None:
    model, tokenizer = scored(tmp_path / "lm", name)
    save_model(model, tokenizer, tmp_path / "reward")
    with pytest.raises(RecipeError, match="has scores and no language model's head"):
        load_model(tmp_path / "reward")
    load_model(tmp_path / "lm")


def test_facts_survive(tmp_path: Path) -> None:
    model, tokenizer = scored(tmp_path / "lm")
    save_model(model, tokenizer, tmp_path / "reward")
    again = load_scored(locate(tmp_path / "reward"))
    assert head_of(again) == ScoreHead("reward", (), PAD, 0.25)
    config = json.loads((tmp_path / "reward" / "config.json").read_text())
    assert config["architectures"] == ["LlamaForSequenceClassification"]
    assert (config["id2label"], config["reward_offset"]) == ({"0": "reward"}, 0.25)
    assert config["pad_token_id"] == PAD
    assert is_scored(locate(tmp_path / "reward")) and not is_scored(locate(tmp_path / "lm"))
    classes = ScoreHead("classify", ("bad", "good", "so so"), PAD)
    model, _ = scored(tmp_path / "lm", head=classes)
    save_model(model, tokenizer, tmp_path / "classes")
    assert head_of(load_scored(locate(tmp_path / "classes"))) == classes
    numbers = ScoreHead("classify", (0, 1), PAD)
    model, _ = scored(tmp_path / "lm", head=numbers)
    save_model(model, tokenizer, tmp_path / "numbers")
    assert head_of(load_scored(locate(tmp_path / "numbers"))) == numbers


@pytest.mark.filterwarnings("ignore::FutureWarning")  # peft asks transformers by an old name
def test_adapter_keeps_its_head(tmp_path: Path) -> None:
    """TRL#1379: an adapter saved without its head scores at random."""
    from peft import AutoPeftModelForSequenceClassification

    model, tokenizer = scored(tmp_path / "lm")
    wrapped = lora.attach(model, r=2, seed=1, modules_to_save=["score"])
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in wrapped.parameters():
            if p.requires_grad:
                p.add_(0.05 * torch.randn(p.shape, generator=generator))
    rows = [[5, 6, 7, 1], [8, 9, 1]]
    ours = own_scores(wrapped, rows)
    save_model(wrapped, tokenizer, tmp_path / "adapter")
    verify_saved(tmp_path / "adapter", wrapped, tokenizer)
    again = load_scored(locate(tmp_path / "adapter"))
    assert torch.allclose(own_scores(again, rows), ours, atol=1e-6)
    assert head_of(again) == ScoreHead("reward", (), PAD, 0.25)
    plain = AutoPeftModelForSequenceClassification.from_pretrained(
        tmp_path / "adapter", num_labels=1
    )
    with torch.no_grad():
        theirs = torch.cat([plain(torch.tensor([row])).logits for row in rows])
    assert torch.allclose(theirs, ours, atol=1e-5)

    file = tmp_path / "adapter" / "adapter_model.safetensors"
    save_file({n: t for n, t in load_file(file).items() if "score" not in n}, file)
    with pytest.raises(RecipeError, match="no score head"):
        load_scored(locate(tmp_path / "adapter"))


def test_a_missing_head_is_an_error(tmp_path: Path) -> None:
    model, tokenizer = scored(tmp_path / "lm")
    save_model(model, tokenizer, tmp_path / "reward")
    file = tmp_path / "reward" / "model.safetensors"
    tensors = load_file(file)
    broken = {n: t for n, t in tensors.items() if n != "score.weight"}
    save_file(broken, file, metadata={"format": "pt"})
    with pytest.raises(RecipeError, match=r"missing in it \(score.weight\)"):
        load_scored(locate(tmp_path / "reward"))
    tensors["score.weight"] += 1.0
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"score\.weight differs"):
        verify_saved(tmp_path / "reward", model, tokenizer)
    with pytest.raises(RecipeError, match="a language model, not one with scores"):
        load_scored(locate(tmp_path / "lm"))


def test_head_is_drawn_from_its_seed(tmp_path: Path) -> None:
    """losses.md 4.4: N(0, 1/(d + 1)), whatever state torch's generator is in (TRL#4887)."""
    width = 256
    from tests.tiny_models import tiny_model

    def draw(seed: int) -> torch.Tensor:
        torch.manual_seed(seed + 100)
        model: Any = tiny_model("llama", hidden_size=width)
        head = ScoreHead("classify", tuple(range(64)), PAD)
        return attach_head(model, head, std=(width + 1) ** -0.5, seed=seed).score.weight

    first = draw(1)
    assert torch.equal(first, draw(1)) and not torch.equal(first, draw(2))
    spread = first.square().mean().sqrt().item() * math.sqrt(width + 1)
    assert spread == pytest.approx(1.0, abs=0.02)
    assert first.mean().abs().item() < 0.002


def test_own_output_head_is_frozen_and_a_tied_one_is_not(tmp_path: Path) -> None:
    from tests.tiny_models import tiny_model

    apart: Any = without_output_head(tiny_model("llama", tie_word_embeddings=False))
    assert not apart.lm_head.weight.requires_grad
    assert apart.model.embed_tokens.weight.requires_grad
    tied: Any = without_output_head(tiny_model("qwen3", tie_word_embeddings=True))
    assert tied.model.embed_tokens.weight.requires_grad
