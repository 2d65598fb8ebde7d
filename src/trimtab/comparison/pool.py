"""Cells in parallel: so many processes, one thread each, that die with the one that started them.

The parent hands out one cell at a time and is told how it ended. Ctrl-C reaches the parent alone
(workers have a process group of their own), which passes it on once: a training run then ends its
step, saves and stops.
"""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

from trimtab.comparison.cells import Cell, Plan
from trimtab.errors import TrimtabError

STOPPED = "stopped"  # what a cell that Ctrl-C ended says


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a cell ended: ``failed`` says why it did, ``seconds`` is its time on the clock."""

    cell: Cell
    seconds: float
    failed: str | None = None


def run_cells(
    plan: Plan, cells: Sequence[Cell], jobs: int, told: Callable[[Outcome], None]
) -> bool:
    """Do all cells; ``told`` hears of each as it ends. False where Ctrl-C stopped it.

    Seed by seed: what is there when it is stopped is then whole for the first ones. The longest of
    a seed first, so that no long one is left for the end.
    """
    seeds = plan.recipe.seeds
    order = sorted(cells, key=lambda cell: (seeds.index(cell.seed), -cell.cost))
    if jobs == 1 or len(order) <= 1:
        return _here(plan, order, told)
    return _Pool(plan, order, min(jobs, len(order)), told).run()


def _here(plan: Plan, cells: Sequence[Cell], told: Callable[[Outcome], None]) -> bool:
    worker = _Worker(plan)
    with _terminates():
        for cell in cells:
            began = time.perf_counter()
            try:
                failed = worker.do(cell)
            except KeyboardInterrupt:
                return False
            told(Outcome(cell, time.perf_counter() - began, failed))
    return True


class _Worker:
    """Does cells in this process; models of the examination are loaded with the first one."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._examiner: Any = None

    def do(self, cell: Cell) -> str | None:
        """Why a cell failed, None where it did not."""
        import torch

        from trimtab.comparison import work
        from trimtab.comparison.examine import Examiner

        torch.set_num_threads(1)
        try:
            if self._examiner is None:
                self._examiner = Examiner(self.plan.recipe)
            work.do(self.plan, cell, self._examiner)
        except TrimtabError as error:
            return " ".join(str(error).split())
        except Exception:
            return f"a bug of trimtab: {traceback.format_exc()}"
        return None


@contextlib.contextmanager
def _terminates() -> Iterator[None]:
    """SIGTERM is Ctrl-C here, and so is Ctrl-C in a shell's background."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    old = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


# ---------------------------------------------------------------------- processes


def _work(plan: Plan, link: Connection) -> None:
    """The life of a worker: take a cell, do it, say how it went."""
    os.environ["OMP_NUM_THREADS"] = "1"
    if hasattr(os, "setsid"):
        with contextlib.suppress(OSError):
            os.setsid()
    threading.Thread(target=_die_with_parent, daemon=True).start()
    worker = _Worker(plan)
    try:
        with _terminates():
            while True:
                cell = link.recv()
                if cell is None:
                    return
                link.send(worker.do(cell))
    except (KeyboardInterrupt, EOFError, OSError):
        with contextlib.suppress(OSError):
            link.send(STOPPED)


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


@dataclasses.dataclass
class _Hand:
    """A worker as the parent sees it: what it does, and since when."""

    process: Any
    link: Connection
    cell: Cell | None = None
    since: float = 0.0


class _Pool:
    def __init__(
        self, plan: Plan, cells: Sequence[Cell], jobs: int, told: Callable[[Outcome], None]
    ) -> None:
        self.plan = plan
        self.todo = list(reversed(cells))
        self.jobs = jobs
        self.told = told
        # Not fork: torch's threads and an accelerator's context do not survive it.
        self.context = multiprocessing.get_context("spawn")
        self.hands: list[_Hand] = []

    def run(self) -> bool:
        try:
            with _terminates():
                for _ in range(self.jobs):
                    self._hire()
                while any(hand.cell is not None for hand in self.hands):
                    self._listen()
        except KeyboardInterrupt:
            self._stop()
            return False
        finally:
            for hand in self.hands:
                with contextlib.suppress(OSError):
                    hand.link.send(None)
            for hand in self.hands:
                hand.process.join(10)
        return True

    def _hire(self) -> None:
        """Start a worker and give it a cell, while there are any."""
        if not self.todo:
            return
        ours, theirs = self.context.Pipe()
        process = self.context.Process(target=_work, args=(self.plan, theirs))
        process.start()
        theirs.close()
        hand = _Hand(process, ours)
        self.hands.append(hand)
        self._give(hand)

    def _give(self, hand: _Hand) -> None:
        hand.cell = self.todo.pop() if self.todo else None
        hand.since = time.perf_counter()
        if hand.cell is not None:
            hand.link.send(hand.cell)

    def _listen(self) -> None:
        """Wait until a worker has something to say, or is no more."""
        busy = {hand.link: hand for hand in self.hands if hand.cell is not None}
        for link in wait(list(busy)):
            assert isinstance(link, Connection)
            hand = busy[link]
            assert hand.cell is not None
            seconds = time.perf_counter() - hand.since
            try:
                failed = link.recv()
            except (EOFError, OSError):
                hand.process.join(5)
                cell, hand.cell = hand.cell, None
                self.hands.remove(hand)
                code = hand.process.exitcode
                self.told(Outcome(cell, seconds, f"its process died (exit code {code})"))
                self._hire()
                continue
            if failed == STOPPED:
                raise KeyboardInterrupt
            self.told(Outcome(hand.cell, seconds, failed))
            self._give(hand)

    def _stop(self) -> None:
        """Have every worker save and stop; a second Ctrl-C ends them at once."""
        for hand in self.hands:
            _interrupt(hand.process)
        try:
            for hand in self.hands:
                hand.process.join(120)
        except KeyboardInterrupt:
            pass
        for hand in self.hands:
            if hand.process.is_alive():
                hand.process.kill()


def _interrupt(process: Any) -> None:
    with contextlib.suppress(OSError, ProcessLookupError):
        if process.is_alive():
            os.kill(process.pid, signal.SIGINT)
