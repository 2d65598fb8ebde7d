"""``trimtab score``: what is added to which rows, by what, and what happens when it is killed."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests import tiny_runs
from tests.algorithms.stage_world import World

from trimtab.cli import main
from trimtab.config.data_keys import DatasetSpec
from trimtab.data.rows import PreferenceExample, RankedExample
from trimtab.data.sources import load_examples
from trimtab.errors import RunError, TrimtabError
from trimtab.rewards import score_file as module
from trimtab.rewards.reward_model import RewardModel
from trimtab.rewards.score_file import ScoreOptions, score_file
from trimtab.rewards.score_journal import CHUNK, journal_of
from trimtab.rewards.score_summary import Row, length_correlation
from trimtab.rewards.scorers import ModelScorer

Rows = list[dict[str, Any]]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("score"))


@pytest.fixture(scope="module")
def reward_model(world: World) -> str:
    """A reward model of two steps; its scores are apart by much more than rounding."""
    run = world.run("reward", "rankings", sample_prompts=..., max_steps=2, learning_rate=3e-2)
    return str(run.folder)


@pytest.fixture(scope="module")
def ensemble(world: World) -> str:
    keys = world.keys("rankings", sample_prompts=..., max_steps=1, ensemble=2)
    import trimtab

    return str(trimtab.reward(**keys).output_dir)


def sampled(count: int, seed: int = 9, most: int = 4) -> Rows:
    """What ``trimtab sample`` leaves: prompts with responses, no order among them."""
    rng = random.Random(seed)
    return [
        {
            "id": number,
            "prompt": tiny_runs.sentence(rng, 3) + "\n",
            "responses": [tiny_runs.sentence(rng, rng.randint(1, 6)) for _ in range(most)],
            "solution": rng.choice(["cat", "dog"]),
        }
        for number in range(count)
    ]


def write(path: Path, rows: Rows) -> str:
    return str(tiny_runs.write_rows(path, rows))


def read(path: str | Path) -> Rows:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def run(file: str, output: Path, **options: Any) -> Rows:
    score_file(ScoreOptions(file=file, output=str(output), **options), mode="quiet")
    return read(output)


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


# ---------------------------------------------------------------------- kills


class Killed(BaseException):
    """Stands for SIGKILL: nothing of ours handles it."""


@pytest.mark.parametrize("torn", [b"", b'[{"values": [0.'])
def test_a_killed_run_goes_on(
    reward_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, torn: bytes
) -> None:
    file = write(tmp_path / "rows.jsonl", sampled(2 * CHUNK + 9, most=2))
    output = tmp_path / "out.jsonl"
    whole = run(file, tmp_path / "whole.jsonl", reward_model=reward_model)
    asked: list[int] = []
    score = ModelScorer.score

    def counted(self: ModelScorer, rows: Any) -> Any:
        if len(asked) == 2:
            raise Killed
        asked.append(len(rows))
        return score(self, rows)

    with monkeypatch.context() as patch:
        patch.setattr(ModelScorer, "score", counted)
        with pytest.raises(Killed):
            run(file, output, reward_model=reward_model)
    assert asked == [CHUNK, CHUNK] and not output.exists()
    with journal_of(output).open("ab") as stream:
        stream.write(torn)
    asked.clear()
    with monkeypatch.context() as patch:
        patch.setattr(ModelScorer, "score", counted)
        assert run(file, output, reward_model=reward_model) == whole
    assert asked == [9]  # only what was missing
    assert output.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert not journal_of(output).exists()


def test_scores_of_something_else_are_not_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other rows, other code of a function, or --restart: from the first row on."""
    file = write(tmp_path / "rows.jsonl", sampled(CHUNK + 5, most=2))
    mine, output = tmp_path / "mine.py", tmp_path / "out.jsonl"

    def code(value: float, fails: str) -> None:
        mine.write_text(
            f"def f(completions, id):\n    if {fails}: raise ValueError\n"
            f"    return [{value}] * len(completions)\n"
        )

    keys: dict[str, Any] = {"reward_funcs": [f"{mine}:f"]}
    code(1.0, fails=f"{CHUNK} in id")
    with pytest.raises(RunError, match=r"mine.py:2: ValueError"):
        run(file, output, **keys)
    assert journal_of(output).exists()
    code(2.0, fails="False")
    assert {row["scores"][0] for row in run(file, output, **keys)} == {2.0}
    code(3.0, fails="False")
    with pytest.raises(TrimtabError, match="exists already; name another file, or --restart"):
        run(file, output, **keys)
    assert {row["scores"][0] for row in run(file, output, restart=True, **keys)} == {3.0}


