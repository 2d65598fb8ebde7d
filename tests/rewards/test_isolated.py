"""Reward functions in a process of their own: the same rewards, and what they are kept from."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from trimtab.errors import RecipeError, RunError
from trimtab.rewards import sandbox
from trimtab.rewards.functions import Outcome, call, resolve
from trimtab.rewards.isolated import IsolatedFunction
from trimtab.rewards.spec import SpecError, parse

# One function for all attempts: each process takes a while to start.
FILE = """
import os, signal, socket, subprocess, sys, tempfile, threading, time
print("printed while it loads")

def reads(path):
    with open(path) as file:
        return float(len(file.read()))

def fork():
    while True:
        os.fork()

def thread():
    found = []
    one = threading.Thread(target=lambda: found.append(2.0))
    one.start()
    one.join()
    return found[0]

def scratch(size):
    with tempfile.TemporaryDirectory() as folder:
        with open(folder + "/x", "wb") as file:
            file.write(bytes(size))
        os.rename(folder + "/x", folder + "/y")
        return reads(folder + "/y")

def spin():
    while True:
        try:
            pass
        except BaseException:
            pass

DO = {
    "read": reads,
    "write": lambda path: open(path, "w").write("x"),
    "append": lambda path: open(path, "a").write("x"),
    "remove": lambda path: os.unlink(path),
    "rename": lambda path: os.rename(path, path + "2"),
    "mode": lambda path: os.chmod(path, 0o777),
    "fork": lambda path: fork(),
    "spawn": lambda path: subprocess.run(["true"]),
    "connect": lambda path: socket.create_connection(("127.0.0.1", 9)),
    "local": lambda path: socket.socket(socket.AF_UNIX),
    "kill_parent": lambda path: os.kill(os.getppid(), signal.SIGKILL),
    "kill_self": lambda path: os.kill(os.getpid(), signal.SIGKILL),
    "stop_self": lambda path: os.kill(os.getpid(), signal.SIGSTOP),
    "exit": lambda path: os._exit(7),
    "memory": lambda path: len(bytearray(3 << 30)),
    "thread": lambda path: thread(),
    "spin": lambda path: spin(),
    "secret": lambda path: float("TRIMTAB_TEST_SECRET" in os.environ),
    "count": lambda path: counted(),
    "scratch": lambda path: scratch(5),
    "scratch_large": lambda path: scratch(2 << 20),
    "null": lambda path: open(os.devnull, "w").write("xy"),
    "print": lambda path: print("printed") or 1.0,
}
calls = 0

def counted():
    global calls
    calls += 1
    return calls

def attempt(prompts, completions, path=None):
    return [DO[one](path and path[0]) for one in completions]

def answers(prompts, completions, value, completion_ids=None, **columns):
    if completions[0] == "raise":
        raise ValueError(f"no {prompts[0]}")
    return list(value)[:-1] + [sum(map(len, completion_ids or [])) + len(columns)]

async def later(completions):
    return [3.0] * len(completions)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("functions")
    (root / "mine.py").write_text(FILE)
    (root / "data.txt").write_text("12345")
    (root.parent / "outside.txt").write_text("secret")
    return root


@pytest.fixture(scope="module")
def attempt(folder: Path) -> Iterator[IsolatedFunction]:
    """The function of all attempts, with less memory than is usual."""
    os.environ["TRIMTAB_TEST_SECRET"] = "1"
    function = IsolatedFunction(parse(f"{folder}/mine.py:attempt"), memory=2 << 30)
    yield function
    function.close()
    del os.environ["TRIMTAB_TEST_SECRET"]


def ask(function: Any, what: str, path: Any = None, limit: float = 20.0, **more: Any) -> Outcome:
    columns = {} if path is None else {"path": [str(path)]}
    return call(function, ["p"], [what], columns, limit, **more)


def guarded(function: IsolatedFunction, guard: str) -> None:
    if guard not in function.guards:
        pytest.skip(f"no guard of {guard} on this system")


# ---------------------------------------------------------------------- the same as in the process


