"""One check of the self-check."""

from __future__ import annotations

from typing import NamedTuple


class Check(NamedTuple):
    """What was found, and whether the run may go on."""

    name: str
    passed: bool
    detail: str
