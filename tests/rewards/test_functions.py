"""Reward functions: found, called by TRL's protocol, and what is wrong with them named."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from trimtab.data.trees import Origin
from trimtab.errors import RecipeError, RunError
from trimtab.rewards.combine import RewardSum, weighted_sum
from trimtab.rewards.functions import (
    Outcome,
    RewardFunction,
    TimeUp,
    call,
    check_columns,
    columns_of,
    resolve,
    within,
)
from trimtab.rewards.spec import names_a_model, parse

FILE = """
import asyncio, sys, time
import numpy as np
import neighbour

seen = {}

def everything(prompts, completions, **columns):
    seen.clear()
    seen.update(columns, prompts=prompts, completions=completions)
    return [0.0] * len(completions)

def named(completions, solution, missing=None):
    seen.clear()
    seen.update(solution=solution, missing=missing)
    return [len(one) for one in completions]

def ids(completions, completion_ids=None):
    return [None if completion_ids is None else len(one) for one in completion_ids or completions]

def scaled(completions, scale=1, **columns):
    return [scale * len(one) for one in completions]

async def waits(completions):
    await asyncio.sleep(0)
    return [1.5] * len(completions)

def gives(completions, value):
    return value[0] if len(completions) == 1 and isinstance(value[0], list) else value

def raises(completions):
    numbers = []
    return numbers[3]

def leaves(completions):
    sys.exit(0)

def spins(completions):
    while True:
        try:
            time.sleep(0.001)
        except Exception:
            pass

def prompts_only(prompts):
    return [0.0]

def positional(completions, /):
    return [0.0]

def changes(prompts, completions):
    prompts.clear()
    completions.append("x")
    return [1.0, 2.0]

class Judge:
    def __call__(self, completions):
        return [0.25] * len(completions)

