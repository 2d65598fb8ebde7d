"""MANIFEST.json: which files a checkpoint has, with their sizes and hashes; the last file written.

A checkpoint is what its manifest says, or it is none: neither the folder's name nor the presence
of some file decides. The manifest carries a hash of itself, so a flipped bit in it is found too.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from trimtab.training import files

NAME = "MANIFEST.json"
FORMAT = 1


class Damaged(Exception):
    """A folder is not the checkpoint that was written; the message says why, in a few words."""


@dataclass(frozen=True)
class Manifest:
    """``entries`` maps a file's path inside the checkpoint (with ``/``) to size and SHA-256."""

    step: int
    entries: Mapping[str, files.Written]

    @property
    def size(self) -> int:
        """Bytes of all files together."""
        return sum(entry.size for entry in self.entries.values())

    def encode(self) -> bytes:
        """The content of MANIFEST.json."""
        body: dict[str, Any] = {
            "format": FORMAT,
            "step": self.step,
            "files": {
                name: {"size": entry.size, "sha256": entry.sha256}
                for name, entry in sorted(self.entries.items())
            },
        }
        return json.dumps({**body, "sha256": _digest(body)}, indent=1).encode()


def _digest(body: Mapping[str, Any]) -> str:
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def read(folder: Path) -> Manifest:
    """The manifest of a folder; Damaged when there is none, or none that can be trusted."""
    try:
        document = json.loads(files.read_file(folder / NAME))
    except FileNotFoundError:
        raise Damaged(f"it has no {NAME}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise Damaged(f"its {NAME} cannot be read ({_reason(error)})") from None
    try:
        claimed = document.pop("sha256")
        if document["format"] != FORMAT:
            raise Damaged(f"its {NAME} has format {document['format']!r}, this trimtab reads 1")
        entries = {
            _inside(name): files.Written(entry["size"], entry["sha256"])
            for name, entry in document["files"].items()
        }
        step = document["step"]
    except (AttributeError, KeyError, TypeError):
        raise Damaged(f"its {NAME} is not one of trimtab's") from None
    if claimed != _digest(document):
        raise Damaged(f"its {NAME} was changed after it was written")
    return Manifest(step, entries)


def check_sizes(folder: Path, manifest: Manifest) -> None:
    """That every file is there with its size: quick, and blind to changed content."""
    for name, entry in manifest.entries.items():
        try:
            size = (folder / name).stat().st_size
        except OSError:
            raise Damaged(f"{name} is missing") from None
        if size != entry.size:
            raise Damaged(f"{name} has {size} bytes instead of {entry.size}")


def verify(folder: Path) -> Manifest:
    """Read everything back and compare; Damaged names the first file that is not as written."""
    manifest = read(folder)
    check_sizes(folder, manifest)
    for name, entry in manifest.entries.items():
        try:
            found = files.measure_file(folder / name)
        except OSError as error:
            raise Damaged(f"{name} cannot be read ({_reason(error)})") from None
        if found != entry:
            raise Damaged(f"{name} was changed after it was written")
    return manifest


def _inside(name: str) -> str:
    """A name from a manifest may only lead into its own folder."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name:
        raise Damaged(f"its {NAME} names {name!r}, outside the checkpoint")
    return name


def _reason(error: Exception) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return text.splitlines()[0] if text else type(error).__name__
