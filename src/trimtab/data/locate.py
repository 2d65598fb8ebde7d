"""From what a recipe names to streams of rows: a file, a folder, a saved data set, a hub id.

What exists on disk always wins over a hub id of the same name. A folder gives its files in the
order of their names; where file names tell splits apart (``train-0.jsonl``, ``prefs_test.jsonl``)
only those of the split that is asked for are read, by the keywords that the hub uses too.
"""

from __future__ import annotations

import fnmatch
import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol

from trimtab.config.suggest import nearest_beside
from trimtab.data import hub
from trimtab.data.readers import READERS, Record, data_suffix, read_file
from trimtab.errors import DataError

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_KEYWORDS = {
    "train": {"train", "training"},
    "validation": {"validation", "valid", "val", "dev"},
    "test": {"test", "testing", "eval", "evaluation"},
}


class DatasetSpec(Protocol):
    """One source of a recipe, as ``trimtab.config`` models it; any object with these will do."""

    @property
    def path(self) -> str:
        """File, folder or hub id."""
        ...

    @property
    def name(self) -> str | None:
        """Configuration of a hub data set, or a folder in a local folder."""
        ...

    @property
    def data_files(self) -> str | Sequence[str] | None:
        """Files in the folder or hub data set; wildcards allowed."""
        ...

    @property
    def split(self) -> str | None:
        """Split of a hub data set or of a folder; None means train."""
        ...

    @property
    def columns(self) -> Mapping[str, str] | None:
        """Our column -> theirs."""
        ...

    @property
    def fraction(self) -> float | None:
        """Share of the rows to use, above 0 and at most 1; None means all."""
        ...

    @property
    def weight(self) -> float | None:
        """Weight in a mixture."""
        ...

    @property
    def kind(self) -> str | None:
        """The kind of the rows (``rows.KINDS``); None: recognised."""
        ...


@dataclass(frozen=True)
class Part:
    """One stream of rows: its name for messages and origins, its rows, a digest of its bytes."""

    name: str
    records: Callable[[], Iterator[Record]]
    digest: Callable[[], bytes]


@dataclass
class Located:
    """The streams of one source, in order, and what the user should know about the choice."""

    parts: list[Part]
    notices: list[str] = field(default_factory=list[str])


def locate(spec: DatasetSpec) -> Located:
    """Find what ``spec`` names.

    Raises:
        DataError: nothing of that name here, no data file in the folder, no such split.
    """
    path = Path(spec.path).expanduser()
    try:
        exists = path.exists()
    except OSError as error:  # a name too long, a loop of links
        raise DataError(f"{spec.path}: cannot be read: {error.strerror or error}") from error
    if not exists:
        if not _may_be_hub_id(spec.path):
            raise DataError(f"{spec.path}: {_not_here(path)}")
        return Located([_hub_part(spec, _not_here(path))])
    notices: list[str] = []
    if "/" in spec.path and _HUB_ID.fullmatch(spec.path) and path.is_dir():
        notices.append(f"the folder {spec.path} is read, not the hub's data set of that name")
    if not path.is_dir():
        if spec.data_files or spec.name:
            key = "data_files" if spec.data_files else "name"
            raise DataError(f"{spec.path}: a file, so {key} has nothing to name; leave it out")
        return Located([_file_part(path, spec.path)], notices)
    if spec.name and not _is_saved(path):
        if not (path / spec.name).is_dir():
            raise DataError(f"{spec.path}: {_not_here(path / spec.name)} (name: {spec.name})")
        path = path / spec.name
    if _is_saved(path):
        return Located([_saved_part(path, spec)], notices)
    return _folder(path, spec, notices)


def _file_part(path: Path, name: str) -> Part:
    def digest() -> bytes:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").digest()

    return Part(name, lambda: read_file(path, name), digest)


def _hub_part(spec: DatasetSpec, not_here: str) -> Part:
    split = spec.split or "train"
    load = partial(hub.load_hub, spec.path, spec.name, spec.data_files, split, not_here)
    rows = hub.LoadedRows(spec.path, load)
    return Part(spec.path, rows.records, rows.digest)


def _saved_part(path: Path, spec: DatasetSpec) -> Part:
    load = partial(hub.load_saved, path, spec.path, spec.split or "train")
    rows = hub.LoadedRows(spec.path, load)
    return Part(spec.path, rows.records, rows.digest)


