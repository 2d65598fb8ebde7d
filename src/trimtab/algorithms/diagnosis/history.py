"""The logged numbers of a run as columns, windows over them and their noise; what is found in them.

A window has ``width`` logged points: an eighth of the run so far, at least ``LEAST``. Its noise is
estimated from the differences of neighbouring points (von Neumann 1941), which a slow trend hardly
enters. As a window is always a share of the run, the number of independent looks, and with it the
chance of a false alarm, stays bounded in long runs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from trimtab.algorithms.diagnosis.limits import RISE

LEAST = 4  # points of a window
SHARE = 8  # of the points so far, one in this many
PAIRS = 64  # rows that means over training rows are of: a share then has an error of 0.06


class Facts(NamedTuple):
    """What checks know of a run beside its numbers.

    ``fresh_reference``: the loss has a reference, which is the policy as it was at the start.
    """

    total_steps: int = 0  # 0: not known
    rows_per_step: int = 1
    held_out: bool = False
    fresh_reference: bool = False
    beta: float | None = None
    loss: str = ""
    target: float = 0.0  # margin at which the loss of a pair is ln 2 (SimPO's gamma)
    learning_rate: float | None = None
    steps_per_rollout: int = 0


class Finding(NamedTuple):
    """A diagnosis: ``says`` is a sentence with the number, what it means and what to change.

    ``about`` is the watched reward it speaks of, or empty; ``numbers`` are those of the sentence.
    ``severity`` is above 0 where a diagnosis can get worse: at twice as much it is told again.
    """

    name: str
    about: str
    step: int
    says: str
    numbers: dict[str, float]
    severity: float = 0.0

    def record(self) -> dict[str, Any]:
        """As a line of metrics.jsonl."""
        found = {
            "step": self.step,
            "diagnosis": self.name,
            "about": self.about,
            "says": self.says,
            "numbers": self.numbers,
        }
        return {**found, "severity": self.severity} if self.severity else found

    @staticmethod
    def of(record: Mapping[str, Any]) -> Finding:
        """From such a line."""
        parts = (record[key] for key in ("about", "step", "says", "numbers"))
        return Finding(record["diagnosis"], *parts, severity=record.get("severity", 0.0))


class History:
    """The logged numbers as columns: one point a record that has the number ``point``.

    That is a rollout's reward in on-policy runs, of which only logged rollouts count, and the loss
    elsewhere. Several rollouts of one record are one point, as they are one mean. What a record
    lacks is NaN. ``evaluations`` have their names without ``eval_``, and the step.
    """

    def __init__(self, records: Iterable[Mapping[str, Any]] = (), point: str = "reward") -> None:
        self.point = point
        self.steps: list[int] = []
        self.columns: dict[str, list[float]] = {}
        self.evaluations: list[dict[str, Any]] = []
        for record in records:
            self.add(record)

    def add(self, record: Mapping[str, Any]) -> bool:
        """Take a record of metrics.jsonl; whether there was anything to be taken."""
        held_out = {
            name.removeprefix("eval_"): value
            for name, value in record.items()
            if name.startswith("eval_")
        }
        if held_out:
            self.evaluations.append({**held_out, "step": record["step"]})
        if not isinstance(record.get(self.point), float):
            return bool(held_out)
        known = {name: v for name, v in record.items() if isinstance(v, float)}
        for name in known.keys() - self.columns.keys():
            self.columns[name] = [math.nan] * len(self.steps)
        for name, column in self.columns.items():
            column.append(known.get(name, math.nan))
        self.steps.append(record["step"])
        return True

    @property
    def step(self) -> int:
        """Of the last record."""
        last = self.evaluations[-1]["step"] if self.evaluations else 0
        return max(last, self.steps[-1]) if self.steps else last

    @property
    def width(self) -> int:
        """Points of a window."""
        return max(LEAST, len(self.steps) // SHARE)

    @property
    def watched(self) -> list[str]:
        """Names of the watched rewards."""
        return [n[6:-5] for n in self.columns if n.startswith("watch/") and n.endswith("/mean")]

    def values(self, name: str) -> np.ndarray:
        """[points] fp64, NaN where a record had none."""
        return np.array(self.columns.get(name, [math.nan] * len(self.steps)), dtype=np.float64)

    def start(self, name: str) -> float:
        """Mean over the first points: as many as the smallest window has."""
        return mean(self.columns.get(name, [])[:LEAST])

    def now(self, name: str, width: int | None = None) -> float:
        """Mean over the last window."""
        return mean(self.columns.get(name, [])[-(width or self.width) :])

    def risen(self, name: str) -> bool:
        """Whether the last window is above the start, beyond noise."""
        error = noise(self.values(name)) * math.sqrt(1 / LEAST + 1 / self.width)
        return self.now(name) - self.start(name) > max(RISE * error, 0.0)

    def finding(
        self, name: str, says: str, *, about: str = "", severity: float = 0.0, **numbers: float
    ) -> Finding:
        """A diagnosis as of the last record."""
        plain = {key: float(value) for key, value in numbers.items() if not math.isnan(value)}
        return Finding(name, about, self.step, says, plain, severity)


class Recent(NamedTuple):
    """The last training rows of a run on rows: ``rows`` of them in ``width`` logged points."""

    history: History
    width: int
    rows: int

    def mean(self, name: str) -> float:
        """Mean over them, NaN where it is not logged."""
        return self.history.now(name, self.width)


def recent(history: History, facts: Facts) -> Recent | None:
    """The last eighth of the points, or more where that is less than ``PAIRS`` rows; None: too few.

    Points are means over ``logging_steps`` steps: one can be enough.
    """
    steps = history.steps
    for width in range(max(1, len(steps) // SHARE), len(steps) + 1):
        before = steps[-width - 1] if width < len(steps) else 0
        rows = (steps[-1] - before) * facts.rows_per_step
        if rows >= PAIRS:
            return Recent(history, width, rows)
    return None


def done(history: History, facts: Facts) -> float:
    """Share of the run that is done; 1 where its end is not known."""
    return history.step / facts.total_steps if facts.total_steps else 1.0


def windows(values: np.ndarray, width: int) -> np.ndarray:
    """Means over all runs of ``width`` points; NaN where one has a NaN."""
    return np.lib.stride_tricks.sliding_window_view(values, width).mean(axis=1)


def noise(values: np.ndarray) -> float:
    """Standard deviation of a point around the trend."""
    known = values[~np.isnan(values)]
    if len(known) < 2:
        return math.inf
    return math.sqrt(float(np.mean(np.diff(known) ** 2)) / 2)


def mean(values: list[float]) -> float:
    """Mean of what is known, NaN of nothing."""
    known = [value for value in values if not math.isnan(value)]
    return float(np.mean(known)) if known else math.nan
