"""Saving and loading models with scores: transformers' sequence-classification folders.

    whole model   config.json (num_labels, id2label, pad_token_id, reward_offset), model.safetensors
    adapter       PEFT's files, ``score`` among its tensors; score_head.json with the same facts

A reward is ``score(h) - reward_offset``: the weights give the first, the config keeps the second.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from trimtab.errors import RecipeError
from trimtab.models.hub import ModelSource, is_scored, quiet, read_json
from trimtab.models.score_head import ScoreHead, head_of, scored_class, set_head

ADAPTER_FACTS = "score_head.json"


def scored_shell(model: Any) -> Any:
    """The sequence-classification model that shares a model's weights, to be saved.

    Nothing is copied, and it cannot be run: buffers that no file holds stay empty.
    ``model`` is a causal language model with ``score`` (``score_head.attach_head``), or already
    what is wanted.
    """
    head = head_of(model)
    assert head is not None, "only a model with scores has a shell"
    found = scored_class(model.config)
    config = type(model.config).from_dict(model.config.to_dict())
    write_facts(config, head)
    with torch.device("meta"):
        shell = found(config)
    state = model.state_dict()
    shell.load_state_dict({name: state[name] for name in shell.state_dict()}, assign=True)
    shell.generation_config = getattr(model, "generation_config", None)
    shell._trimtab_dropout = getattr(model, "_trimtab_dropout", {})
    set_head(shell, head)
    return shell.train(model.training)


def write_facts(config: Any, head: ScoreHead) -> None:
    """Put what is known of the scores into a config."""
    names = [str(label) for label in head.labels] or ["reward"]
    config.num_labels = head.count
    config.id2label = dict(enumerate(names))
    config.label2id = {name: index for index, name in enumerate(names)}
    config.problem_type = "single_label_classification" if head.kind == "classify" else "regression"
    config.get_text_config().pad_token_id = head.pad_token_id
    config.pad_token_id = head.pad_token_id
    if head.kind == "reward":
        config.reward_offset = head.offset
    elif any(isinstance(label, int) for label in head.labels):
        config.integer_labels = True


def read_facts(config: Any) -> ScoreHead:
    """What ``write_facts`` wrote, and what other libraries write of a reward model."""
    offset = float(getattr(config, "reward_offset", 0.0) or 0.0)
    if config.num_labels == 1:
        return ScoreHead("reward", (), config.pad_token_id, offset)
    names: list[Any] = [config.id2label[index] for index in range(config.num_labels)]
    if getattr(config, "integer_labels", False):
        names = [int(name) for name in names]
    return ScoreHead("classify", tuple(names), config.pad_token_id)


def save_adapter_facts(model: Any, folder: Path) -> None:
    """What an adapter's files cannot say of its scores."""
    head = head_of(model)
    assert head is not None
    text = json.dumps(dataclasses.asdict(head), indent=2, sort_keys=True)
    (folder / ADAPTER_FACTS).write_text(text + "\n", encoding="utf-8")


def load_scored(
    source: ModelSource,
    *,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    trust_remote_code: bool = False,
    key: str = "reward_model",
) -> Any:
    """Load a sequence-classification model, or an adapter on its base, in evaluation mode.

    Every weight is accounted for, the head above all: one that is missing would be drawn at
    random. ``score_head.head_of`` gives what is known of it. Raises RecipeError, naming ``key``.
    """
    from trimtab.models.load import base_of, disable_dropout

    if not is_scored(source):
        raise RecipeError(
            f"{key}={source.name!r}: a language model, not one with scores; train one with "
            "trimtab reward (or classify)"
        )
    if source.kind == "adapter":
        return _adapter(source, base_of(source, key), dtype, device, trust_remote_code, key)
    quiet()
    from transformers import AutoModelForSequenceClassification, GenerationConfig

    from trimtab.models.load import from_pretrained

    model = from_pretrained(
        AutoModelForSequenceClassification, source, dtype, trust_remote_code, key
    )
    score = getattr(model, "score", None)
    if not isinstance(score, torch.nn.Linear):
        raise RecipeError(
            f"{key}={source.name!r}: the head of {type(model).__name__} is not a linear map called "
            "score"
        )
    set_head(model, read_facts(model.config))
    model.generation_config = None  # this class has none; the folder's stop ids go on with it
    if (source.folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(source.folder)
    disable_dropout(model)
    return model.to(device).eval()


def _adapter(
    source: ModelSource,
    base: ModelSource,
    dtype: torch.dtype | None,
    device: str | torch.device,
    code: bool,
    key: str,
) -> Any:
    """The base's language model with a blank ``score``, which the adapter's file then fills."""
    from trimtab.models.load import load_model, with_adapter
    from trimtab.models.score_head import attach_head

    facts = source.folder / ADAPTER_FACTS
    with safe_open(source.folder / "adapter_model.safetensors", "pt") as file:
        heads = [n for n in file.keys() if n.endswith("score.weight")]  # noqa: SIM118 - no mapping
        rows = file.get_slice(heads[0]).get_shape()[0] if heads else 0
    if not rows:
        raise RecipeError(
            f"{key}={source.name!r}: the adapter has no score head (it was saved without "
            "modules_to_save=['score']): its scores are lost, train it again"
        )
    if facts.is_file():
        known = read_json(facts)
        head = ScoreHead(**{**known, "labels": tuple(known["labels"])})
    else:
        kind, labels = ("reward", ()) if rows == 1 else ("classify", tuple(range(rows)))
        head = ScoreHead(kind, labels, None)  # type: ignore[arg-type]
    model = load_model(base, dtype=dtype, device=device, trust_remote_code=code, key=key)
    attach_head(model, head, std=0.0, seed=0)
    return with_adapter(model, source, key)
