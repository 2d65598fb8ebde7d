"""A language model as the judge of two answers, asked twice with the answers' places swapped.

A win counts where both orders say so; anything else is a tie, because a judge that changes its mind
with the order has said nothing of the answers. A reply without a verdict in either order leaves the
comparison undecided, and is counted. Verdicts are kept in a file as they come, under a key of all
that was asked: a run that was killed goes on, and one with other answers asks for those alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import queue
import re
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from trimtab.errors import RunError
from trimtab.evaluation.chat_client import ChatClient
from trimtab.training import files

Verdict = Literal["A", "B", "C"]
"""The first answer, the second, or neither."""

SYSTEM = (
    "You compare two answers to the same request. Say which one serves the person better: whether "
    "it does what is asked, is right, and is clear. Neither the order in which they stand nor "
    "their length is a reason. Give your reasons in a few sentences, then end with a line that "
    "holds nothing but [[A]] if answer A is better, [[B]] if answer B is better, or [[C]] if they "
    "are equally good."
)
_VERDICT = re.compile(r"\[\[\s*([ABC])\s*\]\]")
_BARE = re.compile(r"\W*([ABC])\W*")


class Pair(NamedTuple):
    """A request and the two answers to it, as plain text."""

    request: str
    ours: str
    theirs: str


class Judged(NamedTuple):
    """What both orders said; ``first`` has the model's answer as A, ``second`` as B.

    None is a reply without a verdict. Equal answers tie without a question: both are "C", and
    ``asked`` is False.
    """

    first: Verdict | None
    second: Verdict | None
    asked: bool = True

    @property
    def outcome(self) -> float | None:
        """1, 0 or 1/2 for the model's answer, None where a reply had no verdict."""
        if self.first is None or self.second is None:
            return None
        return {("A", "B"): 1.0, ("B", "A"): 0.0}.get((self.first, self.second), 0.5)

    @property
    def agree(self) -> bool:
        """Whether both orders prefer the same answer, or none."""
        return (self.first, self.second) in (("A", "B"), ("B", "A"), ("C", "C"))


def messages(request: str, one: str, other: str) -> list[dict[str, str]]:
    """What the judge is asked."""
    said = (
        f"[Request]\n{request}\n[End of request]\n\n[Answer A]\n{one or '(no text)'}\n"
        f"[End of answer A]\n\n[Answer B]\n{other or '(no text)'}\n[End of answer B]"
    )
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": said}]


def read_verdict(reply: str) -> Verdict | None:
    """The last verdict in double brackets, or a reply that is one letter; None without any."""
    found = _VERDICT.findall(reply)
    if found:
        return found[-1]
    bare = _BARE.fullmatch(reply.strip())
    return bare.group(1) if bare else None  # type: ignore[return-value] - one of the three


class Verdicts:
    """The file of verdicts: a line each, appended as they come and on disk when ``add`` returns."""

    def __init__(self, path: Path, *, restart: bool = False) -> None:
        self.path = path
        self._guard = threading.Lock()
        self._known: dict[str, Verdict | None] = {}
        try:
            self._file = files.AppendFile(path)
            kept = 0
            content = b"" if restart else files.read_file(path)
            for line in content.splitlines(keepends=True):
                one = _parsed(line)
                if one is None:
                    break  # what a kill left of a line
                self._known[one[0]] = one[1]
                kept += len(line)
            self._file.truncate(kept)
        except OSError as error:
            raise RunError(f"{path}: cannot be written: {error.strerror or error}") from None

    def __contains__(self, key: str) -> bool:
        return key in self._known

    def __getitem__(self, key: str) -> Verdict | None:
        return self._known[key]

    def add(self, key: str, reply: str) -> None:
        """Keep what a reply says."""
        verdict = read_verdict(reply)
        line = json.dumps({"key": key, "verdict": verdict, "reply": reply})
        with self._guard:
            try:
                self._file.append(line.encode() + b"\n")
                self._file.sync()
            except OSError as error:
                raise RunError(
                    f"{self.path}: cannot be written: {error.strerror or error}"
                ) from error
            self._known[key] = verdict

    def close(self) -> None:
        """Close the file, which stays."""
        self._file.close()


def judge_pairs(
    client: ChatClient,
    pairs: Sequence[Pair],
    verdicts: Verdicts,
    *,
    parallel: int = 4,
    update: Callable[[int], None] = lambda done: None,
) -> list[Judged]:
    """The judge's opinion of every pair; ``update`` is told how many replies are there.

    RunError where the server fails for good: what was judged until then is in the file.
    """
    wanted: dict[str, list[dict[str, str]]] = {}
    keys: list[tuple[str, str] | None] = []
    for pair in pairs:
        if pair.ours == pair.theirs:
            keys.append(None)
            continue
        orders = (
            messages(pair.request, pair.ours, pair.theirs),
            messages(pair.request, pair.theirs, pair.ours),
        )
        both = (_key(client, orders[0]), _key(client, orders[1]))
        keys.append(both)
        wanted |= dict(zip(both, orders, strict=True))
    _ask(client, {k: asked for k, asked in wanted.items() if k not in verdicts}, verdicts,
         parallel, update, len(wanted))  # fmt: skip
    return [
        Judged("C", "C", asked=False)
        if both is None
        else Judged(verdicts[both[0]], verdicts[both[1]])
        for both in keys
    ]


def _ask(
    client: ChatClient,
    wanted: dict[str, list[dict[str, str]]],
    verdicts: Verdicts,
    parallel: int,
    update: Callable[[int], None],
    total: int,
) -> None:
    """Ask in threads that end with the process: Ctrl-C waits for no server."""
    left: queue.SimpleQueue[str] = queue.SimpleQueue()
    finished: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
    for key in wanted:
        left.put(key)
    stopped = threading.Event()

    def work() -> None:
        with contextlib.suppress(queue.Empty):
            while not stopped.is_set():
                key = left.get_nowait()
                try:
                    verdicts.add(key, client.complete(wanted[key]))
                    finished.put(None)
                except BaseException as error:
                    stopped.set()  # the others would fail alike
                    finished.put(error)

    for _ in range(min(parallel, len(wanted))):
        threading.Thread(target=work, daemon=True).start()
    update(total - len(wanted))
    try:
        for done in range(total - len(wanted) + 1, total + 1):
            failed = finished.get()
            if failed is not None:
                raise failed
            update(done)
    finally:
        stopped.set()


def _key(client: ChatClient, asked: Sequence[dict[str, str]]) -> str:
    told = json.dumps(
        [client.address, client.model, dict(client.options), list(asked)], sort_keys=True
    )
    return hashlib.sha256(told.encode()).hexdigest()[:32]


def _parsed(line: bytes) -> tuple[str, Verdict | None] | None:
    if not line.endswith(b"\n"):
        return None
    try:
        found: Any = json.loads(line)
        key, verdict = found["key"], found["verdict"]
    except (ValueError, KeyError, TypeError):
        return None
    return (key, verdict) if isinstance(key, str) and verdict in ("A", "B", "C", None) else None
