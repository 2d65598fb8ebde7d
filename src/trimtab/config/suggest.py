"""Did you mean: the nearest of the words that would have been right."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that is closest to ``word``, or None where none is close."""
    words = sorted(set(known))
    # A typo in the group's name should not hide a right key, so endings compete as well.
    found = difflib.get_close_matches(word.lower(), words, n=1, cutoff=0.65)
    return found[0] if found else None


def did_you_mean(word: str, known: Iterable[str], prefix: str = "") -> str:
    """``. Did you mean x?`` or nothing."""
    found = nearest(word, known)
    return f". Did you mean {prefix}{found}?" if found else ""
