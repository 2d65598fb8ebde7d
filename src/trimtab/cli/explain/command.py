"""``trimtab explain NAME``: what a metric, loss, key, verb or diagnosis is; alone, all names."""

from __future__ import annotations

import json
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from trimtab.cli.explain.entry import Entry

_PLURAL = {
    "diagnosis": "Diagnoses",
    "finding": "Findings in data",
    "metric": "Metrics",
    "loss": "Losses",
    "verb": "Verbs",
    "tool": "Tools",
    "key": "Keys",
    "option": "Options of tools",
}


def explain(
    *names: str,
    as_json: Annotated[bool, Parameter(name="--json", negative="")] = False,
) -> int:
    """Explain a metric, loss, key, verb, tool, diagnosis or finding: formula, healthy range, paper.

    Parameters
    ----------
    names
        As a log, a recipe, a diagnosis or a command line has it: rewards/margins,
        eval_logps/chosen, dpo, beta, displacement, data check. Without one, all names are listed.
    as_json
        Print JSON instead.
    """
    from trimtab.cli.explain.sources import SOURCES
    from trimtab.cli.explain.sources import explain as look_up

    if not names:
        every = {kind: list(source()) for kind, source in SOURCES.items()}
        if as_json:
            print(json.dumps(every))
        else:
            _list(every)
        return 0
    together = " ".join(names)  # of two words, as data check
    known = len(names) > 1 and together in SOURCES["tool"]()
    found = [one for name in ([together] if known else names) for one in look_up(name)]
    if as_json:
        print(json.dumps([one.record() for one in found], ensure_ascii=False))
        return 0
    out = Console(highlight=False)
    for number, one in enumerate(found):
        _show(one, out, first=number == 0)
    return 0


_HOW = """trimtab explain NAME says what a name in a log, a recipe or a command means.
Good first ones: {}.
All names, by kind (several may be given at once):
"""
FIRST = ("rewards/margins", "dpo", "beta", "displacement", "data check")


def _list(names: dict[str, list[str]]) -> None:
    out = Console(highlight=False)
    out.print(_HOW.format(", ".join(FIRST)))
    for kind, every in names.items():
        out.print(Text(_PLURAL.get(kind, kind), style="bold"))
        out.print(Padding(Text("  ".join(every)), (0, 2)))


def _show(one: Entry, out: Console, *, first: bool) -> None:
    if not first:
        out.print()
    out.print(Text.assemble((one.name, "bold"), f"  ({one.kind})"))
    out.print(Padding(Text(one.what), (0, 2)))
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column(no_wrap=True, style="cyan")
    table.add_column()
    for label, text in one.facts:
        table.add_row(f"  {label}", Text(text))
    out.print(table)
