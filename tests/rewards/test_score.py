"""``trimtab score``: what is added to which rows, by what, and the way on from there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests import tiny_runs
from tests.algorithms.stage_world import World
from tests.rewards.scored import (  # noqa: F401
    read,
    run,
    sampled,
    scored_files,
    scored_world,
    scoring_model,
    write,
)

from trimtab.cli import main
from trimtab.config.data_keys import DatasetSpec
from trimtab.data.rows import PreferenceExample, RankedExample
from trimtab.data.sources import load_examples
from trimtab.rewards import score_file as module
from trimtab.rewards.reward_model import RewardModel
from trimtab.rewards.score_file import ScoreOptions
from trimtab.rewards.score_summary import Row, length_correlation


@pytest.fixture(scope="module")
def ensemble(world: World) -> str:
    keys = world.keys("rankings", sample_prompts=..., max_steps=1, ensemble=2)
    import trimtab

    return str(trimtab.reward(**keys).output_dir)


# ---------------------------------------------------------------------- what is added


def test_responses_get_scores_and_ranks(world: World, reward_model: str, tmp_path: Path) -> None:
    rows = sampled(7)
    rows[2]["responses"][3] = rows[2]["responses"][0]  # the same text: one rank
    file = write(tmp_path / "rows.jsonl", rows)
    found = run(file, tmp_path / "out.jsonl", reward_model=reward_model)
    model = RewardModel.load(reward_model)
    for old, new in zip(rows, found, strict=True):
        assert list(new) == [*old, "scores", "ranks"]  # all else as it was, in its order
        assert {name: new[name] for name in old} == old
        ordered = RankedExample(
            origin=load_examples([DatasetSpec(path=file)]).examples[0][0].origin,
            prompt=old["prompt"],
            responses=old["responses"],
        )
        (tree,) = model.trees([ordered])[0]  # type: ignore[misc] - no Drop
        alone = model.score_trees([tree])[0]
        assert new["scores"] == pytest.approx(alone, abs=2e-6)
        order = sorted(new["scores"], reverse=True)
        assert new["ranks"] == [1 + order.index(score) for score in new["scores"]]
        # The wrong variant: ranks by ascending score.
        assert new["scores"][new["ranks"].index(1)] == max(new["scores"])
    assert found[2]["scores"][0] == found[2]["scores"][3]
    assert found[2]["ranks"][0] == found[2]["ranks"][3]
    assert not list(tmp_path.glob(".out*")) and not list(tmp_path.glob("_out*"))


def test_pairs_get_a_margin_and_completions_a_score(
    world: World, reward_model: str, tmp_path: Path
) -> None:
    pairs, answers = tiny_runs.pairs(5), tiny_runs.labelled(5)
    as_messages = {
        "chosen": [{"role": "assistant", "content": "a cat."}],
        "prompt": [{"role": "user", "content": "hi"}],
        "rejected": [{"role": "assistant", "content": "no"}],
    }
    file = write(tmp_path / "pairs.jsonl", pairs)
    found = run(file, tmp_path / "pairs_out.jsonl", reward_model=reward_model)
    examples = load_examples([DatasetSpec(path=file)]).examples[0]
    model = RewardModel.load(reward_model)
    for old, new, example in zip(pairs, found, examples, strict=True):
        assert isinstance(example, PreferenceExample)
        (tree,) = model.trees([example])[0]  # type: ignore[misc] - no Drop
        alone = model.score_trees([tree])[0]
        assert list(new) == [*old, "chosen_score", "rejected_score", "margin"]
        assert [new["chosen_score"], new["rejected_score"]] == pytest.approx(alone, abs=2e-6)
        assert new["margin"] == pytest.approx(new["chosen_score"] - new["rejected_score"])
    file = write(tmp_path / "answers.jsonl", answers)
    found = run(file, tmp_path / "answers_out.jsonl", reward_funcs=["length(target=4)"])
    expected = [-abs(len(row["completion"].split()) - 4) / 4 for row in answers]
    assert [row["score"] for row in found] == [max(-1.0, value) for value in expected]
    assert [row["label"] for row in found] == [row["label"] for row in answers]
    file = write(tmp_path / "messages.jsonl", [as_messages])
    (new,) = run(file, tmp_path / "m.jsonl", reward_funcs=["length(cap=1)"])
    assert {name: new[name] for name in as_messages} == as_messages  # messages stay messages
    assert (new["chosen_score"], new["rejected_score"], new["margin"]) == (-1.0, 0.0, -1.0)


def test_an_ensemble_says_how_its_members_differ(ensemble: str, tmp_path: Path) -> None:
    rows = sampled(4, most=3)
    file = write(tmp_path / "rows.jsonl", rows)
    found = run(file, tmp_path / "out.jsonl", reward_model=ensemble)
    members = sorted(path for path in Path(ensemble).iterdir() if (path / "config.json").is_file())
    alone = [run(file, tmp_path / f"{path.name}.jsonl", reward_model=str(path)) for path in members]
    assert len(members) == 2
    for row, *apart in zip(found, *alone, strict=True):
        each = np.array([one["scores"] for one in apart])
        assert row["scores"] == pytest.approx(each.mean(0), abs=3e-6)
        assert row["score_std"] == pytest.approx(each.std(0, ddof=1), abs=3e-6)
        assert max(row["score_std"]) > 1e-4
    file = write(tmp_path / "pairs.jsonl", tiny_runs.pairs(2))
    (pair, _) = run(file, tmp_path / "p.jsonl", reward_model=ensemble)
    assert {"chosen_score_std", "rejected_score_std"} <= pair.keys()


def test_functions_and_a_model_with_weights(reward_model: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "def says(completions, solution):\n"
        "    both = zip(completions, solution)\n"
        "    return [None if s == 'dog' else float(s in c) for c, s in both]\n"
    )
    rows = sampled(6)
    file = write(tmp_path / "rows.jsonl", rows)
    keys: dict[str, Any] = {"reward_funcs": [f"{tmp_path}/mine.py:says", "length(cap=3)"]}
    model = run(file, tmp_path / "model.jsonl", reward_model=reward_model)
    both = run(
        file, tmp_path / "o.jsonl", reward_model=reward_model, reward_weights=[2, 10, -100], **keys
    )
    for old, alone, new in zip(rows, model, both, strict=True):
        for response, score, total in zip(
            old["responses"], alone["scores"], new["scores"], strict=True
        ):
            said = 0.0 if old["solution"] == "dog" else 10.0 * ("cat" in response)
            long = -100.0 if len(response.split()) <= 3 else 100.0
            assert total == pytest.approx(2 * score + said + (long if long > 0 else 0.0), abs=1e-5)
    isolated = run(
        file, tmp_path / "i.jsonl", reward_model=reward_model, reward_weights=[2, 10, -100],
        isolate=True, **keys,
    )  # fmt: skip
    assert isolated == both


def test_tables_renamed_columns_and_foreign_rows(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(
        'question,answers,n\nhi,"[""a b"", ""a""]",3\nho,"[""a"", ""b c""]",\n'
    )
    found = run(
        str(tmp_path / "t.csv"), tmp_path / "t.jsonl",
        columns={"prompt": "question", "responses": "answers"}, reward_funcs=["length(target=2)"],
    )  # fmt: skip
    assert found[0] == {
        "prompt": "hi", "responses": ["a b", "a"], "n": "3", "scores": [0.0, -0.5], "ranks": [1, 2],
    }  # fmt: skip
    assert load_examples([DatasetSpec(path=str(tmp_path / "t.jsonl"))]).report.used == 2
    chosen, rejected = "\n\nHuman: hi\n\nAssistant: a b", "\n\nHuman: hi\n\nAssistant: a"
    file = write(tmp_path / "hh.jsonl", [{"chosen": chosen, "rejected": rejected}])
    (row,) = run(file, tmp_path / "hh_out.jsonl", reward_funcs=["length(target=2)"])
    assert row == {
        "chosen": chosen, "rejected": rejected,
        "chosen_score": 0.0, "rejected_score": -0.5, "margin": 0.5,
    }  # fmt: skip


def test_a_single_response_and_ties(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {"prompt": "p", "responses": ["one"]},
        {"prompt": "p", "responses": ["same length", "of two"]},
        {"prompt": "p", "responses": ["one", "two words", "three"]},
    ]
    file = write(tmp_path / "rows.jsonl", rows)
    found = run(file, tmp_path / "out.jsonl", reward_funcs=["length(target=1)"])
    assert [row["ranks"] for row in found] == [[1], [1, 1], [1, 3, 1]]
    assert [row["scores"] for row in found] == [[0.0], [-1.0, -1.0], [0.0, -1.0, 0.0]]
    printed = capsys.readouterr().out
    assert "2 of 3 rows rank nothing" in printed and "ties 50.0% of 4 pairs" in printed
    assert "1 rows hold some ties" in printed
    kept = run(file, tmp_path / "k.jsonl", reward_funcs=["length(target=1)"], drop_tied="all")
    assert kept == found[2:]
    left = read(tmp_path / "_k.quarantine.jsonl")
    assert [(row["line"], row["reason"]) for row in left] == [
        (1, "no response is ranked above another"), (2, "no response is ranked above another"),
    ]  # fmt: skip
    assert "left out    2 rows: no response is ranked above another 2" in capsys.readouterr().out


# ---------------------------------------------------------------------- the way on, as files


@pytest.mark.parametrize("by", ["model", "function"])
def test_sample_score_reward_and_dpo(
    world: World, reward_model: str, tmp_path: Path, by: str
) -> None:
    """What score writes is what training reads, without a word about columns."""
    file = write(tmp_path / "sampled.jsonl", sampled(12, most=3))
    scored = tmp_path / "scored.jsonl"
    tokens = ["score", file, "--output", str(scored), "--drop-tied", "any"]
    keys = {
        "model": ["--reward-model", reward_model, "--max-length", "64", "--token-budget", "100"],
        "function": [
            *("--reward-funcs", "length(target=5)", "repetition(ngram_size=1)"),
            *("--reward-weights", "1", "-0.25"),
        ],
    }
    assert main([*tokens, *keys[by]]) == 0
    rows = read(scored)
    assert 7 <= len(rows) <= 12 and all(sorted(row["ranks"]) == [1, 2, 3] for row in rows)
    data = {"dataset_name": str(scored), "eval_dataset_name": ...}
    more: dict[str, Any] = {**data, "max_steps": 2}
    trained = world.run("reward", "rankings", sample_prompts=..., **more)
    assert trained.trained[-1]["loss"] > 0
    (examples,) = load_examples([DatasetSpec(path=str(scored))]).examples
    for row, example in zip(rows, examples, strict=True):
        assert isinstance(example, RankedExample)
        assert (example.ranks, example.scores) == (row["ranks"], row["scores"])
        assert example.extras == {"id": row["id"], "solution": row["solution"]}
    if by == "model":
        aligned = world.run("dpo", "rankings", loss="plackett_luce", **more)
        assert aligned.trained[0]["loss"] == pytest.approx(np.log(6), abs=1e-5)  # of 3! orders
        best = write(
            tmp_path / "pairs.jsonl",
            [
                {
                    "prompt": row["prompt"],
                    "chosen": row["responses"][row["ranks"].index(1)],
                    "rejected": row["responses"][row["ranks"].index(max(row["ranks"]))],
                }
                for row in rows
            ],
        )
        found = run(best, tmp_path / "scored_pairs.jsonl", reward_model=reward_model)
        assert all(pair["margin"] > 0 for pair in found)


def test_what_is_cut_is_counted(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = RewardModel.load("rm")
    spec = DatasetSpec(path="rows.jsonl")
    examples = load_examples([spec], ["prompt"]).examples[0]
    longest = max(len(tree.trunk.ids) for one in model.trees(examples) for tree in one)  # type: ignore[union-attr]
    run("rows.jsonl", here / "out.jsonl", reward_model="rm", max_length=longest + 1)
    assert f"reach {longest + 1} tokens with their prompt (max_length)" in capsys.readouterr().out


def test_length_correlation_is_within_rows() -> None:
    """A prompt that asks for more is no bias: two rows, each with longer = worse."""
    rows = [Row(["a", "aa"], [2.0, 1.0], None), Row(["a" * 50, "a" * 51], [9.0, 8.0], None)]
    assert length_correlation(rows) == pytest.approx(-1.0)
    lengths, scores = [1, 2, 50, 51], [2.0, 1.0, 9.0, 8.0]
    assert np.corrcoef(lengths, scores)[0, 1] > 0.9  # the wrong variant
    assert length_correlation([Row(["a"], [1.0], None), Row(["aa"], [2.0], None)]) == pytest.approx(
        1
    )
    assert length_correlation([Row(["a", "b"], [1.0, 2.0], None)]) is None


def test_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[ScoreOptions] = []

    def keep(options: ScoreOptions) -> int:
        seen.append(options)
        return 0

    monkeypatch.setattr(module, "score_file", keep)
    tokens = ["score", "in.jsonl", "--output", "o.jsonl", "--reward-funcs", "a", "b(c=1,d=2)"]
    tokens += ["--reward-weights", "1", "-0.5", "--columns", "prompt=q", "--on-bad", "drop"]
    assert main([*tokens, "--isolate", "--time-limit", "3", "--restart"]) == 0
    assert seen == [
        ScoreOptions(
            file="in.jsonl",
            output="o.jsonl",
            reward_funcs=("a", "b(c=1,d=2)"),
            reward_weights=(1.0, -0.5),
            columns={"prompt": "q"},
            on_bad="drop",
            isolate=True,
            time_limit=3.0,
            restart=True,
        )
    ]
