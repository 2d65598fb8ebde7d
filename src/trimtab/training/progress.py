"""Progress for people: a live panel on a terminal, plain lines elsewhere, JSON lines for programs.

    mode    where                               what
    rich    a terminal                          one panel that moves: step, bar, ETA, key metrics
    plain   pipes, files, CI, TQDM_DISABLE=1    a line a log step, and one when it has been quiet
    json    asked for                           an object a line on stdout: {"event": "log", ...}
    quiet   asked for                           nothing

People's lines go to stderr: stdout stays free for results. NO_COLOR takes the colours.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Literal, TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

Mode = Literal["auto", "rich", "plain", "json", "quiet"]

_SHORT = {  # metric -> what stands in a line; the first ones found are shown, in this order
    "loss": "loss",
    "perplexity": "ppl",
    "reward": "reward",
    "objective/rlhf_reward": "rlhf reward",
    "objective/kl": "KL(ref)",
    "kl": "kl",
    "rewards/accuracies": "acc",
    "accuracy": "acc",
    "rewards/margins": "margin",
    "margin": "margin",
    "mean_token_accuracy": "token acc",
    "grad_norm": "grad",
    "learning_rate": "lr",
    "time/tokens_per_second": "tok/s",
}
_MOST = 6
_QUIET_SECONDS = 5.0  # how long a plain log may say nothing, in the first minute
_LATER_SECONDS = 30.0  # and after it: a log of hours should stay readable


class Progress:
    """Shows how a run is going; use as a context manager, or ``close`` it.

    ``update`` after every step, ``log`` with every metrics record, ``stage`` before a stretch of
    work that is not training steps (its ``update``s count its own units until the next ``stage``
    or ``train``), ``note`` for a line that stays.
    """

    def __init__(
        self,
        total_steps: int,
        verb: str,
        console: Console | None = None,
        mode: Mode = "auto",
        *,
        first_step: int = 0,
        out: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``first_step``: where a resumed run begins; ``out``: where JSON lines go (stdout)."""
        self.console = console or Console(stderr=True, highlight=False)
        self.mode: Mode = choose_mode(self.console) if mode == "auto" else mode
        self.verb = verb
        self._total_steps = total_steps
        self._clock = clock
        self._out = out
        self._guard = threading.RLock()  # what is shown, against the threads that show it
        self._start = clock()
        self._spoke = self._start
        self._record: dict[str, Any] = {}
        self._begin(verb, total_steps, first_step)
        self._live: Live | None = None
        self._stop = threading.Event()
        if self.mode == "rich":
            self._live = Live(
                get_renderable=self._panel, console=self.console, refresh_per_second=4
            )
            self._live.start()
        elif self.mode == "plain":
            threading.Thread(target=self._break_silence, daemon=True).start()

    # ------------------------------------------------------------------ what a run says

    def note(self, text: str) -> None:
        """A line that stays."""
        if self.mode == "json":
            self._emit({"event": "note", "text": text})
        else:
            self._line(text)

    def stage(self, title: str, total: int | None = None) -> None:
        """Work other than training steps begins; ``total`` counts what its updates count."""
        with self._guard:
            self._begin(title, total, 0)
        if self.mode == "json":
            self._emit({"event": "stage", "title": title, "total": total})
        else:
            self._line(f"{title} ...")

    def train(self, step: int = 0, total_steps: int | None = None) -> None:
        """Training steps begin, or go on after a ``stage``, with ``step`` of them done.

        ``total_steps`` replaces the number given at construction: a run that is still reading its
        rows does not know it yet.
        """
        with self._guard:
            if total_steps is not None:
                self._total_steps = total_steps
            self._begin(self.verb, self._total_steps, step)

    def update(self, step: int) -> None:
        """``step`` steps (or units of the stage) are done."""
        with self._guard:
            self._step = step
        if self.mode == "plain" and self._clock() - self._spoke >= self._patience():
            self._line(self._status(metrics=False))

    def log(self, step: int, record: Mapping[str, Any]) -> None:
        """Show the key metrics of a record; those of an evaluation stay as a line."""
        if self.mode == "json":
            self._emit({"event": "log", "step": step, **record})
            return
        evaluation = {
            name.removeprefix("eval_"): value
            for name, value in record.items()
            if name.startswith("eval_")
        }
        if evaluation:
            self._line(f"{self.verb} step {step} · held out: {describe(evaluation)}")
            return
        with self._guard:
            self._step = max(self._step, step) if self._title == self.verb else self._step
            self._record = dict(record)
        if self.mode == "plain":
            self._line(self._status())

    def close(self) -> None:
        """Stop moving; closing twice is nothing."""
        self._stop.set()
        if self._live is not None:
            self._live.stop()
            self._live = None

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ------------------------------------------------------------------ how it is said

    def _begin(self, title: str, total: int | None, done: int) -> None:
        self._title = title
        self._total = total
        self._step = self._first = done
        self._since = self._clock()

    def eta(self) -> float | None:
        """Seconds to go at the pace so far; None before it is known."""
        done = self._step - self._first
        if self._total is None or done <= 0:
            return None
        return (self._clock() - self._since) / done * max(0, self._total - self._step)

    def _count(self) -> str:
        if self._total is None:
            return str(self._step) if self._step else ""
        return f"{self._step}/{self._total}"

    def _status(self, *, metrics: bool = True) -> str:
        """Where the run is; ``metrics`` of the last record, where they are new."""
        with self._guard:
            training = self._title == self.verb
            parts = [" ".join(filter(None, (self._title, self._count())))]
            if training and metrics:
                parts.append(describe(self._record))
            left = self.eta()
            if left is not None:
                parts.append(f"ETA {clock_time(left)}")
            elif self._total != self._step:
                parts.append(f"{clock_time(self._clock() - self._since)} so far")
            return " · ".join(filter(None, parts))

    def _panel(self) -> RenderableType:
        with self._guard:
            left = self.eta()
            ahead = "" if left is None else f"ETA {clock_time(left)}"
            row = Table.grid(padding=(0, 1))
            bar = ProgressBar(
                total=self._total, completed=self._step, width=30, pulse=self._total is None
            )
            past = clock_time(self._clock() - self._since)
            row.add_row(Text(self._title, style="bold"), bar, self._count(), past, ahead)
            return Group(row, Text(describe(self._record), style="dim"))

    def _patience(self) -> float:
        return _QUIET_SECONDS if self._clock() - self._start < 60 else _LATER_SECONDS

    def _break_silence(self) -> None:
        """In a plain log, say something even while one step or stage takes long."""
        while not self._stop.wait(1.0):
            if self._clock() - self._spoke >= self._patience():
                self._line(self._status(metrics=False))

    def _line(self, text: str) -> None:
        if self.mode in ("quiet", "json"):
            return
        self._spoke = self._clock()
        # Text: no markup ("[0.1]" is not a style); soft_wrap: a log's line is one line.
        # Never with the guard held: the panel is drawn with the console's lock, and asks for it.
        self.console.print(Text(text), soft_wrap=True)

    def _emit(self, event: Mapping[str, Any]) -> None:
        from trimtab.training.metrics import encode_record  # not at the top: it imports torch

        out = self._out or sys.stdout
        out.write(encode_record(event).decode())
        out.flush()


