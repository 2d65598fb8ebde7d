"""Learning-rate schedules as pure functions of the optimizer step: nothing to step or to resume."""

from __future__ import annotations

import math
from typing import Literal

Schedule = Literal["linear", "cosine", "constant", "constant_with_warmup", "inverse_sqrt"]


def warmup_steps(value: float, total_steps: int) -> int:
    """Steps of warm-up: ``value`` itself, or, below 1, that share of all steps (rounded up)."""
    return math.ceil(value * total_steps) if value < 1 else int(value)


def learning_rate(
    step: int,
    *,
    peak: float,
    schedule: Schedule,
    total_steps: int,
    warmup: float = 0.0,
    min_ratio: float = 0.0,
) -> float:
    """Learning rate of optimizer step ``step`` (from 0), as transformers defines these schedules.

    During warm-up the rate is ``peak * step / warmup``: the very first step then has rate 0, as in
    the libraries that users compare with. ``min_ratio * peak`` is the floor of the decaying ones.
    """
    warm = 0 if schedule == "constant" else warmup_steps(warmup, total_steps)
    if step < warm:
        return peak * step / max(1, warm)
    if schedule in ("constant", "constant_with_warmup"):
        return peak
    if schedule == "inverse_sqrt":
        # transformers shifts by the time scale (the warm-up) so that the two pieces meet.
        scale = max(warm, 1)
        return peak * max(min_ratio, 1.0 / math.sqrt((step - warm + scale) / scale))
    progress = min(1.0, (step - warm) / max(1, total_steps - warm))
    decay = 1.0 - progress if schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))
    return peak * (min_ratio + (1.0 - min_ratio) * decay)