def test_a_failed_write_leaves_no_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path / "rows.jsonl", sampled(3))
    output = tmp_path / "out.jsonl"

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(module.files, "replace", full)
        with pytest.raises(RunError, match=r"out.jsonl: cannot be written: No space left"):
            run(file, output, reward_funcs=["repetition"])
    assert not output.exists() and not list(tmp_path.glob(".tmp*"))
    assert len(run(file, output, reward_funcs=["repetition"])) == 3


# ---------------------------------------------------------------------- what is wrong


@pytest.fixture
def here(world: World, reward_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "rm").symlink_to(reward_model)
    (tmp_path / "lm").symlink_to(world.root / "model")
    write(tmp_path / "rows.jsonl", sampled(4))
    write(tmp_path / "old.jsonl", [{**row, "scores": [1, 2, 3, 4]} for row in sampled(2)])
    write(tmp_path / "texts.jsonl", tiny_runs.texts(2))
    empty = sampled(4)
    empty[2]["responses"][1] = ""
    write(tmp_path / "empty.jsonl", empty)
    write(tmp_path / "flags.jsonl", [{"prompt": "p", "responses": ["a", "b"], "id": 0}])
    write(tmp_path / "none.jsonl", [{**sampled(1)[0], "responses": []}])
    write(tmp_path / "flat.jsonl", [{**sampled(1)[0], "responses": "x"}])
    (tmp_path / "broken.jsonl").write_text('{"prompt": "p", "responses": ["a"]}\n{"prompt"\n')
    (tmp_path / "mine.py").write_text(
        "def nan(completions):\n    return [float('nan')] * len(completions)\n"
        "def late(completions):\n    while True: pass\n"
        "def some(completions, id):\n    return [None if i < 3 else 1.0 for i in id]\n"
        "def never(completions):\n    return [None] * len(completions)\n"
    )
    return tmp_path


BY = ["--reward-funcs", "repetition"]


