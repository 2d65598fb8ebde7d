"""Types of recipe values: each one turns text (a command line, YAML, the environment) into a value.

Text is read by the type that the recipe declares, never by what YAML makes of it: ``1e-5`` is a
number where a number belongs, ``no`` stays a word where a word belongs.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping
from typing import Annotated, Any, NoReturn, cast

from pydantic import AfterValidator, BeforeValidator
from pydantic_core import PydanticCustomError

VALUE_ERROR = "trimtab_value"  # a value that its own type refuses: "<key>: <value> <message>"
RECIPE_ERROR = "trimtab_recipe"  # values that do not fit together: "<message>", which names the key


@dataclasses.dataclass(frozen=True)
class Label:
    """What ``--help`` calls a type."""

    text: str


def as_mapping(value: object) -> dict[str, Any] | None:
    """A copy of ``value`` where it is a mapping, else None."""
    return dict(cast("Mapping[str, Any]", value)) if isinstance(value, Mapping) else None


def as_list(value: object) -> list[Any] | None:
    """A copy of ``value`` where it is a list or tuple, else None."""
    return list(cast("list[Any]", value)) if isinstance(value, (list, tuple)) else None


def as_tuple(value: object) -> tuple[Any, ...] | None:
    """``value`` where it is a tuple, else None."""
    return cast("tuple[Any, ...]", value) if isinstance(value, tuple) else None


def refuse(message: str) -> NoReturn:
    """A value is wrong by itself; ``message`` follows the key and the value: "is not a number"."""
    raise PydanticCustomError(VALUE_ERROR, "{message}", {"message": message})


def conflict(key: str, message: str) -> NoReturn:
    """Values do not fit together; ``message`` follows ``key`` and says what to use instead."""
    raise PydanticCustomError(RECIPE_ERROR, "{message}", {"key": key, "message": message})


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        refuse("is not a number")
    try:
        found = float(value)
    except (ValueError, OverflowError):
        refuse("is not a number")
    if found != found or found in (float("inf"), float("-inf")):
        refuse("is not a finite number")
    return found


def _whole(value: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    try:
        # Exact where it can be: float("9007199254740993") is another number.
        return int(value) if isinstance(value, str) else _integral(value)
    except ValueError:
        return _integral(value)


def _integral(value: Any) -> int:
    try:
        found = _number(value)
    except PydanticCustomError:
        refuse("is not a whole number")
    if not found.is_integer():
        refuse("is not a whole number")
    return int(found)


def _count_or_share(value: Any) -> int | float:
    found = _number(value)
    if found < 0:
        refuse("is negative; give a count, or a share below 1 such as 0.1")
    if 0 < found < 1:
        return found
    if not found.is_integer():
        refuse("is neither a whole number nor a share below 1")
    return _whole(value)


def _split(value: Any) -> Any:
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    words = as_tuple(value)  # several words of a command line: "--report-to wandb, mlflow"
    return value if words is None else [word for part in words for word in _split(part)]


def _class_names(value: Any) -> Any:
    """Classes are known by their texts; whole numbers where all of them are."""
    items = as_list(_split(value))
    if items is None:
        return value
    names = [str(item).strip() for item in items]
    if len(names) < 2:
        refuse("is not a list of classes: there must be two of them or more")
    for name in names:
        if not name:
            refuse("holds an empty class")
        if names.count(name) > 1:
            refuse(f"names {name!r} twice")
    numbers = all(re.fullmatch(r"-?(0|[1-9][0-9]{0,17})", name) for name in names)
    return [int(name) for name in names] if numbers else names


def _prompts(value: Any) -> Any:
    """A number of prompts, one prompt, or several; prompts hold commas, so nothing is split."""
    if isinstance(value, bool):
        refuse("is neither a number of prompts nor a list of prompts")
    if isinstance(value, str):
        return int(value) if re.fullmatch(r"[0-9]+", value.strip()) else [value]
    if isinstance(value, int) and value < 0:
        refuse("is negative")
    words = as_tuple(value)
    return value if words is None else list(words)


def parse_columns(value: Any) -> Any:
    """``{"prompt": "question"}``, ``"prompt=question,chosen=good"`` or a list of such parts."""
    if isinstance(value, str):
        value = [part for part in value.split(",") if part.strip()]
    parts = as_list(value)
    if parts is None:
        return value
    found: dict[str, str] = {}
    for part in parts:
        ours, sign, theirs = str(part).partition("=")
        if not sign or not ours.strip() or not theirs.strip():
            refuse("is not of the form ours=theirs, such as prompt=question,chosen=good")
        if ours.strip() in found:
            refuse(f"names {ours.strip()} twice")
        found[ours.strip()] = theirs.strip()
    return found


# The columns that rows may have here: TRL's, and those of the formats that are converted.
COLUMNS = (
    "text",
    "messages",
    "prompt",
    "completion",
    "chosen",
    "rejected",
    "label",
    "responses",
    "ranks",
    "scores",
    "weight",
    "margin",
    "tools",
    "conversations",
    "instruction",
    "input",
    "output",
    "system",
    "history",
)


def _known_columns(value: dict[str, str]) -> dict[str, str]:
    for ours, theirs in value.items():
        if ours not in COLUMNS:
            turned = f"; did you mean {theirs}={ours}?" if theirs in COLUMNS else ""
            refuse(f"maps {ours!r}, but columns here are {', '.join(COLUMNS)}{turned}")
    return value


def _home(value: Any) -> Any:
    if isinstance(value, os.PathLike):
        value = os.fspath(cast("os.PathLike[str]", value))
    if isinstance(value, str):
        if not value.strip():
            refuse("is empty")
        return os.path.expanduser(value) if value.startswith("~") else value
    return value


def _device(value: str) -> str:
    if not re.fullmatch(r"auto|cpu|mps|cuda(:[0-9]+)?", value):
        refuse("is not one of auto, cpu, cuda, cuda:N, mps")
    return value


Number = Annotated[float, BeforeValidator(_number), Label("number")]
"""A finite number."""

Whole = Annotated[int, BeforeValidator(_whole), Label("whole number")]
"""A whole number; ``1e3`` and ``64.0`` are."""

CountOrShare = Annotated[int | float, BeforeValidator(_count_or_share), Label("count or share < 1")]
"""A count (int), or a share of the whole (float, below 1)."""

TextList = Annotated[list[str], BeforeValidator(_split), Label("a,b,...")]
"""Words, as a list or separated by commas."""

ClassNames = Annotated[list[int | str], BeforeValidator(_class_names), Label("a,b,...")]
"""The classes of a classifier."""

NumberList = Annotated[list[Number], BeforeValidator(_split), Label("1,0.5,...")]
"""Numbers, also as one text with commas."""

Prompts = Annotated[list[str] | int, BeforeValidator(_prompts), Label("number, or prompts")]
"""A number of prompts to take from the data, or the prompts."""

Columns = Annotated[
    dict[str, str],
    BeforeValidator(parse_columns),
    AfterValidator(_known_columns),
    Label("ours=theirs,..."),
]
"""Our column -> theirs."""

Location = Annotated[str, BeforeValidator(_home), Label("path or hub id")]
"""A file, a folder or a hub id; ``~`` is the home directory."""

Device = Annotated[str, AfterValidator(_device), Label("auto|cpu|cuda|cuda:N|mps")]
"""Where to compute."""
