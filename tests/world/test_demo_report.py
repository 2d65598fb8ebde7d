"""The demo's numbers against hand computation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from trimtab.intervals import t_quantile
from trimtab.world.demo_report import before_and_after, measure, summarise, table, win_rate
from trimtab.world.gold import WEIGHTS


def line(gold: float, log_ratio: float = 0.0, tokens: int = 10, story: str = "x") -> dict[str, Any]:
    parts = dict.fromkeys(WEIGHTS, gold)
    return {
        "request": "ask\n",
        "story": story,
        "gold": gold,
        **parts,
        "learned": 10 * gold,
        "tokens": tokens,
        "log_ratio": log_ratio,
    }


def test_win_rate_counts_every_pair_of_a_request_and_ties_as_a_half() -> None:
    mine = np.array([[0.5, 0.9], [0.2, 0.2]])
    theirs = np.array([[0.5, 0.7], [0.1, 0.3]])
    # 0.5: ties 0.5, loses to 0.7; 0.9 beats both. 0.2: beats 0.1, loses to 0.3, twice.
    assert win_rate(mine, theirs).tolist() == [(0.5 + 0 + 1 + 1) / 4, 0.5]
    assert win_rate(theirs, mine).tolist() == [1 - 2.5 / 4, 0.5]


def test_measures_are_means_over_the_stories_of_a_request() -> None:
    told = {
        "sft": [line(0.5), line(0.7), line(0.2), line(0.4)],
        "dpo": [line(0.8, 3.0, 20), line(0.6, 1.0, 40), line(0.1, -1.0), line(0.4, 0.5)],
    }
    found = measure(told, 2)
    assert found["dpo"]["gold_reward"].tolist() == pytest.approx([0.7, 0.25])
    assert found["dpo"]["kl"].tolist() == [2.0, -0.25]
    assert found["dpo"]["length"].tolist() == [30.0, 10.0]
    # 0.8 beats both, 0.6 beats 0.5 only; 0.1 loses twice, 0.4 beats 0.2 and ties with 0.4.
    assert found["dpo"]["win_rate"].tolist() == [0.75, 0.375]
    assert found["sft"]["win_rate"].tolist() == [0.5, 0.5]
    assert set(WEIGHTS) < set(found["sft"])


def test_summary_is_over_requests_and_seeds() -> None:
    ladders = [
        measure({"sft": [line(0.2), line(0.4)], "dpo": [line(0.6), line(0.8)]}, 1),
        measure({"sft": [line(0.3), line(0.5)], "dpo": [line(0.7), line(0.9)]}, 1),
    ]
    models = summarise(ladders)
    assert models["sft"]["gold_reward"]["mean"] == pytest.approx(0.35)
    assert models["dpo"]["gold_reward"]["mean"] == pytest.approx(0.75)
    # Seeds differ by 0.1 and requests by 0.2: mean squares 0.01 and 0.04 without noise.
    degrees = 0.05**2 / (0.01**2 + 0.04**2)
    half = t_quantile(0.95, degrees) * (0.05 / 4) ** 0.5
    assert models["dpo"]["gold_reward"]["low"] == pytest.approx(0.75 - half)
    assert models["dpo"]["gold_reward"]["high"] == pytest.approx(0.75 + half)
    assert models["dpo"]["win_rate"] == {"mean": 1.0, "low": 1.0, "high": 1.0}
    assert summarise(ladders) == models


def test_the_table_is_aligned_and_leaves_out_what_is_known() -> None:
    told = {"sft": [line(0.2), line(0.4)], "orpo-pretrained": [line(0.6, 12.0), line(0.8, 14.0)]}
    lines = table(summarise([measure(told, 1)]), 0.7)
    header, _, sft, orpo, note, learned = lines
    for cell in ("win rate against sft", "KL to sft, nats", "length, tokens"):
        start = header.index(cell)
        assert all(row[start - 1] == " " and row[start] != " " for row in (sft, orpo))
    assert "0.300 [0.200, 0.400]" in sft
    assert sft.split()[4:6] == ["-", "-"], "a model against itself"
    assert "0.700 [0.600, 0.800]" in orpo
    assert "13.0 [12.0, 14.0]" in orpo
    assert "0.700" in note
    assert "sft 3.00, orpo-pretrained 7.00." in learned


def test_an_estimate_just_below_nothing_is_shown_as_nothing() -> None:
    told = {"sft": [line(0.2)] * 2, "dpo": [line(0.2, -0.04)] * 2}
    assert "0.0 [0.0, 0.0]" in table(summarise([measure(told, 1)]), 0.7)[3]


def test_before_and_after_shows_the_first_story_of_each_of_the_first_requests() -> None:
    told = {
        "sft": [line(0.25, story=f"old {i}") for i in range(6)],
        "dpo": [line(0.75, story=f"new {i}") for i in range(6)],
    }
    text = "\n".join(before_and_after(told, ("sft", "dpo"), tellings=2))
    assert text.count("> ask") == 3
    assert all(f"0.25  old {i}" in text and f"0.75  new {i}" in text for i in (0, 2, 4))
    assert "old 1" not in text
