"""How answers look: streamed in a terminal, side by side for two models, plain lines in a pipe."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from typing import Protocol

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from trimtab.chat.session import Answer, Reward

NARROW = 80  # columns of a terminal below which two answers stand one below the other
_STYLES = ("cyan", "magenta")


class View(Protocol):
    """What a conversation is shown by. ``piece`` comes between ``begin`` and ``finish``."""

    def begin(self, user: str) -> None:
        """Answers to ``user`` will come."""
        ...

    def piece(self, model: int, text: str) -> None:
        """Text of model number ``model``; the models answer one after the other."""
        ...

    def finish(self, answers: Sequence[Answer]) -> None:
        """All answers are there, or what there will be of them."""
        ...

    def say(self, text: str) -> None:
        """A line of ours."""
        ...


def clean(text: str) -> str:
    """Text that cannot steer a terminal: control characters but line breaks and tabs replaced."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)


def facts(answer: Answer) -> str:
    """Tokens, speed, how it ended, rewards; on one line."""
    parts: list[str] = []
    if answer.ids:
        speed = f", {len(answer.ids) / answer.seconds:.0f} a second" if answer.seconds else ""
        parts.append(f"{len(answer.ids)} tokens{speed}")
    if answer.stopped:
        parts.append("stopped")
    elif not answer.ended:
        parts.append("cut off (/continue)")
    parts += [told(reward) for reward in answer.rewards]
    return "; ".join(parts)


def told(reward: Reward) -> str:
    """A reward for people."""
    if reward.value is None:
        return f"{reward.name}: none ({reward.why})"
    return f"{reward.name} {reward.value:.4g}"


class Lines:
    """Plain lines: answers to stdout, ours to stderr; of two models each begins with its name."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names

    def begin(self, user: str) -> None:  # noqa: D102
        self._at: int | None = None

    def piece(self, model: int, text: str) -> None:  # noqa: D102
        if model != self._at:
            self._turn_to(model)
        sys.stdout.write(clean(text))
        sys.stdout.flush()

    def finish(self, answers: Sequence[Answer]) -> None:  # noqa: D102
        for model, answer in enumerate(answers):
            if not answer.text and model != self._at:  # a blank answer has its line, too
                self._turn_to(model)
        print()
        for name, answer in zip(self.names, answers, strict=False):
            for reward in answer.rewards:
                print(f"[{name}] {told(reward)}" if len(self.names) > 1 else f"[{told(reward)}]")
        sys.stdout.flush()

    def say(self, text: str) -> None:  # noqa: D102
        print(text, file=sys.stderr)

    def _turn_to(self, model: int) -> None:
        if self._at is not None:
            print()
        if len(self.names) > 1:
            sys.stdout.write(f"[{self.names[model]}] ")
        self._at = model


class JsonLines:
    """One object for every message of the user's, on stdout."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names

    def begin(self, user: str) -> None:  # noqa: D102
        self._user = user

    def piece(self, model: int, text: str) -> None:  # noqa: D102
        pass

    def finish(self, answers: Sequence[Answer]) -> None:  # noqa: D102
        rows = [
            {
                "model": name,
                "text": one.text,
                "tokens": len(one.ids),
                "ended": one.ended,
                "seconds": round(one.seconds, 3),
                **({"rewards": {r.name: r.value for r in one.rewards}} if one.rewards else {}),
            }
            for name, one in zip(self.names, answers, strict=False)
        ]
        print(json.dumps({"user": self._user, "answers": rows}, ensure_ascii=False), flush=True)

    def say(self, text: str) -> None:  # noqa: D102
        print(text, file=sys.stderr)


class Terminal:
    """Streams into the terminal; two models side by side where it is wide enough."""

    def __init__(self, names: Sequence[str], console: Console | None = None) -> None:
        self.names = names
        self.out = console or Console(highlight=False)
        self._live: Live | None = None
        self._texts: list[str] = []

    def begin(self, user: str) -> None:  # noqa: D102
        self._texts = ["" for _ in self.names]
        self._at: int | None = None
        if len(self.names) > 1 and self.out.width >= NARROW:
            self._live = Live(
                console=self.out,
                get_renderable=lambda: self._columns(self._texts, None),
                refresh_per_second=8,
                transient=True,
            )
            self._live.start()

    def piece(self, model: int, text: str) -> None:  # noqa: D102
        self._texts[model] += clean(text)
        if self._live is not None:
            return
        if model != self._at:
            self._turn_to(model)
        self.out.print(Text(clean(text)), end="", soft_wrap=True)

    def finish(self, answers: Sequence[Answer]) -> None:  # noqa: D102
        if self._live is not None:
            self._live.stop()
            self._live = None
            self.out.print(self._columns([clean(one.text) for one in answers], answers))
            return
        self.out.print()
        for model, answer in enumerate(answers):
            name = f"{self.names[model]}: " if len(self.names) > 1 else ""
            self.out.print(Text(f"{name}{facts(answer)}", "dim"))

    def say(self, text: str) -> None:  # noqa: D102
        if self._live is not None:  # an error in the middle of two answers
            self._live.stop()
            self._live = None
        self.out.print(Text(text, "yellow"), soft_wrap=True)

    def _turn_to(self, model: int) -> None:
        if self._at is not None:
            self.out.print()
        if len(self.names) > 1:
            self.out.print(Text(self.names[model], f"bold {_STYLES[model]}"))
        self._at = model

    def _columns(self, texts: Sequence[str], answers: Sequence[Answer] | None) -> Table:
        """Both answers; while they come, as many of their last lines as the screen has."""
        width = (self.out.width - 3) // 2
        table = Table(box=None, padding=(0, 3, 0, 0), pad_edge=False)
        for name, style in zip(self.names, _STYLES, strict=True):
            table.add_column(Text(name, f"bold {style}"), width=width, overflow="fold")
        cells: list[Text] = []
        for text in texts:
            cell = Text(text)
            if answers is None:
                lines = cell.wrap(self.out, width)
                cell = Text("\n").join(lines[-max(1, self.out.height - 3) :])
            cells.append(cell)
        table.add_row(*cells)
        if answers is not None:
            table.add_row(*(Text(facts(one), "dim") for one in answers))
        return table


def view_for(names: Sequence[str], *, as_json: bool, terminal: bool) -> View:
    """The way to show a conversation with models of these names."""
    make: Callable[[Sequence[str]], View]
    make = JsonLines if as_json else Terminal if terminal else Lines
    return make(names)
