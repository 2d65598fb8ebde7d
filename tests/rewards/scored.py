"""A reward model, sampled rows and a run of ``trimtab score``, for its tests."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from tests import tiny_runs
from tests.algorithms.stage_world import World

from trimtab.rewards.score_file import ScoreOptions, score_file

Rows = list[dict[str, Any]]


@pytest.fixture(name="world", scope="module")
def scored_world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("score"))


@pytest.fixture(name="reward_model", scope="module")
def scoring_model(world: World) -> str:
    """A reward model of two steps; its scores are apart by much more than rounding."""
    run = world.run("reward", "rankings", sample_prompts=..., max_steps=2, learning_rate=3e-2)
    return str(run.folder)


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


@pytest.fixture(name="here")
def scored_files(
    world: World, reward_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
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