def _is_saved(path: Path) -> bool:
    """Whether the folder was written by ``datasets.save_to_disk``."""
    one = (path / "dataset_info.json").is_file() and (path / "state.json").is_file()
    return one or (path / "dataset_dict.json").is_file()


def _folder(path: Path, spec: DatasetSpec, notices: list[str]) -> Located:
    files = {
        file.relative_to(path).as_posix(): file
        for file in path.rglob("*")
        if data_suffix(file) and file.is_file() and not _is_hidden(file.relative_to(path))
    }
    if not files:
        known = ", ".join(READERS)
        raise DataError(f"{spec.path}: no data file in this folder (known endings: {known})")
    names = sorted(files)
    if spec.data_files:
        names = _matching(names, spec)
    else:
        names = _of_split(names, spec)
        left = len(files) - len(names)
        if left:
            read = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
            split = spec.split or "train"
            notices.append(f"split {split}: {read} read, {left} of {len(files)} files left")
    parts = [_file_part(files[name], _joined(path, spec, name)) for name in names]
    return Located(parts, notices)


def _joined(path: Path, spec: DatasetSpec, name: str) -> str:
    """The file as the user would name it."""
    base = Path(spec.path) / spec.name if spec.name else Path(spec.path)
    return (base / name).as_posix() if not path.is_absolute() else str(path / name)


def _is_hidden(relative: Path) -> bool:
    if any(part.startswith((".", "_")) for part in relative.parts):
        return True
    # LLaMA-Factory's registry and the hub's card data lie among the rows.
    return relative.name in ("dataset_info.json", "dataset_infos.json", "state.json")


def _matching(names: Sequence[str], spec: DatasetSpec) -> list[str]:
    patterns = [spec.data_files] if isinstance(spec.data_files, str) else spec.data_files or []
    chosen: list[str] = []
    for pattern in patterns:
        found = [name for name in names if fnmatch.fnmatchcase(name, pattern)]
        if not found:
            raise DataError(
                f"{spec.path}: data_files {pattern!r} names no data file in this folder; it holds "
                + _some(names)
            )
        chosen += [name for name in found if name not in chosen]
    return chosen


def _of_split(names: Sequence[str], spec: DatasetSpec) -> list[str]:
    """The files of the split; all of them where no name tells of one."""
    split = spec.split or "train"
    if "[" in split:
        raise DataError(
            f"{spec.path}: split {split!r}: a part of a split is for the hub only; use fraction"
        )
    named = [name for name in names if _is_of(name, split)]
    if named:
        return named
    unnamed = [name for name in names if not any(_is_of(name, other) for other in _KEYWORDS)]
    if len(unnamed) == len(names) or (split == "train" and unnamed):
        return unnamed
    raise DataError(f"{spec.path}: no file of the split {split!r} here; it holds {_some(names)}")


def _is_of(name: str, split: str) -> bool:
    if re.search(rf"(?<![A-Za-z0-9]){re.escape(split)}(?![A-Za-z0-9])", name):
        return True
    words = set(re.split(r"[^a-z]+", name.lower()))
    return bool(words & _KEYWORDS.get(split, set()))


def _some(names: Sequence[str], most: int = 8) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _may_be_hub_id(name: str) -> bool:
    """Whether the hub may be asked: no path of this machine looks like the name."""
    if not _HUB_ID.fullmatch(name) or data_suffix(Path(name)):
        return False
    first, slash, _ = name.partition("/")
    return not (slash and Path(first).is_dir())


def _not_here(path: Path) -> str:
    """``no such file or folder`` with a name that comes close, or some that are there."""
    parent = path.parent
    if not parent.is_dir():
        return f"no such file: there is no folder {parent}"
    try:
        there = sorted(entry.name for entry in parent.iterdir() if not entry.name.startswith("."))
    except OSError:
        there = []
    near = nearest_beside(path, [n for n in there if data_suffix(Path(n)) or (parent / n).is_dir()])
    if near is not None:
        return f"no such file or folder; did you mean {near}?"
    rows = [name for name in there if data_suffix(Path(name))]
    return "no such file or folder" + (f"; there is {_some(rows, 4)}" if rows else "")