judge = Judge()
constant = 3
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with ``mine.py``, what it imports, and a module of the same content."""
    (tmp_path / "mine.py").write_text(FILE)
    (tmp_path / "neighbour.py").write_text("value = 1\n")
    (tmp_path / "as_module.py").write_text(FILE)
    package = tmp_path / "a_package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "inner.py").write_text("def f(completions):\n    return [7.0] * len(completions)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", list(__import__("sys").path))
    return tmp_path


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


# ---------------------------------------------------------------------- names and signatures


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("acuracy_reward", "no built-in reward of that name .*Did you mean accuracy_reward"),
        ("nothing.py:f", "nothing.py: no such file"),
        ("mime.py:f", "mime.py: no such file. Did you mean mine.py"),
        ("mine.py", "which function of the file.*it defines everything, named, .* and 4 more"),
        ("mine.py:nmed", "mine.py: no function 'nmed'; it defines .*Did you mean named"),
        ("mine.py:", "not of the form"),
        ("mine.py:Judge", "mine.py: Judge is a class, not a function"),
        ("mine.py:constant", "mine.py: constant is a int, not a function"),
        ("mine.py:prompts_only", "it takes prompts, and so no completions; it is called as f"),
        ("mine.py:positional", "its parameters have no names to be called by"),
        ("mine.py:waits(scale=2)", "waits has no option 'scale'; it takes none"),
        ("mine.py:named(mising=2)", "it takes solution, missing. Did you mean missing"),
        ("mine.py:scaled(completions=2)", "completions cannot be an option"),
        ("mine.py:scaled(3)", "its options are not of the form"),
        ("mine.py:scaled(scale=x)", "option scale=x is not a number"),
        ("no_such_module:f", "no module named 'no_such_module', installed or in the working"),
        ("a_package.nothing:f", "no module named 'a_package.nothing'"),
        ("no.such.f", "no module named 'no'"),
        ("broken.py:f", r"broken.py:2: SyntaxError: "),
        ("broken:f", r"broken.py:2: SyntaxError: "),
        ("imports.py:f", r"imports.py:1: ModuleNotFoundError: No module named 'no_such_thing'"),
        ("imports:f", r"imports.py:1: ModuleNotFoundError: No module named 'no_such_thing'"),
        ("leaves.py:f", r"leaves.py:2: SystemExit: 3"),
        ("two words", "not of the form"),
        ("format(pattern='(')", "pattern='\\(' is no regular expression"),
        ("length", "length takes one of target and cap"),
        ("length(target=0)", "target=0 is no whole number from 1 on"),
        ("length(cap=5, buffer=6)", "buffer=6 is more than cap=5"),
        ("length(words=5)", "length has no option 'words'; it takes target, cap, buffer"),
        ("repetition(ngram_size=0)", "ngram_size=0 is no whole number"),
        ("repetition(max_penalty=1)", "max_penalty=1 is no number of at most 0"),
        ("math_answer(tolerance=2)", "tolerance=2 is no share"),
    ],
)
def test_one_line_for_what_is_wrong(here: Path, spec: str, expected: str) -> None:
    (here / "broken.py").write_text("x = 1\ndef f(:\n")
    (here / "imports.py").write_text("import no_such_thing\n")
    (here / "leaves.py").write_text("import sys\nsys.exit(3)\n")
    with pytest.raises(RecipeError, match=expected) as error:
        resolve(spec)
    assert str(error.value).startswith(f"reward_funcs={spec!r}: ")
    assert "\n" not in str(error.value)


def test_a_specs_parts() -> None:
    spec = parse("some dir (1)/my.py:f(a=1, b='x,y(', c=[1, 2])")
    assert spec[1:] == ("file", "some dir (1)/my.py", "f", {"a": 1, "b": "x,y(", "c": [1, 2]})
    assert parse("a.b.c")[1:4] == ("module", "a.b", "c")
    assert parse("C:\\rewards\\my.py:f")[1:4] == ("file", "C:\\rewards\\my.py", "f")


def test_what_names_a_reward_model(here: Path) -> None:
    assert names_a_model("a_package") and names_a_model("org/reward-model")
    assert not any(map(names_a_model, ("a/b.py:f", "a.b:f", "length", "length(target=1/2)")))


@pytest.mark.parametrize(
    ("spec", "names", "ids", "expected"),
    [
        ("mine.py:named", {"other"}, True, "asks for column 'solution'; the rows' other columns "),
        ("mine.py:named", set(), True, "asks for column 'solution'; there are none"),
        ("mine.py:needs_ids", {"a"}, False, "asks for completion_ids, and only sampled"),
        ("math_answer", {"other"}, True, "needs column 'answer' or 'solution'"),
    ],
)
def test_columns_that_are_not_there(
    here: Path, spec: str, names: set[str], ids: bool, expected: str
) -> None:
    with (here / "mine.py").open("a") as file:
        file.write(
            "\ndef needs_ids(completion_ids):\n    return [len(x) for x in completion_ids]\n"
        )
    function = resolve(spec)
    with pytest.raises(RecipeError, match=expected):
        check_columns(function, names, ids=ids)
    check_columns(function, {"solution"}, ids=True)
    with pytest.raises(RecipeError):  # and at the call itself, whatever on_bad says
        call(function, ["p"], ["c"], {name: [1] for name in names}, on_bad="drop")


def test_another_file_has_another_digest(here: Path) -> None:
    one = resolve("mine.py:named").digest
    assert one == resolve("mine.py:ids").digest
    (here / "mine.py").write_text(FILE + "\n# changed\n")
    assert resolve("mine.py:named").digest != one


# ---------------------------------------------------------------------- sums


def test_weighted_sums_are_nansums() -> None:
    parts = [[1.0, None, None, 0.0], [10.0, 20.0, None, None]]
    assert weighted_sum(parts, [2.0, -1.0]) == [-8.0, -20.0, None, 0.0]
    # Wrong variants: a missing reward is not 0 with the weights renormalised, and TRL's nansum of
    # nothing, 0, would be a reward.
    assert weighted_sum(parts, [2.0, -1.0])[1] != -20.0 * (2.0 - 1.0) / -1.0
    assert weighted_sum([[None]], [1.0]) != [0.0]


def test_reward_sum(here: Path) -> None:
    functions = [resolve("mine.py:gives"), resolve("length(cap=1)"), resolve("length(cap=3)")]
    reward = RewardSum(functions, [1.0, 10.0, 100.0], on_bad="drop", on_bad_key="on_bad_reward")
    assert reward.names == ["gives", "length", "length_2"]
    found = reward(["p"] * 3, ["a", "a b", "a b c d"], {"value": [0.5, None, "x"]})
    assert found.parts == {
        "gives": [0.5, None, None],
        "length": [0.0, -1.0, -1.0],
        "length_2": [0.0, 0.0, -1.0],
    }
    assert found.values == [0.5, -10.0, -110.0]
    (problem,) = found.problems
    assert problem.index == 2 and problem.text.startswith("gives: sample 2 ('a b c d'): gave 'x'")
    reward.on_bad = "stop"
    with pytest.raises(RunError, match="on_bad_reward=drop"):
        reward(["p"], ["a"], {"value": ["x"]})
    for weights in ([1.0], [1.0, 1.0, float("nan")]):
        with pytest.raises(RecipeError, match="reward_weights"):
            RewardSum(functions, weights)


def test_close_ends_all() -> None:
    closed: list[str] = []

    def closing(name: str) -> Callable[[], None]:
        return lambda: closed.append(name)

    functions = [resolve("repetition"), resolve("think_format_reward")]
    for function in functions:
        function.close = closing(function.name)  # type: ignore[method-assign]
    RewardSum(functions).close()
    assert closed == ["repetition", "think_format_reward"]
