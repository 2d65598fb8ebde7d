"""Small models and texts for the tests of loading, saving, adapters and heads."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from trimtab.models.build import model_from_config
from trimtab.models.tokenizers import train_byte_level_bpe

TEXTS = ["the cat sat on the mat", "a dog ran in the park", "Grüße, 12 naïve cafés!\n\n  end"] * 3
VOCABULARY = 280
IDS = torch.tensor([5, 80, 33, 200, 7, 7, 150, 12])

_COMMON = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
}
_GATED = {"intermediate_size": 24, "num_key_value_heads": 1, "head_dim": 8}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {**_COMMON, **_GATED, "tie_word_embeddings": False},
    "qwen3": {**_COMMON, **_GATED, "tie_word_embeddings": True},
    "gemma3": {**_COMMON, **_GATED, "tie_word_embeddings": True, "sliding_window": 4},
    "gpt2": {**_COMMON, "n_inner": 24},
}


def small(
    name: str, *, seed: int = 0, dtype: torch.dtype = torch.float32, **more: Any
) -> PreTrainedModel:
    """A model of ``model_from_config``: 2 layers, 16 wide, 280 tokens."""
    return model_from_config(
        name,
        {**CONFIGS[name], **more},
        vocab_size=VOCABULARY,
        seed=seed,
        dtype=dtype,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )


def foreign(model_type: str, **more: Any) -> PreTrainedModel:
    """A small model of any type that transformers has."""
    settings = {**_COMMON, "intermediate_size": 24, "num_key_value_heads": 1, **more}
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, vocab_size=VOCABULARY, **settings)
    return AutoModelForCausalLM.from_config(config).eval()


def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of ``VOCABULARY`` tokens at most."""
    return train_byte_level_bpe(TEXTS, VOCABULARY)


def logits(model: Any) -> torch.Tensor:
    """Logits [S, V] of ``IDS`` in evaluation mode."""
    with torch.no_grad():
        return model.eval()(input_ids=IDS[None], use_cache=False).logits[0]
