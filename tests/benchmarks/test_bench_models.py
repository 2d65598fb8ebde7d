"""The models that are made: the scored one is the other with a head that both sides load."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests import tiny_runs
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from benchmarks import models


@pytest.fixture
def described(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Two models in a folder of the test; the language model is there already."""
    spec: dict[str, Any] = {
        "language": {
            "folder": "language",
            "made_from": {"seed": 1, "tokenizer_rows": []},
        },
        "reward": {"folder": "reward", "made_from": {"scores_on": "language", "seed": 2}},
    }
    tiny_runs.save_tiny_model(tmp_path / "language")
    monkeypatch.setattr(models, "ROOT", tmp_path)
    monkeypatch.setattr(models, "described", lambda: spec)
    # Stamped as what it is said to be made from, so that it stays.
    wanted = json.dumps(models._origin(spec["language"]["made_from"]), indent=1)
    (tmp_path / "language" / "made-from.json").write_text(wanted)
    return spec


def head_of(folder: Path) -> torch.Tensor:
    model: Any = AutoModelForSequenceClassification.from_pretrained(folder)
    return model.score.weight.detach()


def test_scores_stand_on_the_same_weights(described: dict[str, Any], tmp_path: Path) -> None:
    place = models.ensure("reward", tmp_path)
    scored: Any = AutoModelForSequenceClassification.from_pretrained(place)
    language: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "language")
    below = language.model.state_dict()
    assert all(torch.equal(scored.model.state_dict()[name], below[name]) for name in below)
    assert scored.score.weight.shape == (1, 32) and scored.config.num_labels == 1
    # N(0, 1/(d+1)) from the seed alone.
    generator = torch.Generator().manual_seed(2)
    wanted = torch.empty(1, 32).normal_(0.0, 33**-0.5, generator=generator)
    torch.testing.assert_close(scored.score.weight, wanted, rtol=0, atol=0)
    # What is padded with ends no text.
    assert scored.config.pad_token_id is not None
    assert scored.config.pad_token_id != scored.config.eos_token_id


def test_it_is_made_again_when_its_description_changes(
    described: dict[str, Any], tmp_path: Path
) -> None:
    first = head_of(models.ensure("reward", tmp_path))
    weights = tmp_path / "reward" / "model.safetensors"
    before = weights.stat().st_mtime_ns
    models.ensure("reward", tmp_path)
    assert weights.stat().st_mtime_ns == before
    described["reward"]["made_from"]["seed"] = 3
    assert not torch.equal(head_of(models.ensure("reward", tmp_path)), first)
