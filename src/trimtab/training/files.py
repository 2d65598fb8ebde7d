"""The one module through which checkpoints, logs and run records reach the disk.

Two reasons to keep it in one place. Durability has rules that are easy to forget (a rename is only
durable once the *directory* was fsynced, a write may be short), so they are written down once. And
a test can stand at every single operation: ``hooked`` calls a function before each of them, which
may raise (a full disk, a broken one), end the process (a kill) or allow only part of a write.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

Hook = Callable[[str, Path, int], "int | None"]
"""Called as ``hook(operation, path, size)`` before each operation; an int it returns for a
``write`` is the number of bytes that this write accepts (a short write)."""

CHUNK = 1 << 22  # bytes a write: small enough to fail early, large enough to cost nothing
_hook: Hook | None = None


@contextlib.contextmanager
def hooked(hook: Hook) -> Iterator[None]:
    """Have ``hook`` called before every operation of this module, for tests."""
    global _hook
    previous, _hook = _hook, hook
    try:
        yield
    finally:
        _hook = previous


def before(operation: str, path: Path, size: int = 0) -> int | None:
    """Announce an operation to the hook; called by this module, and around foreign writers."""
    return None if _hook is None else _hook(operation, path, size)


class Written(NamedTuple):
    """What a file holds: its size in bytes and the SHA-256 of its content, in hex."""

    size: int
    sha256: str


class Sink(Protocol):
    """Where a content function of ``write_file`` puts its bytes."""

    def write(self, data: bytes | memoryview, /) -> None: ...  # noqa: D102


class _Writer:
    """Writes all bytes it is given, however short single writes are, and hashes them."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self.descriptor = descriptor
        self.size = 0
        self._sha = hashlib.sha256()

    def write(self, data: bytes | memoryview, /) -> None:
        view = memoryview(data)
        if view.nbytes == 0:
            return
        view = view.cast("B")
        while len(view):
            piece = view[:CHUNK]
            allowed = before("write", self.path, len(piece))
            if allowed is not None:
                piece = piece[:allowed]
            count = os.write(self.descriptor, piece)
            if count == 0:
                raise OSError(errno.EIO, "nothing was written", str(self.path))
            self._sha.update(piece[:count])
            self.size += count
            view = view[count:]

    def written(self) -> Written:
        return Written(self.size, self._sha.hexdigest())


def _open(path: Path, flags: int) -> int:
    # O_BINARY: without it Windows translates line ends; 0o666 is cut by the user's umask
    return os.open(path, flags | getattr(os, "O_BINARY", 0), 0o666)


def _sync_descriptor(descriptor: int) -> None:
    try:
        import fcntl

        full = getattr(fcntl, "F_FULLFSYNC", None)  # macOS: fsync alone stops at the drive's cache
        if full is not None:
            with contextlib.suppress(OSError):  # not every file system knows it
                fcntl.fcntl(descriptor, full)
                return
    except ImportError:  # Windows has no fcntl
        pass
    os.fsync(descriptor)


def write_file(path: Path, content: bytes | Callable[[Sink], None]) -> Written:
    """Write a file from its start and fsync it; not atomic (see ``write_atomic``).

    ``content`` is the bytes, or a function that writes them piece by piece to what it is given, so
    that a file larger than memory can be written. Returns size and hash of what was *meant* to be
    written: a read-back compares the file with them.
    """
    before("create", path)
    descriptor = _open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    try:
        writer = _Writer(path, descriptor)
        if isinstance(content, bytes):
            writer.write(content)
        else:
            content(writer)
        before("fsync", path)
        _sync_descriptor(descriptor)
    finally:
        os.close(descriptor)
    return writer.written()


def write_atomic(path: Path, content: bytes) -> None:
    """Replace a file in one step: after a kill it holds the old content or the new, whole."""
    temporary = path.with_name(f".tmp-{path.name}-{uuid.uuid4().hex[:8]}")
    try:
        write_file(temporary, content)
        replace(temporary, path)
        sync_folder(path.parent)
    except Exception:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


class AppendFile:
    """A file that grows at its end; what ``append`` could not write whole it takes back."""

    def __init__(self, path: Path) -> None:
        self.path = path
        before("create", path)
        self._descriptor = _open(path, os.O_RDWR | os.O_CREAT)
        self.offset = os.lseek(self._descriptor, 0, os.SEEK_END)

    def append(self, data: bytes) -> None:
        """Write ``data`` at the end; it is in the operating system's hands when this returns."""
        try:
            _Writer(self.path, self._descriptor).write(data)
        except OSError:
            with contextlib.suppress(OSError):
                self._cut(self.offset)
            raise
        self.offset += len(data)

    def truncate(self, size: int) -> None:
        """Cut the file to ``size`` bytes (at most its present size)."""
        assert 0 <= size <= self.offset, f"cannot cut {self.path} of {self.offset} to {size}"
        before("truncate", self.path, size)
        self._cut(size)
        self.offset = size

    def _cut(self, size: int) -> None:
        os.ftruncate(self._descriptor, size)
        os.lseek(self._descriptor, size, os.SEEK_SET)

    def sync(self) -> None:
        """Have the content on the disk when this returns."""
        before("fsync", self.path)
        _sync_descriptor(self._descriptor)

    def close(self) -> None:
        """Close the file; closing twice is nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def make_folder(path: Path) -> None:
    """Make a folder and the ones above it."""
    before("mkdir", path)
    path.mkdir(parents=True, exist_ok=True)


def sync_file(path: Path) -> None:
    """Have a file that somebody else wrote on the disk when this returns."""
    before("fsync", path)
    # Windows flushes only what may be written; elsewhere the file may be read-only
    descriptor = _open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        _sync_descriptor(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(path: Path) -> None:
    """Have the names in a folder on the disk; Windows has no such call and needs none."""
    before("fsync_folder", path)
    if os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems refuse
            raise
    finally:
        os.close(descriptor)


def rename(source: Path, target: Path) -> None:
    """Give a file or folder a new name that is not taken; atomic within a file system."""
    before("rename", source)
    if os.path.lexists(target):  # POSIX would silently replace a file or an empty folder
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
    os.rename(source, target)


def replace(source: Path, target: Path) -> None:
    """Give a file a name that may be taken by another file; atomic."""
    before("rename", source)
    os.replace(source, target)


def remove_tree(path: Path) -> None:
    """Remove a file or a folder with all it holds; links are removed, never followed."""
    if not os.path.lexists(path):
        return
    if path.is_symlink() or not path.is_dir():
        before("unlink", path)
        path.unlink()
        return
    for entry in sorted(path.iterdir()):
        remove_tree(entry)
    before("rmdir", path)
    path.rmdir()


def read_file(path: Path) -> bytes:
    """The content of a file."""
    before("read", path)
    return path.read_bytes()


def measure_file(path: Path) -> Written:
    """Size and SHA-256 of a file as it is on the disk."""
    before("read", path)
    sha, size = hashlib.sha256(), 0
    with path.open("rb", buffering=0) as file:
        while piece := file.read(CHUNK):
            sha.update(piece)
            size += len(piece)
    return Written(size, sha.hexdigest())


def files_below(folder: Path) -> list[Path]:
    """All files below a folder, sorted, whatever the depth."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def free_bytes(path: Path) -> int:
    """Bytes free for the user on the file system of ``path``."""
    return shutil.disk_usage(path).free
