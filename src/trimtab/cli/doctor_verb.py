"""``trimtab doctor``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from trimtab.machine.doctor import Finding

_STYLES = {"ok": "green", "note": "cyan", "warning": "yellow", "failed": "bold red"}


def doctor(*, as_json: Annotated[bool, Parameter(name="--json", negative="")] = False) -> int:
    """Examine this machine: versions, threads, speed, memory, disk, accelerators, network setting.

    Exit code 1 where something has to be mended first. Nothing is sent anywhere.

    Parameters
    ----------
    as_json
        Print one JSON object instead, such as a bug report wants.
    """
    from trimtab import __version__
    from trimtab.machine.doctor import examine

    found = examine()
    failed = [one.name for one in found if one.state == "failed"]
    if as_json:
        rows = [{**vars(one), "facts": dict(one.facts)} for one in found]
        record = {"trimtab": __version__, "ok": not failed, "findings": rows}
        print(json.dumps(record, ensure_ascii=False, default=str))
    else:
        _show(found, Console(highlight=False))
    return 1 if failed else 0


def _show(found: list[Finding], out: Console) -> None:
    table = Table.grid(padding=(0, 2))
    for one in found:
        table.add_row(Text(one.state, _STYLES[one.state]), Text(one.name), Text(one.says))
        if one.remedy is not None:
            table.add_row("", "", Text(f"-> {one.remedy}", "dim" if one.state == "ok" else ""))
    out.print(table)
    states = [one.state for one in found]
    if "failed" in states:
        out.print(Text("mend what has failed first", _STYLES["failed"]))
    else:
        out.print("next: trimtab demo, or trimtab recipes ls")
