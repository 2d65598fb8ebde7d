"""Which requests are held out: a rule of the language, the same for every seed and corpus."""

from __future__ import annotations

from trimtab.world.lexicon import NAMES, OBJECTS

HELD_OUT_EVERY = 8


def is_held_out(hero: str, wanted: str) -> bool:
    """Say whether this hero never wants this object in training.

    Every eighth pair of a name and an object is held out, in a pattern of diagonals: each name
    misses 2 of the 16 objects and each object 2 of the 16 names, so that every word is trained on
    equally often and only the combination is new.
    """
    return (NAMES.index(hero) + 3 * OBJECTS.index(wanted)) % HELD_OUT_EVERY == 5
