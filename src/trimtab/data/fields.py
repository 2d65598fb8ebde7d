"""Checks of single values of a row: text, messages, numbers, flags.

Each function takes a value and the name of its field, gives the value back in its final form, and
raises ``BadRow`` with that name where the value cannot be used.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any, cast

from trimtab.data.quarantine import BadRow
from trimtab.data.rows import Message, Text

ROLES = ("system", "developer", "user", "assistant", "tool")
# An empty system prompt and a tool that returned nothing are statements; an empty turn is a hole.
_MAY_BE_EMPTY = ("system", "developer", "tool")


def required(row: Mapping[str, Any], name: str) -> Any:
    """The value of a field that must be there and not be null."""
    if name not in row:
        raise BadRow(name, "missing")
    if row[name] is None:
        raise BadRow(name, "is null")
    return row[name]


def plain(value: Any, name: str) -> str:
    """A string that is not blank and can be encoded as UTF-8."""
    if not isinstance(value, str):
        raise BadRow(name, "not text", f"found {found(value)}")
    if not value or value.isspace():
        raise BadRow(name, "empty")
    return unicode(value, name)


def unicode(value: str, name: str) -> str:
    """A string without lone surrogates (JSON's \\ud800), which no tokenizer can encode."""
    if not value.isascii():
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            code = f"\\u{ord(value[error.start]):04x} at character {error.start + 1}"
            raise BadRow(name, "not valid Unicode", f"lone surrogate {code}") from error
    return value


def text(value: Any, name: str) -> Text:
    """A plain string or a conversation."""
    if isinstance(value, (list, dict)):
        return conversation(cast("Any", value), name)
    return plain(value, name)


def reply(value: Any, name: str) -> Text:
    """A continuation of a prompt: text, or messages of which the assistant's come first."""
    checked = text(value, name)
    if not isinstance(checked, str):
        if checked[0]["role"] not in ("assistant", "tool"):
            raise BadRow(f"{name}[0]", "not an assistant message", f"role {checked[0]['role']!r}")
        needs_assistant(checked, name)
    return checked


def needs_assistant(messages: list[Message], name: str) -> None:
    """Refuse a conversation in which the assistant says nothing."""
    if not any(message["role"] == "assistant" for message in messages):
        raise BadRow(name, "no assistant message")


def conversation(value: Any, name: str) -> list[Message]:
    """A list of messages (or a single one), each with a known role and content.

    Keys that are null are left out (Parquet fills them in); content given as a list of text parts
    becomes one string. An assistant message may do without content where it calls tools.
    """
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list):
        raise BadRow(name, "not a list of messages", f"found {found(value)}")
    items = cast("list[Any]", value)
    if not items:
        raise BadRow(name, "empty")
    return [_message(item, f"{name}[{index}]") for index, item in enumerate(items)]


def _message(value: Any, name: str) -> Message:
    if not isinstance(value, dict):
        raise BadRow(name, "not a message", f"found {found(value)}")
    given = cast("dict[Any, Any]", value)
    message = {str(key): item for key, item in given.items() if item is not None}
    role = message.get("role")
    if role is None:
        raise BadRow(f"{name}.role", "missing", f"keys {', '.join(message) or 'none'}")
    if role not in ROLES:
        raise BadRow(f"{name}.role", "unknown role", f"{str(role)[:30]!r}, not {', '.join(ROLES)}")
    content = message.get("content")
    if isinstance(content, list):
        content = _parts(cast("list[Any]", content), f"{name}.content")
    calls = message.get("tool_calls")
    if content is None or content == "":
        if role == "assistant" and calls:
            content = ""
        elif content is None:
            null = "content" in given
            raise BadRow(f"{name}.content", "is null" if null else "missing")
        elif role not in _MAY_BE_EMPTY:
            raise BadRow(f"{name}.content", "empty")
    elif role in _MAY_BE_EMPTY and isinstance(content, str):
        content = unicode(content, f"{name}.content")
    else:
        content = plain(content, f"{name}.content")
    message["content"] = content
    for key, item in message.items():
        if key not in ("role", "content"):
            _encodable(item, f"{name}.{key}")
    if calls is not None and not _are_objects(calls):
        raise BadRow(f"{name}.tool_calls", "not a list of objects", f"found {found(calls)}")
    return message


def _are_objects(value: Any) -> bool:
    items = cast("list[Any]", value)
    return isinstance(value, list) and all(isinstance(item, dict) for item in items)


def _encodable(value: Any, name: str) -> None:
    """Check the Unicode of whatever a chat template may print."""
    if isinstance(value, str):
        unicode(value, name)
    elif value and isinstance(value, (list, dict)):
        unicode(json.dumps(value, ensure_ascii=False, default=str), name)


