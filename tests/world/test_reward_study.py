"""The study's rows, runs and tables, at a size of seconds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from trimtab.errors import UsageError
from trimtab.world import demo_stories, reward_study
from trimtab.world.corpus import kwise_rows
from trimtab.world.gold import gold_reward
from trimtab.world.reward_study import (
    ARMS,
    Settings,
    difference,
    held_out,
    rows_of,
    run,
    study,
    summarise,
)

TINY = Settings(rankings=8, epochs=1, seeds=1, requests=3)


def test_every_kind_of_rows_makes_the_comparisons_it_should() -> None:
    rankings = kwise_rows(5, 2, k=4)
    assert rows_of("rankings", 5, 2) == rankings
    pairs: list[Any] = rows_of("pairs", 5, 2)
    assert len(pairs) == 30
    for row in pairs:
        (ranking,) = [one for one in rankings if one["prompt"] == row["prompt"]]
        place = ranking["responses"].index
        ranks = ranking["ranks"]
        assert ranks[place(row["chosen"])] < ranks[place(row["rejected"])]
    assert len({(row["prompt"], row["chosen"], row["rejected"]) for row in pairs}) == 30
    assert rows_of("one pair", 5, 2) == pairs[::6]
    others: list[Any] = rows_of("other requests", 5, 2)
    assert len({row["prompt"] for row in others}) == len(others) == 30


@pytest.fixture
def demo(small_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(demo_stories, "LONGEST", 12)
    (tmp_path / "demo").mkdir()
    for name in ("pretrain", "sft"):
        (tmp_path / "demo" / name).symlink_to(small_model)
    return tmp_path / "demo"


@pytest.mark.slow
def test_rankings_and_joined_pairs_are_one_objective_and_pairs_read_more(
    demo: Path, tmp_path: Path
) -> None:
    judged_by = held_out(demo, tmp_path, 3)
    assert list(judged_by) == ["the teller", "the sft model"]
    found = {
        name: run(name, 0, TINY, demo, tmp_path / "runs", judged_by)
        for name in ("half", "joined", "pairs")
    }
    for record in found.values():
        assert (record["requests"], record["comparisons"], record["steps"]) == (8, 48, 2)
        assert record["held_out"]["the teller"]["pairs"] == [6, 6, 6]
        assert record["cpu_seconds"] > 0
    losses = {name: last_loss(tmp_path / "runs" / name / "seed-0") for name in found}
    assert losses["joined"] == pytest.approx(losses["half"], rel=1e-5)
    # Six pairs read the request six times and each story three times.
    assert found["joined"]["tokens"] == found["half"]["tokens"]
    assert found["pairs"]["tokens"] > 3 * found["half"]["tokens"]
    # The same call again reads the record.
    assert run("half", 0, TINY, demo, tmp_path / "runs", judged_by) == found["half"]


def last_loss(folder: Path) -> float:
    lines = (folder / "model" / "metrics.jsonl").read_text().splitlines()
    return json.loads(lines[-1])["loss"]


def record(right: list[float], seconds: float) -> dict[str, Any]:
    told = {"right": right, "pairs": [6, 2, 1]}
    counts = {"weights": 10, "requests": 3, "comparisons": 9, "steps": 2, "tokens": 100}
    return {**counts, "cpu_seconds": seconds, "held_out": {"t": told, "s": told}}


def test_seeds_are_pooled_by_request_and_differences_paired() -> None:
    records = [record([3, 2, 0], 1.0), record([4, 1, 1], 3.0)]
    found = summarise(records)
    assert found["cpu_seconds"] == {"mean": 2.0, "low": 1.0, "high": 3.0}
    accuracy = found["accuracy"]["t"]
    assert accuracy["mean"] == pytest.approx(11 / 18)
    assert accuracy["by_seed"] == [pytest.approx(5 / 9), pytest.approx(6 / 9)]
    others = [record([2, 2, 0], 1.0), record([3, 1, 1], 1.0)]
    apart = difference(records, others, "t")
    assert apart["mean"] == pytest.approx(2 / 18)
    # Only the first request differs; an interval of two unpaired shares would reach below 0.
    assert 0 <= apart["low"] <= apart["mean"] <= apart["high"] <= 1 / 6
    assert difference(records, records, "s") == {"mean": 0.0, "low": 0.0, "high": 0.0}


def test_the_study_writes_its_tables_and_refuses_another_size(
    demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[str, int]] = []

    def ready(name: str, seed: int, *_: Any) -> dict[str, Any]:
        made.append((name, seed))
        told = {"right": [3.0, 4.0, 5.0], "pairs": [6, 6, 6]}
        held_out = {"the teller": told, "the sft model": told}
        return {**record([0, 0, 0], 1.0), "held_out": held_out}

    monkeypatch.setattr(reward_study, "run", ready)
    folder = tmp_path / "study"
    study(demo, folder, Settings(8, 1, 2, 3))
    assert made == [(name, seed) for seed in (0, 1) for name in ARMS]
    found = json.loads((folder / "study.json").read_text())
    assert list(found["runs"]) == list(ARMS)
    assert found["runs"]["quarter"]["accuracy"]["the teller"]["mean"] == pytest.approx(2 / 3)
    assert len(found["against"]) == 6
    text = (folder / "study.md").read_text().splitlines()
    assert [line.split(" | ")[0] for line in text if line.startswith("| ") and "---" not in line][
        1:4
    ] == ["| full", "| half", "| quarter"]
    rows = json.loads((folder / "held-out.json").read_text())
    best = [
        max(gold_reward(r["prompt"], s).total for s in r["responses"]) for r in rows["the teller"]
    ]
    assert len(best) == 3 and max(best) > 0.5
    with pytest.raises(UsageError, match="holds a study with"):
        study(demo, folder, TINY)
    with pytest.raises(UsageError, match="has no model pretrain"):
        study(tmp_path / "none", tmp_path / "other", TINY)
