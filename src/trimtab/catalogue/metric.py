"""What is said of a number that a run logs."""

from __future__ import annotations

import re
from typing import NamedTuple

DPO, PPO, GRPO = "arXiv:2305.18290", "arXiv:1707.06347", "arXiv:2402.03300"
RLHF, ZIEGLER = "arXiv:2203.02155", "arXiv:1909.08593"
ON_POLICY = "ppo, grpo, rloo, online_dpo, raft"


Range = tuple[float | None, float | None]


class Metric(NamedTuple):
    """One row of the table; ``of``: which verbs log it.

    ``band`` is the range that ``healthy`` names, where it is a range whatever the data; an end that
    is None is open.
    """

    name: str
    of: str
    what: str
    formula: str = ""
    unit: str = ""
    healthy: str = ""
    paper: str = ""
    band: Range | None = None

    def matches(self, name: str) -> bool:
        """Whether it is the row of a logged name."""
        return re.fullmatch(re.sub(r"<\w+>", "[^/]+", re.escape(self.name)), name) is not None
