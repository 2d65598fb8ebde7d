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


# 16 names x 16 objects, of which every eighth pair is held out (splits.py). The lists are short so
# that a model of a million parameters learns to copy from the request within minutes; with the
# other slots they still make 122,880 requests, seven times that with moods.
NAMES = _words("Mia Ben Lily Tom Anna Max Zoe Sam Nora Leo Ruby Finn Ella Hugo Ivy Otto")
SPECIES = _words("fox bear rabbit mouse cat dog duck frog wolf goat")
COLOURS = _words("red blue green yellow white brown")
OBJECTS = _words(
    "kite ball hat boat drum cake book lamp bell coat doll flag basket ribbon scarf puzzle"
)
PLACES = tuple(
    f"the {place}" for place in (*_words("park river market forest beach farm hill"), "old mill")
)
MOODS = _words("happy proud calm brave glad sleepy")

SLOTS: dict[str, tuple[str, ...]] = {
    "hero": NAMES,
    "species": SPECIES,
    "colour": COLOURS,
    "object": OBJECTS,
    "place": PLACES,
    "mood": MOODS,
    "helper": NAMES,
    "friend": SPECIES,
}

# The first phrasing is the one that Request.text uses.
REQUESTS = (
    "Tell a story about {hero} the {species} who wants a {colour} {object} near {place}.",
    "Tell me how {hero} the {species} went to {place} and got a {colour} {object}.",
    "Please write about {hero} the {species}, {place} and a {colour} {object}.",
    "I would like a story with a {colour} {object}, {place} and {hero} the {species}.",
    "What happened when {hero} the {species} looked for a {colour} {object} near {place}?",
)
MOOD_REQUESTS = (
    "It should end {mood}.",
    "Let the end be {mood}.",
)

OPENINGS = (
    "[Once|Once upon a time|Long ago], there was a [little|young|small] {species} named {hero}.",
    "[Once|Once upon a time|Long ago], {hero} the {species} lived near {place}.",
    "[One morning|One day|One fine day], {hero} the {species} [went|walked|ran] to {place}.",
    "{hero} was a [little|young|small] {species} who [lived|played] near {place}.",
    "[Near|Not far from] {place} lived a [little|young|small] {species} named {hero}.",
    "This is the story of {hero} the {species}.",
)
GOALS = (
    "{hero} [wanted|wished for|dreamed of|longed for] a {colour} {object}.",
    "More than anything, {hero} wanted a {colour} {object}.",
    "{hero} [hoped|wanted|wished] to [find|get|have] a {colour} {object}.",
    "All that {hero} [wanted|needed] was a {colour} {object}.",
    "{hero} had always wanted a {colour} {object}.",
)
JOURNEYS = (
    "So {hero} [went|walked|ran|hurried] to {place}.",
    "[One day|That day|The next day] {hero} [went|walked|ran] to {place}.",
    "There was one near {place}.",
    "{hero} [looked|searched] for it near {place}.",
)

# Each kind of accident: how it happens, and the only help that mends it.
MISHAPS: dict[str, tuple[str, ...]] = {
    "tree": (
        "[But|But then|Then] the wind blew the {object} into a tall tree.",
        "[But|But then|Then] the {object} got stuck [high up|far up] in a tree.",
    ),
    "mud": (
        "[But|But then|Then] the {object} fell into the [deep|thick|brown] mud.",
        "[But|But then|Then] a cart splashed mud all over the {object}.",
    ),
    "well": (
        "[But|But then|Then] the {object} fell down a [deep|dark|old] well.",
        "[But|But then|Then] the {object} [rolled|slid] over the edge of a well.",
    ),
    "grass": (
        "[But|But then|Then] the {object} got lost in the [tall|long|high] grass.",
        "[But|But then|Then] nobody could see the {object} in the [tall|long|high] grass.",
    ),
    "broken": (
        "[But|But then|Then] the {object} broke in two.",
        "[But|But then|Then] a [big|bad] crack ran through the {object}.",
    ),
    "locked": (
        "[But|But then|Then] the {object} was locked in a [dark|cold|old] shed.",
        "[But|But then|Then] the door of the shed fell shut behind the {object}.",
    ),
    "crow": (
        "[But|But then|Then] a [big|black|bold] crow [stole|took] the {object}.",
        "[But|But then|Then] a crow flew away with the {object}.",
    ),
    "rock": (
        "[But|But then|Then] the {object} got stuck under a [big|heavy] rock.",
        "[But|But then|Then] a [big|heavy] rock rolled on top of the {object}.",
    ),
}
HELPS: dict[str, tuple[str, ...]] = {
    "tree": (
        "{helper} climbed [up|the tree] and [brought|carried|got] the {object} down.",
        "{helper} shook the tree until the {object} came down.",
    ),
    "mud": (
        "{helper} washed the {object} until it was clean.",
        "{helper} [wiped|brushed] all the mud off the {object}.",
    ),
    "well": (
        "{helper} pulled the {object} up with a [long|strong] rope.",
        "{helper} let a bucket down and fished out the {object}.",
    ),
    "grass": (
        "{helper} cut the grass and [found|saw] the {object}.",
        "{helper} looked under every leaf and found the {object}.",
    ),
    "broken": (
        "{helper} [mended|fixed] the {object} with [glue|string|tape].",
        "{helper} put the {object} together again.",
    ),
    "locked": (
        "{helper} had a key and got the {object} out.",
        "{helper} opened the [door|shed] and took out the {object}.",
    ),
    "crow": (
        "{helper} chased the crow until it dropped the {object}.",
        "{helper} gave the crow some bread for the {object}.",
    ),
    "rock": (
        "{helper} [lifted|pushed|rolled] the rock away from the {object}.",
        "{helper} dug a hole and pulled out the {object}.",
    ),
}

