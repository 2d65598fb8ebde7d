"""Tokenised data on disk, under a key of everything that shapes it.

An entry is two files: ``KEY.safetensors`` with the columns and ``KEY.json``, the manifest with the
SHA-256 of the first. The manifest is published last, each by write, flush to disk and rename, so
that an entry is whole or absent whatever is killed, and any number of runs may write the same one.
An entry that does not verify is built again.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from trimtab.data.store import TreeStore

# Part of every key: raise it when the same rows become other trees, or the file layout changes.
CODE_VERSION = 3


class Cached(NamedTuple):
    """A store, what was noted when it was built, and whether it came from disk."""

    store: TreeStore
    notes: dict[str, Any]
    hit: bool


def default_cache_dir() -> Path:
    """``$TRIMTAB_CACHE``, or the platform's folder for caches."""
    if own := os.environ.get("TRIMTAB_CACHE"):
        return Path(own)
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData/Local") / "trimtab"
    if sys.platform == "darwin":
        return Path.home() / "Library/Caches/trimtab"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trimtab"


def cache_key(parts: Mapping[str, Any]) -> str:
    """SHA-256 of named JSON values (fingerprints of rows, tokenizer, options) and our version."""
    text = json.dumps({**parts, "trimtab": CODE_VERSION}, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def cached(
    key_parts: Mapping[str, Any],
    build: Callable[[], tuple[TreeStore, dict[str, Any]]],
    cache_dir: Path | None = None,
) -> Cached:
    """The store under ``key_parts``, built and saved when no entry verifies.

    ``build`` gives the store and notes of JSON types (the report). ``cache_dir`` is a folder for
    entries of this kind, by default ``trees`` in ``default_cache_dir()``. A folder that cannot be
    written to costs the time to build again and nothing else.
    """
    folder = default_cache_dir() / "trees" if cache_dir is None else cache_dir
    key = cache_key(key_parts)
    found = load(folder, key)
    if found is not None:
        return Cached(*found, hit=True)
    store, notes = build()
    try:
        save(folder, key, store, notes)
    except OSError as error:
        print(f"trimtab: the tokenised data is not cached: {error}", file=sys.stderr)
    return Cached(store, notes, hit=False)


def save(folder: Path, key: str, store: TreeStore, notes: Mapping[str, Any]) -> None:
    """Publish an entry; an older one under the same key is replaced."""
    folder.mkdir(parents=True, exist_ok=True)
    data = save_tensors(dict(store.columns))
    manifest = {
        "sha256": hashlib.sha256(data).hexdigest(),
        "size": len(data),
        "trees": len(store),
        "sources": list(store.sources),
        "notes": dict(notes),
    }
    _publish(folder / f"{key}.safetensors", data)
    _publish(folder / f"{key}.json", json.dumps(manifest, indent=1).encode())


def load(folder: Path, key: str) -> tuple[TreeStore, dict[str, Any]] | None:
    """The entry under ``key``, or None when there is none that verifies."""
    try:
        manifest = json.loads((folder / f"{key}.json").read_bytes())
        data = (folder / f"{key}.safetensors").read_bytes()
        if hashlib.sha256(data).hexdigest() != manifest["sha256"]:
            return None
        return TreeStore(load_tensors(data), manifest["sources"]), manifest["notes"]
    except (OSError, ValueError, KeyError, TypeError, AssertionError, SafetensorError):
        return None


def _publish(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    if os.name == "posix":
        descriptor = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
