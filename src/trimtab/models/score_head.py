"""Scores in place of logits: one linear map on a sequence's last hidden state.

While it is trained, a model with scores is a causal language model with a module ``score`` beside
its output head: the same backbone, tree attention and adapters, and the language-model loss is
still there for those who want it (GPT-1's auxiliary objective). Saved and loaded it is a
``...ForSequenceClassification`` of transformers, with the same backbone and the same ``score``.

The state that is read is the one after the final norm, at the last real token.
"""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any, Literal

import torch
from torch import nn
from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING as CLASSES

from trimtab.errors import RecipeError
from trimtab.models.attention import unwrap

Kind = Literal["reward", "classify"]


@dataclasses.dataclass
class ScoreHead:
    """What is known of a model's scores, apart from the weights.

    ``labels`` names the classes (empty for a reward); ``pad_token_id`` is what plain transformers
    skips to find the last token; ``offset`` is subtracted from a reward's score.
    """

    kind: Kind
    labels: tuple[str | int, ...] = ()
    pad_token_id: int | None = None
    offset: float = 0.0

    @property
    def count(self) -> int:
        """Scores of a sequence: one reward, or one a class."""
        return len(self.labels) if self.kind == "classify" else 1


def attach_head(model: Any, head: ScoreHead, *, std: float, seed: int) -> Any:
    """Give a causal language model a fresh ``score`` without bias, N(0, std^2); returns the model.

    The weights are a function of ``seed`` alone, drawn in fp32. Raises RecipeError for a family
    that transformers has no sequence-classification class with such a head for.
    """
    scored_class(model.config)
    width = model.config.get_text_config().hidden_size
    layer = nn.Linear(width, head.count, bias=False)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        layer.weight.normal_(0.0, std, generator=generator)
    model.score = layer.to(device=model.device, dtype=model.dtype)
    set_head(model, head)
    return model


def set_head(model: Any, head: ScoreHead) -> None:
    """Say what a model's ``score`` is; ``head_of`` finds it again, below adapters too."""
    unwrap(model)._trimtab_score_head = head


def head_of(model: Any) -> ScoreHead | None:
    """What was said by ``set_head``; None for a language model."""
    return getattr(unwrap(model), "_trimtab_score_head", None)


def without_output_head(model: Any) -> Any:
    """Freeze an output head of its own: nothing reads it where scores alone are trained."""
    inner = unwrap(model)
    output, words = inner.get_output_embeddings(), inner.get_input_embeddings()
    if output is not None and output.weight is not words.weight:
        output.requires_grad_(False)
    return model


def scored_class(config: Any) -> Any:
    """The sequence-classification class of a model family; RecipeError where it has none.

    Only heads called ``score`` without bias are taken: that is what reward models are, for
    transformers, TRL and vLLM alike.
    """
    found: Any = CLASSES.get(type(config), None)
    if found is None:
        raise RecipeError(
            f"model_name_or_path: transformers has no sequence-classification model for "
            f"{config.model_type}; choose another family"
        )
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        small = type(config)(**_one_layer(config))
        score = getattr(found(small), "score", None)
    if not isinstance(score, nn.Linear) or score.bias is not None:
        raise RecipeError(
            f"model_name_or_path: the head of {found.__name__} is not a linear map called score; "
            "choose another family"
        )
    return found


def _one_layer(config: Any) -> dict[str, Any]:
    """Settings of a config cut to one layer: enough to see which head its class has."""
    settings = config.to_dict()
    for name in ("num_hidden_layers", "n_layer"):
        if name in settings:
            settings[name] = 1
    if isinstance(settings.get("layer_types"), list):
        settings["layer_types"] = settings["layer_types"][:1]
    settings.pop("architectures", None)
    return settings
