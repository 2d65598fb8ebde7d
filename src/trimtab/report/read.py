"""The files of a folder, read with plain errors: what is broken is named with its line."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from trimtab.errors import UsageError
from trimtab.training.metrics import decode_record

Shape = TypeVar("Shape", bound=BaseModel)
Record = dict[str, Any]


def text_of(path: Path) -> str:
    """A file's text; UsageError where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UsageError(f"{path}: is not there") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: is not UTF-8 text ({error.reason})") from None
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror or error})") from None


def json_object(path: Path) -> Record:
    """A JSON object; UsageError with the line where it is none."""
    try:
        found = json.loads(text_of(path))
    except json.JSONDecodeError as error:
        raise UsageError(
            f"{path}:{error.lineno}: is not JSON ({error.msg}); was the program that writes it "
            "stopped? Run it again, or remove the file"
        ) from None
    if not isinstance(found, dict):
        raise UsageError(f"{path}: holds {type(found).__name__} where a JSON object should be")
    return found


def shaped(path: Path, shape: type[Shape]) -> Shape:
    """A JSON object that has the keys and types of ``shape``; UsageError names what has not."""
    try:
        return shape.model_validate(json_object(path))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise UsageError(f"{path}: {key}: {first['msg'].lower()}") from None


def optional_object(path: Path) -> Record:
    """A JSON object, or an empty one where there is no such file."""
    return json_object(path) if path.is_file() else {}


def records(path: Path) -> list[Record]:
    """The lines of metrics.jsonl; a last one that is being written is left out."""
    if not path.is_file():
        return []
    found: list[Record] = []
    lines = text_of(path).split("\n")
    for place, line in enumerate(lines[:-1], 1):
        try:
            record = decode_record(line)
        except ValueError as error:
            raise UsageError(f"{path}:{place}: is not JSON ({error}); remove that line") from None
        if not isinstance(record, dict):
            raise UsageError(f"{path}:{place}: is no record; remove that line")
        found.append(record)
    return found


def table(path: Path) -> list[Record]:
    """The rows of a Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_table(path).to_pylist()
    except (OSError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())[:120]
        raise UsageError(f"{path}: cannot be read as Parquet ({reason}); remove it") from None


def value(record: Mapping[str, Any], name: str) -> float | None:
    """A number of a record; None where it has none of that name, or NaN."""
    found = record.get(name)
    if isinstance(found, bool) or not isinstance(found, (int, float)) or math.isnan(found):
        return None
    return float(found)


def ends(record: Mapping[str, Any], name: str) -> tuple[float | None, float | None]:
    """The 95 % interval beside a number; (None, None) where there is none."""
    found = record.get(f"{name}_ci95")
    if isinstance(found, list) and len(found) == 2:
        low, high = (value({"x": one}, "x") for one in found)
        return low, high
    return None, None
