from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

SHARED_MEMORY = Path("/dev/shm")


@pytest.fixture(autouse=True)
def _on_the_cpu(cpu_only: None) -> None:
    """Its promises are the CPU's."""


@pytest.fixture
def ramdisk(tmp_path: Path) -> Iterator[Path]:
    """A folder where fsync costs nothing, if there is one: thousands of trials take minutes else.

    What fsync is for, a power cut, is simulated by the hook and not by the disk.
    """
    if not os.access(SHARED_MEMORY, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(prefix="trimtab-", dir=SHARED_MEMORY) as folder:
        yield Path(folder)
