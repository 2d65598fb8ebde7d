"""What kind of rows a source holds: recognised from its columns, or named by the user.

The kind is decided once per source, on a sample of its first rows, and holds for all: a later row
that lacks a field is a bad row, never a row of another kind. Columns are TRL's (its
``dataset_formats``), plus K-wise rows:

    kind          required columns                       also read
    ranked        prompt, responses, ranks or scores
    preference    chosen, rejected                       prompt, margin
    unpaired      prompt, completion, label
    completion    prompt, completion
    chat          messages
    labelled      text, label
    text          text
    prompt        prompt
    any           -                                      weight, tools
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trimtab.data import advice, build, fields
from trimtab.data.build import REQUIRED, needed
from trimtab.data.convert import FOREIGN, Foreign
from trimtab.data.quarantine import BadRow
from trimtab.data.rows import KINDS, Example, Kind, PreferenceExample
from trimtab.data.trees import Origin
from trimtab.errors import DataError

Row = dict[str, Any]

_APART = "each preference row is read as two rows, wanted and unwanted"


@dataclass(frozen=True)
class Plan:
    """How the rows of one source become examples."""

    kind: Kind
    columns: Mapping[str, str]
    conversions: tuple[Foreign, ...]
    pairs_apart: bool  # preference rows become two unpaired examples
    notices: tuple[str, ...]

    def examples(self, row: Row, origin: Origin, *, textual: bool = False) -> Sequence[Example]:
        """The examples of one row: one, or two where pairs are taken apart.

        Raises:
            BadRow: the row cannot be used.
        """
        row = _ours(row, self.columns)
        if textual:
            cell = row.get("label")
            row = fields.from_cells(row)
            if self.kind == "labelled" and isinstance(cell, str):
                row["label"] = fields.class_cell(cell)
        for conversion in self.conversions:
            row = conversion.convert(row)
        example = build.build(row, self.kind, origin)
        if self.pairs_apart and isinstance(example, PreferenceExample):
            return build.unpaired_of(example)
        return (example,)


def detect(
    sample: Sequence[Row],
    where: str,
    *,
    columns: Mapping[str, str],
    kind: str | None,
    accept: Collection[str] | None,
    textual: bool = False,
) -> Plan:
    """Find the kind of the rows in ``sample`` (the first rows of a source that could be parsed).

    Args:
        sample: At least one row.
        where: ``file:line`` of the first row, for messages.
        columns: Our column -> theirs.
        kind: The kind that the user named, or None.
        accept: The kinds that the stage takes, None for any.
        textual: All values are strings (CSV).

    Raises:
        DataError: a renamed column is not there, or the columns are of no kind that is wanted;
            the message lists the columns found and what to write.
    """
    there = list(dict.fromkeys(name for row in sample for name in row))
    _check_columns(columns, there, where)
    rows, conversions = _converted(sample, columns, kind, textual)
    present = Counter(name for row in rows for name, value in row.items() if value is not None)
    usual = {name for name, count in present.items() if 2 * count > len(rows)}
    notices = [f"converted from {conversion.name}" for conversion in conversions]

    def reads(as_kind: Kind, renames: Mapping[str, str]) -> bool:
        _, conversions = _converted(sample, renames, kind, textual)
        trial = Plan(as_kind, renames, conversions, pairs_apart=False, notices=())
        return 2 * _readable(sample, trial, textual) >= len(sample)

    found = advice.Found(set(present), there, columns, where, reads)
    if kind is not None:
        named, apart = _named(kind, accept, found)
        notices += [_APART] if apart else []
        return Plan(named, columns, conversions, apart, tuple(notices))
    # A column of few rows is no reason to call all rows incomplete, unless nothing else fits.
    for names in (usual, set(present)):
        kinds = _kinds(names)
        chosen = _choose(kinds, accept)
        if chosen is not None:
            apart = chosen == "preference" and accept is not None and "preference" not in accept
            if apart:
                notices.append(_APART)
            elif chosen != kinds[0]:
                read = ", ".join(needed(chosen))
                notices.append(f"{kinds[0]} rows, read as {chosen} rows: only {read}")
            return Plan(chosen, columns, conversions, apart, tuple(notices))
    raise advice.not_wanted(_kinds(set(present)), accept, found)


def _ours(row: Row, columns: Mapping[str, str]) -> Row:
    """The row under our names; a column that is renamed is no longer there under its own."""
    if not columns:
        return row
    theirs = set(columns.values())
    new = {name: value for name, value in row.items() if name not in theirs}
    for name, their in columns.items():
        new.pop(name, None)
        if their in row:
            new[name] = row[their]
    return new


def _converted(
    sample: Sequence[Row], columns: Mapping[str, str], kind: str | None, textual: bool
) -> tuple[list[Row], tuple[Foreign, ...]]:
    """The sample under our names and in our formats, with the conversions that this took."""
    rows: list[Row] = []
    for row in sample:
        try:
            rows.append(fields.from_cells(_ours(row, columns)) if textual else _ours(row, columns))
        except BadRow:
            rows.append(_ours(row, columns))
    conversions: list[Foreign] = []
    for foreign in FOREIGN:
        if (kind is not None and foreign.skipped_for_kind) or not foreign.matches(rows):
            continue
        conversions.append(foreign)
        new: list[Row] = []
        for row in rows:
            try:
                new.append(foreign.convert(row))
            except BadRow:
                continue  # it is named when its turn comes
        rows = new or rows
    return rows, tuple(conversions)


def _kinds(names: Collection[str]) -> list[Kind]:
    """The kinds whose required columns are all there, most specific first."""
    return list(dict.fromkeys(kind for kind, needs in REQUIRED if set(needs) <= set(names)))


def _choose(kinds: Sequence[Kind], accept: Collection[str] | None) -> Kind | None:
    """The kind to read the rows as, None when the stage can take none of what they are."""
    if accept is None:
        return kinds[0] if kinds else None
    for kind in kinds:
        # Completions with a label are not all wanted: never train on them as if they were.
        if kind in accept and not (kind == "completion" and "unpaired" in kinds):
            return kind
    return "preference" if "unpaired" in accept and "preference" in kinds else None


def _readable(sample: Sequence[Row], plan: Plan, textual: bool) -> int:
    """How many rows of the sample become examples with a prompt, where they should have one."""
    good = 0
    for number, row in enumerate(sample, start=1):
        with contextlib.suppress(BadRow):
            made = plan.examples(row, Origin("", number), textual=textual)
            # An empty prompt is what is left where two texts have no beginning in common.
            good += all(getattr(one, "prompt", True) for one in made)
    return good


def _named(kind: str, accept: Collection[str] | None, found: advice.Found) -> tuple[Kind, bool]:
    """The kind that the user named, if the columns and the stage allow it; pairs taken apart."""
    where = found.where
    if kind not in KINDS:
        raise DataError(f"{where}: kind {kind!r} is none of {', '.join(KINDS)}")
    named: Kind = kind
    if named not in _kinds(found.present):
        raise advice.missing(named, found)
    if accept is None or named in accept:
        return named, False
    if named == "preference" and "unpaired" in accept:
        return named, True
    raise DataError(f"{where}: kind {named!r}, but this stage takes {advice.listed(accept)} rows")


def _check_columns(columns: Mapping[str, str], there: Sequence[str], where: str) -> None:
    for ours, theirs in columns.items():
        if theirs not in there:
            raise advice.no_column(ours, theirs, there, where)
