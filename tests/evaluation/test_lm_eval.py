"""The bridge to lm-eval, without it: what its results become, and what is said where it is not."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from trimtab.cli import main
from trimtab.evaluation.lm_eval_bridge import rows_of
from trimtab.intervals import wilson_interval


def test_means_over_documents_have_their_own_intervals() -> None:
    metrics = {
        "alias": "mine",
        "sample_len": 4,
        "acc,none": 0.75,
        "acc_stderr,none": 0.25,
        "length,none": 2.5,
        "length_stderr,none": 0.65,
        "f1,strict": 0.6,
        "f1_stderr,strict": 0.1,
        "word_perplexity,none": 12.0,
        "word_perplexity_stderr,none": "N/A",
    }
    samples = [
        {"filter": "none", "acc": flag, "length": float(size), "word_perplexity": (1.0, 2)}
        for flag, size in ((1.0, 1), (True, 2), (0.0, 3), (1.0, 4))
    ]
    found = {row["metric"]: row for row in rows_of("mine", metrics, samples, 0)}
    assert set(found) == {"acc", "length", "f1", "word_perplexity"}
    by_hand = wilson_interval(3, 4)
    assert (found["acc"]["low"], found["acc"]["high"], found["acc"]["n"]) == (
        by_hand.low,
        by_hand.high,
        4,
    )
    assert 1.0 <= found["length"]["low"] < 2.5 < found["length"]["high"] <= 4.0
    assert found["f1"]["high"] == pytest.approx(0.6 + 1.959964 * 0.1)
    assert found["word_perplexity"]["low"] is None and found["word_perplexity"]["n"] == 4


def test_it_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "lm_eval" else real(name)
    )
    monkeypatch.chdir(tmp_path)
    assert main(["evaluate", "model", "--lm-eval", "arc_easy"]) == 2
    assert "pip install 'trimtab[lm-eval]'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
