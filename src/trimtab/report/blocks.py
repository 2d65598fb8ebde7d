"""What a report is made of: sections of blocks, which a template turns into HTML.

Blocks hold plain text, never markup, except for the SVG of a ``Figure``, which the charts have
escaped themselves: everything else is escaped by the template.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar, NamedTuple, Union


@dataclasses.dataclass(frozen=True)
class Prose:
    """A paragraph."""

    text: str
    kind: ClassVar[str] = "prose"


class Figure(NamedTuple):
    """A chart and what it shows, in plain words."""

    svg: str
    caption: str


@dataclasses.dataclass(frozen=True)
class Figures:
    """Charts beside one another where there is room."""

    figures: Sequence[Figure]
    kind: ClassVar[str] = "figures"


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of cells; the first cell of a row is its heading. ``numbers``: columns to the right."""

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: Sequence[int] = ()
    kind: ClassVar[str] = "table"


class Answer(NamedTuple):
    """One model's answer to a prompt, with what is known of it (reward, length)."""

    name: str
    facts: Sequence[str]
    text: str


@dataclasses.dataclass(frozen=True)
class Samples:
    """The answers of several models, or of one before and after, to the same prompt."""

    prompt: str
    answers: Sequence[Answer]
    kind: ClassVar[str] = "samples"


class Token(NamedTuple):
    """A token as text; ``trained`` where the model is taught to predict it."""

    text: str
    trained: bool
    id: int


@dataclasses.dataclass(frozen=True)
class Tokens:
    """A row as the model saw it: (name of the segment, its tokens, how many are not shown)."""

    segments: Sequence[tuple[str, Sequence[Token], int]]
    kind: ClassVar[str] = "tokens"


class Notice(NamedTuple):
    """Something to mind: a diagnosis, with what it means and what to do."""

    title: str
    text: str
    lasting: bool = True


@dataclasses.dataclass(frozen=True)
class Notices:
    """Diagnoses one below the other."""

    notices: Sequence[Notice]
    kind: ClassVar[str] = "notices"


@dataclasses.dataclass(frozen=True)
class Facts:
    """Names and values."""

    pairs: Sequence[tuple[str, str]]
    kind: ClassVar[str] = "facts"


@dataclasses.dataclass(frozen=True)
class Commands:
    """Lines to be copied, each with what it does."""

    lines: Sequence[tuple[str, str]]
    kind: ClassVar[str] = "commands"


@dataclasses.dataclass(frozen=True)
class Fold:
    """What only some readers want; ``open`` shows it at once."""

    summary: str
    blocks: Sequence[Block]
    open: bool = False
    kind: ClassVar[str] = "fold"


Block = Union[Prose, Figures, Table, Samples, Tokens, Notices, Facts, Commands, Fold]  # noqa: UP007


class Section(NamedTuple):
    """A heading, with the name that links go to."""

    name: str
    title: str
    blocks: Sequence[Block]


class Page(NamedTuple):
    """A whole report: the verdict is its first sentence, ``more`` what follows it."""

    title: str
    subject: str
    verdict: str
    more: Sequence[str]
    sections: Sequence[Section]
