from __future__ import annotations

import math

import pytest

from trimtab.evaluation.held_out_text import TextRow, text_difference, text_statistics


def row(number: int, nll: float, tokens: int, size: int, right: int, source: str = "") -> TextRow:
    return TextRow("f", number, nll, tokens, size, right, source or None)


def test_sums_by_tokens_and_not_means_of_means() -> None:
    found = text_statistics([row(1, 10.0, 10, 40, 5), row(2, 60.0, 20, 60, 5)])
    assert found["loss"]["value"] == pytest.approx(70 / 30)
    assert found["loss"]["value"] != pytest.approx((1.0 + 3.0) / 2), "the wrong variant"
    assert found["perplexity"]["value"] == pytest.approx(math.exp(70 / 30))
    assert found["perplexity"]["high"] == pytest.approx(math.exp(found["loss"]["high"]))
    assert found["bits_per_byte"]["value"] == pytest.approx(70 / math.log(2) / 100)
    assert found["token_accuracy"]["value"] == pytest.approx(1 / 3)
    assert (found["tokens"], found["bytes"]) == (30, 100)
    # Two rows drawn twice: both the first, both the second, or one of each.
    assert (found["loss"]["low"], found["loss"]["high"]) == (1.0, 3.0)


def test_sources() -> None:
    rows = [row(1, 1.0, 1, 4, 1, "a"), row(2, 2.0, 1, 4, 0, "b"), row(3, 4.0, 1, 4, 0, "b")]
    found = text_statistics(rows)["by_source"]
    assert [(one["name"], one["loss"]["value"]) for one in found] == [("b", 3.0), ("a", 1.0)]
    assert "by_source" not in text_statistics(rows[1:])


def test_differences_are_of_the_same_rows() -> None:
    before = [row(i, 10.0 * i, 10, 30, 4) for i in range(1, 21)]
    after = [row(i, 10.0 * i - 1, 10, 30, 5) for i in range(1, 21)]
    found = text_difference(before, after, same_tokens=True)
    assert found["loss"]["value"] == pytest.approx(-0.1)
    assert found["loss"]["high"] == pytest.approx(-0.1), "paired: the same on every row"
    assert found["token_accuracy"]["value"] == pytest.approx(0.1)
    assert list(text_difference(before, after, same_tokens=False)) == ["bits_per_byte"]
