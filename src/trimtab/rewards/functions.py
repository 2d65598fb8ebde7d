"""Reward functions of TRL's protocol: found by name, called with a time limit, their answers read.

    f(prompts, completions, **columns) -> list[float | None]

All arguments are given by name, one entry a sample: ``prompts`` and ``completions`` are strings, or
lists of messages where the rows are conversations; ``completion_ids`` are given where they are
known and the function asks for them; ``columns`` are the other columns of the rows, those that the
function names, or all with ``**columns``. Plain functions and ``async`` ones will do.

An answer is a number, or None for a sample that the function has nothing to say of. Anything else
(NaN, infinity, a text, a list of the wrong length, an exception, no answer in time) is a problem:
it stops the run, or the sample is left out, as the caller says. It never becomes 0.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
import numbers
import signal
import threading
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from trimtab.data.trees import Origin
from trimtab.errors import RecipeError, RunError
from trimtab.rewards import spec as specs
from trimtab.rewards.builtin import text_of
from trimtab.rewards.spec import OWN, Loaded, Spec, SpecError, Takes

OnBad = Literal["stop", "drop"]

_SHOWN = 40  # characters of a completion in a message


@dataclasses.dataclass(frozen=True)
class Bad:
    """An answer that is no number, in words."""

    found: str


Answer = float | None | Bad


class CallFailed(Exception):
    """A call that gave no list of answers; ``reason`` is one of few phrases, the text one line."""

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason


class Problem(NamedTuple):
    """What was wrong with sample ``index``, or with a whole call (None)."""

    index: int | None
    reason: str
    text: str


class Outcome(NamedTuple):
    """Rewards of the samples, None where there is none, and what was left out for what reason."""

    values: list[float | None]
    problems: list[Problem]


class RewardFunction:
    """A reward function that was found; ``close`` it when it is no longer needed.

    name    as metrics call it            spec     as the user wrote it
    takes   what it takes by name         one_of   columns of which the rows must have one
    digest  SHA-256 of the file that it stands in: other code, other rewards
    """

    def __init__(self, spec: Spec, name: str, takes: Takes, one_of: Sequence[str], digest: str):
        self.spec = spec.text
        self.options = dict(spec.options)
        self.name = name
        self.takes = takes
        self.one_of = tuple(one_of)
        self.digest = digest

    def run(self, keywords: dict[str, Any], count: int, time_limit: float | None) -> list[Answer]:
        """The answers to ``count`` samples; CallFailed where there are none."""
        raise NotImplementedError

    def close(self) -> None:
        """Let go of what it holds; closing twice is nothing."""


class LocalFunction(RewardFunction):
    """A function in this process."""

    def __init__(self, spec: Spec, loaded: Loaded) -> None:
        super().__init__(spec, loaded.name, loaded.takes, loaded.one_of, loaded.digest)
        self._function = loaded.function
        self._own_options = {} if spec.kind == "builtin" else self.options  # those are made in

    def run(self, keywords: dict[str, Any], count: int, time_limit: float | None) -> list[Answer]:
        """As above; past ``time_limit`` seconds the call is interrupted as ``within`` can."""
        function = self._function

        def answer() -> Any:
            found = function(**keywords, **self._own_options)
            return _awaited(found) if inspect.isawaitable(found) else found

        try:
            return read_answers(within(time_limit, answer), count)
        except TimeUp:
            raise CallFailed("took too long", f"no answer within {time_limit:g} s") from None
        except (CallFailed, KeyboardInterrupt):
            raise
        except (Exception, SystemExit) as error:
            told = specs.failure(error, _file_of(function))
            raise CallFailed("raised an exception", f"raised {told}") from error


def resolve(text: str, *, key: str = "reward_funcs", isolate: bool = False) -> RewardFunction:
    """The function that ``text`` names; ``isolate`` runs it in a process of its own (isolated.py).

    Raises RecipeError, one line that begins with ``key``: no such built-in, file, module or
    function; a file that cannot be run (with its line); a signature that cannot be called.
    """
    try:
        spec = specs.parse(text)
        if isolate:
            from trimtab.rewards.isolated import IsolatedFunction

            return IsolatedFunction(spec)
        return LocalFunction(spec, specs.load(spec))
    except SpecError as error:
        raise RecipeError(f"{key}={text!r}: {error}") from None


def check_columns(
    function: RewardFunction, names: Collection[str], *, ids: bool, key: str = "reward_funcs"
) -> None:
    """RecipeError where rows with columns ``names`` cannot be given to ``function``.

    ``ids`` says whether the tokens of completions are known.
    """
    there = {*names, "prompts", "completions"} | ({"completion_ids"} if ids else set())
    told = f"the rows' other columns are {', '.join(sorted(names))}" if names else "there are none"
    lacking = [name for name in function.takes.required if name not in there]
    if "completion_ids" in lacking:
        raise RecipeError(
            f"{key}={function.spec!r}: it asks for completion_ids, and only sampled responses have "
            "tokens; give the parameter a default"
        )
    if lacking:
        raise RecipeError(f"{key}={function.spec!r}: it asks for column {lacking[0]!r}; {told}")
    if function.one_of and not there & set(function.one_of):
        wanted = " or ".join(map(repr, function.one_of))
        raise RecipeError(f"{key}={function.spec!r}: it needs column {wanted}; {told}")


def call(
    function: RewardFunction,
    prompts: Sequence[Any],
    completions: Sequence[Any],
    columns: Mapping[str, Sequence[Any]],
    time_limit: float | None = None,
    *,
    completion_ids: Sequence[Sequence[int]] | None = None,
    origins: Sequence[Origin] | None = None,
    on_bad: OnBad = "stop",
    on_bad_key: str = "on_bad",
) -> Outcome:
    """Rewards of the samples: N prompts, completions, and values of each column.

    ``time_limit`` is in seconds for the whole call, None without one. ``origins`` name the rows in
    messages. With ``on_bad="drop"`` what is wrong with a sample leaves that sample without a
    reward (None), and a call that fails all of its samples.

    Raises RecipeError where the rows lack a column that the function asks for, and with
    ``on_bad="stop"`` RunError for the first problem: it names function, row, completion, value.
    """
    count = len(completions)
    if count == 0:
        return Outcome([], [])
    assert len(prompts) == count and all(len(column) == count for column in columns.values())
    check_columns(function, columns.keys(), ids=completion_ids is not None)
    keywords = _keywords(function, prompts, completions, columns, completion_ids)

    def sample(index: int) -> str:
        return shown(completions[index], origins[index] if origins else index)

    try:
        answers = function.run(keywords, count, time_limit)
    except CallFailed as failed:
        where = sample(0) if count == 1 else f"{count} samples from {sample(0)} on"
        problem = Problem(None, failed.reason, f"{where}: {failed}")
        if on_bad == "stop":
            raise _stopped(function, [problem], on_bad_key) from failed.__cause__
        return Outcome([None] * count, [problem])
    problems = [
        Problem(index, "gave no number", f"{sample(index)}: gave {answer.found}, not a number")
        for index, answer in enumerate(answers)
        if isinstance(answer, Bad)
    ]
    if problems and on_bad == "stop":
        raise _stopped(function, problems, on_bad_key)
    return Outcome([None if isinstance(a, Bad) else a for a in answers], problems)


def shown(completion: Any, place: Origin | int) -> str:
    """A sample for messages: its row (or number) and how the completion begins."""
    begun = " ".join(text_of(completion).split())
    begun = begun[:_SHOWN] + ("..." if len(begun) > _SHOWN else "")
    where = f"sample {place}" if isinstance(place, int) else f"{place.source}:{place.row}"
    return f"{where} ({begun!r})"


def columns_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """The columns of samples that are given row by row: None where a row has none."""
    names = list(dict.fromkeys(name for row in rows for name in row if name not in OWN))
    return {name: [row.get(name) for row in rows] for name in names}


def _stopped(function: RewardFunction, problems: Sequence[Problem], key: str) -> RunError:
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return RunError(
        f"reward function {function.spec}: {problems[0].text}{more}; mend it, or leave such "
        f"samples out with {key}=drop"
    )


def _keywords(
    function: RewardFunction,
    prompts: Sequence[Any],
    completions: Sequence[Any],
    columns: Mapping[str, Sequence[Any]],
    completion_ids: Sequence[Sequence[int]] | None,
) -> dict[str, Any]:
    """What the function is given, in lists of its own; options win over columns of their name."""
    every: dict[str, Sequence[Any]] = dict(columns)
    for name in (*OWN, *function.options):
        every.pop(name, None)
    every |= {"prompts": prompts, "completions": completions}
    if completion_ids is not None:
        every["completion_ids"] = completion_ids
    takes = function.takes
    return {
        name: list(values)
        for name, values in every.items()
        if takes.anything or name in takes.names
    }


# ---------------------------------------------------------------------- answers


def read_answers(result: Any, count: int) -> list[Answer]:
    """What a function returned, entry by entry: lists, tuples, arrays and tensors will do."""
    if hasattr(result, "tolist"):  # numpy, torch
        result = result.tolist()
    if isinstance(result, (str, bytes)) or not isinstance(result, Sequence):
        raise CallFailed("gave no list", f"gave {_shown(result)}, not a list of {count} numbers")
    if len(result) != count:
        raise CallFailed(
            "gave a list of the wrong length", f"gave {len(result)} values for {count} samples"
        )
    return [_answer(value) for value in result]


def _answer(value: Any) -> Answer:
    if value is None:
        return None
    if hasattr(value, "item") and not isinstance(value, numbers.Real):
        try:
            value = value.item()
        except (ValueError, RuntimeError, TypeError):
            return Bad(_shown(value))
    if not isinstance(value, numbers.Real):
        return Bad(_shown(value))
    try:
        number = float(value)
    except (OverflowError, ValueError):
        return Bad(_shown(value))
    return number if math.isfinite(number) else Bad(_shown(number))


def _shown(value: Any) -> str:
    """A value for people, on one line."""
    if value is None or isinstance(value, (bool, float)):
        return str(value)
    try:
        told = " ".join(repr(value).split())
    except Exception:
        told = "a value"
    told = told[:60] + ("..." if len(told) > 60 else "")
    return told if isinstance(value, (str, int)) else f"{told} ({type(value).__name__})"


def _awaited(found: Awaitable[Any]) -> Any:
    import asyncio  # a tenth of a second of an isolated function's start

    async def wait() -> Any:
        return await found

    return asyncio.run(wait())


def _file_of(function: Callable[..., Any]) -> str | None:
    """The file of a function, or of the __call__ of an object."""
    for one in (inspect.unwrap(getattr(function, "func", function)), function.__call__):
        code = getattr(one, "__code__", None)
        if code is not None:
            return code.co_filename
    return None


# ---------------------------------------------------------------------- time limits


class TimeUp(BaseException):
    """The time is up. No Exception: a function that catches those is to be ended all the same."""


def within(seconds: float | None, work: Callable[[], Any]) -> Any:
    """What ``work`` returns; TimeUp where it takes longer than ``seconds``.

    Best effort. In the main thread a timer's signal interrupts Python code, sleeping and regular
    expressions, but no other C code that never comes back, and no function that catches
    everything. In other threads, and on Windows, the work goes on in a thread of its own that is
    left behind. An isolated function (``isolated.py``) is always ended.
    """
    if seconds is None:
        return work()
    main = threading.current_thread() is threading.main_thread()
    return (_by_alarm if main and hasattr(signal, "setitimer") else _by_thread)(seconds, work)


def _by_alarm(seconds: float, work: Callable[[], Any]) -> Any:
    def ring(*_: object) -> None:
        raise TimeUp

    begun = time.monotonic()
    before = signal.signal(signal.SIGALRM, ring)
    left, interval = signal.getitimer(signal.ITIMER_REAL)
    try:
        try:
            signal.setitimer(signal.ITIMER_REAL, seconds)
            return work()
        finally:  # where it can still ring: what has to be done then stands outside
            signal.setitimer(signal.ITIMER_REAL, 0)
    finally:
        signal.signal(signal.SIGALRM, before)
        if left:  # somebody else's alarm goes on
            past = time.monotonic() - begun
            signal.setitimer(signal.ITIMER_REAL, max(left - past, 1e-3), interval)


def _by_thread(seconds: float, work: Callable[[], Any]) -> Any:
    found: list[Any] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            found.append(work())
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise TimeUp
    if failed:
        raise failed[0]
    return found[0]
