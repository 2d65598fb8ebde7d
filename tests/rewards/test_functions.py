"""Reward functions: called by TRL's protocol, what is no answer, and what takes too long."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.rewards.called import reward_files  # noqa: F401

from trimtab.data.trees import Origin
from trimtab.errors import RunError
from trimtab.rewards.functions import (
    Outcome,
    RewardFunction,
    TimeUp,
    call,
    columns_of,
    resolve,
    within,
)


def ask(
    spec: str | RewardFunction,
    completions: list[Any],
    columns: dict[str, list[Any]] | None = None,
    limit: float | None = None,
    **more: Any,
) -> Outcome:
    function = resolve(spec) if isinstance(spec, str) else spec
    prompts = more.pop("prompts", [f"prompt {i}" for i in range(len(completions))])
    return call(function, prompts, completions, columns or {}, limit, **more)


def globals_of(function: Any) -> dict[str, Any]:
    return function._function.__globals__["seen"]


# ---------------------------------------------------------------------- the protocol


def test_all_columns_by_name(here: Path) -> None:
    function = resolve("mine.py:everything")
    columns = {"solution": ["a", "b"], "prompts": ["not", "ours"]}
    assert ask(function, ["x", "y"], columns).values == [0.0, 0.0]  # a score of 0 is a value
    assert globals_of(function) == {
        "prompts": ["prompt 0", "prompt 1"],
        "completions": ["x", "y"],
        "solution": ["a", "b"],
    }


def test_conversations_are_messages(here: Path) -> None:
    function = resolve("mine.py:everything")
    prompt = [{"role": "user", "content": "hi"}]
    completion = [{"role": "assistant", "content": "hello"}]
    ask(function, [completion], prompts=[prompt], completion_ids=[[1, 2]])
    seen = globals_of(function)
    assert (seen["prompts"], seen["completions"]) == ([prompt], [completion])
    assert seen["completion_ids"] == [[1, 2]]  # it takes **columns


def test_only_what_is_named(here: Path) -> None:
    function = resolve("mine.py:named")
    given = {"solution": ["a", "b"], "other": [1, 2]}
    assert ask(function, ["x", "yyy"], given, completion_ids=[[1], [2]]).values == [1.0, 3.0]
    assert globals_of(function) == {"solution": ["a", "b"], "missing": None}


def test_completion_ids_where_they_are_known(here: Path) -> None:
    assert ask("mine.py:ids", ["x"], completion_ids=[[5, 6, 7]]).values == [3.0]
    assert ask("mine.py:ids", ["x"]).values == [None]


def test_options_win_over_columns(here: Path) -> None:
    function = resolve("mine.py:scaled(scale=-2.5)")
    assert ask(function, ["ab"], {"scale": [100]}).values == [-5.0]
    assert ask("mine.py:scaled", ["ab"]).values == [2.0]


def test_async_modules_packages_and_objects(here: Path) -> None:
    assert ask("mine.py:waits", ["a", "b"]).values == [1.5, 1.5]
    assert ask("mine.py:judge", ["a"]).values == [0.25]
    assert ask("as_module:waits", ["a"]).values == [1.5]
    assert ask("a_package.inner:f", ["a"]).values == [7.0]
    assert ask("a_package.inner.f", ["a"]).values == [7.0]
    assert ask(f"{here}/mine.py:waits", ["a"]).values == [1.5]


def test_what_a_function_changes_is_its_own(here: Path) -> None:
    prompts, completions = ["p", "q"], ["a", "b"]
    outcome = ask("mine.py:changes", completions, prompts=prompts)
    assert outcome.values == [1.0, 2.0]
    assert (prompts, completions) == (["p", "q"], ["a", "b"])


@pytest.mark.parametrize(
    "values",
    [
        [1, 0.0, None],
        (1, 0.0, None),
        [True, False, None],
        [np.float32(1), np.int64(0), None],
        [torch.tensor(1.0), torch.tensor(0), None],
    ],
)
def test_kinds_of_numbers(here: Path, values: Any) -> None:
    assert ask("mine.py:gives", ["a", "b", "c"], {"value": values}).values == [1.0, 0.0, None]


def test_arrays_and_tensors_are_lists() -> None:
    from trimtab.rewards.functions import read_answers

    assert read_answers(np.array([1.0, 2.0]), 2) == [1.0, 2.0]
    assert read_answers(torch.tensor([1.0, 2.0]), 2) == [1.0, 2.0]


def test_columns_of_rows() -> None:
    rows = [{"a": 1, "prompts": 3}, {"b": 2}]
    assert columns_of(rows) == {"a": [1, None], "b": [None, 2]}


def test_no_samples(here: Path) -> None:
    assert ask("mine.py:raises", []) == Outcome([], [])


# ---------------------------------------------------------------------- what is no answer


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (float("nan"), "nan"),
        (float("inf"), "inf"),
        (-float("inf"), "-inf"),
        ("0.5", "'0.5'"),
        ([1.0], "[1.0] (list)"),
        (10**400, "1000000000"),
        (1j, "1j (complex)"),
        (np.float32("nan"), "nan"),
    ],
)
def test_a_bad_value_is_named_or_dropped(here: Path, value: Any, shown: str) -> None:
    """Never 0: a sample is named and stops the run, or has no reward."""
    columns = {"value": [0.0, value, 2.0]}
    origins = [Origin("rows.jsonl", line) for line in (4, 5, 9)]
    completions = ["fine", "The  answer\nis " + 50 * "x", "fine"]
    with pytest.raises(RunError) as stopped:
        ask("mine.py:gives", completions, columns, origins=origins)
    message = str(stopped.value)
    assert message.startswith("reward function mine.py:gives: rows.jsonl:5 ('The answer is xxxx")
    assert f"gave {shown}" in message and "on_bad=drop" in message and "\n" not in message
    outcome = ask("mine.py:gives", completions, columns, origins=origins, on_bad="drop")
    assert outcome.values == [0.0, None, 2.0]
    (problem,) = outcome.problems
    assert (problem.index, problem.reason) == (1, "gave no number")


@pytest.mark.parametrize(
    ("value", "reason", "shown"),
    [
        ([[1.0, 2.0, 3.0]], "gave a list of the wrong length", "gave 3 values for 1 samples"),
        ([[]], "gave a list of the wrong length", "gave 0 values for 1 samples"),
    ],
)
def test_a_wrong_length_fails_the_call(here: Path, value: Any, reason: str, shown: str) -> None:
    with pytest.raises(RunError, match=shown):
        ask("mine.py:gives", ["a"], {"value": value})
    outcome = ask("mine.py:gives", ["a"], {"value": value}, on_bad="drop")
    assert outcome.values == [None]
    assert (outcome.problems[0].index, outcome.problems[0].reason) == (None, reason)


@pytest.mark.parametrize(
    ("result", "shown"),
    [(None, "gave None, not a list of 2 numbers"), ("ab", "gave 'ab'"), (3, "gave 3, not a list")],
)
def test_no_list(result: Any, shown: str) -> None:
    from trimtab.rewards.functions import CallFailed, read_answers

    with pytest.raises(CallFailed, match=shown):
        read_answers(result, 2)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("raises", "raised mine.py:33: IndexError: list index out of range"),
        ("leaves", "SystemExit"),
    ],
)
def test_an_exception_is_named_with_its_line(here: Path, name: str, shown: str) -> None:
    with pytest.raises(RunError, match=f"2 samples from sample 0 .'a'. on: .*{shown}"):
        ask(f"mine.py:{name}", ["a", "b"])
    outcome = ask(f"mine.py:{name}", ["a", "b"], on_bad="drop")
    assert outcome.values == [None, None]
    assert outcome.problems[0].reason == "raised an exception"


# ---------------------------------------------------------------------- time


def test_a_hang_is_ended(here: Path) -> None:
    """Though the function catches every Exception; and the alarms of others go on."""
    before = signal.getsignal(signal.SIGALRM)
    with pytest.raises(RunError, match=r"no answer within 0.2 s"):
        ask("mine.py:spins", ["a"], limit=0.2)
    outcome = ask("mine.py:spins", ["a"], limit=0.2, on_bad="drop")
    assert (outcome.values, outcome.problems[0].reason) == ([None], "took too long")
    assert signal.getsignal(signal.SIGALRM) is before


def test_somebody_elses_alarm_goes_on() -> None:
    rung: list[int] = []
    before = signal.signal(signal.SIGALRM, lambda *_: rung.append(1))
    timer = signal.setitimer(signal.ITIMER_REAL, 200.0)
    try:
        assert within(5.0, lambda: 3) == 3
        left, _ = signal.getitimer(signal.ITIMER_REAL)
        assert 100 < left <= 200 and not rung
    finally:
        signal.setitimer(signal.ITIMER_REAL, *timer)
        signal.signal(signal.SIGALRM, before)


def test_a_hang_in_another_thread_is_left_behind() -> None:
    found: list[Any] = []
    let_go = threading.Event()

    def work() -> None:
        try:
            found.append(within(5.0, lambda: 4))
            within(0.1, let_go.wait)
        except TimeUp:
            found.append("late")

    def fail() -> None:
        try:
            within(5.0, lambda: 1 // 0)
        except ZeroDivisionError:
            found.append("failed")

    for target in (work, fail):
        thread = threading.Thread(target=target)
        thread.start()
        thread.join()
    let_go.set()
    assert found == [4, "late", "failed"]
