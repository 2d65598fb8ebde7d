"""RewardBench 2: credits, the score of Ties against one by hand, and the whole way through."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests import tiny_runs
from tests.evaluation.test_answers import every_number
from tests.evaluation.test_evaluate import evaluated, save_reward_model

from trimtab.data.trees import Origin
from trimtab.errors import DataError
from trimtab.evaluation.comparisons import ScoredRow
from trimtab.evaluation.rewardbench2 import SUBSETS, best_of_scores, credit, is_best_of
from trimtab.models.tokenizers import CHAT_TEMPLATE

Row = dict[str, Any]


def row_of(right: list[float], wrong: list[float], subset: str = "Math", name: str = "0") -> Any:
    ranks = (1.0,) * len(right) + (2.0,) * len(wrong)
    scores = (*right, *wrong)
    texts = tuple(map(str, range(len(scores))))
    pairs = tuple((i, j) for i in range(len(right)) for j in range(len(right), len(scores)))
    extras = {"subset": subset, "id": name, "num_correct": len(right)}
    return ScoredRow(
        origin=Origin("bench.jsonl", int(name.rpartition(":")[2]) + 1),
        prompt=name, responses=texts, scores=scores, lengths=(1,) * len(scores), ranks=ranks,
        pairs=pairs, extras=extras,
    )  # fmt: skip


def test_credit() -> None:
    assert credit(row_of([2], [1, 0, 0])) == 1
    assert credit(row_of([2], [2, 0, 0])) == 0.5
    assert credit(row_of([2], [2, 2, 2])) == 0.25
    assert credit(row_of([2], [3, 0, 0])) == 0
    found = best_of_scores([row_of([2], [w, 0], name=str(w)) for w in (1, 2, 3, 0)])
    assert found["subsets"][0]["value"] == pytest.approx(2.5 / 4)
    assert found["score"] is None and found["version"] == 2


def ties(couples: list[tuple[list[float], list[float], list[float], list[float]]]) -> list[Any]:
    return [
        row
        for i, (right, wrong, ref, against) in enumerate(couples)
        for row in (
            row_of(right, wrong, "Ties", f"tied:{i}"),
            row_of(ref, against, "Ties", f"ref:{i}"),
        )
    ]


def by_hand(couples: list[Any]) -> float:
    """The score from the benchmark's definition, couple by couple."""
    tied, ref, wider, hard, part = [], [], [], [], []
    for right, wrong, one, against in couples:
        spread, lead = max(right) - min(right), min(right) - max(wrong)
        other = one[0] - max(against)
        tied.append(lead > 0)
        ref.append(other > 0)
        wider.append(lead > spread)
        hard.append(min(lead, other) > spread)
        with np.errstate(divide="ignore", invalid="ignore"):
            value = np.tanh(np.float64(min(lead, other)) / np.float64(spread) - 1)
        part.append(0.0 if math.isnan(value) else float(value))
    weights = (0.3, 0.3, 0.2, 0.2, 0.01)
    columns = (tied, ref, wider, hard, part)
    return sum(w * sum(c) / len(c) for w, c in zip(weights, columns, strict=True))


def test_ties() -> None:
    perfect = ([5.0, 5.1], [0.0, 1.0], [6.0], [0.0])
    (found,) = best_of_scores(ties([perfect] * 3))["subsets"]
    assert found["value"] == pytest.approx(1 + 0.01 * math.tanh(4 / 0.1 - 1))
    assert best_of_scores(ties([([1.0, 1.0], [0.0], [2.0], [0.0])]))["subsets"][0]["value"] == (
        pytest.approx(1.01)  # no spread at all: upstream's ratio is infinite
    )
    draw = random.Random(0)
    couples = [
        tuple(
            [draw.gauss(mean, 1) for _ in range(n)] for mean, n in ((1, 3), (0, 4), (1, 1), (0, 3))
        )
        for _ in range(20)
    ]
    couples += [([1.0, 1.0], [1.0], [3.0], [0.0]), ([1.0, 1.0], [4.0], [3.0], [0.0])]
    rows = ties(couples)  # type: ignore[arg-type]
    draw.shuffle(rows)
    (found,) = best_of_scores(rows)["subsets"]
    assert found["value"] == pytest.approx(by_hand(couples), abs=1e-12)
    assert found["low"] < found["value"] < found["high"] and found["n"] == 44
    # A row without its other half counts for its own share; without any couple there is no score.
    half = [row for row in rows if row.extras["id"] != "ref:3"]
    assert best_of_scores(half)["subsets"][0]["value"] != pytest.approx(by_hand(couples))
    assert best_of_scores([row for row in rows if "tied" in row.extras["id"]])["subsets"] == []
    with pytest.raises(DataError, match=r"bench.jsonl:6: id: '5' .* wanted tied:N or ref:N"):
        best_of_scores([row_of([1], [0], "Ties", "5")])


