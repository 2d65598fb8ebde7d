"""Did you mean: the nearest of the words that would have been right."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from pathlib import Path

_ENDING = re.compile(r"(\.[a-z]+)?(\.gz)?$")


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


def nearest_beside(path: Path, names: Iterable[str]) -> str | None:
    """Of the names in a path's folder the nearest to its own, or one that begins with it.

    With the folder. Endings are left out: ``.jsonl`` would make any two names alike.
    """
    by_stem = {_stem(name): name for name in sorted(names, reverse=True)}
    own = _stem(path.name)
    found = nearest(own, by_stem)
    if found is None and len(own) > 2:
        found = next((stem for stem in sorted(by_stem) if stem.startswith(own)), None)
    return None if found is None else str(path.parent / by_stem[found])


def _stem(name: str) -> str:
    return _ENDING.sub("", name.lower())
