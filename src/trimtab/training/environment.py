"""What a run ran on: environment.json, and which changes in it can change a number's last bits."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

_PACKAGES = (
    "trimtab",
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "peft",
    "numpy",
    "pyarrow",
)
_EXACT = ("torch", "transformers", "peft", "numpy")  # packages whose arithmetic a run uses


def describe_environment() -> dict[str, Any]:
    """Versions, machine and threads, and the commit of the working directory if it has one.

    Imports nothing heavy: torch's thread count is asked only when torch is there already. No user
    names, host names or paths.
    """
    versions: dict[str, str] = {}
    for name in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    torch = sys.modules.get("torch")
    return {
        "python": platform.python_version(),
        "packages": versions,
        "platform": platform.platform(),
        "cpu": _cpu_name(),
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads() if torch else None,
        "cuda": _cuda(torch),
        "git_commit": _git_commit(),
    }


def exactness_notes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What changed between two environments that can change results in their last bits."""
    notes: list[str] = []
    for name in ("cpu", "threads", "cuda"):
        if old.get(name) != new.get(name):
            notes.append(f"{name}: {old.get(name)} -> {new.get(name)}")
    before, now = old.get("packages") or {}, new.get("packages") or {}
    for name in _EXACT:
        if before.get(name) != now.get(name):
            notes.append(f"{name}: {before.get(name)} -> {now.get(name)}")
    return notes


def _cpu_name() -> str:
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
        for line in file:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _cuda(torch: Any) -> str | None:
    if torch is None or not torch.cuda.is_available():
        return None
    return f"{torch.cuda.get_device_name()} x{torch.cuda.device_count()}, CUDA {torch.version.cuda}"


def _git_commit() -> str | None:
    """The commit checked out in the working directory, with ``+`` when files differ from it."""
    try:
        commit = _git("rev-parse", "HEAD")
        return commit + ("+" if _git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(*arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments], capture_output=True, text=True, check=True, timeout=5
    )
    return done.stdout.strip()
