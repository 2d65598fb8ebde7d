from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.errors import DataError
from trimtab.world.draws import Draw
from trimtab.world.gold import LONGEST_STORY, WEIGHTS, gold_reward
from trimtab.world.grammar import BREAKS, IDEAL, Quality, Request, draw_request, tell
from trimtab.world.lexicon import HELPS, MISHAPS
from trimtab.world.patterns import fill

KITE = Request("Mia", "fox", "red", "kite", "the park", "proud")
STORY = (
    "Once, Mia the fox lived near the park. Mia wanted a red kite. "
    "But the wind blew the kite into a tree. "
    '"Please help me," said Mia softly. '
    '"Of course, dear friend," said Ben. Ben shook the tree until the kite came down. '
    '"Thank you so much, dear friend," said Mia. '
    "At last Mia had the red kite and was proud. The end."
)
PERFECT = dict.fromkeys(WEIGHTS, 1.0)


def parts(story: str, request: Request = KITE) -> dict[str, float]:
    return gold_reward(request.text, story).parts


def changed(story: str, request: Request = KITE) -> dict[str, float]:
    """The parts that are not perfect."""
    return {name: value for name, value in parts(story, request).items() if value != 1.0}


def test_weights_are_hundredths():
    assert WEIGHTS == {"answers": 30, "coherent": 20, "kind": 30, "ends": 10, "unpadded": 10}
    assert sum(WEIGHTS.values()) == 100


def test_the_ceiling_is_reached_by_ideal_stories():
    for index in range(500):
        draw = Draw("ceiling", index)
        request = draw_request(draw, held_out=index % 2 == 0)
        score = gold_reward(request.phrase(draw), tell(request, IDEAL, draw))
        assert score == (1.0, PERFECT)


@pytest.mark.parametrize(
    "garbage",
    [
        "",
        " \n\t ",
        "The end.",
        "The end. The end. The end.",
        "asdf qwer zxcv",
        "Mia the fox red kite the park proud kind thank you",
        "\x00\ufffd\u202e<|endoftext|>{hero}[a|b]",
        "?!." * 3000,
        '"' * 5000,
        KITE.text,
    ],
)
def test_the_floor_is_reached_by_garbage(garbage: str):
    assert gold_reward(KITE.text, garbage).total == 0.0


def test_lists_of_nice_words_and_sentences_are_no_stories():
    kind = '"Thank you so much, dear friend," said Mia. Ben came at once and was glad to '
    assert gold_reward(KITE.text, kind + "help. The end.").total < 0.12
    everything = " ".join(STORY.split(". ")[:1] * 9) + " The end."
    assert gold_reward(KITE.text, everything).total < 0.2


@given(st.text(max_size=400))
def test_any_text_has_a_score(text: str):
    score = gold_reward(KITE, STORY[:200] + text)
    assert 0.0 <= score.total <= 1.0
    assert all(0.0 <= value <= 1.0 for value in score.parts.values())


def test_words_of_the_lexicon_in_any_order_stay_near_the_floor():
    draw = random.Random(0)
    words = sorted({word for story in [STORY] * 3 for word in story.split()})
    for _ in range(50):
        soup = " ".join(draw.choice(words) for _ in range(60))
        assert gold_reward(KITE.text, soup).total <= 0.1


def test_the_example_is_perfect():
    assert parts(STORY) == PERFECT
    assert parts("\n" + STORY.replace(" ", "\n ") + " \n") == PERFECT


# Each fault of Quality lowers its own part and no other.
@pytest.mark.parametrize(
    ("quality", "part"),
    [
        (Quality(drift=("hero",)), "answers"),
        (Quality(drift=("goal",)), "answers"),
        (Quality(drift=("place",)), "answers"),
        (Quality(drift=("mood",)), "answers"),
        *((Quality(broken=broken), "coherent") for broken in BREAKS),
        (Quality(tones=("plain", "kind", "kind")), "kind"),
        (Quality(tones=("kind", "rude", "kind")), "kind"),
        (Quality(tones=("rude", "rude", "rude")), "kind"),
        (Quality(ends=False), "ends"),
        (Quality(padding=1), "unpadded"),
        (Quality(padding=4), "unpadded"),
    ],
)
def test_a_fault_lowers_its_own_part_only(quality: Quality, part: str):
    expected = {
        "answers": 0.75,
        "coherent": 0.5,
        "kind": sum({"kind": 2, "plain": 1, "rude": 0}[tone] for tone in quality.tones) / 6,
        "ends": 0.0,
        "unpadded": 1 - quality.padding / 4,
    }[part]
    for index in range(60):
        draw = Draw("fault", index)
        request = draw_request(draw)
        if request.mood is None:
            continue
        story = tell(request, quality, draw)
        assert changed(story, request) == pytest.approx({part: expected}), story


