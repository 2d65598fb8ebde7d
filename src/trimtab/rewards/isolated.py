"""Reward functions in a process of their own: ended when their time is up, confined while it runs.

The process is started once, loads the function and answers one call after another by JSON over
pipes; nothing is pickled, and nothing of this process is shared but the standard error stream. It
gets no secrets of the environment. After a call that took too long, or ended it, the next call
starts another one. What confines it is told in ``sandbox.py``; ``guards`` says what is in force.
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import weakref
from pathlib import Path
from typing import Any

import trimtab
from trimtab.errors import RecipeError
from trimtab.rewards.functions import Answer, CallFailed, RewardFunction, TimeUp
from trimtab.rewards.sandbox import GUARDS
from trimtab.rewards.spec import Spec, SpecError, Takes
from trimtab.rewards.worker import read_answer, read_frame, write_frame

MEMORY = 4 << 30
"""Bytes of address space that a function's process may have by default."""

_LOADING = 120.0  # seconds that importing a function may take
_KEPT = (
    *("PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "PYTHONPATH", "PYTHONHASHSEED", "VIRTUAL_ENV"),
    *("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT"),
)


class IsolatedFunction(RewardFunction):
    """A reward function in another process; raises SpecError where it cannot be loaded there."""

    def __init__(self, spec: Spec, *, memory: int = MEMORY, loading: float = _LOADING) -> None:
        self._memory = memory
        self._loading = loading
        self._process: subprocess.Popen[bytes] | None = None
        super().__init__(spec, spec.name, Takes(frozenset(), (), True), (), "")
        told = self._start()
        self.name = told["name"]
        self.takes = Takes(frozenset(told["names"]), tuple(told["required"]), told["anything"])
        self.one_of = tuple(told["one_of"])
        self.digest = told["digest"]
        self.guards = tuple(told["guards"])

    @property
    def notice(self) -> str:
        """One line that says what this machine does not keep the function from."""
        lacking = [guard for guard in GUARDS if guard not in self.guards]
        if not lacking:
            return f"{self.spec}: isolated (time, {', '.join(GUARDS)})"
        return (
            f"{self.spec}: isolated, but this system sets no bounds to its {', '.join(lacking)}; "
            "run code that you do not trust in a container"
        )

    def run(self, keywords: dict[str, Any], count: int, time_limit: float | None) -> list[Answer]:
        """As ``RewardFunction.run``; past ``time_limit`` seconds the process is ended."""
        self._require_json(keywords)
        if self._process is None:
            try:
                self._start()
            except SpecError as error:
                raise CallFailed("could not be loaded again", str(error)) from None
        # Twice the time: threads may share it; the wall clock comes first for all but runaways.
        cpu = None if time_limit is None else math.ceil(2 * time_limit)
        order = {"call": {"keywords": keywords, "count": count, "cpu": cpu}}
        try:
            reply = self._exchange(order, time_limit, 65536 + 512 * count)
        except TimeUp:
            raise CallFailed("took too long", f"no answer within {time_limit:g} s") from None
        except _Ended as error:
            raise CallFailed("ended its process", str(error)) from None
        if "failed" in reply:
            reason, text = reply["failed"]
            raise CallFailed(str(reason), str(text))
        answers = reply.get("answers")
        if not isinstance(answers, list) or len(answers) != count:
            self.close()
            raise CallFailed("ended its process", "its process gave an unreadable reply")
        return [read_answer(value) for value in answers]

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._finalizer()
            self._process = None

    # ------------------------------------------------------------------ the process

    def _start(self) -> dict[str, Any]:
        kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
        package = str(Path(trimtab.__file__).resolve().parents[1])
        path = [package, *filter(None, [kept.get("PYTHONPATH")])]
        scratch = tempfile.mkdtemp(prefix="trimtab-reward-")  # libraries want one
        fixed = {
            **dict.fromkeys(("HOME", "TMPDIR", "TEMP", "TMP"), scratch),
            "PYTHONPATH": os.pathsep.join(path),
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONIOENCODING": "utf-8",
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
        }
        # -P: the working directory is not searched, unless the function is there (spec.py).
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "trimtab.rewards.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=kept | fixed,
            start_new_session=True,  # its children, if it has any, are ended with it
        )
        self._finalizer = weakref.finalize(self, _end, self._process, scratch)
        try:
            order = {"load": {"spec": self.spec, "scratch": scratch, "memory": self._memory}}
            reply = self._exchange(order, self._loading, 1 << 20)
        except TimeUp:
            raise SpecError(f"importing it took more than {self._loading:g} s") from None
        except _Ended as error:
            raise SpecError(f"importing it failed: {error}") from None
        if "loaded" not in reply:
            self.close()
            raise SpecError(str(reply.get("error", "its process gave an unreadable reply")))
        return reply["loaded"]

    def _exchange(self, order: Any, limit: float | None, most: int) -> dict[str, Any]:
        """Send a frame, await the reply; TimeUp or _Ended, and then there is no process any more.

        In a thread: a process that does not read would block the writing, too.
        """
        process = self._process
        assert process is not None and process.stdin is not None and process.stdout is not None
        frames_in, frames_out = process.stdin, process.stdout
        found: list[Any] = []

        def talk() -> None:
            with contextlib.suppress(OSError, ValueError):
                write_frame(frames_in, order)
                found.append(read_frame(frames_out, most))

        thread = threading.Thread(target=talk, daemon=True)
        try:
            thread.start()
            thread.join(limit)
            late = thread.is_alive()
        except BaseException:  # Ctrl-C
            self.close()
            raise
        if found and isinstance(found[0], dict):
            return found[0]
        if not late:  # the pipe is closed: why?
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(5)
        code = process.poll()
        self.close()
        if late:
            raise TimeUp
        raise _Ended(_why(code))

    def _require_json(self, keywords: dict[str, Any]) -> None:
        for name, values in keywords.items():
            for value in values:
                strange = _not_json(value)
                if strange is not None:
                    raise RecipeError(
                        f"reward function {self.spec}: column {name!r} holds a {strange}, which "
                        "cannot be sent to another process; run it without isolation, or let it "
                        "take other columns"
                    )


class _Ended(Exception):
    """The process is gone; the text says how."""


def _end(process: subprocess.Popen[bytes], scratch: str) -> None:
    """Kill the process and its group, and clear away what is left of it."""
    with contextlib.suppress(OSError):
        if hasattr(os, "killpg") and process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(OSError):
        process.kill()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(5)
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with contextlib.suppress(OSError, ValueError):
                stream.close()
    shutil.rmtree(scratch, ignore_errors=True)


def _why(code: int | None) -> str:
    if code is None:
        return "its process closed its pipe"
    if code >= 0:
        return f"its process ended itself with code {code}"
    if -code == getattr(signal, "SIGXCPU", 0):
        return "its process used up its processor time"
    with contextlib.suppress(ValueError):
        return f"its process was ended by {signal.Signals(-code).name}"
    return f"its process was ended by signal {-code}"


def _not_json(value: Any) -> str | None:
    """The type that JSON does not know, in a value or below it."""
    if value is None or isinstance(value, (str, int, float, bool)):
        return None
    if isinstance(value, (list, tuple)):
        return next((found for one in value if (found := _not_json(one))), None)
    if isinstance(value, dict):
        inside = [*value.values(), *(key for key in value if not isinstance(key, str))]
        if any(not isinstance(key, str) for key in value):
            return "dict with keys that are no texts"
        return next((found for one in inside if (found := _not_json(one))), None)
    return type(value).__name__