ASKS: dict[str, tuple[str, ...]] = {
    "kind": (
        '"[Please|Excuse me], [can|could|will] you help me?" asked {hero} [softly|politely].',
        '"I would be so [glad|happy] about some help," said {hero} [softly|kindly|politely].',
        "{hero} [smiled|waited|stayed calm] and asked [nicely|kindly] for help.",
    ),
    "plain": (
        "{hero} [looked|called|asked] for help.",
        '"[What|What now|And now]?" said {hero}.',
        "{hero} did not know what to do.",
    ),
    "rude": (
        '"Help me, you [lazy|stupid|silly] fool!" [shouted|yelled|screamed] {hero}.',
        '"[Do something|Come here|Move], or I will [bite|kick] you!" [shouted|yelled] {hero}.',
        "{hero} [kicked|pushed|hit] everybody and [shouted|yelled] for help.",
    ),
}
REPLIES: dict[str, tuple[str, ...]] = {
    "kind": (
        '"[Of course|Gladly|Sure], dear friend," said {helper} the {friend}.',
        '"[Do not worry|Do not cry], I will help you," said {helper} the {friend}.',
        "{helper} the {friend} [smiled|came at once] and was [glad|happy] to help.",
    ),
    "plain": (
        "{helper} the {friend} [heard it|came by|was near].",
        '"[Well|Let me see|All right]," said {helper} the {friend}.',
    ),
    "rude": (
        '"[You are so|How can you be so] [clumsy|stupid|dumb]!" laughed {helper} the {friend}.',
        '"[Stop|Quit] crying, you big baby!" [said|sneered] {helper} the {friend}.',
        "{helper} the {friend} [laughed|sneered] and called everybody [stupid|dumb|ugly].",
    ),
}
THANKS: dict[str, tuple[str, ...]] = {
    "kind": (
        '"Thank you [so|very] much, [dear|good|sweet] friend," said {hero}.',
        "{hero} [hugged|thanked] {helper} with a [big|warm] smile.",
        "{hero} shared [an apple|some bread|a warm pie] with {helper}.",
    ),
    "plain": (
        "{hero} [nodded|looked] and took it.",
        '"[Good|Fine|There it is]," said {hero}.',
    ),
    "rude": (
        '"You were [too|much too] slow, you [lazy|stupid|silly] fool!" said {hero}.',
        "{hero} [pushed|kicked] {helper} away and did not say thank you.",
        '"Go away, you [ugly|dumb|smelly] thing!" [shouted|said] {hero}.',
    ),
}
ENDINGS: dict[str, tuple[str, ...]] = {
    "with": (
        "[At last|In the end|Now] {hero} had the {colour} {object} and [was|felt] {mood}.",
        "{hero} [took|carried] the {colour} {object} home and [was|felt] {mood}.",
        "With the {colour} {object} in [bed|the house|hand], {hero} [was|felt] very {mood}.",
    ),
    "without": (
        "[At last|In the end|So] {hero} went home without the {colour} {object} and felt {mood}.",
        "{hero} never [got|saw] the {colour} {object} again and [was|felt] {mood}.",
    ),
}
FILLERS = (
    "The day went on and on[ and on|].",
    "It was a [very|really], [very|really] long day.",
    "The sky was [blue|grey] and the grass was green.",
    "Nothing else happened for a [long|great] while.",
    "And so on, and so on.",
)
THE_END = "The end."

# Roles in the order of a story; the arc is what no story can do without.
ROLES: dict[str, dict[str, tuple[str, ...]]] = {
    "opening": {"": OPENINGS},
    "goal": {"": GOALS},
    "journey": {"": JOURNEYS},
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
