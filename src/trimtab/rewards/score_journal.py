"""The scores of an unfinished ``trimtab score``, on disk: a killed run goes on where it was.

One line a row in the order of the rows, after a line with a key of everything that shapes scores.
Lines are written a chunk of rows at a time and fsynced; what a kill left of a chunk is dropped, so
that rows are batched, and numbers come out, as in a run that was never killed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trimtab.errors import RunError, UsageError
from trimtab.rewards.scorers import Scored
from trimtab.training import files

CHUNK = 64
"""Rows that are scored, and written, together."""

Entry = list[Scored]
"""What all scorers make of a row, in their order."""


class Journal:
    """Entries of the rows so far; ``note`` says what was found in the file, if anything."""

    def __init__(self, path: Path, identity: Any, *, restart: bool) -> None:
        """Open or begin the journal at ``path``; UsageError where another process writes to it."""
        self.path = path
        self.entries: list[Entry] = []
        self.note: str | None = None
        told = json.dumps(identity, sort_keys=True, default=str)
        header = json.dumps({"key": hashlib.sha256(told.encode()).hexdigest()}).encode() + b"\n"
        try:
            self._file = files.AppendFile(path)
            self._lock = _locked(path)
            found = b"" if restart else files.read_file(path)
            kept = self._read(found, header)
            if kept < self._file.offset:
                self._file.truncate(kept)
            if kept == 0:
                self._file.append(header)
        except OSError as error:
            raise UsageError(f"{path}: cannot be written: {error.strerror or error}") from None

    def _read(self, content: bytes, header: bytes) -> int:
        """Take the whole chunks of a journal with this header; returns how many bytes they are."""
        if not content.startswith(header):
            if content.count(b"\n") > 1:
                self.note = (
                    "scores of an unfinished run with other rows, rewards or options are dropped"
                )
            return 0
        place = kept = len(header)
        entries: list[Entry] = []
        for line in content[place:].splitlines(keepends=True):
            entry = _parsed(line)
            if entry is None:
                break
            entries.append(entry)
            place += len(line)
            if len(entries) % CHUNK == 0:
                kept = place
        self.entries = entries[: len(entries) // CHUNK * CHUNK]
        if self.entries:
            self.note = f"going on with an unfinished run: {len(self.entries)} rows are scored"
        return kept

    def add(self, entries: Sequence[Entry]) -> None:
        """Append the entries of a chunk; they survive a kill when this returns."""
        lines = [json.dumps([dataclasses.asdict(one) for one in entry]) for entry in entries]
        try:
            self._file.append("".join(f"{line}\n" for line in lines).encode())
            self._file.sync()
        except OSError as error:
            raise RunError(f"{self.path}: cannot be written: {error.strerror or error}") from error
        self.entries += entries

    def close(self, *, remove: bool = False) -> None:
        """Close the file, and remove it where it is no longer needed."""
        if remove:
            with contextlib.suppress(OSError):
                self.path.unlink(missing_ok=True)
        self._file.close()
        os.close(self._lock)


def journal_of(output: Path) -> Path:
    """The journal's place beside the output."""
    return output.with_name(f".{output.name}.unfinished")


def _parsed(line: bytes) -> Entry | None:
    if not line.endswith(b"\n"):
        return None
    try:
        content = json.loads(line)
        found = [Scored(**one) for one in content]
    except (ValueError, TypeError):
        return None
    for one in found:
        one.why = None if one.why is None else (one.why[0], one.why[1])
    return found


def _locked(path: Path) -> int:
    """A descriptor that holds the lock of a file; the lock ends with the process."""
    descriptor = os.open(path, os.O_RDWR)
    try:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise UsageError(f"{path}: another process is writing this output") from None
    except (ImportError, OSError):
        pass  # Windows, and file systems without locks
    return descriptor