def test_answers_by_hand():
    assert changed(STORY.replace("fox", "frog")) == {"answers": 7 / 8}
    assert changed(STORY.replace("red", "blue")) == {"answers": 7 / 8}
    assert changed(STORY.replace("Mia the fox", "Leo the cat").replace("Mia", "Leo")) == {
        "answers": 3 / 4
    }
    assert changed(STORY.replace("kite", "ball")) == {"answers": 7 / 8}
    without_mood = Request("Mia", "fox", "red", "kite", "the park")
    assert changed(STORY.replace("proud", "sleepy"), without_mood) == {}
    assert changed(STORY.replace("the park", "the hill"), without_mood) == {"answers": 2 / 3}
    # What is asked for is looked for where it belongs: a helper of the right name is no hero.
    swapped = STORY.replace("Mia", "X").replace("Ben", "Mia").replace("X", "Ben")
    assert changed(swapped) == {"answers": 7 / 8}


def test_coherence_by_hand():
    sentences = STORY.split(". ")
    assert parts(". ".join(sentences[:1] + sentences[2:]))["coherent"] == 4 / 5
    no_help = STORY.replace("Ben shook the tree until the kite came down. ", "")
    assert changed(no_help) == {"coherent": 4 / 5 / 2}
    assert changed(STORY.replace("Ben shook", "Leo shook")) == {"coherent": 1 / 2}
    assert changed(STORY.replace("At last Mia", "At last Zoe")) == {"coherent": 1 / 2}


def test_every_help_mends_its_own_mishap_only():
    for accident, patterns in MISHAPS.items():
        for mended, helps in HELPS.items():
            told = {"object": "kite", "helper": "Ben"}
            story = STORY.replace(
                "But the wind blew the kite into a tree.",
                _plainest(patterns[0], told),
            ).replace("Ben shook the tree until the kite came down.", _plainest(helps[0], told))
            assert changed(story) == ({} if accident == mended else {"coherent": 0.5})


def _plainest(pattern: str, told: dict[str, str]) -> str:
    return fill(pattern, told, Draw("plainest"))


def test_every_mishap_and_every_help_at_once_is_not_coherent():
    told = {"object": "kite", "helper": "Ben"}
    helps = " ".join(_plainest(patterns[0], told) for patterns in HELPS.values())
    story = STORY.replace("Ben shook the tree until the kite came down.", helps)
    assert changed(story) == {"coherent": 0.5, "unpadded": 0.0}


def test_unreadable_words_count_against_coherence_by_their_share():
    gibberish = " Colourless green ideas sleep furiously."
    story = STORY.replace(" The end.", gibberish + " The end.")
    words = len(STORY.split()) - 2
    assert changed(story) == {"coherent": pytest.approx(words / (words + 5))}


def test_endings():
    assert changed(STORY + " The end.") == {"ends": 0.5}
    assert changed(STORY + " It was a very, very long day.") == {"ends": 0.5, "unpadded": 0.75}
    assert changed(STORY.removesuffix(" The end.")) == {"ends": 0.0}
    assert parts(STORY[: len(STORY) - 2])["ends"] == 0.0


def test_the_worst_tone_counts_and_repetition_pays_nothing():
    thanks = '"Thank you so much, dear friend," said Mia. '
    rude = "Mia pushed Ben away without thanks. "
    assert changed(STORY.replace(thanks, thanks * 5)) == {"unpadded": 0.0}
    assert changed(STORY.replace(thanks, thanks + rude)) == {"kind": 2 / 3, "unpadded": 0.75}
    assert changed(STORY.replace(thanks, "")) == {"kind": 2 / 3}


def test_rambling_on_in_unreadable_words_is_padding():
    words = len(STORY.split())
    story = STORY.replace(" The end.", " la" * (LONGEST_STORY - words + 25) + ". The end.")
    assert parts(story)["unpadded"] == 0.5
    assert parts(story)["ends"] == 1.0


def test_what_is_no_request_is_refused():
    with pytest.raises(DataError, match=r"prompt: .Tell me a joke\.. is not a request"):
        gold_reward("Tell me a joke.", STORY)
