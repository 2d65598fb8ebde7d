"""What all tests can ask for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch


@pytest.fixture
def cpu_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide an accelerator: the same bits twice are promised on the CPU, and CUDA bears no fork."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture
def here(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a module's ``inputs`` in it, by short names; without the hub."""
    for path in inputs.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path
