"""The keys of a recipe as a flat table: dotted name -> type, default, help text, group."""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from trimtab.config.data_keys import DataKeys, LengthKeys
from trimtab.config.keys import AdapterKeys, MixKeys, ModelKeys, OptimiserKeys, RunKeys
from trimtab.config.loss_schema import LossParameter, loss_schemas
from trimtab.config.loss_words import PARAMETERS
from trimtab.config.on_policy_recipe import RolloutKeys
from trimtab.config.recipes import LossChoice, LossKeys, TrainRecipe
from trimtab.config.values import Label

Shape = Literal["scalar", "flag", "list", "map", "group"]


class Key(NamedTuple):
    """One key. ``optional``: null is a value; ``type_label``: its type in words, for help."""

    path: str
    shape: Shape
    optional: bool
    type_label: str
    default: Any
    description: str
    title: str


@functools.cache
def recipe_keys(recipe: type[TrainRecipe]) -> Mapping[str, Key]:
    """All keys of ``recipe`` by dotted name, in the order of ``--help``.

    Hyper-parameters of losses are those of all losses: which of them is right is decided once the
    loss is known.
    """
    found: dict[str, Key] = {}
    for name, field, title in _fields(recipe):
        found.update((key.path, key) for key in _expand(name, field, title))
    assert found.keys() >= recipe.model_fields.keys(), "a field belongs to no group"
    return found


def recipe_key(recipe: type[TrainRecipe], path: str) -> Key | None:
    """One of them, or None: to look up a name takes no defaults of all the others."""
    top = path.partition(".")[0]
    if top not in recipe.model_fields:
        return None
    name, field, title = next(one for one in _fields(recipe) if one[0] == top)
    inside_loss = path != top and _plain(field.annotation)[0] is LossChoice
    keys = _loss_keys(title) if inside_loss else _expand(name, field, title)
    return next((key for key in keys if key.path == path), None)


def _fields(recipe: type[TrainRecipe]) -> Iterator[tuple[str, FieldInfo, str]]:
    """Name, field and title of its group, in the order of ``--help``."""
    # The class that declares a key first; those below it only change its default.
    owners = {name: c for c in recipe.__mro__ for name in inspect.get_annotations(c)}
    for title, owner in _groups(recipe):
        for name, field in recipe.model_fields.items():
            if owners[name] is owner:
                yield name, field, title


def loss_keys(recipe: type[TrainRecipe]) -> Mapping[str, str]:
    """Hyper-parameters that may stand at the top level: ``beta`` -> ``loss.beta``."""
    if not issubclass(recipe, LossKeys):
        return {}
    names = {name for schema in loss_schemas().values() for name in schema.parameters}
    return {name: f"loss.{name}" for name in names if name not in recipe.model_fields}


def _groups(recipe: type[TrainRecipe]) -> list[tuple[str, type[BaseModel]]]:
    lines = [c for c in recipe.__mro__ if issubclass(c, TrainRecipe) and "TITLE" in vars(c)]
    own = [(recipe.TITLE, line) for line in lines]
    more = [group for group in (LengthKeys, RolloutKeys, LossKeys) if issubclass(recipe, group)]
    before = [ModelKeys, DataKeys, *more]
    after = [OptimiserKeys, AdapterKeys, MixKeys, RunKeys]
    return [
        *((group.TITLE, group) for group in before),
        *own,
        *((group.TITLE, group) for group in after),
    ]


def _expand(path: str, field: FieldInfo, title: str) -> Iterator[Key]:
    default = field.get_default(call_default_factory=True)
    required = field.is_required()
    annotation, optional = _plain(field.annotation)
    if annotation is LossChoice:
        yield _key(path, field, "group", False, default.name, title)
        yield from _loss_keys(title)
        return
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield _key(path, field, "group", optional, default, title)
        for name, inner in annotation.model_fields.items():
            yield from _expand(f"{path}.{name}", inner, title)
        return
    shape = _shape(annotation)
    yield _key(path, field, shape, optional, ... if required else default, title)


def _loss_keys(title: str) -> Iterator[Key]:
    yield Key("loss.name", "scalar", False, "|".join(loss_schemas()), "dpo", "Name.", title)
    about = LossChoice.model_fields["file"].description or ""
    yield Key("loss.file", "scalar", True, "FILE.py:FUNCTION", None, about, title)
    merged: dict[str, list[tuple[str, LossParameter]]] = {}
    for schema in loss_schemas().values():
        for name, parameter in schema.parameters.items():
            merged.setdefault(name, []).append((schema.name, parameter))
    for name, owners in merged.items():
        defaults = ", ".join(f"{owner} {p.default}" for owner, p in owners)
        boolean = owners[0][1].annotation == "bool"
        yield Key(
            f"loss.{name}",
            "flag" if boolean else "scalar",
            any("None" in p.annotation for _, p in owners),
            {"float": "number", "int": "whole number"}.get(
                owners[0][1].annotation, owners[0][1].annotation
            ),
            None,
            f"{PARAMETERS[name]} Defaults: {defaults}.",
            title,
        )


def _key(
    path: str, field: FieldInfo, shape: Shape, optional: bool, default: Any, title: str
) -> Key:
    label = _label(field)
    return Key(path, shape, optional, label, default, field.description or "", title)


def _plain(annotation: Any) -> tuple[Any, bool]:
    """Without Annotated and without None, and whether None was in it."""
    if get_origin(annotation) is Annotated:
        return _plain(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        inner = [a for a in get_args(annotation) if a is not type(None)]
        optional = len(inner) < len(get_args(annotation))
        if len(inner) == 1:
            return _plain(inner[0])[0], optional
        return Union[tuple(inner)], optional  # noqa: UP007 - at run time
    return annotation, False


def _shape(annotation: Any) -> Shape:
    if annotation is bool:
        return "flag"
    origin = get_origin(annotation)
    if origin is dict:
        return "map"
    if origin is list or (
        origin is Union and any(get_origin(a) is list for a in get_args(annotation))
    ):
        return "list"
    return "scalar"


def _label(field: FieldInfo) -> str:
    for piece in _pieces(field):
        if isinstance(piece, Label):
            return piece.text
    annotation, _ = _plain(field.annotation)
    if get_origin(annotation) is Literal:
        return "|".join(map(str, get_args(annotation)))
    if annotation is bool:
        return "flag"
    if annotation is str:
        return "text"
    if annotation is LossChoice:
        return "a name or a sum"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "group"
    return "list"


def _pieces(field: FieldInfo) -> Iterator[Any]:
    """Metadata of the field's annotation; pydantic moves that of the outermost Annotated away."""
    yield from field.metadata
    pending = [field.annotation]
    while pending:
        annotation = pending.pop()
        if get_origin(annotation) is Annotated:
            yield from getattr(annotation, "__metadata__", ())
            pending.append(get_args(annotation)[0])
        elif get_origin(annotation) in (Union, types.UnionType):
            pending.extend(get_args(annotation))
