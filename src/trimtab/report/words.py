"""Numbers, intervals and lengths of time as people read them."""

from __future__ import annotations

import datetime
import math
from collections.abc import Sequence

MINUS = "\N{MINUS SIGN}"
SHORT = 700  # characters of a sample


def number(value: float | None, places: int | None = None) -> str:
    """Four significant digits, or so many decimals; a real minus sign, never a negative nothing."""
    if value is None or math.isnan(value):
        return "not known"
    if math.isinf(value):
        return "∞" if value > 0 else f"{MINUS}∞"
    if places is None:
        if float(value).is_integer() and abs(value) < 1e7:
            return f"{int(value):,}".replace("-", MINUS)
        text = f"{value:.4g}"
    else:
        text = f"{round(value, places) + 0.0:.{places}f}"
    return text.replace("-", MINUS)


def count(value: float, noun: str) -> str:
    """``1 row``, ``1,024 rows``."""
    return f"{value:,.0f} {noun}{'' if value == 1 else 's'}"


def large(value: float) -> str:
    """``561 k``, ``134.5 M``: how large a model is, or how much text."""
    for size, name in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g} {name}"
    return f"{value:.0f}"


def interval(
    mean: float | None, low: float | None, high: float | None, places: int | None = None
) -> str:
    """``0.670 [0.659, 0.682]``; the number alone where its interval is not known."""
    if mean is None:
        return "not known"
    if low is None or high is None or not math.isfinite(low + high):
        return number(mean, places)
    return f"{number(mean, places)} [{number(low, places)}, {number(high, places)}]"


def duration(seconds: float) -> str:
    """``41 s``, ``12 min``, ``3 h 20 min``."""
    if seconds < 1:
        return "under 1 s"
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"


def day(stamp: float) -> str:
    """``2026-11-26 06:25 UTC``."""
    try:
        when = datetime.datetime.fromtimestamp(stamp, datetime.UTC)
    except (OverflowError, ValueError, OSError):
        return "not known"
    return f"{when:%Y-%m-%d %H:%M} UTC"


def listed(names: Sequence[str], last: str = "and") -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    if len(names) < 2:
        return "".join(names)
    return f"{', '.join(names[:-1])} {last} {names[-1]}"


def cut(text: str, most: int = SHORT) -> str:
    """A text, or its start with a note of how much is missing."""
    if len(text) <= most:
        return text
    return f"{text[:most].rstrip()} … [{len(text) - most:,} characters more]"
