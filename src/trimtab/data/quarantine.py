"""Bad rows: what is wrong with them, where they go, and how many are too many.

A row that cannot be used is named by file, line, field and reason, written to the quarantine file
and counted; rows in = rows used + rows bad + rows left out on purpose (``fraction``), per source.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from trimtab.errors import DataError


class BadRow(Exception):
    """A row that cannot be used: the field (empty: the whole row), the reason, and a detail.

    The reason is one of few constant phrases, because rows are counted by it; what differs from
    row to row is the detail. It never leaves the data package: the loader turns it into a line of
    the quarantine file or a ``DataError``.
    """

    def __init__(self, field: str, reason: str, detail: str = "") -> None:
        super().__init__(field, reason, detail)
        self.field = field
        self.reason = reason
        self.detail = detail

    @property
    def category(self) -> str:
        """``field: reason``, the key of the counts; positions in lists are left out."""
        name = self.field.split("[")[0]
        return f"{name}: {self.reason}" if name else self.reason

    @property
    def text(self) -> str:
        """``field: reason: detail`` on one line."""
        parts = [part for part in (self.field, self.reason, self.detail) if part]
        return " ".join(": ".join(parts).split())


@dataclass
class SourceReport:
    """The account of one source: ``rows_in == used + sum(bad.values()) + left_out``.

    ``examples`` differs from ``used`` only where one row makes two examples (pairs read for an
    unpaired objective). ``notices`` are whole lines for the user.
    """

    source: str
    kind: str = ""
    rows_in: int = 0
    used: int = 0
    left_out: int = 0
    examples: int = 0
    bad: Counter[str] = field(default_factory=Counter[str])
    notices: list[str] = field(default_factory=list[str])

    @property
    def bad_rows(self) -> int:
        """How many rows were bad, for whatever reason."""
        return sum(self.bad.values())


@dataclass
class RowReport:
    """The account of all sources, in the order of the recipe."""

    sources: list[SourceReport] = field(default_factory=list[SourceReport])
    quarantine: str | None = None  # the file with the bad rows, None when there are none

    @property
    def rows_in(self) -> int:
        """Rows read from all sources."""
        return sum(source.rows_in for source in self.sources)

    @property
    def used(self) -> int:
        """Rows that became examples."""
        return sum(source.used for source in self.sources)

    @property
    def left_out(self) -> int:
        """Good rows left out by ``fraction``."""
        return sum(source.left_out for source in self.sources)

    @property
    def bad(self) -> Counter[str]:
        """Bad rows by ``field: reason``."""
        return sum((source.bad for source in self.sources), Counter[str]())

    @property
    def notices(self) -> list[str]:
        """What the user should know about how the rows were read, a line each."""
        return [notice for source in self.sources for notice in source.notices]

    def lines(self) -> list[str]:
        """The account for people: the notices, then a line per source."""
        lines = self.notices
        for source in self.sources:
            line = f"{source.source}: {source.rows_in} {source.kind} rows, {source.used} used"
            if source.left_out:
                line += f", {source.left_out} left out (fraction)"
            if source.bad_rows:
                line += f", {source.bad_rows} bad ({reasons(source.bad)})"
            lines.append(line)
        if self.quarantine is not None:
            lines.append(f"bad rows are in {self.quarantine}")
        return lines


def reasons(bad: Counter[str], most: int = 3) -> str:
    """The commonest reasons with their counts, on one line."""
    parts = [f"{reason} {count}" for reason, count in bad.most_common(most)]
    if len(bad) > most:
        parts.append(f"{len(bad) - most} other reasons")
    return ", ".join(parts)


class Quarantine:
    """The file that bad rows are written to, one JSON object a line, and their counts.

    A line is ``{"file", "line", "field", "reason", "row"}``; ``row`` is the parsed row, or the text
    of the line where that could not be parsed. The file is made when the first bad row comes; one
    that an earlier run left at the same path is removed first. ``path=None`` keeps no rows.
    """

    def __init__(self, path: Path | None, limit: float) -> None:
        """``limit``: below 1 a share of each source's rows, from 1 on a count per source."""
        if not limit >= 0:  # NaN included
            raise DataError(f"max_bad_rows: {limit}: a share below 1 or a count, at least 0")
        self.path = path
        self.limit = limit
        self.written = 0
        self._stream: TextIO | None = None
        self._first: str | None = None  # "file:line: field: reason" of this source's first bad row
        self._names: tuple[str, str] | None = None
        if path is not None:
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                raise _unwritable(path, error) from error

    def __enter__(self) -> Quarantine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._stream is not None:
            self._stream.close()

    def add(self, report: SourceReport, file: str, line: int, problem: BadRow, row: Any) -> None:
        """Count one bad row and write it down."""
        if not report.bad:
            self._first = f"{file}:{line}: {problem.text}"
        report.bad[problem.category] += 1
        self.written += 1
        if self.path is None:
            return
        entry = {
            "file": file,
            "line": line,
            "field": problem.field,
            "reason": ": ".join(part for part in (problem.reason, problem.detail) if part),
            "row": row,
        }
        try:
            if self._stream is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                # What is not valid Unicode becomes a \udcXX escape, which is valid JSON.
                self._stream = self.path.open("w", encoding="utf-8", errors="backslashreplace")
            self._stream.write(json.dumps(entry, ensure_ascii=False, default=str) + "\n")
        except OSError as error:
            raise _unwritable(self.path, error) from error

    def check(self, report: SourceReport) -> None:
        """Refuse a source with more bad rows than the limit, or with no good one.

        Raises:
            DataError: names the first bad row, the counts, the quarantine file and the remedy.
        """
        bad = report.bad_rows
        allowed = self.limit * report.rows_in if self.limit < 1 else self.limit
        if bad == 0 or (bad <= allowed and report.used > 0):
            return
        if bad <= allowed:
            remedy = "there is no good row to use"
        else:
            limit = f"{self.limit:.4g} of the rows" if self.limit < 1 else f"{self.limit:g} rows"
            remedy = f"the limit is {limit}: mend them, or raise max_bad_rows to leave them out"
        if self._stream is not None:
            self._stream.flush()
            remedy += f"; all bad rows are in {self.path}"
        rows = f"{bad} of {report.rows_in} rows {'is' if bad == 1 else 'are'} bad"
        if len(report.bad) > 1 or bad > 1:
            rows += f" ({reasons(report.bad)})"
        raise DataError(f"{self._first}; {rows}; {remedy}")


def _unwritable(path: Path, error: OSError) -> DataError:
    reason = error.strerror or type(error).__name__
    return DataError(f"{path}: cannot write the bad rows there: {reason}; name another file")
