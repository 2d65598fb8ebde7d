"""Patterns with slots and choices: filling them in, and reading sentences back with them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache, lru_cache
from typing import NamedTuple

from trimtab.world.draws import Draw
from trimtab.world.lexicon import ROLES, SLOTS

_PIECE = re.compile(r"\[(?P<choice>[^\]]*)\]|\{(?P<slot>\w+)\}|(?P<text>[^\[\{]+)")
# A space after a full stop and before a capital or a quotation mark.
_SENTENCE_END = re.compile(r'(?<=[.!?]) (?=["A-Z])')


class Sentence(NamedTuple):
    """A sentence of a story as the grammar reads it.

    ``role`` is a key of ``lexicon.ROLES`` or "" for a sentence that the grammar cannot make;
    ``sort`` is the accident, tone or outcome ("" where the role has none); ``slots`` maps slot
    names to the words found there.
    """

    text: str
    role: str
    sort: str
    slots: Mapping[str, str]


def fill(pattern: str, slots: Mapping[str, str], draw: Draw) -> str:
    """Return the pattern with its slots filled in and one option of every choice drawn."""
    parts: list[str] = []
    for piece in _PIECE.finditer(pattern):
        if piece["slot"] is not None:
            parts.append(slots[piece["slot"]])
        elif piece["choice"] is not None:
            parts.append(draw.pick(piece["choice"].split("|")))
        else:
            parts.append(piece["text"])
    return "".join(parts)


@cache
def reader(pattern: str) -> re.Pattern[str]:
    """Return the expression that matches exactly what ``fill`` can make of the pattern."""
    parts: list[str] = []
    for piece in _PIECE.finditer(pattern):
        if piece["slot"] is not None:
            words = "|".join(re.escape(word) for word in SLOTS[piece["slot"]])
            parts.append(f"(?P<{piece['slot']}>{words})")
        elif piece["choice"] is not None:
            options = "|".join(re.escape(option) for option in piece["choice"].split("|"))
            parts.append(f"(?:{options})")
        else:
            parts.append(re.escape(piece["text"]))
    return re.compile("".join(parts))


def longest(pattern: str) -> int:
    """Return the number of words of the longest sentence that the pattern can make."""
    wordiest = {
        slot: max(words, key=lambda word: len(word.split())) for slot, words in SLOTS.items()
    }
    text = ""
    for piece in _PIECE.finditer(pattern):
        if piece["slot"] is not None:
            text += wordiest[piece["slot"]]
        elif piece["choice"] is not None:
            text += max(piece["choice"].split("|"), key=lambda option: len(option.split()))
        else:
            text += piece["text"]
    return len(text.split())


@cache
def _readers() -> tuple[tuple[str, str, re.Pattern[str]], ...]:
    return tuple(
        (role, sort, reader(pattern))
        for role, sorts in ROLES.items()
        for sort, patterns in sorts.items()
        for pattern in patterns
    )


@lru_cache(maxsize=1 << 15)
def read_sentence(text: str) -> Sentence:
    """Return the sentence as the grammar reads it, or with role "" when it cannot be read."""
    for role, sort, expression in _readers():
        match = expression.fullmatch(text)
        if match is not None:
            return Sentence(text, role, sort, match.groupdict())
    return Sentence(text, "", "", {})


def split_sentences(text: str) -> list[str]:
    """Return the sentences of any text, white space made single spaces; [] for a blank text."""
    plain = " ".join(text.split())
    return _SENTENCE_END.split(plain) if plain else []
