"""What an evaluation comes to before it is written."""

from __future__ import annotations

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Outcome:
    """A card, its charts by file name, and the lines of scores.jsonl."""

    card: dict[str, Any]
    charts: dict[str, str]
    lines: list[dict[str, Any]]
