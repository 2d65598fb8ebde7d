"""Rows through the package ``datasets``: hub ids, and folders that its ``save_to_disk`` wrote.

It is an extra, imported only when such a source is named; nothing else of trimtab's data side
touches the network.
"""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

from trimtab.data.readers import Record
from trimtab.errors import DataError


class LoadedRows:
    """The rows of a data set that the package loads when they are first asked for."""

    def __init__(self, name: str, load: Callable[[], Any]) -> None:
        self._name = name
        self._load = load
        self._rows: Any = None

    def records(self) -> Iterator[Record]:
        """The rows, numbered from 1."""
        number = 0
        try:
            for number, row in enumerate(self._all(), 1):
                yield Record(number, row, None, row)
        except DataError:
            raise
        except Exception as error:  # whatever decoding a column raises
            raise DataError(
                f"{self._name}:{number + 1}: cannot be read: {_first_line(error)}"
            ) from error

    def digest(self) -> bytes:
        """SHA-256 over the rows as JSON: the bytes they came in are the package's affair."""
        total = hashlib.sha256()
        for row in self._all():
            total.update(json.dumps(row, sort_keys=True, default=str).encode() + b"\n")
        return total.digest()

    def _all(self) -> Any:
        if self._rows is None:
            self._rows = self._load()
        return self._rows


def load_hub(
    name: str,
    config: str | None,
    data_files: str | Sequence[str] | None,
    split: str,
    not_here: str,
) -> Any:
    """One split of a hub data set; ``not_here`` says why the name was not found on disk.

    Raises:
        DataError: the package is not installed, or could not load it (no such id, no network).
    """
    hub = f"{name}: {not_here}; as a hub id it"
    files = data_files if isinstance(data_files, str | None) else [*data_files]
    datasets = _package(hub)
    try:
        return datasets.load_dataset(name, config, data_files=files, split=split)
    except Exception as error:  # the package raises whatever its own dependencies raise
        raise DataError(f"{hub} could not be loaded: {_first_line(error)}") from error


def load_saved(path: Path, name: str, split: str) -> Any:
    """A folder written by ``Dataset.save_to_disk`` or ``DatasetDict.save_to_disk``.

    Raises:
        DataError: the package is not installed, the folder is damaged, or has no such split.
    """
    datasets = _package(f"{name}: a folder saved by the package datasets")
    try:
        found: Any = datasets.load_from_disk(str(path))
    except Exception as error:  # as above
        raise DataError(f"{name}: could not be loaded: {_first_line(error)}") from error
    if not isinstance(found, dict):  # a DatasetDict is a dict of splits
        return found
    splits = cast("dict[str, Any]", found)
    if split not in splits:
        raise DataError(f"{name}: no split {split!r} here; there is {', '.join(splits)}")
    return splits[split]


def _package(what: str) -> Any:
    try:
        return importlib.import_module("datasets")
    except ImportError as error:
        install = 'pip install "trimtab[hub]"'
        raise DataError(f"{what} needs the package datasets: {install}") from error


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
