"""From what a user gave to a recipe that is whole, valid, and knows where each value came from.

Command line over environment (``TRIMTAB_LEARNING_RATE``, ``TRIMTAB_MIX__WEIGHT``) over recipe file
over the defaults of the loss over the defaults of the stage. Relative paths in a recipe are
relative to the working directory, as on the command line.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from trimtab.config.command_line import read_line
from trimtab.config.hints import CONTROLS
from trimtab.config.inert import refuse_inert
from trimtab.config.loss_choice import choose_loss
from trimtab.config.merge import COMMAND_LINE, Flat, Given, flatten, lay_over, nest, read_text
from trimtab.config.messages import one_line, within
from trimtab.config.recipes import LossKeys, PretrainRecipe, TrainRecipe
from trimtab.config.resolved import RESOLVED_NAME, Control, Resolved, difference, to_yaml
from trimtab.config.schema import loss_keys, recipe_keys
from trimtab.config.suggest import did_you_mean
from trimtab.config.values import Columns, as_mapping
from trimtab.config.verbs import VERBS, Verb, loss_defaults
from trimtab.config.yaml_text import read_file
from trimtab.errors import RecipeError
from trimtab.shipped import or_shipped, recipe_named

__all__ = [
    "Control",
    "Resolved",
    "derived_output_dir",
    "difference",
    "read_columns",
    "recipe_from_kwargs",
    "resolve",
    "resolve_layers",
    "to_yaml",
]

DEFAULT = "default"
PREFIX = "TRIMTAB_"


def resolve(verb: str, tokens: Sequence[str], *, env: Mapping[str, str] | None = None) -> Resolved:
    """The recipe of ``trimtab VERB TOKENS``; ``env`` is the process's environment by default.

    RecipeError, one line, for anything that is wrong.
    """
    found = VERBS[verb]
    line = read_line(tokens, found)
    sources = [_file(line.file, found), _environment(env, found)]
    sources.append(flatten(line.values, found, lambda _: COMMAND_LINE))
    return _resolved(found, sources, Control(**line.controls))


def recipe_from_kwargs(
    verb: str,
    config: str | Path | None = None,
    /,
    *,
    env: Mapping[str, str] | None = None,
    **kwargs: Any,
) -> Resolved:
    """The same from Python: ``recipe_from_kwargs("dpo", model_name_or_path="m", beta=0.2)``.

    ``config`` is a recipe file. ``restart``, ``resume``, ``quiet`` and so on are taken, too.
    """
    found = VERBS[verb]
    control = Control(**{name: kwargs.pop(name) for name in CONTROLS if name in kwargs})
    sources = [_file(None if config is None else os.fspath(config), found)]
    sources.append(_environment(env, found))
    sources.append(flatten(kwargs, found, lambda _: "argument"))
    return _resolved(found, sources, control)


def resolve_layers(
    verb: str,
    layers: Sequence[tuple[Mapping[str, Any], Callable[[str], str]]],
    control: Control | None = None,
) -> Resolved:
    """A recipe from groups of keys, later ones over earlier ones; no environment is read.

    Each layer comes with what says where a dotted key of it was given, for messages.
    """
    found = VERBS[verb]
    sources = [flatten(values, found, where) for values, where in layers]
    return _resolved(found, sources, control or Control())


# ---------------------------------------------------------------------- sources


def _file(name: str | None, verb: Verb) -> Flat:
    """The recipe file; a run folder stands for the recipe that it holds."""
    if name is None:
        return Flat({}, [])
    path = Path(name)
    if (path / RESOLVED_NAME).is_file():
        path = path / RESOLVED_NAME
    path = recipe_named(path)
    found = or_shipped(path)
    text = read_file(found)
    notes = [] if found is path else [f"{path}: the recipe that comes with trimtab"]
    if text.value is None:
        return Flat({}, notes)
    values = as_mapping(text.value)
    if values is None:
        raise RecipeError(f"{path}: is not a recipe: no 'key: value' lines at its top level")
    if (named := values.pop("verb", verb.name)) != verb.name:
        raise RecipeError(
            f"verb: this recipe is for trimtab {named} ({path}:{text.lines['verb']}), and the "
            f"command is trimtab {verb.name}"
        )
    flat = flatten(values, verb, lambda raw: f"{path}:{text.lines[raw]}")
    return Flat(flat.values, notes + flat.notes)


# Variables that are no recipe key. A new one is named here, or users could not set it.
OTHER_VARIABLES = frozenset({"TRIMTAB_CACHE", "TRIMTAB_TEMPLATES"})
TEST_PREFIX = "TRIMTAB_TEST_"


def _environment(env: Mapping[str, str] | None, verb: Verb) -> Flat:
    """``TRIMTAB_<KEY>``, with ``__`` or ``_`` between a group and its key."""
    variables = os.environ if env is None else env
    names = _variable_names(verb)
    found: dict[str, Given] = {}
    for name in sorted(variables):
        if not name.startswith(PREFIX) or name.startswith(TEST_PREFIX) or name in OTHER_VARIABLES:
            continue
        path = names.get(name)
        where = f"environment {name}"
        if path is None:
            _refuse_variable(name)
            continue
        if path in found:
            raise RecipeError(f"{path}: given twice ({found[path].where} and {where})")
        key = recipe_keys(verb.recipe).get(path)
        flat = flatten({path: read_text(variables[name], key, where)}, verb, lambda _, w=where: w)
        found.update(flat.values)
    return Flat(found, [])


def _variable_names(verb: Verb) -> dict[str, str]:
    paths = {path: path for path in recipe_keys(verb.recipe)} | dict(loss_keys(verb.recipe))
    names: dict[str, str] = {}
    for shown, path in paths.items():
        for joint in ("__", "_"):
            names.setdefault(PREFIX + shown.replace(".", joint).upper(), path)
    return names


def _refuse_variable(name: str) -> None:
    """A variable of another verb is that verb's; one of no verb is a typo."""
    known = {n for verb in VERBS.values() for n in _variable_names(verb)}
    if name not in known:
        hint = did_you_mean(name[len(PREFIX) :], [n[len(PREFIX) :].lower() for n in known])
        found = re.sub(r"mean (.*)\?", lambda m: f"mean {PREFIX}{m[1].upper()}?", hint)
        raise RecipeError(f"{name}: no such key (environment){found}")