def choose_mode(console: Console, environment: Mapping[str, str] = os.environ) -> Mode:
    """``rich`` where a person looks at a terminal that can move its cursor, else ``plain``."""
    off = ("", "0", "false", "False")
    set_off = any(environment.get(name, "") not in off for name in ("TQDM_DISABLE", "CI"))
    movable = console.is_terminal and not console.is_dumb_terminal
    return "rich" if movable and not set_off else "plain"


def describe(record: Mapping[str, Any]) -> str:
    """The key metrics of a record in one short line."""
    parts = [
        f"{short} {number(name, record[name])}"
        for name, short in _SHORT.items()
        if isinstance(record.get(name), int | float)
    ]
    speed = parts.pop() if parts and "time/tokens_per_second" in record else None
    return " · ".join([*parts[:_MOST], *([speed] if speed else [])])


def number(name: str, value: float) -> str:
    """A metric as people read it: rates with an exponent, counts with k and M, others short."""
    if name == "learning_rate":
        return f"{value:.1e}"
    if name == "time/tokens_per_second":
        for size, unit in ((1e6, "M"), (1e3, "k")):
            if value >= size:
                return f"{value / size:.1f}{unit}"
        return f"{value:.0f}" if value >= 10 else f"{value:.3g}"
    if value != 0 and not 1e-3 <= abs(value) < 1e5:
        return f"{value:.2e}"
    return f"{value:.4g}"


def clock_time(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
