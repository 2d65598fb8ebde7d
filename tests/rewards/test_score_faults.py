"""``trimtab score`` when it is killed, when the disk is full, and what is wrong with rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
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
from trimtab.errors import RunError, TrimtabError
from trimtab.rewards import score_file as module
from trimtab.rewards.reward_model import RewardModel
from trimtab.rewards.score_journal import CHUNK, journal_of
from trimtab.rewards.scorers import ModelScorer

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