# ---------------------------------------------------------------------- the whole


def _resolved(verb: Verb, sources: Sequence[Flat], control: Control) -> Resolved:
    keys = recipe_keys(verb.recipe)
    given = lay_over([source.values for source in sources], keys)
    defaults: dict[str, Given] = {}
    if issubclass(verb.recipe, LossKeys):
        loss = choose_loss(verb, [source.values for source in sources], given)
        defaults = {
            key: Given(value, f"{DEFAULT} of {loss}", {})
            for key, value in loss_defaults(verb, loss).items()
        }
        if "loss.file" not in given:
            defaults["loss.name"] = Given(loss, f"{DEFAULT} of {verb.name}", {})
    merged = lay_over([defaults, given], keys)
    recipe = _validate(verb, merged)
    refuse_inert(recipe, {path: entry.where for path, entry in given.items()})
    provenance = _provenance(recipe, merged)
    if recipe.output_dir is None:
        recipe = recipe.model_copy(update={"output_dir": derived_output_dir(verb.name, recipe)})
        provenance["output_dir"] = f"{DEFAULT}: verb, model and data"
    notes = tuple(note for source in sources for note in source.notes)
    return Resolved(verb.name, recipe, provenance, control, notes)


def _validate(verb: Verb, merged: Mapping[str, Given]) -> TrainRecipe:
    places: dict[str, str] = {}
    for path, entry in merged.items():
        if not entry.where.startswith(DEFAULT):
            places[path] = entry.where
            places.update(entry.places)

    try:
        return verb.recipe.model_validate(nest(merged))
    except ValidationError as error:
        raise RecipeError(one_line(error, verb.recipe, within(places))) from None


def _provenance(recipe: TrainRecipe, merged: Mapping[str, Given]) -> dict[str, str]:
    """Where the value of every key came from that the recipe has."""
    found: dict[str, str] = {}
    for path, key in recipe_keys(type(recipe)).items():
        group, _, leaf = path.partition(".")
        value = getattr(recipe, group)
        if path == "loss" or (leaf and value is None):
            continue
        if group == "loss":
            if leaf not in value.model_dump():
                continue
        elif key.shape == "group" and value is not None:
            continue
        inside = [entry.where for p, entry in merged.items() if p.startswith(f"{path}.")]
        found[path] = merged[path].where if path in merged else (inside or [DEFAULT])[-1]
    if isinstance(recipe, LossKeys):  # a user's own loss has keys that no table knows
        for path in (f"loss.{name}" for name in recipe.loss.parameters):
            found.setdefault(path, merged[path].where if path in merged else DEFAULT)
    return found


def read_columns(words: Sequence[str], where: str = COMMAND_LINE) -> dict[str, str]:
    """``prompt=question,chosen=good``, in one word or several; RecipeError if it is no such thing.

    For verbs without a recipe; in a recipe the key ``columns`` reads itself.
    """
    try:
        return TypeAdapter(Columns).validate_python([p for word in words for p in word.split(",")])
    except ValidationError as error:
        message = error.errors(include_url=False)[0].get("ctx", {}).get("message", "is not valid")
        raise RecipeError(f"columns: {' '.join(words)!r} {message} ({where})") from None


# ---------------------------------------------------------------------- the run's folder

_COMMON_STEMS = {"train", "training", "data", "dataset", "test", "eval", "default", "main"}


def derived_output_dir(verb: str, recipe: TrainRecipe) -> str:
    """``runs/<verb>-<model>-<data>``: the same for the same command, so that it continues."""
    model = recipe.model_name_or_path
    if isinstance(recipe, PretrainRecipe) and recipe.new_model is not None:
        model = f"new-{recipe.new_model.architecture}"
    assert model is not None, "a recipe without a model is refused"
    specs = recipe.train_specs()
    data = _stem(specs[0].path)
    if len(specs) > 1:
        data += f"-and-{len(specs) - 1}-more"
    loss = ""
    usual = verb.removeprefix("online_")  # the loss that the verb's name says
    if isinstance(recipe, LossKeys) and recipe.loss.name != usual:
        loss = f"-{recipe.loss.schema_.name}"
    return f"runs/{verb}{loss}-{_stem(model)}-{data}"


def _stem(path: str) -> str:
    """The last part of a path or hub id, with the one before it where it says little."""
    parts = [p for p in re.split(r"[/\\]", path) if p not in ("", ".", "..")] or ["here"]
    last = re.sub(r"\.(jsonl|json|csv|parquet|txt)(\.gz|\.zst)?$", "", parts[-1])
    vague = last.lower() in _COMMON_STEMS or re.fullmatch(r"checkpoint-\d+", last)
    if vague and len(parts) > 1:
        last = f"{parts[-2]}-{last}"
    return re.sub(r"[^A-Za-z0-9._]+", "-", last).strip("-.") or "data"
