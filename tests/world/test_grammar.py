from __future__ import annotations

from collections import Counter

import pytest

from trimtab.errors import DataError
from trimtab.world.draws import Draw
from trimtab.world.grammar import (
    IDEAL,
    ORDINARY,
    Quality,
    Request,
    draw_request,
    parse_request,
    tell,
)
from trimtab.world.lexicon import NAMES, OBJECTS, REQUESTS, ROLES
from trimtab.world.patterns import fill, read_sentence, reader, split_sentences
from trimtab.world.splits import is_held_out

KITE = Request("Mia", "fox", "red", "kite", "the park", "proud")
SLOTS = {
    "hero": "Mia",
    "species": "fox",
    "colour": "red",
    "object": "kite",
    "place": "the mill",
    "mood": "proud",
    "helper": "Ben",
}


def every_pattern() -> list[tuple[str, str, str]]:
    return [
        (role, sort, pattern)
        for role, sorts in ROLES.items()
        for sort, patterns in sorts.items()
        for pattern in patterns
    ]


def test_text_of_a_request():
    assert KITE.text == (
        "Tell a story about Mia the fox who wants a red kite near the park. It should end proud."
    )


def test_requests_are_read_back_in_every_phrasing():
    phrasings = Counter[str]()
    for index in range(500):
        draw = Draw("phrase", index)
        request = draw_request(draw)
        text = request.phrase(draw)
        assert parse_request(text) == request
        assert parse_request(f" \n{text}\n") == request
        phrasings[text.split()[1]] += 1
    assert len(phrasings) == len(REQUESTS)
    assert min(phrasings.values()) > 120


@pytest.mark.parametrize(
    "text",
    [
        "",
        "What is the capital of France?",
        KITE.text + " Thanks.",
        KITE.text.replace("proud", "angry"),
        KITE.text.replace("Mia", "Mia Mia"),
        KITE.text + " It should end proud.",
    ],
)
def test_other_texts_are_no_requests(text: str):
    with pytest.raises(DataError, match=r"^prompt: .* is not a request of the demo world") as error:
        parse_request(text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("role", "sort", "pattern"), every_pattern())
def test_a_sentence_is_read_as_what_it_was_told_as(role: str, sort: str, pattern: str):
    for index in range(30):
        text = fill(pattern, SLOTS, Draw("fill", pattern, index))
        assert split_sentences(text) == [text]
        read = read_sentence(text)
        assert (read.role, read.sort) == (role, sort)
        assert read.slots == {slot: SLOTS[slot] for slot in read.slots}
        assert set(read.slots) == {slot for slot in SLOTS if f"{{{slot}}}" in pattern}


def test_no_sentence_has_two_readings():
    readings = [(role, sort, reader(pattern)) for role, sort, pattern in every_pattern()]
    for _, _, pattern in every_pattern():
        for index in range(20):
            text = fill(pattern, SLOTS, Draw("ambiguous", pattern, index))
            found = {(r, s) for r, s, expression in readings if expression.fullmatch(text)}
            assert len(found) == 1, text


def test_stories_split_into_the_sentences_they_were_told_in():
    for index in range(300):
        draw = Draw("split", index)
        request = draw_request(draw)
        story = tell(request, ORDINARY.draw_quality(request, draw), draw)
        sentences = split_sentences(story)
        assert " ".join(sentences) == story
        assert all(read_sentence(s).role for s in sentences if s != "The end.")


def test_ideal_stories_vary():
    stories = {tell(KITE, IDEAL, Draw("vary", index)) for index in range(400)}
    assert len(stories) == 400
    openings = Counter(split_sentences(story)[0].split()[0] for story in stories)
    assert len(openings) >= 5
    assert all(45 <= len(story.split()) <= 75 for story in stories)


def test_faults_never_make_a_held_out_pair():
    for index in range(1500):
        draw = Draw("drift", index)
        request = draw_request(draw)
        story = tell(request, Quality(drift=("hero", "goal"), broken="hero"), draw)
        heroes = {read_sentence(s).slots.get("hero") for s in split_sentences(story)} - {None}
        wanted = {read_sentence(s).slots.get("object") for s in split_sentences(story)} - {None}
        assert len(heroes) == 2
        assert len(wanted) == 1
        assert request.hero not in heroes or request.object not in wanted
        assert not any(is_held_out(h, w) for h in heroes if h for w in wanted if w)


def test_held_out_pairs_are_balanced():
    pairs = [(name, thing) for name in NAMES for thing in OBJECTS if is_held_out(name, thing)]
    assert len(pairs) == len(NAMES) * len(OBJECTS) // 8
    assert set(Counter(name for name, _ in pairs).values()) == {len(OBJECTS) // 8}
    assert set(Counter(thing for _, thing in pairs).values()) == {len(NAMES) // 8}
