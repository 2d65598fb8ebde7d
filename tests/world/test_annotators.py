from __future__ import annotations

import math

import pytest

from trimtab.world import gold_reward, prefer, preference_probability, rank_stories
from trimtab.world.draws import Draw
from trimtab.world.grammar import Quality, Request, tell

REQUEST = Request("Mia", "fox", "red", "kite", "the park")
QUALITIES = (
    Quality(),
    Quality(ends=False),
    Quality(tones=("rude", "rude", "kind")),
    Quality(drift=("hero", "goal"), tones=("rude", "rude", "rude")),
)
STORIES = [tell(REQUEST, quality, Draw("annotators", i)) for i, quality in enumerate(QUALITIES)]
GOLD = [gold_reward(REQUEST.text, story).total for story in STORIES]
DRAWS = 4000
SLOW = pytest.mark.slow


def test_the_stories_have_known_gold():
    # Two thirds of the 30 hundredths for tone; all of them and two of three facets, of 30 too.
    assert pytest.approx([1.0, 0.9, 0.8, 0.5]) == GOLD


def test_probability():
    assert preference_probability(0.7, 0.7) == 0.5
    assert preference_probability(0.8, 0.7, noise=0.1) == pytest.approx(1 / (1 + math.exp(-1)))
    assert preference_probability(0.7, 0.8, noise=0.1) == pytest.approx(1 / (1 + math.e))
    assert preference_probability(1.0, 0.0, noise=1e-4) == 1.0
    assert preference_probability(0.0, 1.0, noise=1e-4) == 0.0
    assert preference_probability(0.8, 0.7, noise=0) == 1.0
    assert preference_probability(0.7, 0.8, noise=0) == 0.0
    assert preference_probability(0.7, 0.7, noise=0) == 0.5


def rate(first: int, second: int, noise: float) -> float:
    """How often the first story is preferred."""
    a, b = STORIES[first], STORIES[second]
    chosen = [
        prefer(REQUEST.text, a, b, Draw("rate", first, second, index), noise)[0]
        for index in range(DRAWS)
    ]
    return chosen.count(a) / DRAWS


@pytest.mark.parametrize(
    "noise", [0.05, pytest.param(0.1, marks=SLOW), pytest.param(0.3, marks=SLOW)]
)
def test_preferences_are_bradley_terry(noise: float):
    expected = preference_probability(GOLD[0], GOLD[1], noise)
    error = math.sqrt(expected * (1 - expected) / DRAWS)
    assert abs(rate(0, 1, noise) - expected) < 4 * error
    assert abs(rate(1, 0, noise) - (1 - expected)) < 4 * error
    # The twin: an annotator of twice the noise is another one, well outside the same interval.
    assert abs(rate(0, 1, 2 * noise) - expected) > 4 * error


def test_without_noise_the_better_story_wins_always():
    assert rate(0, 1, 0) == 1.0
    assert rate(1, 0, 0) == 0.0


def test_ties_are_broken_by_a_coin():
    twins = [tell(REQUEST, Quality(), Draw("twin", index)) for index in range(2)]
    for noise in (0.0, 0.1):
        first = [
            prefer(REQUEST.text, twins[0], twins[1], Draw("tie", index), noise)[0]
            for index in range(2000)
        ]
        assert abs(first.count(twins[0]) / 2000 - 0.5) < 4 * 0.5 / math.sqrt(2000)


def test_rankings_are_plackett_luce():
    noise = 0.15
    strengths = [math.exp(gold / noise) for gold in GOLD]
    ranks = [
        rank_stories(REQUEST.text, STORIES, Draw("rank", index), noise) for index in range(DRAWS)
    ]
    assert all(sorted(rank) == [1, 2, 3, 4] for rank in ranks)
    for index, strength in enumerate(strengths):
        expected = strength / sum(strengths)
        found = sum(rank[index] == 1 for rank in ranks) / DRAWS
        assert abs(found - expected) < 4 * math.sqrt(expected * (1 - expected) / DRAWS)
    # Any two stories of the four are ordered as a pair of them alone would be.
    expected = preference_probability(GOLD[1], GOLD[2], noise)
    found = sum(rank[1] < rank[2] for rank in ranks) / DRAWS
    assert abs(found - expected) < 4 * math.sqrt(expected * (1 - expected) / DRAWS)


def test_rankings_without_noise_follow_the_gold_reward():
    assert rank_stories(REQUEST.text, STORIES, Draw("exact"), 0) == [1, 2, 3, 4]
    assert rank_stories(REQUEST.text, STORIES[::-1], Draw("exact"), 0) == [4, 3, 2, 1]
