"""The rows of an unfinished ``trimtab sample``, on disk: a killed run goes on where it was.

A header with the settings that shape what is sampled, then the very lines of the output, a chunk of
rows at a time, each chunk fsynced. What a kill left of a chunk is dropped and sampled again with
the rows that it was sampled with before, so that the output has the same bytes.
"""

from __future__ import annotations

import contextlib
import glob
import json
import os
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trimtab.errors import RunError, UsageError
from trimtab.training import files


class SampleJournal:
    """The lines so far; ``rows`` of them count, and ``settings`` are those they were made with."""

    def __init__(
        self, output: Path, settings: Mapping[str, Any], chunk: int, *, restart: bool
    ) -> None:
        """Open or begin the journal beside ``output``.

        ``settings`` that are None take the journal's. Rows of other settings are dropped with
        ``restart``, and refused without. Raises UsageError there, and where another process writes
        this output.
        """
        self.output = output
        self.path = journal_of(output)
        self.settings = dict(settings)
        self.rows = 0
        self._chunk = chunk
        self._lock = -1
        try:
            self._file = files.AppendFile(self.path)
        except OSError as error:
            raise _unwritable(self.path, error) from error
        try:
            self._lock = _locked(self.path, output)
            for stale in output.parent.glob(f".tmp-{glob.escape(output.name)}-*"):  # of a kill
                stale.unlink()
            kept = self._take_over(files.read_file(self.path), restart)
            self._file.truncate(kept)
        except BaseException as error:
            self._release()
            if isinstance(error, OSError):
                raise _unwritable(self.path, error) from error
            raise

    def _take_over(self, content: bytes, restart: bool) -> int:
        """How many bytes of whole chunks there are; their settings must be ours."""
        lines = content.splitlines(keepends=True)
        whole = [line for line in lines if line.endswith(b"\n")]
        rows = (len(whole) - 1) // self._chunk * self._chunk
        if rows <= 0:
            return 0
        try:
            theirs = json.loads(whole[0])
        except ValueError:
            return 0
        for name, value in self.settings.items():
            if value is None or theirs.get(name) == value:
                continue
            if restart:
                return 0
            raise UsageError(
                f"output={self.output}: an unfinished run has {rows} rows of it with {name} "
                f"{_shown(theirs.get(name))}, not {_shown(value)}; give the same settings to go "
                "on, or --restart to drop them"
            )
        self.settings = theirs
        self.rows = rows
        return sum(map(len, whole[: 1 + rows]))

    def begin(self, settings: Mapping[str, Any]) -> None:
        """Write the header, with what was not known before; nothing where rows are there."""
        if self.rows:
            return
        self.settings |= settings
        self._append([json.dumps(self.settings)])

    def add(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Append a chunk of rows; they survive a kill when this returns."""
        self._append([_encoded(row) for row in rows])
        self.rows += len(rows)

    def _append(self, lines: Sequence[str]) -> None:
        try:
            self._file.append("".join(f"{line}\n" for line in lines).encode())
            self._file.sync()
        except OSError as error:
            raise RunError(f"{self.path}: cannot be written: {error.strerror or error}") from error

    def finish(self) -> None:
        """Give the output its name, whole or not at all, and remove the journal."""
        temporary = self.output.with_name(f".tmp-{self.output.name}-{uuid.uuid4().hex[:8]}")

        def content(sink: files.Sink) -> None:
            with self.path.open("rb") as journal:
                journal.readline()
                while piece := journal.read(files.CHUNK):
                    sink.write(piece)

        try:
            files.write_file(temporary, content)
            files.replace(temporary, self.output)
            files.sync_folder(self.output.parent)
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise RunError(
                f"{self.output}: cannot be written: {error.strerror or error}"
            ) from error
        self.close(remove=True)

    def close(self, *, remove: bool = False) -> None:
        """Close the file; one without rows is of no use to anybody."""
        if remove or not self.rows:
            with contextlib.suppress(OSError):
                self.path.unlink(missing_ok=True)
        self._release()

    def _release(self) -> None:
        self._file.close()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def journal_of(output: Path) -> Path:
    """The journal's place beside the output."""
    return output.with_name(f".{output.name}.unfinished")


def _shown(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 24 else f"{text[:12]}..."


def _encoded(row: Mapping[str, Any]) -> str:
    line = json.dumps(row, ensure_ascii=False, default=str)
    try:
        line.encode()
    except UnicodeEncodeError:  # half a character in a column that nobody checked
        return json.dumps(row, default=str)
    return line


def _unwritable(path: Path, error: OSError) -> UsageError:
    return UsageError(f"{path}: cannot be written: {error.strerror or error}")


def _locked(path: Path, output: Path) -> int:
    """A descriptor that holds the lock of a file; the lock ends with the process."""
    descriptor = os.open(path, os.O_RDWR)
    try:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise UsageError(f"output={output}: another process is writing it") from None
    except (ImportError, OSError):
        pass  # Windows, and file systems without locks
    return descriptor
