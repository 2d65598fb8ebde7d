"""Which model a recipe names, as a configuration: no weights, and where it can be no network."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any, NamedTuple

from trimtab.errors import RecipeError
from trimtab.models import load
from trimtab.models.hub import ModelSource, locate, names_folder, no_folder, quiet, read_json

_KNOWN = Path(__file__).with_name("known_shapes.json")
_VARIANT = re.compile(r"(-Instruct|-hf|-chat-hf|-chat)$", re.IGNORECASE)  # shapes like their base's


class Shape(NamedTuple):
    """``config`` is transformers'; ``source`` the local folder, None where there are no files.

    ``scored``: whether it has scores in place of logits; ``where`` says, for people, what was read.
    """

    name: str
    config: Any
    source: ModelSource | None
    scored: bool
    where: str


def known_shapes() -> dict[str, dict[str, Any]]:
    """Shapes of some common models, by hub id."""
    return json.loads(_KNOWN.read_text(encoding="utf-8"))


def find_shape(name: str, *, revision: str | None = None, key: str) -> Shape:
    """The shape of a model: a local folder's, one known here, or the hub's config.json.

    RecipeError, naming ``key``, where there is none.
    """
    quiet()
    from transformers import AutoConfig

    if Path(name).expanduser().exists():
        source = locate(name, key=key)
        folder = load.base_of(source, key).folder
        settings = read_json(folder / "config.json")
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        return Shape(name, config, source, _is_scored(settings), f"{folder}/config.json")
    if name not in known_shapes():
        known = known_shapes().get(_VARIANT.sub("", name))
    else:
        known = known_shapes()[name]
    if known is not None:
        return Shape(name, _config(known), None, False, "a shape that trimtab knows")
    if names_folder(name):
        raise no_folder(name, key)
    settings = read_json(_from_hub(name, revision, key))
    return Shape(name, _config(settings), None, _is_scored(settings), "the hub's config.json")


def _config(settings: dict[str, Any]) -> Any:
    from transformers import AutoConfig

    values = {name: value for name, value in settings.items() if name != "model_type"}
    return AutoConfig.for_model(settings["model_type"], **values)


def _is_scored(settings: dict[str, Any]) -> bool:
    names = settings.get("architectures") or []
    return any(str(name).endswith("ForSequenceClassification") for name in names)


def _from_hub(name: str, revision: str | None, key: str) -> Path:
    """The path of its config.json alone; a few kilobytes."""
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(name, "config.json", revision=revision))
    except Exception as error:  # offline, unknown, gated: the hub's client has many
        text = " ".join(str(error).split())[:120]
        raise RecipeError(
            f"{key}={name!r}: no such folder, not among the shapes that trimtab knows, and its "
            f"config.json could not be had from the hub ({type(error).__name__}: {text}); give a "
            f"local folder with a config.json, or one of {', '.join(known_shapes())}"
        ) from None


def with_layers(config: Any, count: int) -> Any:
    """A copy of a configuration with another number of layers."""
    made = copy.deepcopy(config)
    text = made.get_text_config(decoder=True)
    text.num_hidden_layers = count
    if getattr(text, "layer_types", None) is not None:
        text.layer_types = (list(text.layer_types) * count)[:count]
    return made
