"""The sources of a recipe to examples: read, recognised, checked, counted.

``load_examples`` is the one door: whatever the files, every row is either an example or a line in
the quarantine file, and the report says how many of each.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from trimtab.data.directions import require_one_direction
from trimtab.data.formats import Plan, detect
from trimtab.data.locate import DatasetSpec, Located, Part, locate
from trimtab.data.order import permutation
from trimtab.data.quarantine import BadRow, Quarantine, RowReport, SourceReport
from trimtab.data.readers import Record
from trimtab.data.rows import Example, Kind, kind_of
from trimtab.data.trees import Origin
from trimtab.errors import DataError

__all__ = ["DatasetSpec", "Loaded", "load_examples", "stream_examples"]

_SAMPLE = 1000  # rows that the kind of a source is recognised from
_FRACTIONS = -1000  # the first stream of the permutations that choose a fraction of a source


@dataclass
class Loaded:
    """All rows of a recipe.

    ``examples`` has one list a source, in the order of the recipe. ``weights`` are those of the
    mixture, None where no source has one (``order.Order`` takes both as they are).
    ``fingerprint`` is a SHA-256 over the raw bytes of every file that was read, in order: it says
    whether a resumed run sees the same data, and not how that data was read (columns, fraction).
    """

    examples: list[list[Example]]
    report: RowReport
    fingerprint: str
    weights: list[float] | None


def load_examples(
    specs: Sequence[DatasetSpec],
    accept: Collection[str] | None = None,
    *,
    max_rows: int | None = None,
    max_bad_rows: float = 0.01,
    quarantine_path: Path | None = None,
    seed: int = 0,
    check: Callable[[Example], None] | None = None,
) -> Loaded:
    """Read all rows of all sources.

    Args:
        specs: The sources, at least one.
        accept: The kinds of rows that the stage takes (``rows.KINDS``); None takes any.
        max_rows: Read at most so many rows of each source, from its start.
        max_bad_rows: How many bad rows a source may have: below 1 a share of its rows, from 1 on
            a count.
        quarantine_path: Where bad rows are written; None: nowhere, they are only counted.
        seed: Chooses the rows of a source with a ``fraction``.
        check: Raises ``BadRow`` for an example that the stage cannot use (``labels.Labels.check``).

    Raises:
        DataError: a source that is not there, cannot be read, has no rows, rows of a kind that is
            not accepted, more bad rows than allowed, or ranks and scores that are opposed.
    """
    assert specs, "no sources"
    report = RowReport()
    examples: list[list[Example]] = []
    total = hashlib.sha256()
    with Quarantine(quarantine_path, max_bad_rows) as quarantine:
        for index, spec in enumerate(specs):
            located = locate(spec)
            account = SourceReport(spec.path)
            report.sources.append(account)
            rows = _Source(spec, located, account, quarantine, accept, check).read(max_rows)
            rows = _fraction(rows, spec, seed, _FRACTIONS - index, account)
            account.used = len(rows)
            examples.append([example for row in rows for example in row])
            account.examples = len(examples[-1])
            for part in located.parts:
                total.update(part.digest())
    if quarantine.written and quarantine_path is not None:
        report.quarantine = str(quarantine_path)
    return Loaded(examples, report, total.hexdigest(), _weights(specs))


def stream_examples(
    spec: DatasetSpec, account: SourceReport, quarantine: Quarantine, *, max_rows: int | None = None
) -> Iterator[Example]:
    """The examples of one source, one at a time, for who does not keep them (``doctor``).

    Whatever kind the rows are of, in their order; bad ones go to ``quarantine``. ``account`` is
    complete when the last example has been taken.

    Raises:
        DataError: as ``load_examples``, but for opposed ranks and scores: rows are not compared.
    """
    source = _Source(spec, locate(spec), account, quarantine, None, None)
    for row in source.stream(max_rows):
        yield from row


class _Source:
    """The rows of one source on their way to examples."""

    def __init__(
        self,
        spec: DatasetSpec,
        located: Located,
        account: SourceReport,
        quarantine: Quarantine,
        accept: Collection[str] | None,
        check: Callable[[Example], None] | None,
    ) -> None:
        self.spec = spec
        self.located = located
        self.account = account
        self.quarantine = quarantine
        self.accept = accept
        self.check = check

    def read(self, max_rows: int | None) -> list[Sequence[Example]]:
        """The examples of every good row."""
        rows = list(self.stream(max_rows))
        require_one_direction(example for row in rows for example in row)
        return rows

    def stream(self, max_rows: int | None) -> Iterator[Sequence[Example]]:
        """As ``read``, one row at a time; the limit of bad rows is checked at the end."""
        records = itertools.islice(self._records(), max_rows)
        head = list(itertools.islice(records, _SAMPLE))
        if all(record.row is None for _, record in head):
            for part, record in records:  # on to the first row that can be parsed
                head.append((part, record))
                if record.row is not None:
                    break
        plan = self._plan(head)
        kinds: set[Kind] = set()
        for part, record in itertools.chain(head, records):
            self.account.rows_in += 1
            try:
                examples = _examples(plan, part, record, self.check)
            except BadRow as problem:
                self.quarantine.add(self.account, part.name, record.line, problem, record.raw)
                continue
            self.account.used += 1
            kinds.update(kind_of(example) for example in examples)
            yield examples
        self.quarantine.check(self.account)
        if plan is not None:
            self._describe(plan, kinds)

    def _records(self) -> Iterator[tuple[Part, Record]]:
        for part in self.located.parts:
            empty = True
            for record in part.records():
                empty = False
                yield part, record
            if empty and len(self.located.parts) > 1:
                self._notice(f"{part.name} is empty")

    def _plan(self, head: Sequence[tuple[Part, Record]]) -> Plan | None:
        """How to read the source; None where none of its rows could be parsed."""
        if not head:
            raise DataError(f"{self.spec.path}: empty: there are no rows in it")
        good = [(part, record) for part, record in head if record.row is not None]
        if not good:
            return None
        part, first = good[0]
        return detect(
            [record.row for _, record in good if record.row is not None],
            f"{part.name}:{first.line}",
            columns=self.spec.columns or {},
            kind=self.spec.kind,
            accept=self.accept,
            textual=all(record.textual for _, record in good),
        )

    def _describe(self, plan: Plan, kinds: Collection[Kind]) -> None:
        assert len(kinds) <= 1, f"kinds {kinds} in one source"
        self.account.kind = next(iter(kinds), plan.kind)
        for notice in (*self.located.notices, *plan.notices):
            self._notice(notice)

    def _notice(self, text: str) -> None:
        self.account.notices.append(f"{self.spec.path}: {text}")


def _examples(
    plan: Plan | None,
    part: Part,
    record: Record,
    check: Callable[[Example], None] | None,
) -> Sequence[Example]:
    if record.problem is not None:
        raise record.problem
    assert record.row is not None and plan is not None
    origin = Origin(part.name, record.line)
    examples = plan.examples(record.row, origin, textual=record.textual)
    if check is not None:
        for example in examples:
            check(example)
    return examples


def _fraction(
    rows: list[Sequence[Example]],
    spec: DatasetSpec,
    seed: int,
    stream: int,
    account: SourceReport,
) -> list[Sequence[Example]]:
    """A random subset of the given share, at least one row, in the order of the file.

    The subset for a smaller share lies within the one for a larger.
    """
    share = 1.0 if spec.fraction is None else spec.fraction
    if not 0 < share <= 1:
        raise DataError(f"{spec.path}: fraction {share:g}: wanted a number above 0 and at most 1")
    count = max(1, round(share * len(rows)))
    if count >= len(rows):
        return rows
    account.left_out = len(rows) - count
    chosen = permutation(len(rows), seed, stream, 0)[:count]
    return [rows[index] for index in sorted(chosen.tolist())]


def _weights(specs: Sequence[DatasetSpec]) -> list[float] | None:
    weights = [spec.weight for spec in specs]
    if all(weight is None for weight in weights):
        return None
    for spec in specs:
        if spec.weight is None or not 0 < spec.weight < float("inf"):
            raise DataError(
                f"{spec.path}: weight {spec.weight}: in a mixture with weights every source needs "
                "a positive one"
            )
    return [float(weight) for weight in weights if weight is not None]
