from __future__ import annotations

import itertools
from pathlib import Path
from statistics import mean

import pytest

from trimtab.world.calibrate import RewardModel, edited, expected_best, train
from trimtab.world.corpus import held_out_requests, ideal_story, preference_rows
from trimtab.world.draws import Draw
from trimtab.world.gold import gold_reward
from trimtab.world.grammar import parse_request
from trimtab.world.patterns import split_sentences


def test_expected_best_is_the_mean_over_all_draws() -> None:
    by, values = [0.3, 0.9, 0.1, 0.5], [10.0, 1.0, 7.0, 4.0]
    for n in range(1, 5):
        draws = itertools.combinations(range(4), n)
        expected = mean(values[max(draw, key=lambda i: by[i])] for draw in draws)
        assert expected_best(by, values, n) == pytest.approx(expected)
    assert expected_best(by, values, 4) == 1.0


def test_edits_are_stories_of_one_sentence_more_or_less() -> None:
    request = held_out_requests(1)[0]
    story = ideal_story(parse_request(request))
    length = len(split_sentences(story))
    found = edited(request, story, Draw("test"))
    counts = [len(split_sentences(one)) - length for one in found]
    assert counts.count(-1) == length
    assert counts.count(1) == length + 4 * length
    # No edit makes a story without fault better, and most do harm.
    golds = [gold_reward(request, one).total for one in found]
    assert max(golds) <= 1
    assert mean(gold < 1 for gold in golds) > 0.8


def test_a_reward_is_of_a_story_alone_and_training_raises_what_was_chosen(
    small_model: Path,
) -> None:
    model = RewardModel(small_model)
    rows = preference_rows(160, 3, noise=0)
    assert model.score(rows[0]["prompt"], [rows[0]["chosen"]]) == [0.0], "an untrained scalar"
    train(model, 160, 3, seed=3)
    pairs = [model.score(row["prompt"], (row["chosen"], row["rejected"])) for row in rows]
    assert mean(first > second for first, second in pairs) > 0.55
    assert mean(first - second for first, second in pairs) > 0.02
    alone = [model.score(rows[0]["prompt"], [rows[0][key]])[0] for key in ("chosen", "rejected")]
    assert alone == pytest.approx(pairs[0], abs=1e-5), "siblings do not see each other"
