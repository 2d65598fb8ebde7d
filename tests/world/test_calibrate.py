from __future__ import annotations

import sys
from pathlib import Path
from statistics import mean

import pytest

from trimtab.models.cut import parameter_count
from trimtab.models.load import load_model
from trimtab.rewards.reward_model import RewardModel
from trimtab.world import calibrate, demo_stories
from trimtab.world.calibrate import edited, main, own_pairs, ranked_by_gold, rewards, tally, train
from trimtab.world.corpus import RankedRow, held_out_requests, ideal_story, preference_rows
from trimtab.world.draws import Draw
from trimtab.world.gold import gold_reward
from trimtab.world.grammar import parse_request
from trimtab.world.patterns import split_sentences


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


def test_pairs_are_counted_by_request_and_ties_of_scores_are_half_right() -> None:
    rows: list[RankedRow] = [
        {"prompt": "a", "responses": ["x", "y", "z"], "ranks": [2, 1, 2]},
        {"prompt": "b", "responses": ["x", "y"], "ranks": [1, 2]},
        {"prompt": "a", "responses": ["x", "y"], "ranks": [1, 2]},
    ]
    found = tally(rows, [[0.0, 0.5, 1.0], [2.0, 2.0], [-1.0, -2.0]])
    # Of a's first row y > x is right and y > z is wrong; x and z are not compared. Rows that are
    # counted apart would give two entries of a: the interval would be over rows, not requests.
    assert found == ([2.0, 0.5], [3, 1])


def test_the_order_of_the_gold_reward_keeps_its_ties() -> None:
    request = held_out_requests(1)[0]
    story = ideal_story(parse_request(request))
    row: RankedRow = {"prompt": request, "responses": ["x", story, "y"], "ranks": [1, 2, 3]}
    assert ranked_by_gold([row])[0]["ranks"] == [2, 1, 2]
    assert row["ranks"] == [1, 2, 3]


def test_neighbours_are_compared_unless_they_are_equal() -> None:
    request = held_out_requests(1)[0]
    story = ideal_story(parse_request(request))
    rows = own_pairs([request], [["x", story, "x", "x", story, "x", "left over"]])
    assert [(row["responses"], row["ranks"]) for row in rows] == [
        (["x", story], [2, 1]),
        ([story, "x"], [1, 2]),
    ]


@pytest.mark.slow
def test_a_reward_is_of_a_story_alone_and_training_raises_what_was_chosen(
    small_model: Path, tmp_path: Path
) -> None:
    rows = preference_rows(64, 3, noise=0)
    keys = {"seed": 3, "num_train_epochs": 3, "per_device_train_batch_size": 16}
    keys |= {"learning_rate": 3e-3, "save_steps": None, "self_check": False}
    results = train(small_model, rows, tmp_path, **keys, backbone={"share": 1.0})
    assert (results["steps"], results["rows"]) == (12, 192)
    model = RewardModel.load(tmp_path / "model")
    requests = [row["prompt"] for row in rows]
    pairs = rewards(model, requests, [(row["chosen"], row["rejected"]) for row in rows])
    assert mean(first > second for first, second in pairs) > 0.75
    assert mean(first - second for first, second in pairs) > 0.5
    alone = rewards(model, requests[:1] * 2, [[rows[0]["chosen"]], [rows[0]["rejected"]]])
    assert [one for (one,) in alone] == pytest.approx(pairs[0], abs=1e-5), "siblings are not seen"


def test_the_command_prints_its_tables_and_refuses_in_one_line(
    small_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    demo, out = tmp_path / "demo", tmp_path / "out"
    demo.mkdir()
    for name in ("pretrain", "sft"):
        (demo / name).symlink_to(small_model)
    for name, value in (("TELLER_PAIRS", 4), ("EDITS", 1), ("EDITED", 2)):
        monkeypatch.setattr(calibrate, name, value)
    monkeypatch.setattr(demo_stories, "LONGEST", 12)
    command = f"calibrate --demo {demo} --output-dir {out} --pairs 32 --epochs 1 --requests 3"
    monkeypatch.setattr(sys, "argv", [*command.split(), "--samples", "4"])
    assert main() == 0
    said = capsys.readouterr().out
    weights = RewardModel.load(out / "model").parameters
    assert weights <= parameter_count(load_model(small_model)) / 2
    assert f"a reward model of {weights:,} weights" in said
    assert [line.split(" | ")[0] for line in said.splitlines() if line.startswith("| ")] == [
        "| held-out pairs of",
        "| the teller",
        "| the sft model",
        "| n",
        *("| 1", "| 2", "| 4"),
        "| edits",
        *("| 0", "| 1"),
    ]
    assert main() == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert f"output_dir={out / 'model'}: holds a finished run" in error