@pytest.mark.parametrize(
    ("tokens", "code", "expected"),
    [
        (["rows.jsonl"], 2, "reward_model: missing; give --reward-model FOLDER"),
        (["rows.jsonl", "--reward-funcs", "repetiton"], 2, "reward_funcs='repetiton': no built-in"),
        (["rows.jsonl", "--reward-model", "nothing/x/y"], 2, "reward_model='nothing/x/y': no such"),
        (["rows.jsonl", "--reward-model", "lm"], 2, "reward_model='lm': "),
        (["rows.jsonl", *BY, "--max-length", "9"], 2, "max_length: only a reward model reads tok"),
        (["rows.jsonl", "--reward-model", "rm", "--isolate"], 2, "isolate: is about reward func"),
        (["rows.jsonl", *BY, "--reward-weights", "1", "2"], 2, "reward_weights: 2 for 1 rewards"),
        (["rows.jsonl", *BY, "--time-limit", "0"], 2, "time_limit=0.0: must be a number of sec"),
        (["rows.jsonl", *BY, "--output", "o.csv"], 2, "output=o.csv: rows are written as .jsonl"),
        (["rows.jsonl", *BY, "--output", "rows.jsonl"], 2, "output=rows.jsonl: that is the file "),
        (["rows.jsonl", *BY, "--output", "texts.jsonl"], 2, "output=texts.jsonl: exists already"),
        (["rows.jsonl", *BY, "--output", "mine.py/o.jsonl"], 2, "output=mine.py/o.jsonl: no fold"),
        (["row.jsonl", *BY], 2, "row.jsonl: no such file or folder; did you mean rows.jsonl"),
        (["texts.jsonl", *BY], 2, "texts.jsonl:1: columns text: nothing to score; wanted prompt"),
        (["old.jsonl", *BY], 2, "old.jsonl:1: scores: the row has it already; --overwrite replac"),
        (["empty.jsonl", *BY], 2, "empty.jsonl:3: responses[1]: empty; 1 of 4 rows is bad; the l"),
        (["none.jsonl", *BY], 2, "none.jsonl:1: responses: empty; 1 of 1 rows is bad"),
        (["flat.jsonl", *BY], 2, "flat.jsonl:1: responses: not a list: found the text 'x'"),
        (["broken.jsonl", *BY], 2, "broken.jsonl:2: not valid JSON"),
        (["flags.jsonl", "--reward-funcs", "math_answer"], 2,
         "reward_funcs='math_answer': it needs column 'answer' or 'solution'; the rows' other co"),
        (["rows.jsonl", "--reward-model", "rm", "--max-length", "2"], 2,
         "rows.jsonl: no row has a score (the prompt leaves no room for a response 4); see _out"),
        (["rows.jsonl", "--reward-funcs", "mine.py:nan"], 1,
         "reward function mine.py:nan: rows.jsonl:1 ('"),
        (["rows.jsonl", "--reward-funcs", "mine.py:late", "--time-limit", "0.2"], 1,
         "reward function mine.py:late: 16 samples from rows.jsonl:1 ('"),
        (["rows.jsonl", "--reward-funcs", "mine.py:never"], 2,
         "rows.jsonl: no row has a score (never gave no reward 4)"),
    ],
)  # fmt: skip
def test_one_line(
    here: Path, tokens: list[str], code: int, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if "--output" not in tokens:
        tokens = [*tokens, "--output", "out.jsonl"]
    assert main(["score", *tokens]) == code
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"trimtab: {expected}"), last
    assert not (here / "out.jsonl").exists()


def test_bad_rows_within_the_limit_and_rows_without_a_score(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = run("empty.jsonl", here / "out.jsonl", reward_funcs=["repetition"], max_bad_rows=1)
    assert [row["id"] for row in found] == [0, 1, 3]
    (bad,) = read(here / "_out.quarantine.jsonl")
    assert (bad["line"], bad["field"], bad["row"]["id"]) == (3, "responses[1]", 2)
    printed = capsys.readouterr().out
    assert "bad rows    1: responses: empty 1; see " in printed and "_out.quarantine" in printed
    found = run("rows.jsonl", here / "some.jsonl", reward_funcs=["mine.py:some"])
    assert [(row["id"], row["scores"]) for row in found] == [(3, [1.0] * 4)]
    assert "left out    3 rows: some gave no reward 3; see " in capsys.readouterr().out
    found = run(
        "rows.jsonl", here / "d.jsonl", on_bad="drop", reward_funcs=["mine.py:nan", *BY[1:]]
    )
    assert (
        [row["scores"] for row in found]
        == [  # what one cannot judge is left to the others
            row["scores"] for row in run("rows.jsonl", here / "e.jsonl", reward_funcs=BY[1:])
        ]
    )


def test_overwriting_old_scores(here: Path) -> None:
    rows = run("old.jsonl", here / "out.jsonl", reward_funcs=["length(cap=1)"], overwrite=True)
    assert all(set(row["scores"]) <= {0.0, -1.0} and "ranks" in row for row in rows)
    assert read("old.jsonl")[0]["scores"] == [1, 2, 3, 4]


def test_a_score_that_is_not_finite(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    member_scores = RewardModel.member_scores

    def broken(self: RewardModel, trees: Any) -> Any:
        found = member_scores(self, trees)
        found[0][1][2] = float("nan")
        return found

    monkeypatch.setattr(RewardModel, "member_scores", broken)
    with pytest.raises(RunError, match=r"rows.jsonl:2: the score of reward model rm is not finite"):
        run("rows.jsonl", here / "out.jsonl", reward_model="rm")
    found = run("rows.jsonl", here / "out.jsonl", reward_model="rm", on_bad="drop")
    assert [row["id"] for row in found] == [0, 2, 3]


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
