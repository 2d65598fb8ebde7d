"""Files of rows for the tests of readers, formats and sources."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from trimtab.data.rows import Example
from trimtab.data.sources import Loaded, load_examples


@dataclass
class Spec:
    """A source, with the defaults of ``trimtab.config``'s DatasetSpec."""

    path: str
    name: str | None = None
    data_files: str | Sequence[str] | None = None
    split: str | None = "train"
    columns: Mapping[str, str] | None = field(default_factory=dict[str, str])
    fraction: float | None = 1.0
    weight: float | None = None
    kind: str | None = None


@pytest.fixture
def spec() -> type[Spec]:
    return Spec


@pytest.fixture
def jsonl(tmp_path: Path) -> Callable[..., Path]:
    """Write rows (objects, or raw text) as JSON lines and return the path."""

    def write(rows: Sequence[Any], name: str = "rows.jsonl") -> Path:
        path = tmp_path / name
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        path.write_text("\n".join(lines) + "\n" if lines else "", encoding="utf-8")
        return path

    return write


@pytest.fixture
def load(jsonl: Callable[..., Path]) -> Callable[..., Loaded]:
    """Load rows (or a path) as one source; keys of the source and of load_examples mixed."""

    def run(rows: Any, accept: Any = None, **keys: Any) -> Loaded:
        path = rows if isinstance(rows, (str, Path)) else jsonl(rows)
        own = {key: keys.pop(key) for key in list(keys) if key in Spec.__dataclass_fields__}
        return load_examples([Spec(str(path), **own)], accept, **keys)

    return run


@pytest.fixture
def one(load: Callable[..., Loaded]) -> Callable[..., Any]:
    """The single example of a single row."""

    def run(row: Any, accept: Any = None, **keys: Any) -> Example:
        examples = load([row], accept, **keys).examples[0]
        assert len(examples) == 1
        return examples[0]

    return run
