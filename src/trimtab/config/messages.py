"""What pydantic finds wrong with a recipe, as one line that a user can act on."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from trimtab.config.suggest import did_you_mean
from trimtab.config.values import RECIPE_ERROR, VALUE_ERROR

Where = Callable[[str], str | None]
"""Where a dotted key was given, None for a default."""

_TYPE_NAMES = {"str", "int", "float", "bool", "list", "dict", "tuple"}

_MESSAGES: Mapping[str, str] = {
    "float_parsing": "is not a number",
    "float_type": "is not a number",
    "finite_number": "is not a finite number",
    "int_parsing": "is not a whole number",
    "int_type": "is not a whole number",
    "bool_parsing": "is not true or false",
    "bool_type": "is not true or false",
    "string_type": "is not text",
    "list_type": "is not a list",
    "dict_type": "is not a group of name: value",
    "model_type": "is not a group of keys",
    "model_attributes_type": "is not a group of keys",
    "greater_than": "must be more than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
    "too_short": "must not be empty",
}


def within(places: Mapping[str, str]) -> Where:
    """Where a dotted key was given, or else the nearest group that it is in; None for nowhere."""

    def where(key: str) -> str | None:
        while key:
            if key in places:
                return places[key]
            key = key.rpartition(".")[0]
        return None

    return where


def one_line(error: ValidationError, recipe: type[BaseModel], where: Where) -> str:
    """The first thing that is wrong, and the keys of the others."""
    found: dict[str, str] = {}
    # A key that is missing was often only misspelled: what is unknown comes first.
    details = error.errors(include_url=False)
    for detail in sorted(details, key=lambda one: one["type"] != "extra_forbidden"):
        key, line = _line(detail, recipe, where)
        found.setdefault(key, line)
    first, *others = found
    more = f"; and {', '.join(others)}" if others else ""
    return found[first] + more


def _line(detail: ErrorDetails, recipe: type[BaseModel], where: Where) -> tuple[str, str]:
    context = detail.get("ctx", {})
    parts = [p for p in detail["loc"] if isinstance(p, int) or _is_name(p)]
    key = ".".join(map(str, parts))
    if detail["type"] == RECIPE_ERROR:
        key = str(context["key"])
        return key, f"{key}: {context['message']}{_place(key, where)}"
    value = shown(detail["input"])
    if detail["type"] == "extra_forbidden":
        known = _fields_at(recipe, parts[:-1])
        *groups, leaf = map(str, parts)
        prefix = ".".join([*groups, ""]) if groups else ""
        hint = did_you_mean(leaf, known, prefix) or f"; {'.'.join(groups)} takes {', '.join(known)}"
        return key, f"{key}: unknown key{_place(key, where)}{hint}"
    if detail["type"] == "missing":
        return key, f"{key}: missing{_place(key, where)}"
    if detail["type"] == "literal_error":
        options = re.findall(r"'([^']*)'", str(context["expected"]))
        hint = did_you_mean(str(detail["input"]), options)
        return key, f"{key}: {value} is not one of {', '.join(options)}{_place(key, where)}{hint}"
    if detail["type"] == VALUE_ERROR:
        message = str(context["message"])
    else:
        template = _MESSAGES.get(detail["type"])
        limits = {name: _brief(limit) for name, limit in context.items()}
        message = template.format(**limits) if template else detail["msg"].lower()
    return key, f"{key}: {value} {message}{_place(key, where)}"


def _is_name(part: str) -> bool:
    """Whether a part of a location is a key, and not the name of a type that pydantic tried."""
    return part not in _TYPE_NAMES and re.fullmatch(r"[\w-]+", part) is not None


def _place(key: str, where: Where) -> str:
    found = where(key)
    return f" ({found})" if found else ""


def _fields_at(recipe: type[BaseModel], parts: list[int | str]) -> list[str]:
    """Names of the keys of the group at ``parts``."""
    model: Any = recipe
    for part in parts:
        if isinstance(part, str):
            model = _model_in(model.model_fields[part].annotation)
    return list(model.model_fields)


def _model_in(annotation: Any) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    inner = (_model_in(argument) for argument in get_args(annotation))
    return next((m for m in inner if m is not None), None)


def _brief(value: Any) -> Any:
    """0 for 0.0: limits are floats, and users write whole numbers."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def shown(value: Any) -> str:
    """A value for a message: short, and quoted where it is text."""
    text = repr(_brief(value))
    return text if len(text) <= 60 else text[:57] + "..."
