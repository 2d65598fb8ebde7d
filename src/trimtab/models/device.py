"""Where to compute when nobody says: cuda, else mps, else the processor."""

from __future__ import annotations

import torch


def best_device() -> torch.device:
    """The quickest kind of device that torch finds here."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
