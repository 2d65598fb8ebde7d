"""How much memory there is, and how much this process took, by what the system itself says."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import NamedTuple

GIB = 1 << 30


class Memory(NamedTuple):
    """In bytes; None where the system does not say.

    total      of the machine, or what a container may take where that is less
    available  without swapping, as far as this process is concerned
    """

    total: int | None
    available: int | None


def memory() -> Memory:
    """What there is now."""
    if sys.platform == "win32":
        return _windows()
    found = _meminfo()
    if not found:
        with contextlib.suppress(ValueError, OSError):  # macOS says only how much there is
            return Memory(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), None)
        return Memory(None, None)
    total, available = found.get("MemTotal"), found.get("MemAvailable")
    limit, used = _cgroup()
    if limit is not None and total is not None and limit < total:
        total = limit
        if available is not None:
            available = min(available, max(0, limit - used))
    return Memory(total, available)


def peak_rss() -> int:
    """The most memory that this process has had so far, in bytes."""
    if sys.platform == "win32":
        raise OSError("not measured on Windows")
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def _meminfo() -> dict[str, int]:
    try:
        text = Path("/proc/meminfo").read_text(encoding="utf-8")
    except OSError:
        return {}
    pairs = (line.partition(":") for line in text.splitlines())
    return {name: int(value.split()[0]) * 1024 for name, _, value in pairs if value.split()}


def _cgroup() -> tuple[int | None, int]:
    """The limit of the container and what is used of it (its page cache can be dropped)."""
    top = Path("/sys/fs/cgroup")
    for limit, used, stat, cached in (
        ("memory.max", "memory.current", "memory.stat", "inactive_file"),
        (
            "memory/memory.limit_in_bytes",
            "memory/memory.usage_in_bytes",
            "memory/memory.stat",
            "total_inactive_file",
        ),
    ):
        with contextlib.suppress(OSError, ValueError):
            most = int((top / limit).read_text())
            now = int((top / used).read_text())
            lines = dict(line.split() for line in (top / stat).read_text().splitlines())
            return most, max(0, now - int(lines.get(cached, 0)))
    return None, 0


def _windows() -> Memory:
    import ctypes

    class Status(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ulong), ("load", ctypes.c_ulong)] + [
            (name, ctypes.c_ulonglong)
            for name in ("total", "available", "page", "page_free", "virtual", "free", "extended")
        ]

    status = Status(length=ctypes.sizeof(Status))
    kernel = getattr(ctypes, "windll").kernel32  # noqa: B009 - it is there on Windows alone
    if not kernel.GlobalMemoryStatusEx(ctypes.byref(status)):
        return Memory(None, None)
    return Memory(status.total, status.available)
