"""metrics.jsonl: exact numbers, cut back on resume; means that are divided once."""

from __future__ import annotations

import errno
import itertools
import json
import math
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.errors import CheckpointError
from trimtab.training import files
from trimtab.training.metrics import (
    Means,
    MetricsLog,
    encode_record,
    read_metrics,
    without_timings,
)
from trimtab.training.terms import Metric


@given(st.floats(width=64))
def test_numbers_read_back_bit_by_bit_from_valid_json(value: float) -> None:
    line = encode_record({"loss": value, "nested": [value]})

    def refuse(constant: str) -> float:
        raise AssertionError(f"{constant} is not JSON")

    json.loads(line, parse_constant=refuse)
    found = json.loads(line)["loss"]
    if math.isfinite(value):
        assert struct.pack("<d", found) == struct.pack("<d", value)
    else:
        assert found == {math.inf: "Infinity", -math.inf: "-Infinity"}.get(value, "NaN")


def test_log_reads_back_as_it_was_written(tmp_path: Path) -> None:
    records = [
        {"step": 1, "loss": 0.1 + 0.2, "text": "é\n\u2028", "rows": None},
        {"step": 2, "loss": math.inf, "worst": -math.inf, "time/tokens_per_second": 12.5},
    ]
    with MetricsLog(tmp_path / "sub" / "metrics.jsonl") as log:
        for record in records:
            log.append(record)
        assert log.lines == 2
        assert log.offset == (tmp_path / "sub" / "metrics.jsonl").stat().st_size
    assert list(read_metrics(tmp_path / "sub" / "metrics.jsonl")) == records
    assert (tmp_path / "sub" / "metrics.jsonl").read_text().count("\n") == 2


def test_what_is_no_number_is_a_bug_of_ours(tmp_path: Path) -> None:
    with MetricsLog(tmp_path / "m") as log, pytest.raises(TypeError):
        log.append({"loss": object()})
    assert (tmp_path / "m").read_bytes() == b""


def test_resumed_log_equals_the_undisturbed_one(tmp_path: Path) -> None:
    def run(path: Path, first: int, last: int) -> MetricsLog:
        log = MetricsLog(path)
        for step in range(first, last):
            log.append({"step": step, "loss": 1 / (step + 1)})
        return log

    run(tmp_path / "whole", 0, 9).close()
    for how in ("offset", "lines"):
        path = tmp_path / how
        log = run(path, 0, 4)
        log.sync()
        mark = log.offset if how == "offset" else log.lines  # a checkpoint is made here
        for step in range(4, 7):
            log.append({"step": step, "loss": 1 / (step + 1)})
        log.close()
        with path.open("ab") as file:  # killed in the middle of a line
            file.write(b'{"step": 7, "lo')
        assert len(list(read_metrics(path))) == 7
        log = MetricsLog(path)
        missing = log.truncate_to(mark) if how == "offset" else log.truncate_to_lines(mark)
        assert (missing, log.lines) == (0, 4)
        log.close()
        run(path, 4, 9).close()
        assert path.read_bytes() == (tmp_path / "whole").read_bytes()


def test_resuming_without_cutting_back_would_repeat_records(tmp_path: Path) -> None:
    """The twin of the above."""
    with MetricsLog(tmp_path / "m") as log:
        log.append({"step": 1})
    with MetricsLog(tmp_path / "m") as log:
        log.append({"step": 1})
    assert [record["step"] for record in read_metrics(tmp_path / "m")] == [1, 1]


def test_a_log_that_somebody_shortened_is_cut_to_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "m"
    path.write_bytes(b'{"step": 1}\n{"step": 2}\n{"ste')
    with MetricsLog(path) as log:
        assert log.truncate_to(100) == 71
        assert (log.lines, log.offset) == (2, 24)
    path.write_bytes(b'{"step": 1}\n{"step": 2}\n{"ste')
    with MetricsLog(path) as log:
        assert log.truncate_to_lines(5) == 3
        assert log.lines == 2
        assert log.truncate_to(13) == 0  # within a line: the last whole one before
        assert log.lines == 1
        assert log.truncate_to(0) == 0
    assert path.read_bytes() == b""


