"""``trimtab sample --best-of``: rows, going on after a kill, and one line for what is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests import tiny_runs

from trimtab.cli import main
from trimtab.evaluation import best_of_file as module
from trimtab.evaluation.best_of_file import BestOfReward, best_of_file, count_of
from trimtab.models.tokenizers import CHAT_TEMPLATE
from trimtab.rollout.sample_file import SampleOptions

REWARD = """
def vowels(completions, **_):
    return [sum(map(text.count, "aeiou")) for text in completions]

def said(completions, **_):
    return [sum(map(turns[-1]["content"].count, "aeiou")) for turns in completions]
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("best")
    tiny_runs.save_tiny_model(root / "plain")
    tiny_runs.save_tiny_model(root / "chat", chat_template=CHAT_TEMPLATE)
    return root


@pytest.fixture
def here(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "rewards.py").write_text(REWARD)
    rows = [{"prompt": row["prompt"], "id": i} for i, row in enumerate(tiny_runs.answers(6))]
    tiny_runs.write_rows(tmp_path / "prompts.jsonl", rows)
    for name in ("plain", "chat"):
        (tmp_path / name).symlink_to(model / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def options(**more: Any) -> SampleOptions:
    settings: dict[str, Any] = {"num_generations": 5, "max_completion_length": 6, **more}
    return SampleOptions(
        **{
            "model_name_or_path": "plain",
            "dataset_name": "prompts.jsonl",
            "output": "best.jsonl",
            "precision": "fp32",
            **settings,
        }
    )


def read(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(name).read_text().splitlines()]


VOWELS = BestOfReward(None, ("rewards.py:vowels",), None)


def test_the_best_of_the_sampled_is_written(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert best_of_file(options(), VOWELS, mode="quiet") == 0
    said = capsys.readouterr().out
    assert "best of 5   KL from what was sampled at most log n - (n - 1) / n = 0.809 nats" in said
    words = "sample --model plain --dataset prompts.jsonl --num-generations 5 --output all.jsonl"
    assert main([*words.split(), "--max-completion-length", "6", "--precision", "fp32"]) == 0
    for row, whole in zip(read("best.jsonl"), read("all.jsonl"), strict=True):
        assert list(row) == ["prompt", "completion", "score", "ended", "id"]
        scores = [sum(map(text.count, "aeiou")) for text in whole["responses"]]
        first = scores.index(max(scores))
        assert (row["completion"], row["score"]) == (whole["responses"][first], max(scores))
        assert row["ended"] == whole["ended"][first]


def test_messages_stay_messages(here: Path) -> None:
    chats = [{"prompt": [{"role": "user", "content": "a cat"}]}] * 2
    tiny_runs.write_rows(here / "chats.jsonl", chats)
    reward = BestOfReward(None, ("rewards.py:said",), None)
    one = options(model_name_or_path="chat", dataset_name="chats.jsonl")
    assert best_of_file(one, reward, mode="quiet") == 0
    for row in read("best.jsonl"):
        assert row["completion"][0]["role"] == "assistant"


def test_an_interrupted_run_goes_on(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert best_of_file(options(output="calm.jsonl"), VOWELS, mode="quiet") == 0

    def stop(*_: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:  # between sampling and scoring
        patch.setattr(module, "score", stop)
        with pytest.raises(KeyboardInterrupt):
            best_of_file(options(), VOWELS, mode="quiet")
    with monkeypatch.context() as patch:
        patch.setattr(module, "sample", stop)  # which is not asked again
        with pytest.raises(module.UsageError, match="unfinished run has seed 0, not 1"):
            best_of_file(options(seed=1), VOWELS, mode="quiet")
        assert best_of_file(options(), VOWELS, mode="quiet") == 0
    assert Path("best.jsonl").read_bytes() == Path("calm.jsonl").read_bytes()
    left = sorted(path.name for path in here.iterdir() if path.name.startswith("."))
    assert left == []
    with pytest.raises(module.UsageError, match="exists already"):
        best_of_file(options(), VOWELS, mode="quiet")
    assert best_of_file(options(seed=1, restart=True), VOWELS, mode="quiet") == 0
    assert Path("best.jsonl").read_bytes() != Path("calm.jsonl").read_bytes()


def test_a_run_killed_at_its_end_goes_on(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert best_of_file(options(output="calm.jsonl"), VOWELS, mode="quiet") == 0
    score, unlink = module.score, Path.unlink

    def stop(*_: Any) -> Any:
        raise KeyboardInterrupt

    def scored(*given: Any) -> Any:
        score(*given)
        stop()

    def kept(self: Path, missing_ok: bool = False) -> None:
        if self.name.endswith(".responses.jsonl") and self.exists():
            stop()
        unlink(self, missing_ok=missing_ok)

    def left() -> list[str]:
        return sorted(path.name for path in here.iterdir() if path.name.startswith("."))

    with monkeypatch.context() as patch:  # the output is there, and both hidden files
        patch.setattr(module, "score", scored)
        with pytest.raises(KeyboardInterrupt):
            best_of_file(options(), VOWELS, mode="quiet")
    assert Path("best.jsonl").exists() and len(left()) == 2
    with monkeypatch.context() as patch:  # one hidden file is removed
        patch.setattr(module, "sample", stop)  # which is not asked again
        patch.setattr(Path, "unlink", kept)
        with pytest.raises(KeyboardInterrupt):
            best_of_file(options(), VOWELS, mode="quiet")
    assert left() == [".best.responses.jsonl"]
    with pytest.raises(module.UsageError, match="exists already"):
        best_of_file(options(), VOWELS, mode="quiet")
    assert left() == []
    assert Path("best.jsonl").read_bytes() == Path("calm.jsonl").read_bytes()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--best-of 1 --reward-funcs f", "best_of=1: of one response nothing is chosen"),
        ("--best-of 4", "reward_model: missing; best_of needs"),
        ("--best-of 4 --num-generations 4 --reward-funcs f", "best_of=4 says how many"),
        ("--reward-model m", "reward_model: nobody is asked to choose; give --best-of N"),
        ("--best-of 2 --reward-funcs rewards.py:none", "none"),
    ],
)
def test_refusals(here: Path, words: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    start = ["sample", "--model", "plain", "--dataset", "prompts.jsonl", "--output", "x.jsonl"]
    assert main([*start, *words.split()]) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert said in error[-1] and error[-1].startswith("trimtab: ")
    assert count_of(None, None, BestOfReward()) == 4
