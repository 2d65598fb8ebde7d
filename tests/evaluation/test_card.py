"""What a card says in words, and what becomes of a user's text in it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from tests.evaluation.simulated import bradley_terry, pair

from trimtab.evaluation.card_charts import FILES, comparison_charts
from trimtab.evaluation.card_text import markdown, summary
from trimtab.evaluation.comparisons import ScoredRow
from trimtab.evaluation.held_out_text import TextRow
from trimtab.evaluation.reward_card import comparison_card, text_card
from trimtab.evaluation.verdict import interval, signed

FACTS = {"name": "m", "kind": "reward", "parameters": 5, "max_length": 64}
ACCOUNT = {"read": 9, "bad": {}, "dropped": {"no room": 2}, "prompts_cut": 0, "responses_cut": 1}


def card_of(rows: Sequence[ScoredRow], **keys: Any) -> dict[str, Any]:
    card = comparison_card({"reward": rows}, model=FACTS, gold_source=None, **keys)
    return {**card, "dataset": "a|b*.jsonl", "rows": ACCOUNT}


def said(rows: Sequence[ScoredRow], **keys: Any) -> str:
    return " ".join(card_of(rows, **keys)["verdict"])


def test_a_calibrated_model_is_said_to_be_one() -> None:
    told = said(bradley_terry(800, seed=4))
    assert "800 comparisons of 800 prompts: better than chance." in told
    assert "Its probabilities are right as far as these rows tell" in told
    assert "equally long: length plays no part" in told


@pytest.mark.parametrize(
    ("factor", "expected"),
    [
        (3.0, "too sure: scores times 0.3"),
        (0.25, "not sure enough: scores times 3.59"),
        (-1.0, "Its scores point the wrong way"),
    ],
)
def test_what_is_wrong_with_probabilities(factor: float, expected: str) -> None:
    assert expected in said(bradley_terry(800, seed=4, factor=factor))


def test_chance_few_rows_and_perfection() -> None:
    coins = [pair(*((1.0, 0.0) if i % 2 else (0.0, 1.0)), row=i) for i in range(40)]
    assert "not distinguishable from chance" in said(coins)
    assert "With 40 comparisons the intervals are wide" in said(coins)
    perfect = [pair(1.0, 0.0, row=i, lengths=(2, 3)) for i in range(200)]
    told = said(perfect)
    assert "suspiciously good" in told and "all comparisons falling one way" in told
    assert "Preferring the longer answer gives 0.000; it is better than that." in told
    wrong = [pair(0.0, 1.0, row=i) for i in range(200)]
    assert "worse than chance" in said(wrong)


def test_a_baseline_is_better_worse_or_neither() -> None:
    good = bradley_terry(400, seed=5)
    bad = [
        ScoredRow(**{**vars(row), "scores": row.scores[::-1] if i % 3 else row.scores})
        for i, row in enumerate(good)
    ]
    facts = {**FACTS, "name": "other"}
    assert ": better." in said(good, baseline=(facts, {"reward": bad}))
    assert ": worse." in said(bad, baseline=(facts, {"reward": good}))
    assert ": not distinguishable." in said(good, baseline=(facts, {"reward": good}))


def test_text_of_users_cannot_break_the_page() -> None:
    rows = [pair(float(i % 3), 1.0, row=i, source="x|y <b>" if i % 2 else "z") for i in range(60)]
    card = card_of(rows)
    charts = comparison_charts(card, {"reward": rows})
    page = markdown(card, charts)
    assert r"# Report card: m on a\|b\*.jsonl" in page
    assert r"| source x\|y \<b> |" in page
    assert set(charts) < set(FILES)
    assert "dropped: 2 x no room" in page and "1 answer and 0 prompts cut at 64 tokens" in page
    assert "Rows left out, dropped: 2 x no room." in summary(card)


def test_text_cards() -> None:
    rows = [TextRow("f", i, 20.0 + i % 3, 10, 40, 5, "ab"[i % 2]) for i in range(40)]
    card = {**text_card(rows, model=FACTS), "dataset": "d", "rows": {**ACCOUNT, "dropped": {}}}
    assert card["verdict"][0].startswith("Held-out loss 2.098 [")
    page = markdown(card, {})
    assert "| a | 2.1" in page and "over rows." in page
    assert summary(card)[-4].startswith("b: loss, nats per token ")
    assert summary(card)[-1].startswith("  token accuracy ")


def test_numbers_in_words() -> None:
    assert signed(-0.0001) == "0.000" and signed(-0.25, 2) == "−0.25"
    assert signed(0.25, 2, plus=True) == "+0.25"
    assert interval({"value": 0.5, "low": 0.25, "high": 0.75}, 2) == "0.50 [0.25, 0.75]"
    assert interval({"value": 0.5, "low": None, "high": 0.75}, 2) == "0.50 (no interval)"
    assert interval({"value": None, "low": None, "high": None}) == "not defined"
