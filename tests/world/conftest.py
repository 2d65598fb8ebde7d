from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from trimtab.models.build import model_from_config
from trimtab.models.tokenizers import train_byte_level_bpe
from trimtab.world.corpus import pretrain_documents


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random model of the demo's family and a tokenizer of the world's texts."""
    folder = tmp_path_factory.mktemp("small")
    tokenizer: Any = train_byte_level_bpe(pretrain_documents(100), 512)
    model = model_from_config(
        "qwen3",
        {
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "intermediate_size": 48,
            "max_position_embeddings": 256,
            "initializer_range": 0.2,
        },
        vocab_size=len(tokenizer),
        seed=0,
        dtype=torch.float32,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
