"""What is said of a name."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

_PAPER = re.compile(r"arXiv:\d{4}\.\d{4,5}")


class Entry(NamedTuple):
    """``facts`` are (label, text) in the order in which they are shown: formula, healthy, paper."""

    kind: str
    name: str
    what: str
    facts: tuple[tuple[str, str], ...] = ()

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return {"kind": self.kind, "name": self.name, "what": self.what, **dict(self.facts)}


def entry(kind: str, name: str, what: str, **facts: str) -> Entry:
    """An entry of the facts that are not empty; ``_`` in a label is a space."""
    told = tuple((label.replace("_", " "), text) for label, text in facts.items() if text)
    return Entry(kind, name, what, told)


def papers(text: str) -> str:
    """The papers named in a text, as links."""
    ids = dict.fromkeys(_PAPER.findall(text))
    return ", ".join(f"https://arxiv.org/abs/{one.removeprefix('arXiv:')}" for one in ids)