def test_the_same_answers_as_in_the_process(folder: Path) -> None:
    """The slow twin is the function itself; conversations, columns and tokens go over as well."""
    spec = f"{folder}/mine.py:answers"
    local, isolated = resolve(spec), resolve(spec, isolate=True)
    assert (isolated.name, isolated.takes, isolated.digest) == (
        "answers",
        local.takes,
        local.digest,
    )

    def both(values: list[Any], first: str = "x") -> list[Outcome]:
        """``answers`` adds a value to those that it is given."""
        prompts = [[{"role": "user", "content": "é"}]] * len(values)
        completions: list[Any] = [[{"role": "assistant", "content": "x"}]] * len(values)
        completions[0] = first
        columns = {"value": values, "other": [{"a": [1, "ü\ud800"]}, None, 2, 3][: len(values)]}
        ids = [[1, 2]] * len(values)
        return [
            call(one, prompts, completions, columns, 20.0, completion_ids=ids, on_bad="drop")
            for one in (local, isolated)
        ]

    for values in ([1, 0.0, None, 5], [True, 2.5, float("nan"), 5], ["a", [1], 1e309, 5]):
        here, there = both(values)
        assert here == there
    assert (
        here.values[:3] == [None, None, None] and here.values[3] == 9.0
    )  # 2 tokens each, 1 column
    here, there = both([1.0, 2.0, 3.0, 4.0], first="raise")
    assert here == there and "ValueError: no [{'role'" in here.problems[0].text
    with pytest.raises(RecipeError, match="column 'value' holds a complex, which cannot be sent"):
        both([1j, 1.0])
    isolated.close()


def test_builtins_modules_and_async(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "some_module.py").write_text("def f(completions):\n    return [4.0]\n")
    monkeypatch.chdir(tmp_path)
    for spec, expected in (
        ("length(target=2)", -0.5),
        (f"{folder}/mine.py:later", 3.0),
        ("some_module:f", 4.0),
    ):
        function = resolve(spec, isolate=True)
        assert call(function, ["p"], ["word"], {}, 20.0).values == [expected]
        function.close()


def test_one_process_answers_all_calls(attempt: IsolatedFunction) -> None:
    first = ask(attempt, "count").values[0]
    assert ask(attempt, "count").values == [first + 1]
    assert ask(attempt, "print").values == [1.0]  # what it prints is no reply
    assert ask(attempt, "thread").values == [2.0]


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("nothing.py:f", "nothing.py: no such file"),
        ("mine.py:nothing", "no function 'nothing'"),
        ("mine.py:spin", "it takes nothing, and so no completions"),
        ("ends.py:f", "importing it failed: its process ended itself with code 5"),
        ("lenght(target=3)", "Did you mean length"),
    ],
)
def test_loading_fails_in_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, spec: str, expected: str
) -> None:
    (folder / "ends.py").write_text("import os\nos._exit(5)\n")
    monkeypatch.chdir(folder)
    with pytest.raises(RecipeError, match=expected) as error:
        resolve(spec, isolate=True)
    assert "\n" not in str(error.value)


def test_loading_that_hangs(folder: Path) -> None:
    (folder / "slow.py").write_text("import time\ntime.sleep(1000)\n")
    with pytest.raises(SpecError, match="importing it took more than 3 s"):
        IsolatedFunction(parse(f"{folder}/slow.py:f"), loading=3.0)


# ---------------------------------------------------------------------- its time and its end


@pytest.mark.parametrize("what", ["spin", "stop_self"])
def test_a_hang_is_ended_and_the_next_call_goes_on(attempt: IsolatedFunction, what: str) -> None:
    """Even one that catches everything, or stopped itself: no signal in the process could."""
    with pytest.raises(RunError, match=r"no answer within 0.3 s"):
        ask(attempt, what, limit=0.3)
    assert ask(attempt, "thread").values == [2.0]
    outcome = ask(attempt, what, limit=0.3, on_bad="drop")
    assert (outcome.values, outcome.problems[0].reason) == ([None], "took too long")


@pytest.mark.parametrize(
    ("what", "expected"),
    [("exit", "its process ended itself with code 7"), ("kill_self", "was ended by SIGKILL")],
)
def test_an_end_is_named(attempt: IsolatedFunction, what: str, expected: str) -> None:
    with pytest.raises(RunError, match=expected):
        ask(attempt, what)
    assert ask(attempt, what, on_bad="drop").values == [None]
    assert ask(attempt, "thread").values == [2.0]


def test_closing_ends_the_process(folder: Path) -> None:
    function = IsolatedFunction(parse(f"{folder}/mine.py:later"))
    process = function._process
    assert process is not None and process.poll() is None
    scratch = Path(tempfile.gettempdir())
    before = set(scratch.glob("trimtab-reward-*"))
    function.close()
    function.close()
    assert process.poll() is not None
    assert len(before - set(scratch.glob("trimtab-reward-*"))) == 1  # its folder


# ---------------------------------------------------------------------- what it is kept from


def test_the_environment_has_no_secrets(attempt: IsolatedFunction) -> None:
    assert ask(attempt, "secret").values == [0.0]