def test_an_interval_where_all_ties_are_right() -> None:
    """The bootstrap sees almost no spread: the ends are Wilson's, of as many right of as many."""
    perfect = [([5.0, 5.1 + i / 100], [0.0, 1.0], [6.0], [0.0]) for i in range(20)]
    (found,) = best_of_scores(ties(perfect))["subsets"]
    z = 1.959964
    assert found["low"] == pytest.approx(found["value"] - z**2 / (20 + z**2), abs=1e-3)
    assert found["high"] == pytest.approx(found["value"], abs=2e-3)
    none = [([0.0, 1.0], [2.0 + i / 100, 0.0], [0.0], [1.0]) for i in range(20)]
    (found,) = best_of_scores(ties(none))["subsets"]
    assert found["high"] == pytest.approx(found["value"] + z**2 / (20 + z**2), abs=1e-3)


def test_which_rows_it_is_for() -> None:
    row = row_of([1], [0, 0])
    assert is_best_of([row, row])
    plain = ScoredRow(**{**vars(row), "extras": {"subset": "Math"}})
    assert not is_best_of([plain, plain, row])


def test_the_whole_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    base = tiny_runs.save_tiny_model(Path("lm"), chat_template=CHAT_TEMPLATE)
    save_reward_model(Path("reward"), base, seed=0)
    rng = random.Random(0)
    rows: list[Row] = []
    for i in range(30):
        subset = SUBSETS[i % 6]
        right = 2 if subset == "Ties" and i % 12 == 5 else 1
        name = str(i) if subset != "Ties" else f"{'tied' if right == 2 else 'ref'}:{i // 12}"
        made = [tiny_runs.sentence(rng, 3 + k) for k in range(right + 3)]
        rows.append({"id": name, "prompt": f"Which is {i}?", "chosen": made[:right],
                     "rejected": made[right:], "num_correct": right, "subset": subset})  # fmt: skip
    tiny_runs.write_rows(Path("bench.jsonl"), rows)
    card = evaluated("reward", "--dataset-name", "bench.jsonl", "--write-outputs",
                     "rewardbench:scores.jsonl")  # fmt: skip
    written = [json.loads(line) for line in Path("scores.jsonl").read_text().splitlines()]
    assert [{k: row[k] for k in rows[0]} for row in written] == rows
    found = card["scorings"]["reward"]["rewardbench"]
    assert [one["name"] for one in found["subsets"]] == list(SUBSETS)
    for one in found["subsets"][:5]:
        own = [row["scores"] for row in written if row["subset"] == one["name"]]
        assert one["value"] == np.mean([scores[0] == max(scores) for scores in own])
        results = [row["results"] for row in written if row["subset"] == one["name"]]
        assert one["value"] == np.mean(results)
    assert all(row["results"] is None for row in written if row["subset"] == "Ties")
    mean = np.mean([one["value"] for one in found["subsets"]])
    assert found["score"]["value"] == pytest.approx(mean)
    assert found["score"]["low"] < mean < found["score"]["high"]
    assert every_number(card) == []
    assert "RewardBench 2 score: mean of the subsets" in Path("out/report_card.md").read_text()
