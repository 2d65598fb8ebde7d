"""A diagnosis for people, in colour on a terminal, and for programs as JSON."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from trimtab.data.doctor.check import Diagnosis
from trimtab.data.doctor.faults import FAULTS, SEVERITIES, Fault
from trimtab.data.quarantine import SourceReport, reasons

if TYPE_CHECKING:
    from trimtab.data.doctor.ledger import Finding

_STYLES = {"error": "bold red", "warning": "bold yellow", "note": "bold cyan"}
_INDENT = 8
_GIVE = {"held-out": "--against HELD_OUT", "model": "--model MODEL"}


def print_json(found: Diagnosis, console: Console | None = None) -> None:
    """Print one JSON object."""
    text = json.dumps(found.to_json())  # ASCII: a row may hold what no terminal can print
    if console is None:
        print(text)
    else:
        console.print(text, markup=False, highlight=False, soft_wrap=True)


def show(found: Diagnosis, console: Console | None = None) -> None:
    """Print the findings, the worst first, and what was not looked for."""
    out = console or Console(highlight=False)
    for source in found.sources:
        _show_source(source, "", out)
    for source in found.held_out:
        _show_source(source, "held out: ", out)
    for finding in found.findings:
        _show_finding(finding, found, out)
    out.print()
    said = {finding.detail for finding in found.findings}
    if found.length_bias is not None and str(found.length_bias) not in said:
        out.print(Text(str(found.length_bias)))
    if found.label_noise.estimate is not None and str(found.label_noise) not in said:
        out.print(Text(str(found.label_noise)))
    for need, give in _GIVE.items():
        left = [fault for fault in FAULTS if fault.needs == need]
        if need not in found.options.given:
            out.print(Text(f"not looked for without {give}: {_names(left)}", "dim"))
    out.print(_verdict(found))


def _show_source(source: SourceReport, before: str, out: Console) -> None:
    line = f"{before}{source.source}: {source.rows_in:,} {source.kind} rows, {source.used:,} usable"
    if source.bad_rows:
        line += f" ({reasons(source.bad)})"
    out.print(Text(line))
    for notice in source.notices:
        out.print(Text(f"note: {notice}", "yellow"))


def _show_finding(finding: Finding, found: Diagnosis, out: Console) -> None:
    fault = finding.fault
    number = len(finding.rows)
    title = Text(f"\n{fault.severity:<8}", _STYLES[fault.severity])
    title.append(fault.name, "bold")
    title.append(f"  {number:,} row{'' if number == 1 else 's'} ({finding.share:.2%})", "")
    out.print(title)
    for line in filter(None, (fault.meaning, finding.detail)):
        _print_under(Text(line), out)
    for at in finding.rows[: found.options.rows]:
        place = Text(" " * _INDENT).append(found.rows.name(at.row), "cyan")
        place.append(f"  {_visible(at.note)}" if at.note else "")
        out.print(place, soft_wrap=True)  # in one piece, however narrow the terminal
    left = number - found.options.rows
    if left > 0:
        _print_under(Text(f"and {left:,} more; --json names all", "dim"), out)
    _print_under(Text.assemble(("remedy: ", "bold"), fault.remedy), out)


def _print_under(line: Text, out: Console) -> None:
    out.print(Padding(line, (0, 0, 0, _INDENT)))


def _verdict(found: Diagnosis) -> Text:
    counts = [(severity, found.count(severity)) for severity in SEVERITIES]
    parts = [f"{count} {name}{'' if count == 1 else 's'}" for name, count in counts if count]
    if not parts:
        return Text("nothing found", "bold green")
    line = Text(", ".join(parts), _STYLES[found.findings[0].fault.severity])
    if found.failed:
        line.append(f" (exit code 2: --fail-on {found.options.fail_on})", "")
    return line


def _names(faults: list[Fault]) -> str:
    return ", ".join(fault.name for fault in faults)


def _visible(text: str) -> str:
    """Control characters of the user's text never reach the terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