def test_memory(attempt: IsolatedFunction) -> None:
    guarded(attempt, "memory")
    with pytest.raises(RunError, match="MemoryError"):
        ask(attempt, "memory")


def test_files_are_not_read(attempt: IsolatedFunction, folder: Path) -> None:
    guarded(attempt, "reads")
    assert ask(attempt, "read", folder / "data.txt").values == [5.0]  # its own folder
    for path in (folder.parent / "outside.txt", "/etc/passwd", Path(__file__)):
        with pytest.raises(RunError, match="PermissionError"):
            ask(attempt, "read", path)


@pytest.mark.parametrize("what", ["write", "append", "remove", "rename", "mode"])
def test_files_are_not_changed(attempt: IsolatedFunction, folder: Path, what: str) -> None:
    guarded(attempt, "writes")
    path = folder / "data.txt"
    before = path.stat().st_mode
    with pytest.raises(RunError, match="PermissionError"):
        ask(attempt, what, path)
    assert path.read_text() == "12345" and path.stat().st_mode == before
    assert ask(attempt, "null").values == [2.0]


def test_a_scratch_folder_for_small_files(attempt: IsolatedFunction) -> None:
    assert ask(attempt, "scratch").values == [5.0]
    with pytest.raises(RunError, match=r"OSError: .*too large"):
        ask(attempt, "scratch_large")


@pytest.mark.parametrize("what", ["fork", "spawn", "kill_parent"])
def test_no_other_processes(attempt: IsolatedFunction, what: str) -> None:
    """A fork bomb is refused at its first fork, and this process cannot be killed."""
    guarded(attempt, "processes")
    with pytest.raises(RunError, match="PermissionError"):
        ask(attempt, what)


@pytest.mark.parametrize("what", ["connect", "local"])
def test_no_network(attempt: IsolatedFunction, what: str) -> None:
    guarded(attempt, "network")
    with pytest.raises(RunError, match="PermissionError"):
        ask(attempt, what)


def test_it_says_what_is_not_guarded(attempt: IsolatedFunction) -> None:
    lacking = set(sandbox.GUARDS) - set(attempt.guards)
    assert all(guard in attempt.notice for guard in lacking)
    had = attempt.guards
    attempt.guards = ("memory", "writes")
    assert "sets no bounds to its reads, processes, network; run code that" in attempt.notice
    attempt.guards = had


# ---------------------------------------------------------------------- the filter, as a program


def decide(machine: str, call_number: int, first: int = 0, audit: int | None = None) -> int:
    """Run the filter as the kernel does; returns what it returns."""
    program = sandbox.filter_program(machine, pid=77)
    audit = sandbox._MACHINES[machine] if audit is None else audit
    data = {0: call_number, 4: audit, 16: first & 0xFFFFFFFF}
    place = accumulator = 0
    while True:
        code, true, false, k = program[place]
        place += 1
        if code == 0x20:
            accumulator = data[k]
        elif code == 0x06:
            return k
        else:
            taken = {0x15: accumulator == k, 0x35: accumulator >= k, 0x45: bool(accumulator & k)}
            place += true if taken[code] else false


@pytest.mark.parametrize("machine", list(sandbox._MACHINES))
def test_the_filter_of_each_machine(machine: str) -> None:
    allow, refuse, missing = 0x7FFF0000, 0x00050001, 0x00050026
    column = list(sandbox._MACHINES).index(machine)
    numbers = {name: both[column] for name, both in sandbox._CALLS.items() if both[column]}
    assert len(sandbox.filter_program(machine, 1)) < 256  # jumps are bytes
    for name, number in numbers.items():
        expected = missing if name == "clone3" else refuse
        assert decide(machine, number) == (allow if name == "prlimit64" else expected), name
    assert decide(machine, numbers["clone"], 0x00010000 | 0x100) == allow  # a thread
    assert decide(machine, numbers["clone"], 0x4100 | 17) == refuse  # vfork, fork
    for name in ("kill", "tgkill"):
        assert decide(machine, numbers[name], 77) == allow
        assert decide(machine, numbers[name], -1) == refuse
    assert decide(machine, numbers["prlimit64"], 5) == refuse
    everyday = {"x86_64": (0, 1, 3, 9, 202, 257), "aarch64": (56, 57, 63, 64, 98, 222)}
    assert all(decide(machine, number) == allow for number in everyday[machine])
    assert decide(machine, 0, audit=0x40000003) == refuse  # calls of 32-bit programs
    if machine == "x86_64":
        assert decide(machine, 0x40000000 | 39) == refuse
