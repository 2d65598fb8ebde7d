"""One fingerprint for a model, live or on disk, whole or in shards; another for any change."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from tests.models.small_models import small, tokenizer

from trimtab.errors import RecipeError
from trimtab.models.fingerprint import fingerprint, fingerprint_tensors
from trimtab.models.load import load_model
from trimtab.models.lora import attach
from trimtab.models.save import save_model


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3", "gpt2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_live_saved_and_loaded_agree(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    model = small(name, dtype=dtype)
    save_model(model, tokenizer(), tmp_path)
    wanted = fingerprint(model)
    assert fingerprint(tmp_path) == wanted
    assert fingerprint(load_model(tmp_path)) == wanted
    assert fingerprint(small(name, dtype=dtype, seed=1)) != wanted


def test_shards_and_place_do_not_matter(tmp_path: Path) -> None:
    model = small("llama")
    save_model(model, tokenizer(), tmp_path / "whole")
    model.save_pretrained(tmp_path / "shards", max_shard_size="10KB")
    assert len(list((tmp_path / "shards").glob("model-*.safetensors"))) > 1
    shutil.copytree(tmp_path / "whole", tmp_path / "elsewhere")
    found = {fingerprint(tmp_path / name) for name in ("whole", "shards", "elsewhere")}
    assert found == {fingerprint(model)}


def test_every_change_is_seen(tmp_path: Path) -> None:
    model = small("llama")
    seen = {fingerprint(model)}
    with torch.no_grad():
        model.model.norm.weight[3] += 1e-7
    seen.add(fingerprint(model))
    model.config.rms_norm_eps *= 2
    seen.add(fingerprint(model))
    adapted = attach(model, r=2, seed=0)
    seen.add(fingerprint(adapted))
    next(p for p in adapted.parameters() if p.requires_grad).data.add_(1)
    seen.add(fingerprint(adapted))
    assert len(seen) == 5


def test_tensors_golden() -> None:
    """Name, dtype and shape as JSON, then the bytes: a format that other code can compute."""
    tensors = {"b": torch.tensor([1, 2], dtype=torch.int16), "a": torch.zeros(0)}
    digest = hashlib.sha256(b'["a", "F32", [0]]' + b'["b", "I16", [2]]' + b"\1\0\2\0")
    assert fingerprint_tensors(tensors) == digest.hexdigest()


def test_adapter_folder(tmp_path: Path) -> None:
    adapted = attach(small("llama"), r=2, seed=0)
    save_model(adapted, tokenizer(), tmp_path)
    before = fingerprint(tmp_path)
    path = tmp_path / "adapter_config.json"
    settings = json.loads(path.read_text())
    settings["target_modules"].reverse()
    path.write_text(json.dumps({**settings, "base_model_name_or_path": "elsewhere"}))
    assert fingerprint(tmp_path) == before
    path.write_text(json.dumps({**settings, "lora_alpha": 7}))
    assert fingerprint(tmp_path) != before


def test_damaged_folders(tmp_path: Path) -> None:
    with pytest.raises(RecipeError):
        fingerprint(tmp_path)
    save_model(small("llama"), tokenizer(), tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(RecipeError, match=r"model.safetensors: ends within"):
        fingerprint(tmp_path)
    file.write_bytes(b"x" * 20)
    with pytest.raises(RecipeError, match="not a safetensors file"):
        fingerprint(tmp_path)
