"""Distinct-n and self-BLEU against numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from trimtab.evaluation.diversity import (
    distinct_interval,
    distinct_n,
    ngrams,
    self_bleu,
    self_bleu_interval,
)

CAT = ["the", "cat", "sat", "on", "the", "mat"]
DOG = ["the", "dog", "sat", "on", "the", "mat"]


def test_distinct_n_by_hand() -> None:
    """Six words, five different; both texts: 12 words, 6 different, 10 word pairs, 7 different."""
    assert ngrams(["a", "b", "c"], 2) == [("a", "b"), ("b", "c")]
    assert distinct_n([CAT], 1) == 5 / 6
    assert distinct_n([CAT, DOG], 1) == 6 / 12
    assert distinct_n([CAT, DOG], 2) == 7 / 10
    assert distinct_n([CAT, CAT], 2) == 1 / 2
    assert math.isnan(distinct_n([["one"], []], 2))


def test_its_interval_is_the_jackknife() -> None:
    """Three prompts of one text: without each, 5/6, 2/3 and 1; t_2 = 4.302653."""
    texts = [["a", "b"], ["c", "d", "a", "e"], ["a", "f"]]
    without = [distinct_n(texts[:i] + texts[i + 1 :], 1) for i in range(3)]
    assert without == pytest.approx([5 / 6, 3 / 4, 5 / 6])
    error = math.sqrt(2 / 3 * sum((x - np.mean(without)) ** 2 for x in without))
    found = distinct_interval(texts, "xyz", 1)
    assert found.mean == 6 / 8 and found.n == 3
    assert found.low == pytest.approx(6 / 8 - 4.302653 * error)
    assert found.high == pytest.approx(min(1, 6 / 8 + 4.302653 * error))
    alone = distinct_interval(texts, "xxx", 1)
    assert (alone.mean, alone.low, alone.high) == (6 / 8, -math.inf, math.inf)


def test_self_bleu_by_hand() -> None:
    """Of the cat's 6, 5, 4 and 3 n-grams the dog has 5, 3, 2 and 1, and the other way round."""
    expected = (5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25
    assert self_bleu([CAT, DOG]) == pytest.approx([expected, expected])
    assert self_bleu([CAT, CAT]) == pytest.approx([1.0, 1.0])
    # Half as long as the other: brevity exp(1 - 6/3); 4-grams do not exist, 0.1 for their match.
    short = self_bleu([CAT[:3], CAT])[0]
    assert short == pytest.approx(math.exp(1 - 6 / 3) * 0.1**0.25)
    # "the the the": clipped to the two that the other has; then no match of two or three words.
    clipped = self_bleu([["the"] * 3, CAT])[0]
    assert clipped == pytest.approx(math.exp(-1) * (2 / 3 * 0.1 / 2 * 0.1 / 1 * 0.1 / 1) ** 0.25)
    assert self_bleu([[], CAT])[0] == 0.0
    assert math.isnan(self_bleu([CAT])[0])


def test_the_nearest_length_counts_and_the_most_matches_of_any_other() -> None:
    """Of five words; references of four and six are as near, and the shorter one is taken."""
    own = ["a", "b", "c", "d", "e"]
    found = self_bleu([own, ["a", "b", "c", "d"], ["x", "b", "c", "d", "e", "f"]])[0]
    # Every n-gram is in one of the others; the longer one alone would cost exp(1 - 6/5).
    assert found == pytest.approx(1.0)
    assert self_bleu([own, ["x", "b", "c", "d", "e", "f"]])[0] == pytest.approx(
        math.exp(1 - 6 / 5) * (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25
    )


def test_references_are_those_of_the_prompt_where_there_are_several() -> None:
    within, scope = self_bleu_interval([CAT, CAT, DOG, DOG], "xxyy")
    assert scope == "prompt" and within.mean == pytest.approx(1.0)
    across, scope = self_bleu_interval([CAT, DOG], "xy")
    assert scope == "all" and across.mean == pytest.approx((1 / 12) ** 0.25)
    alone, _ = self_bleu_interval([CAT], "x")
    assert math.isnan(alone.mean)
