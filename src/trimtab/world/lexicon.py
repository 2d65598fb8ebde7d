"""The words and sentences of the world; one source for telling stories and for reading them.

A pattern is text with slots ``{hero}`` and choices ``[a|b|]``. Every sentence has a role in the
story and a sort: the kind of accident for mishap and help, the tone for ask, reply and thanks, the
outcome for the ending. No pattern has an inner sentence end: a quotation is followed by a verb in
lower case, so a story is split into sentences without knowing the grammar.
"""

from __future__ import annotations

from typing import Literal

Tone = Literal["kind", "plain", "rude"]
TONES: tuple[Tone, ...] = ("kind", "plain", "rude")


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


# 16 names x 16 objects, of which every eighth pair is held out (splits.py). The lists and the
# sentences are short so that a model of a million parameters learns the language, and to copy from
# the request, within a minute or two.
NAMES = _words("Mia Ben Lily Tom Anna Max Zoe Sam Nora Leo Ruby Finn Ella Hugo Ivy Otto")
SPECIES = _words("fox bear rabbit mouse cat dog duck frog")
COLOURS = _words("red blue green yellow white brown")
OBJECTS = _words(
    "kite ball hat boat drum cake book lamp bell coat doll flag basket ribbon scarf puzzle"
)
PLACES = tuple(f"the {place}" for place in _words("park river market forest beach farm hill mill"))
MOODS = _words("happy proud calm brave glad sleepy")

SLOTS: dict[str, tuple[str, ...]] = {
    "hero": NAMES,
    "species": SPECIES,
    "colour": COLOURS,
    "object": OBJECTS,
    "place": PLACES,
    "mood": MOODS,
    "helper": NAMES,
}

# The first phrasing is the one that Request.text uses.
REQUESTS = (
    "Tell a story about {hero} the {species} who wants a {colour} {object} near {place}.",
    "Write about {hero} the {species}, a {colour} {object} and {place}.",
    "I want a story with a {colour} {object}, {place} and {hero} the {species}.",
)
MOOD_REQUESTS = (
    "It should end {mood}.",
    "Let the end be {mood}.",
)

OPENINGS = (
    "[Once|Long ago], {hero} the {species} lived near {place}.",
    "One day, {hero} the {species} [went|ran] to {place}.",
    "{hero} the {species} [lived|played] near {place}.",
    "Near {place} lived {hero} the {species}.",
)
GOALS = (
    "{hero} [wanted|wished for|needed] a {colour} {object}.",
    "{hero} wanted to [find|get|have] a {colour} {object}.",
)

# Each kind of accident: how it happens, and the only help that mends it.
MISHAPS: dict[str, tuple[str, ...]] = {
    "tree": ("But the wind blew the {object} into a tree.",),
    "mud": ("But the {object} fell into the mud.",),
    "well": ("But the {object} fell down a well.",),
    "grass": ("But the {object} got lost in the grass.",),
    "broken": ("But the {object} broke in two.",),
    "locked": ("But the {object} was locked in a shed.",),
    "crow": ("But a crow [stole|took] the {object}.",),
    "rock": ("But a rock rolled on the {object}.",),
}
HELPS: dict[str, tuple[str, ...]] = {
    "tree": ("{helper} shook the tree until the {object} came down.",),
    "mud": ("{helper} washed the {object} until it was clean.",),
    "well": ("{helper} pulled the {object} up with a rope.",),
    "grass": ("{helper} cut the grass and found the {object}.",),
    "broken": ("{helper} mended the {object} with [glue|string].",),
    "locked": ("{helper} had a key and got the {object} out.",),
    "crow": ("{helper} chased the crow until it dropped the {object}.",),
    "rock": ("{helper} [lifted|pushed] the rock off the {object}.",),
}

ASKS: dict[str, tuple[str, ...]] = {
    "kind": (
        '"Please help me," said {hero} [softly|kindly].',
        "{hero} [smiled|waited] and asked [nicely|kindly] for help.",
    ),
    "plain": (
        "{hero} [looked|called] for help.",
        '"What now?" said {hero}.',
    ),
    "rude": (
        '"Help me, you [lazy|stupid] fool!" shouted {hero}.',
        "{hero} [kicked|pushed] everybody and shouted for help.",
    ),
}
REPLIES: dict[str, tuple[str, ...]] = {
    "kind": (
        '"[Of course|Gladly], dear friend," said {helper}.',
        "{helper} came at once and was glad to help.",
    ),
    "plain": (
        "{helper} [heard it|came by].",
        '"Let me see," said {helper}.',
    ),
    "rude": (
        '"Stop crying, you [big|silly] baby!" said {helper}.',
        "{helper} laughed and called everybody [stupid|ugly].",
    ),
}
THANKS: dict[str, tuple[str, ...]] = {
    "kind": (
        '"Thank you so much, [dear|good] friend," said {hero}.',
        "{hero} [hugged|thanked] {helper} with a [big|warm] smile.",
    ),
    "plain": (
        "{hero} [nodded|looked] and took it.",
        '"There it is," said {hero}.',
    ),
    "rude": (
        '"You were too slow, you [lazy|stupid] fool!" said {hero}.',
        "{hero} pushed {helper} away without thanks.",
    ),
}
ENDINGS: dict[str, tuple[str, ...]] = {
    "with": (
        "[At last|Now] {hero} had the {colour} {object} and was {mood}.",
        "{hero} [took|carried] the {colour} {object} home and felt {mood}.",
    ),
    "without": (
        "{hero} went home without the {colour} {object} and felt {mood}.",
        "{hero} never got the {colour} {object} and was {mood}.",
    ),
}
FILLERS = (
    "The day went on and on.",
    "It was a very, very long day.",
    "The sky was wide and the air was warm.",
    "Nothing else happened for a long while.",
    "And so on, and so on.",
)
THE_END = "The end."

# Roles in the order of a story; the arc is what no story can do without.
ROLES: dict[str, dict[str, tuple[str, ...]]] = {
    "opening": {"": OPENINGS},
    "goal": {"": GOALS},
    "mishap": MISHAPS,
    "ask": ASKS,
    "reply": REPLIES,
    "help": HELPS,
    "thanks": THANKS,
    "ending": ENDINGS,
    "filler": {"": FILLERS},
}
ARC = ("opening", "goal", "mishap", "help", "ending")
TONE_ROLES = ("ask", "reply", "thanks")
