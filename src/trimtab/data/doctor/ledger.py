"""Who was found with what: rows by number, findings by fault, and the findings of a whole check."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from trimtab.data.doctor.faults import BY_NAME, FAULTS, SEVERITIES, Fault
from trimtab.data.quarantine import BadRow, Quarantine, SourceReport


class Rows:
    """Files and lines of all rows, numbered from 0 in the order in which they were read."""

    def __init__(self) -> None:
        self.files: dict[str, int] = {}
        self._names: list[str] = []
        self._file = array("L")
        self._line = array("Q")

    def __len__(self) -> int:
        return len(self._line)

    def add(self, file: str, line: int) -> int:
        """The number of the next row."""
        number = self.files.setdefault(file, len(self.files))
        if number == len(self._names):
            self._names.append(file)
        self._file.append(number)
        self._line.append(line)
        return len(self._line) - 1

    def place(self, row: int) -> tuple[str, int]:
        """File and line of a row."""
        return self._names[self._file[row]], self._line[row]

    def name(self, row: int) -> str:
        """``file:line`` of a row."""
        file, line = self.place(row)
        return f"{file}:{line}"


class At(NamedTuple):
    """A row that a fault was found in, and what is particular to it."""

    row: int
    note: str = ""


@dataclass
class Finding:
    """A fault with the rows that show it; ``share`` is of all rows, ``detail`` of this file."""

    fault: Fault
    rows: list[At]
    share: float
    detail: str = ""

    def to_json(self, rows: Rows) -> dict[str, Any]:
        """As JSON types, all rows named."""
        named: list[dict[str, Any]] = []
        for at in self.rows:
            file, line = rows.place(at.row)
            named.append({"file": file, "line": line} | ({"note": at.note} if at.note else {}))
        return {
            "name": self.fault.name,
            "severity": self.fault.severity,
            "count": len(self.rows),
            "share": self.share,
            "meaning": self.fault.meaning,
            "remedy": self.fault.remedy,
            "detail": self.detail,
            "rows": named,
        }


@dataclass
class Ledger:
    """Collects what the checks find; ``details`` are sentences about a whole finding."""

    rows: Rows = field(default_factory=Rows)
    found: dict[str, dict[int, str]] = field(default_factory=dict[str, dict[int, str]])
    details: dict[str, str] = field(default_factory=dict[str, str])

    def add(self, name: str, row: int, note: str = "") -> None:
        """One row shows a fault; the first note of a row is kept."""
        assert name in BY_NAME, f"no fault {name}"
        self.found.setdefault(name, {}).setdefault(row, note)

    def add_all(self, name: str, rows: Iterable[At]) -> None:
        """Several rows show a fault."""
        for at in rows:
            self.add(name, at.row, at.note)

    def findings(self) -> list[Finding]:
        """The worst first, then in the order of the table; rows in theirs."""
        left = {name: dict(rows) for name, rows in self.found.items()}
        for name, rows in self.found.items():
            for covered in BY_NAME[name].covers:
                for row in rows:
                    left.get(covered, {}).pop(row, None)
        total = max(len(self.rows), 1)
        findings = [
            Finding(fault, _sorted(left[fault.name]), len(left[fault.name]) / total,
                    self.details.get(fault.name, ""))
            for fault in FAULTS
            if left.get(fault.name)
        ]  # fmt: skip
        return sorted(findings, key=lambda finding: SEVERITIES.index(finding.fault.severity))


def _sorted(rows: Mapping[int, str]) -> list[At]:
    return [At(row, rows[row]) for row in sorted(rows)]


class Admissions(Quarantine):
    """Bad rows as findings, in place of the file that a run writes; there is no limit to them."""

    def __init__(self, ledger: Ledger) -> None:
        super().__init__(None, math.inf)
        self.ledger = ledger

    def add(self, report: SourceReport, file: str, line: int, problem: BadRow, row: Any) -> None:
        """Number the row and name its fault."""
        super().add(report, file, line, problem, row)
        self.ledger.add(fault_of(problem), self.ledger.rows.add(file, line), problem.text)

    def check(self, report: SourceReport) -> None:
        """Looking is allowed whatever the rows are."""


_BY_REASON = {
    "chosen equals rejected": "identical-pair",
    "all are the same": "identical-pair",
    "all are tied": "all-tied",
    "not a finite number": "not-finite",
    "not the start of chosen": "prompt-mismatch",
}
_TEXTS = ("prompt", "completion", "chosen", "rejected", "responses", "messages", "text")


def fault_of(problem: BadRow) -> str:
    """The fault that the loader refused a row for."""
    column = problem.field.split("[")[0].split(".")[0]
    if problem.reason == "empty" and column in _TEXTS:
        return "empty-text"
    if problem.reason.startswith("chosen and rejected part at"):
        return "prompt-mismatch"
    if problem.reason == "missing" and "no first message in common" in problem.detail:
        return "no-shared-prompt"
    return _BY_REASON.get(problem.reason, "malformed-row")
