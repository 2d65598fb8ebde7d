"""Requests, and stories told on request with chosen faults.

    >>> request = Request("Mia", "fox", "red", "kite", "the park", "proud")
    >>> request.text
    'Tell a story about Mia the fox who wants a red kite near the park. It should end proud.'
    >>> tell(request, IDEAL, Draw("docs", 1))
    'Near the park lived Mia the fox. Mia wanted to find a red kite. But the kite broke in two. ...'

A story has an opening, a goal, a mishap, a call for help, a reply, the help, thanks and an ending.
``Quality`` says what is wrong with it; every fault lowers one part of the gold reward (gold.py) and
no other. ``Teller`` draws qualities, as people differ in how well they tell a story.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple

from trimtab.errors import DataError
from trimtab.world.draws import Draw
from trimtab.world.lexicon import (
    COLOURS,
    ENDINGS,
    FILLERS,
    GOALS,
    HELPS,
    MISHAPS,
    MOOD_REQUESTS,
    MOODS,
    NAMES,
    OBJECTS,
    OPENINGS,
    PLACES,
    REQUESTS,
    ROLES,
    SPECIES,
    THE_END,
    TONE_ROLES,
    TONES,
    Tone,
)
from trimtab.world.patterns import fill, reader, split_sentences
from trimtab.world.splits import is_held_out

Facet = Literal["hero", "goal", "place", "mood"]
Break = Literal["help", "outcome", "hero"]

FACETS: tuple[Facet, ...] = ("hero", "goal", "place", "mood")
BREAKS: tuple[Break, ...] = ("help", "outcome", "hero")


@dataclass(frozen=True)
class Request:
    """What a story is asked to be about; every field is a word of the lexicon, mood may be None."""

    hero: str
    species: str
    colour: str
    object: str
    place: str
    mood: str | None = None

    @property
    def text(self) -> str:
        """The request in its plainest phrasing, one line without a line break."""
        mood = "" if self.mood is None else " " + MOOD_REQUESTS[0].format(mood=self.mood)
        return REQUESTS[0].format(**self._slots) + mood

    @property
    def held_out(self) -> bool:
        """Whether its hero and object are combined in no training row."""
        return is_held_out(self.hero, self.object)

    @property
    def facets(self) -> tuple[Facet, ...]:
        """What the request asks for: the facets a story can answer."""
        return FACETS if self.mood is not None else FACETS[:-1]

    @property
    def _slots(self) -> dict[str, str]:
        return {
            "hero": self.hero,
            "species": self.species,
            "colour": self.colour,
            "object": self.object,
            "place": self.place,
        }

    def phrase(self, draw: Draw) -> str:
        """Return the request in one of its phrasings."""
        text = fill(draw.pick(REQUESTS), self._slots, draw)
        if self.mood is None:
            return text
        return text + " " + fill(draw.pick(MOOD_REQUESTS), {"mood": self.mood}, draw)


@lru_cache(maxsize=1 << 14)
def parse_request(text: str) -> Request:
    """Return the request that ``text`` makes, in any phrasing, white space around it ignored.

    Raises:
        DataError: the text is not a request of this world.
    """
    sentences = split_sentences(text)
    mood = None
    if len(sentences) == 2:
        mood = next((m["mood"] for m in _matches(MOOD_REQUESTS, sentences[1])), "")
    if len(sentences) == 1 or mood:
        for match in _matches(REQUESTS, sentences[0]):
            return Request(**match.groupdict(), mood=mood)
    raise DataError(
        f"prompt: {text.strip()[:80]!r} is not a request of the demo world; ask for example: "
        f"{Request('Mia', 'fox', 'red', 'kite', 'the park').text}"
    )


def _matches(patterns: Sequence[str], sentence: str) -> Iterator[re.Match[str]]:
    for pattern in patterns:
        match = reader(pattern).fullmatch(sentence)
        if match is not None:
            yield match


def draw_request(draw: Draw, *, held_out: bool = False) -> Request:
    """Return a random request, held out from training or not; half of them ask for a mood."""
    hero = draw.pick(NAMES)
    wanted = draw.pick([one for one in OBJECTS if is_held_out(hero, one) == held_out])
    return Request(
        hero=hero,
        species=draw.pick(SPECIES),
        colour=draw.pick(COLOURS),
        object=wanted,
        place=draw.pick(PLACES),
        mood=draw.pick(MOODS) if draw.chance(0.5) else None,
    )


@dataclass(frozen=True)
class Quality:
    """What is right and wrong with a story; the default is a story without any fault.

    ``drift``: facets of the request that are told otherwise (another hero, another goal, ...).
    ``broken``: where the story contradicts itself: help that does not mend the mishap, an outcome
    that the help contradicts, or a hero who becomes somebody else.
    ``tones``: of the call for help, the reply and the thanks.
    ``ends``: whether it says "The end.". ``padding``: sentences too many (repeated or empty ones).
    """

    drift: tuple[Facet, ...] = ()
    broken: Break | None = None
    tones: tuple[Tone, Tone, Tone] = ("kind", "kind", "kind")
    ends: bool = True
    padding: int = 0


IDEAL = Quality()


@dataclass(frozen=True)
class Teller:
    """How well somebody tells stories: the probability that each thing goes right.

    ``tones`` are the weights of kind, plain and rude as the attitude of a whole story; each of the
    three sentences that have a tone takes it with probability ``steady``, else a tone by weight.
    """

    answers: float
    coherent: float
    ends: float
    brief: float
    tones: tuple[float, float, float]
    steady: float

    def draw_quality(self, request: Request, draw: Draw) -> Quality:
        """Return the quality of this teller's next story."""
        drift: tuple[Facet, ...] = ()
        if not draw.chance(self.answers):
            drift = tuple(draw.some(request.facets, 1 + draw.below(len(request.facets))))
        broken = None if draw.chance(self.coherent) else draw.pick(BREAKS)
        attitude = draw.weighted(TONES, self.tones)

        def tone() -> Tone:
            return attitude if draw.chance(self.steady) else draw.weighted(TONES, self.tones)

        return Quality(
            drift=drift,
            broken=broken,
            tones=(tone(), tone(), tone()),
            ends=draw.chance(self.ends),
            padding=0 if draw.chance(self.brief) else 1 + draw.below(4),
        )


