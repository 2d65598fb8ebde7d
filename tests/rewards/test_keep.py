"""``trimtab score --keep``: which responses are written, as what, and which rows are left out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests import tiny_runs

from trimtab.cli import main
from trimtab.data.quarantine import BadRow
from trimtab.rewards.keep import Keeping

ROW = {"prompt": "p", "responses": ["a", "b", "c", "b"], "scores": [0], "id": 7}
TEXTS = ["a", "b", "c", "b"]
SCORES = [0.5, 2.0, -1.0, 2.0]


def test_best_ones() -> None:
    assert Keeping("best").rows(ROW, TEXTS, SCORES) == [
        {"prompt": "p", "completion": "b", "score": 2.0, "id": 7}
    ]
    three = Keeping("best", top=3).rows(ROW, TEXTS, SCORES)
    assert [row["completion"] for row in three] == ["b", "a", "c"]  # "b" once
    good = Keeping("best", top=3, least=0.5).rows(ROW, TEXTS, SCORES)
    assert [row["completion"] for row in good] == ["b", "a"]
    with pytest.raises(BadRow, match="no response reaches min_score"):
        Keeping("best", least=2.5).rows(ROW, TEXTS, SCORES)


def test_cut_off_responses_are_no_candidates() -> None:
    row = ROW | {"ended": [True, False, True, False]}
    assert Keeping("best").rows(row, TEXTS, SCORES)[0]["completion"] == "a"
    kept = Keeping("best", cut=True).rows(row, TEXTS, SCORES)[0]
    assert (kept["completion"], kept["ended"]) == ("b", False)
    with pytest.raises(BadRow, match="all responses were cut off"):
        Keeping("best").rows(ROW | {"ended": [False] * 4}, TEXTS, SCORES)
    with pytest.raises(BadRow, match="not one value a response"):
        Keeping("best").rows(ROW | {"ended": [True]}, TEXTS, SCORES)


def test_pairs() -> None:
    assert Keeping("pair").rows(ROW, TEXTS, SCORES) == [
        {
            "prompt": "p",
            "chosen": "b",
            "rejected": "c",
            "chosen_score": 2.0,
            "rejected_score": -1.0,
            "margin": 3.0,
            "id": 7,
        }
    ]
    with pytest.raises(BadRow, match="no response is ranked above another"):
        Keeping("pair").rows(ROW, TEXTS, [1.0] * 4)
    with pytest.raises(BadRow, match="no response reaches min_score"):
        Keeping("pair", least=3.0).rows(ROW, TEXTS, SCORES)


REWARD = "def long(completions, **_):\n    return [float(len(text)) for text in completions]\n"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rewards.py").write_text(REWARD)
    rows: list[dict[str, Any]] = [
        {"prompt": "one", "responses": ["a", "", "abc"], "ended": [True, True, True]},
        {"prompt": "two", "responses": ["ab", "cd"]},
        {"prompt": "three", "responses": ["abcdef", "a"], "ended": [False, True]},
    ]
    tiny_runs.write_rows(tmp_path / "s.jsonl", rows)
    return tmp_path


def score(*words: str) -> int:
    return main(["score", "s.jsonl", "--reward-funcs", "rewards.py:long", *words])


def read(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(name).read_text().splitlines()]


def test_files(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Rows in = rows kept + rows left out; blank responses and cut ones are no candidates."""
    assert score("--keep", "best", "--output", "best.jsonl") == 0
    found = {row["prompt"]: row["completion"] for row in read("best.jsonl")}
    assert found == {"one": "abc", "two": "ab", "three": "a"}
    said = capsys.readouterr().out
    assert "kept        3 completions of 3 rows; score 2 on average" in said
    assert "trimtab sft --model-name-or-path MODEL --dataset-name best.jsonl" in said
    assert score("--keep", "pair", "--output", "pairs.jsonl") == 0
    (pair,) = read("pairs.jsonl")
    assert (pair["chosen"], pair["rejected"], pair["margin"]) == ("abc", "a", 2.0)
    assert "left out    2 rows: no response is ranked above another 2" in capsys.readouterr().out
    assert score("--keep", "best", "--min-score", "9", "--output", "none.jsonl") == 2
    assert "no row is left (no response reaches min_score 3" in capsys.readouterr().err
    assert len(read("s.jsonl")[0]["responses"]) == 3  # the file itself stays


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--keep-top 2", "keep_top=2: has no effect without keep=best"),
        ("--keep pair --keep-top 2", "keep_top=2: has no effect without keep=best"),
        ("--min-score 1", "min_score=1: has no effect without keep=best"),
        ("--keep best --drop-tied all", "drop_tied=all: with keep=best"),
        ("--keep best --keep-top 0", "keep_top=0: must be at least 1"),
    ],
)
def test_refusals(here: Path, words: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert score(*words.split(), "--output", "x.jsonl") == 2
    assert said in capsys.readouterr().err


def test_only_rows_of_responses_can_be_chosen_from(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_runs.write_rows(here / "s.jsonl", [{"prompt": "p", "completion": "c"}])
    assert score("--keep", "best", "--output", "x.jsonl") == 2
    assert "s.jsonl has no rows of responses to choose from" in capsys.readouterr().err
