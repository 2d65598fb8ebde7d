"""What all tests can ask for."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture
def cpu_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide an accelerator: the same bits twice are promised on the CPU, and CUDA bears no fork."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