# Who tells what models imitate. CARELESS wrote the text of pretraining: on the subject, so that
# copying from a request can be learned from it, and otherwise so-so. ORDINARY wrote the
# demonstrations and the pairs: good enough to learn from and bad enough to leave room for
# preferences (docs/world.md says what a model that imitates it reaches).
CARELESS = Teller(
    answers=0.9, coherent=0.7, ends=0.4, brief=0.45, tones=(0.1, 0.15, 0.75), steady=0.9
)
ORDINARY = Teller(
    answers=0.85, coherent=0.65, ends=0.6, brief=0.5, tones=(0.2, 0.2, 0.6), steady=0.9
)


def tell(request: Request, quality: Quality, draw: Draw) -> str:
    """Return a story told on this request: one line, with exactly the faults that are named."""
    cast = _cast(request, quality.drift, draw)
    sentences = [
        fill(draw.pick(patterns), slots, draw) for patterns, slots in _plan(cast, quality, draw)
    ]
    for _ in range(quality.padding):
        position = 1 + draw.below(len(sentences))
        repeats = draw.chance(0.6)
        extra = sentences[position - 1] if repeats else fill(draw.pick(FILLERS), {}, draw)
        sentences.insert(position, extra)
    if quality.ends:
        sentences.append(THE_END)
    return " ".join(sentences)


def _cast(request: Request, drift: Sequence[Facet], draw: Draw) -> dict[str, str]:
    """Return the words for every slot of the story; a drift never makes a held-out pair."""
    hero, wanted = request.hero, request.object
    if "goal" in drift:
        wanted = draw.pick([o for o in OBJECTS if o != wanted and not is_held_out(hero, o)])
    if "hero" in drift:
        hero = draw.pick([n for n in NAMES if n != hero and not is_held_out(n, wanted)])
    species, colour, place = request.species, request.colour, request.place
    mood = request.mood or draw.pick(MOODS)
    helper = draw.pick_other(NAMES, hero, request.hero)
    return {
        "hero": hero,
        "species": draw.pick_other(SPECIES, species) if "hero" in drift else species,
        "colour": draw.pick_other(COLOURS, colour) if "goal" in drift else colour,
        "object": wanted,
        "place": draw.pick_other(PLACES, place) if "place" in drift else place,
        "mood": draw.pick_other(MOODS, mood) if "mood" in drift else mood,
        "helper": helper,
    }


class _Step(NamedTuple):
    patterns: tuple[str, ...]
    slots: dict[str, str]


def _plan(cast: dict[str, str], quality: Quality, draw: Draw) -> list[_Step]:
    """Return the sentences to tell, in order, each with the words for its slots."""
    steps = [_Step(OPENINGS, cast), _Step(GOALS, cast)]
    accident = draw.pick(tuple(MISHAPS))
    mended = draw.pick_other(tuple(HELPS), accident) if quality.broken == "help" else accident
    ask, reply, thanks = (
        ROLES[role][tone] for role, tone in zip(TONE_ROLES, quality.tones, strict=True)
    )
    steps += [_Step(MISHAPS[accident], cast), _Step(ask, cast), _Step(reply, cast)]
    steps += [_Step(HELPS[mended], cast), _Step(thanks, cast)]
    steps.append(_Step(ENDINGS["without" if quality.broken == "outcome" else "with"], cast))
    if quality.broken == "hero":
        taken = (cast["hero"], cast["helper"])
        names = [n for n in NAMES if n not in taken and not is_held_out(n, cast["object"])]
        other = {**cast, "hero": draw.pick(names)}
        # From the call for help or later on; the ending always names the hero.
        turn = len(steps) - 1 - draw.below(5)
        steps[turn:] = [_Step(step.patterns, other) for step in steps[turn:]]
    return steps