def _parts(parts: list[Any], name: str) -> str:
    texts: list[str] = []
    for part in parts:
        piece: Any = cast("dict[str, Any]", part).get("text") if isinstance(part, dict) else part
        if not isinstance(piece, str):
            raise BadRow(name, "a part is not text", "images and audio are not supported")
        texts.append(piece)
    return "".join(texts)


def number(value: Any, name: str) -> float:
    """A finite number; true and false are 1 and 0."""
    if not isinstance(value, (int, float)):
        raise BadRow(name, "not a number", f"found {found(value)}")
    try:
        result = float(value)
    except OverflowError:
        result = math.inf
    if not math.isfinite(result):
        raise BadRow(name, "not a finite number", "NaN" if math.isnan(result) else "infinite")
    return result


def numbers(value: Any, name: str, count: int) -> list[float]:
    """A list of ``count`` finite numbers."""
    if not isinstance(value, list):
        raise BadRow(name, "not a list of numbers", f"found {found(value)}")
    items = cast("list[Any]", value)
    if len(items) != count:
        raise BadRow(name, "wrong length", f"{len(items)} for {count} responses")
    if name == "ranks" and any(isinstance(item, bool) for item in items):
        raise BadRow(name, "not a list of numbers", "a rank is a number, 1 for the best")
    return [number(item, f"{name}[{index}]") for index, item in enumerate(items)]


def weight(row: Mapping[str, Any]) -> float:
    """The optional ``weight`` of a row: 1 where missing or null, never negative."""
    if row.get("weight") is None:
        return 1.0
    value = number(row["weight"], "weight")
    if value < 0:
        raise BadRow("weight", "negative", f"{value:g}")
    return value


def margin(row: Mapping[str, Any]) -> float:
    """The optional ``margin`` of a pair: 0 where missing or null."""
    return 0.0 if row.get("margin") is None else number(row["margin"], "margin")


def flag(value: Any, name: str) -> bool:
    """True or false, and nothing that merely looks like it."""
    if not isinstance(value, bool):
        raise BadRow(name, "not true or false", f"found {found(value)}")
    return value


def label(value: Any, name: str) -> int | str:
    """A class: a whole number (1.0 is one, as tables with gaps write it) or text.

    JSON's true and false are the names "true" and "false".
    """
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return plain(value, name)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if not isinstance(value, int):
        raise BadRow(name, "not a whole number or text", f"found {found(value)}")
    return value


def class_cell(value: str) -> int | str:
    """A class in a table whose cells are all text: a number where it is written as one."""
    return int(value) if re.fullmatch(r"-?(0|[1-9][0-9]{0,17})", value.strip()) else value


def tools(row: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """The optional ``tools`` of a row: a list of JSON schemas, or such a list as JSON text."""
    value = row.get("tools")
    if isinstance(value, str):
        value = _json_list(value, "tools") if value.strip() else None
    if value is None:
        return None
    items = cast("list[Any]", value) if isinstance(value, list) else [value]
    for index, item in enumerate(items):
        if not isinstance(item, dict):
            raise BadRow(f"tools[{index}]", "not a JSON schema", f"found {found(item)}")
    _encodable(items, "tools")
    return items or None


def from_cells(row: dict[str, Any]) -> dict[str, Any]:
    """A row of a CSV file, in which every value is a string or null, with our columns typed.

    Lists are read as JSON, numbers and flags as JSON or Python write them; ``prompt``, ``chosen``
    and the like are read as messages where they are a JSON list of objects.
    """
    typed = dict(row)
    for name in ("responses", "ranks", "scores", "messages", "conversations", "history"):
        if isinstance(row.get(name), str):
            typed[name] = _json_list(row[name], name)
    for name in ("prompt", "completion", "chosen", "rejected"):
        cell = row.get(name)
        if isinstance(cell, str) and cell.lstrip().startswith("[{"):
            try:
                typed[name] = json.loads(cell)
            except (ValueError, RecursionError):
                continue  # a text that happens to start like a list of messages
    for name in ("weight", "margin"):
        if isinstance(row.get(name), str):
            try:
                typed[name] = float(row[name])
            except ValueError as error:
                raise BadRow(name, "not a number", f"found {row[name][:30]!r}") from error
    label = row.get("label")
    if isinstance(label, str):
        typed["label"] = {"true": True, "1": True, "false": False, "0": False}.get(
            label.strip().lower(), label
        )
    return typed


def _json_list(value: str, name: str) -> Any:
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise BadRow(name, "not a JSON list", f"found {value[:30]!r}") from error


def found(value: Any) -> str:
    """What a value is, for people, short and on one line."""
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case str():
            return f"the text {' '.join(value.split())[:30]!r}"
        case int() | float():
            return f"the number {str(value)[:30]}"
        case list():
            return "a list"
        case dict():
            return "an object"
        case _:
            return f"a value of type {type(value).__name__}"
