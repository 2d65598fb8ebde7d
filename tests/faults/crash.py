"""A process that dies, or a disk that fails, at the k-th operation of ``trimtab.training.files``.

``die_at`` forks: the child does the work and is killed (SIGKILL) just before operation k, so one
trial costs milliseconds. ``Kill.power_cut`` also takes from the disk what a power cut may take: the
content of files never fsynced, and renames whose folder was not fsynced afterwards.
"""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from trimtab.training import files

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
quiet_fork = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


@dataclass
class Kill:
    """A hook that ends this process just before operation ``at`` (counted from 1).

    ``half``: a write that is due is half done first. ``power_cut``: see the module. ``honest``
    False makes it believe that no fsync of files ever happened: a disk cache that lies, or code
    that forgot them; ``folders_honest`` the same for folders.
    """

    at: int
    root: Path
    half: bool = False
    power_cut: bool = False
    honest: bool = True
    folders_honest: bool = True
    count: int = 0
    safe: set[int] = field(default_factory=set)  # inodes of files whose content is on the disk
    renames: list[tuple[Path, Path]] = field(default_factory=list)  # not yet durable, in order
    due: tuple[str, Path, list[Path]] | None = None

    def start(self) -> Kill:
        """What is there now is on the disk."""
        self.safe = {path.stat().st_ino for path in files.files_below(self.root)}
        return self

    def __call__(self, operation: str, path: Path, size: int) -> int | None:
        self._settle()
        self.count += 1
        if self.count == self.at:
            if self.half and operation == "write" and size > 1:
                self.at += 1
                return size // 2
            if self.power_cut:
                self._lose()
            os.kill(os.getpid(), signal.SIGKILL)
        self.due = (operation, path, sorted(self.root.iterdir()))
        return None

    def _settle(self) -> None:
        """The operation announced before was done: what it changed, or made durable."""
        if self.due is None:
            return
        operation, path, before = self.due
        if operation in ("fsync", "fsync_folder") and path.exists():
            if operation == "fsync" and self.honest:
                self.safe.add(path.stat().st_ino)
            if operation == "fsync_folder" and path == self.root and self.folders_honest:
                self.renames.clear()
        elif operation in ("create", "write") and path.exists():
            self.safe.discard(path.stat().st_ino)
        elif operation == "rename" and path.parent == self.root:
            new = sorted(set(self.root.iterdir()) - set(before))
            if new:
                self.renames.append((path, new[0]))

    def _lose(self) -> None:
        for path in files.files_below(self.root):
            if path.stat().st_ino not in self.safe:
                os.truncate(path, 0)
        for source, target in reversed(self.renames):
            if target.exists() and not source.exists():
                target.rename(source)


def die_at(kill: Kill, work: Callable[[], object]) -> bool:
    """Do the work in a forked child under the hook; whether it was killed (else it was done)."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            with files.hooked(kill.start()):
                work()
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(status) == 0, "the child failed by itself"
    return False


@dataclass
class Fail:
    """A hook that raises OSError at operation ``at``, and at every later one if ``on``."""

    at: int
    error: int = errno.EIO
    on: bool = False
    count: int = 0

    def __call__(self, operation: str, path: Path, size: int) -> int | None:
        self.count += 1
        if self.count == self.at or (self.on and self.count > self.at):
            raise OSError(self.error, os.strerror(self.error), str(path))
        return None


@dataclass
class Full:
    """A hook that is a disk with room for ``room`` more bytes: the last write is cut short."""

    room: int

    def __call__(self, operation: str, path: Path, size: int) -> int | None:
        if operation != "write":
            return None
        if self.room == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        accepted = min(size, self.room)
        self.room -= accepted
        return accepted
