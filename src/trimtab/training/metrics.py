"""metrics.jsonl: one JSON object a log step, and the means that go into it.

The log is part of a run's result: a killed and resumed run ends with the same bytes as an
undisturbed one, apart from its timings. So timings have keys of their own, under ``time/``; a
checkpoint remembers how long the log was (``lines``, which does not depend on timings as the
``offset`` in bytes does); and on resume the log is cut back to that.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from trimtab.errors import CheckpointError
from trimtab.training import files
from trimtab.training.terms import Metric

TIMINGS = "time/"
_NONFINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


class MetricsLog:
    """An open metrics.jsonl. Lines are with the operating system at once, on the disk at ``sync``.

    A SIGKILL loses no line; a power cut may lose those since ``sync``, which is called before a
    checkpoint, so no checkpoint ever remembers lines that are not there.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        try:
            files.make_folder(self.path.parent)
            self._file = files.AppendFile(self.path)
            self._lines = self.path.read_bytes().count(b"\n")
        except OSError as error:
            raise self._error(error) from error

    @property
    def offset(self) -> int:
        """Bytes in the file."""
        return self._file.offset

    @property
    def lines(self) -> int:
        """Whole records in the file."""
        return self._lines

    def append(self, record: Mapping[str, Any]) -> None:
        """Write one record. Numbers as ``repr`` has them, so they read back bit by bit."""
        line = encode_record(record)
        try:
            self._file.append(line)
        except OSError as error:
            raise self._error(error) from error
        self._lines += 1

    def truncate_to(self, offset: int) -> int:
        """Cut back to ``offset`` bytes; returns how many bytes of that were not there.

        More than 0 when somebody shortened the log; then, as when ``offset`` does not fall on the
        end of a line, it is cut to the last whole line before.
        """
        content = self._content()
        kept = content[:offset]
        kept = kept[: kept.rfind(b"\n") + 1]
        self._cut(kept)
        return max(0, offset - len(content))

    def truncate_to_lines(self, lines: int) -> int:
        """Cut back to the first ``lines`` records; returns how many of them were not there."""
        kept = self._content().splitlines(keepends=True)[:lines]
        if kept and not kept[-1].endswith(b"\n"):  # the half-written line of a kill
            kept.pop()
        self._cut(b"".join(kept))
        return lines - len(kept)

    def _content(self) -> bytes:
        return files.read_file(self.path)

    def _cut(self, kept: bytes) -> None:
        try:
            self._file.truncate(len(kept))
            self._file.sync()
        except OSError as error:
            raise self._error(error) from error
        self._lines = kept.count(b"\n")

    def sync(self) -> None:
        """Have all records on the disk when this returns; call it before saving a checkpoint."""
        try:
            self._file.sync()
        except OSError as error:
            raise self._error(error) from error

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _error(self, error: OSError) -> CheckpointError:
        return CheckpointError(
            f"{self.path}: {error.strerror or error}; see to the disk (space, permissions) and run "
            "the same command again: it goes on from the last checkpoint"
        )


def encode_record(record: Mapping[str, Any]) -> bytes:
    """One line of JSON. What JSON has no number for is a string: "NaN", "Infinity", "-Infinity"."""
    line = json.dumps(_to_json(record), allow_nan=False)
    return line.encode() + b"\n"


def read_metrics(path: Path | str) -> Iterator[dict[str, Any]]:
    """The records of a metrics.jsonl; a last line that is still being written is left out."""
    with Path(path).open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                yield decode_record(line)


def decode_record(line: str | bytes) -> Any:
    """What ``encode_record`` wrote."""
    return _from_json(json.loads(line))


def without_timings(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record without what differs from one run to the next of the same recipe."""
    return {name: value for name, value in record.items() if not name.startswith(TIMINGS)}


def _to_json(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if value != value else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, Mapping):
        return {name: _to_json(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_to_json(item) for item in value]
    return value


def _from_json(value: Any) -> Any:
    if isinstance(value, str):
        return _NONFINITE.get(value, value)
    if isinstance(value, dict):
        return {name: _from_json(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_from_json(item) for item in value]
    return value


class Means:
    """Running means by name: sums and counts, divided once, when they are asked for."""

    def __init__(self) -> None:
        self._sums: dict[str, Metric] = {}

    def add(self, name: str, metric: Metric) -> None:
        """Join what another micro-batch has under that name: sums and counts, or an extreme."""
        new = Metric(float(metric.sum), float(metric.count), metric.kind)
        self._sums[name] = self._sums.get(name, Metric(0.0, 0.0, new.kind)).joined(new)

    def merge(self, other: Means) -> None:
        """Add what a whole step has seen; its extremes count once each in the mean over steps."""
        for name, metric in other._sums.items():
            self.add(name, Metric(metric.sum, metric.count))

    def means(self) -> dict[str, float]:
        """``sum / count`` by name, in the order first seen; names that counted nothing left out."""
        return {
            name: metric.sum / metric.count for name, metric in self._sums.items() if metric.count
        }

    def reset(self) -> None:
        """Forget everything."""
        self._sums.clear()

    def state_dict(self) -> dict[str, list[float]]:
        """``[sum, count]`` by name, as JSON; after ``merge``s alone, which leave no extremes."""
        assert all(metric.kind == "mean" for metric in self._sums.values())
        return {name: [metric.sum, metric.count] for name, metric in self._sums.items()}

    def load_state_dict(self, state: Mapping[str, list[float]]) -> None:
        """Put back what ``state_dict`` gave."""
        self._sums = {name: Metric(total, count) for name, (total, count) in state.items()}
