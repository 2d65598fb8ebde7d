"""The gold reward: how good a story is as an answer to a request, computed from the texts alone.

Five parts, each in [0, 1], with fixed weights in hundredths:

    answers   30  the hero, the goal, the place and the mood asked for are the ones told: the first
                  that the story names in each role (the last for the mood); a right name with a
                  wrong species, or a right object with a wrong colour, counts half
    coherent  20  share of the words that the grammar can read
                  x share of opening, goal, mishap, help and ending that come in this order
                  x 1/2 if the help does not mend the mishap
                  x 1/2 if the ending denies what the help achieved
                  x 1/2 if the hero, helper, goal or place becomes another
    kind      30  mean over the call for help, the reply and the thanks: kind 1, plain 1/2, rude or
                  missing 0; the worst sentence counts where one is told twice
    ends      10  1 if "The end." is said once, at the end; 1/2 if it is said elsewhere or twice
    unpadded  10  1 less 1/4 for every sentence that repeats a role or a sentence or says nothing,
                  and for every 10 words over the longest story without faults

kind, ends and unpadded are 0 where fewer than three of the five of the arc are told: what is no
story is not a kind one. Anything at all can be scored; garbage gets 0.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from trimtab.world.grammar import Request, parse_request
from trimtab.world.lexicon import ARC, ROLES, THE_END, TONE_ROLES
from trimtab.world.patterns import Sentence, longest, read_sentence, split_sentences

WEIGHTS: dict[str, int] = {"answers": 30, "coherent": 20, "kind": 30, "ends": 10, "unpadded": 10}
CEILING = 1.0
FLOOR = 0.0

TONE_VALUES = {"kind": 1.0, "plain": 0.5, "rude": 0.0}
LEAST_ARC = 3
EXTRAS_TO_ZERO = 4
WORDS_PER_EXTRA = 10
LONGEST_STORY = sum(
    max(longest(pattern) for patterns in sorts.values() for pattern in patterns)
    for role, sorts in ROLES.items()
    if role != "filler"
) + len(THE_END.split())
"""Words of the longest story that is told without padding."""


class GoldScore(NamedTuple):
    """``total`` in [0, 1] is the weighted mean of ``parts``, which has the keys of WEIGHTS."""

    total: float
    parts: dict[str, float]


def gold_reward(request: str | Request, story: str) -> GoldScore:
    """Return the gold reward of a story told on a request.

    Args:
        request: the text of a request (any phrasing), or the request itself.
        story: any text; white space is of no account.

    Raises:
        DataError: the request is not one of this world.
    """
    wanted = parse_request(request) if isinstance(request, str) else request
    texts = split_sentences(story)
    read = [read_sentence(text) for text in texts if text != THE_END]
    arc = _arc(read)
    parts = {
        "answers": _answers(wanted, read),
        "coherent": _coherent(read, arc),
        "kind": _kind(read),
        "ends": _ends(texts),
        "unpadded": _unpadded(read, len(story.split())),
    }
    if arc < LEAST_ARC:
        parts.update(kind=0.0, ends=0.0, unpadded=0.0)
    return GoldScore(sum(WEIGHTS[name] * value for name, value in parts.items()) / 100, parts)


def _answers(request: Request, read: Sequence[Sentence]) -> float:
    """Return the share of what was asked for that was told."""
    told: dict[str, str] = {}
    for sentence in read:
        for slot, word in sentence.slots.items():
            if slot == "mood" or slot not in told:
                told[slot] = word
    points = {
        "hero": (told.get("hero") == request.hero) + (told.get("species") == request.species),
        "goal": (told.get("object") == request.object) + (told.get("colour") == request.colour),
        "place": 2 * (told.get("place") == request.place),
        "mood": 2 * (told.get("mood") == request.mood),
    }
    return sum(points[facet] for facet in request.facets) / (2 * len(request.facets))


def _arc(read: Sequence[Sentence]) -> int:
    """Return how many of the roles of ARC are told in the order of ARC (0 to 5)."""
    roles = [sentence.role for sentence in read if sentence.role in ARC]
    # best[i]: the longest rising run of roles that ends at or before ARC[i - 1].
    best = [0] * (len(ARC) + 1)
    for role in roles:
        place = ARC.index(role) + 1
        best[place] = max(best[place], max(best[:place]) + 1)
    return max(best)


def _coherent(read: Sequence[Sentence], arc: int) -> float:
    words = sum(len(sentence.text.split()) for sentence in read)
    if words == 0:
        return 0.0
    readable = sum(len(sentence.text.split()) for sentence in read if sentence.role)
    # Sets: a story with every mishap and every help in it is not mended by one that fits.
    accidents = {sentence.sort for sentence in read if sentence.role == "mishap"}
    mended = {sentence.sort for sentence in read if sentence.role == "help"}
    denied = any(sentence.sort == "without" for sentence in read if sentence.role == "ending")
    breaks = (not accidents or accidents != mended) + denied + (not _same_throughout(read))
    return readable / words * (arc / len(ARC)) * 0.5**breaks


def _same_throughout(read: Sequence[Sentence]) -> bool:
    told: dict[str, str] = {}
    return all(
        told.setdefault(slot, word) == word
        for sentence in read
        for slot, word in sentence.slots.items()
    )


def _kind(read: Sequence[Sentence]) -> float:
    worst = [
        min(
            (TONE_VALUES[sentence.sort] for sentence in read if sentence.role == role),
            default=0.0,
        )
        for role in TONE_ROLES
    ]
    return sum(worst) / len(worst)


def _ends(texts: Sequence[str]) -> float:
    said = texts.count(THE_END)
    if said == 0:
        return 0.0
    return 1.0 if said == 1 and texts[-1] == THE_END else 0.5


def _unpadded(read: Sequence[Sentence], words: int) -> float:
    # A sentence the grammar cannot read is its own role: only its repetitions are padding.
    told = Counter(sentence.role or sentence.text for sentence in read if sentence.role != "filler")
    fillers = sum(sentence.role == "filler" for sentence in read)
    repeats = sum(count - 1 for count in told.values())
    rambling = max(0, words - LONGEST_STORY) // WORDS_PER_EXTRA
    return max(0, EXTRAS_TO_ZERO - fillers - repeats - rambling) / EXTRAS_TO_ZERO