def test_timings_are_what_a_comparison_leaves_out() -> None:
    record = {"loss": 1.0, "time/tokens_per_second": 3.0, "timed": 1, "step_time": 2}
    assert without_timings(record) == {"loss": 1.0, "timed": 1, "step_time": 2}


def test_a_full_disk_is_one_line_and_leaves_no_half_record(tmp_path: Path) -> None:
    def full(operation: str, path: Path, size: int) -> int | None:
        if operation == "write":
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return None

    with MetricsLog(tmp_path / "m") as log:
        log.append({"step": 1})
        with files.hooked(full), pytest.raises(CheckpointError, match="No space left") as error:
            log.append({"step": 2})
        assert "\n" not in str(error.value)
        log.append({"step": 3})
        assert log.lines == 2
    assert [record["step"] for record in read_metrics(tmp_path / "m")] == [1, 3]


# ---------------------------------------------------------------- means


def test_a_mean_is_divided_once_and_is_no_mean_of_means() -> None:
    means = Means()
    means.add("loss", Metric(3.0, 1.0))
    means.add("loss", Metric(1.0, 3.0))
    means.add("none", Metric(0.0, 0.0))
    assert means.means() == {"loss": 1.0}
    mean_of_means = (3.0 / 1.0 + 1.0 / 3.0) / 2
    assert means.means()["loss"] != mean_of_means


metrics = st.lists(
    st.tuples(
        st.sampled_from("abc"),
        st.integers(-1000, 1000).map(lambda x: x / 8),  # sums are exact, so order is free
        st.integers(0, 9).map(float),
    )
)


@given(metrics, metrics)
def test_merging_is_adding(first: list, second: list) -> None:
    whole, one, two = Means(), Means(), Means()
    for name, total, count in first + second:
        whole.add(name, Metric(total, count))
    for means, part in ((one, first), (two, second)):
        for name, total, count in part:
            means.add(name, Metric(total, count))
    one.merge(two)
    assert one.means() == whole.means()
    assert one.state_dict() == whole.state_dict()


def test_extremes_are_those_of_a_step_and_a_mean_over_steps() -> None:
    window = Means()
    for micros in ([3.0, -1.0, 2.0], [7.0]):
        step = Means()
        for value in micros:
            step.add("low", Metric(value, 1.0, "min"))
            step.add("high", Metric(value, 1.0, "max"))
            step.add("low", Metric(0.0, 0.0, "min"))  # nothing seen, which is no 0
            step.add("high", Metric(0.0, 0.0, "max"))
        assert step.means() == {"low": min(micros), "high": max(micros)}
        window.merge(step)
    assert window.means() == {"low": (-1.0 + 7.0) / 2, "high": (3.0 + 7.0) / 2}
    again = Means()
    again.load_state_dict(json.loads(json.dumps(window.state_dict())))
    assert again.means() == window.means()


def test_extremes_do_not_depend_on_the_order() -> None:
    for values in itertools.permutations([-2.5, 0.0, 1.0, 4.0]):
        means = Means()
        means.add("nothing", Metric(0.0, 0.0, "max"))
        for value in values:
            means.add("low", Metric(value, 1.0, "min"))
            means.add("high", Metric(value, 1.0, "max"))
        assert means.means() == {"low": -2.5, "high": 4.0}


def test_one_name_is_of_one_kind() -> None:
    means = Means()
    means.add("x", Metric(1.0, 1.0))
    with pytest.raises(AssertionError, match="one name, one kind"):
        means.add("x", Metric(1.0, 1.0, "max"))


def test_state_comes_back_exactly_through_json() -> None:
    means = Means()
    for number in range(1, 200):
        means.add("x", Metric(1 / number, 0.1))
    again = Means()
    again.load_state_dict(json.loads(json.dumps(means.state_dict())))
    assert again.means() == means.means()
    again.add("x", Metric(0.3, 1.0))
    means.add("x", Metric(0.3, 1.0))
    assert again.state_dict() == means.state_dict()
    means.reset()
    assert means.means() == {}
