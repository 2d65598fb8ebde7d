"""One process at a time writes to a run folder.

The lock is the operating system's, on a file that names its holder: it ends with the process,
however that ends, so a killed run's folder is free at once and a reused process id confuses
nobody. Where a file system has no locks, the process id in the file decides.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import sys
import time
from pathlib import Path
from typing import Any

NAME = ".lock"
_UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
_FAR = 1 << 30  # the locked byte lies behind the text: Windows bars others from locked bytes
_held: set[tuple[int, str]] = set()  # POSIX locks do not keep a process from itself


class Held(Exception):
    """Somebody else holds the lock; the message names the holder."""


class RunLock:
    """Holds ``folder/.lock`` from construction until ``release``."""

    def __init__(self, folder: Path) -> None:
        """Raises Held, or OSError when the file cannot be made."""
        self.path = folder / NAME
        self._owner = os.getpid()
        self._key = (self._owner, str(self.path.resolve()))
        if self._key in _held:
            raise Held("this very process")
        while True:
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                self._take()
            except BaseException:
                os.close(self._descriptor)
                raise
            if self._is_current():
                break
            os.close(self._descriptor)  # its holder removed it between our open and our lock
        text = {"pid": self._owner, "host": socket.gethostname(), "since": time.time()}
        os.ftruncate(self._descriptor, 0)
        os.lseek(self._descriptor, 0, os.SEEK_SET)
        os.write(self._descriptor, json.dumps(text).encode())
        _held.add(self._key)

    def _take(self) -> None:
        try:
            _lock(self._descriptor)
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise Held(_describe(_holder(self._descriptor))) from None
            holder = _holder(self._descriptor)
            if _alive(holder):
                raise Held(_describe(holder)) from None

    def _is_current(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self._descriptor), os.stat(self.path))
        except FileNotFoundError:
            return False

    def release(self) -> None:
        """Let go, and remove the file; nothing in a forked child, which does not hold it."""
        if self._descriptor < 0 or os.getpid() != self._owner:
            return
        if os.name != "nt":  # while it is still held, or a newer holder's file would be removed
            self.path.unlink(missing_ok=True)
        os.close(self._descriptor)
        if os.name == "nt":
            with contextlib.suppress(OSError):
                self.path.unlink()
        self._descriptor = -1
        _held.discard(self._key)


def _lock(descriptor: int) -> None:
    if sys.platform == "win32":
        import msvcrt

        os.lseek(descriptor, _FAR, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        os.lseek(descriptor, 0, os.SEEK_SET)
    else:
        import fcntl

        # a POSIX lock, not flock: children that a run forks do not keep it alive
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _holder(descriptor: int) -> dict[str, Any]:
    try:
        os.lseek(descriptor, 0, os.SEEK_SET)
        found = json.loads(os.read(descriptor, 4096))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _describe(holder: dict[str, Any]) -> str:
    return f"process {holder.get('pid', '?')} on {holder.get('host', 'some machine')}"


def _alive(holder: dict[str, Any]) -> bool:
    """Whether a recorded process may still run; one on another machine may."""
    if not isinstance(holder.get("pid"), int):
        return False
    if holder.get("host") != socket.gethostname():
        return True
    try:
        os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return holder["pid"] != os.getpid()
