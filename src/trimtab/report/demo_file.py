"""The demo's summary.json and its stories, as ``world/demo.py`` writes them."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from trimtab.report import read
from trimtab.report.measured import Lenient, Measured
from trimtab.report.read import Record

SUMMARY = "summary.json"
Models = dict[str, dict[str, Measured]]  # measure of a model
REFERENCE, FIRST = "sft", "pretrain"  # what others are held against; what all are made from


class Checkpoint(Lenient):
    """A model on its way; ``step`` is None at its end."""

    step: int | None = None
    gold: Measured
    kl: Measured
    learned: Measured | None = None


class Way(Lenient):
    """The checkpoints of a method, in the order of training."""

    method: str
    points: list[Checkpoint]


class Summary(Lenient):
    """summary.json; those of older versions have no frontier."""

    seed: int
    seeds: int
    requests: int
    tellings: int
    intervals: str
    kl: str
    demonstrations_gold_reward: float
    models: Models
    frontier: list[Way] = Field(default_factory=list[Way])
    seconds: float | None = None
    stages: dict[str, str] = Field(default_factory=dict[str, str])  # name -> what it does


def stories(ladder: Path, model: str) -> list[Record]:
    """The stories of a model; none where the file is not there."""
    path = ladder / "stories" / f"{model}.jsonl"
    return read.records(path)
