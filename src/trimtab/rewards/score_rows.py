"""The rows that ``trimtab score`` reads: which texts get a score, and what is written for them.

    columns                 scored               added
    prompt, responses       every response       scores, ranks
    prompt, completion      the completion       score
    chosen, rejected        both                 chosen_score, rejected_score, margin

With an ensemble also score_std (chosen_score_std, rejected_score_std). A row is written as it was
read, all of its columns included; columns that were named by ``columns`` get our names, and the
cells of CSV files their types.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal, cast

from trimtab.data import fields
from trimtab.data.formats import Plan, detect
from trimtab.data.locate import DatasetSpec, Part, locate
from trimtab.data.quarantine import BadRow, Quarantine, SourceReport
from trimtab.data.readers import Record
from trimtab.data.rows import (
    CompletionExample,
    Example,
    Message,
    PreferenceExample,
    PromptExample,
    RankedExample,
    Text,
)
from trimtab.data.tokenise_trees import ranks_of
from trimtab.data.trees import Origin
from trimtab.errors import DataError
from trimtab.rewards.builtin import text_of

Shape = Literal["responses", "completion", "preference"]

ADDED: Mapping[Shape, tuple[str, ...]] = {
    "responses": ("scores", "ranks", "score_std"),
    "completion": ("score", "score_std"),
    "preference": (
        *("chosen_score", "rejected_score", "margin"),
        *("chosen_score_std", "rejected_score_std"),
    ),
}
_SAMPLE = 1000  # rows that the shape is recognised from, as in data.sources


@dataclasses.dataclass(frozen=True)
class ScoreRow:
    """A row to be scored.

    row      what is written, without what is added
    texts    what gets a score: K responses, one completion, or chosen and rejected
    example  prompt and *different* texts, as a reward model reads them
    places   of each text, its place among the different ones
    columns  the row's other columns, for reward functions
    """

    origin: Origin
    row: dict[str, Any]
    prompt: Text
    texts: list[Text]
    example: Example
    places: list[int]
    columns: dict[str, Any]


@dataclasses.dataclass
class ReadRows:
    """All rows of a source; ``account`` counts them, ``fingerprint`` is of the raw bytes."""

    rows: list[ScoreRow]
    shape: Shape
    account: SourceReport
    fingerprint: str
    notices: list[str]


def read_rows(
    spec: DatasetSpec,
    quarantine: Quarantine,
    *,
    max_rows: int | None,
    overwrite: bool,
    drop_blank: bool = False,
) -> ReadRows:
    """Read and check all rows; bad ones go to ``quarantine``.

    A row with a blank response is bad; with ``drop_blank`` it loses the response, unless all are.

    Raises DataError: nothing to read, no shape that can be scored, more bad rows than allowed, rows
    that have scores already (unless ``overwrite``).
    """
    located = locate(spec)
    account = SourceReport(spec.path)
    records = islice(_records(located.parts), max_rows)
    head: list[tuple[Part, Record]] = []
    for one in records:
        head.append(one)
        if len(head) >= _SAMPLE and any(record.row is not None for _, record in head):
            break
    if not head:
        raise DataError(f"{spec.path}: empty: there are no rows in it")
    shape, plan = _shape(head, spec)
    rows: list[ScoreRow] = []
    for part, record in chain(head, records):
        account.rows_in += 1
        try:
            if record.problem is not None or record.row is None:
                raise record.problem or BadRow("", "not a row")
            if drop_blank:
                record = _without_blank(record, spec.columns or {})
            written = _ours(record, spec.columns or {})
            _refuse_scored(written, shape, part.name, record.line, overwrite)
            origin = Origin(part.name, record.line)
            assert record.row is not None
            example = plan.examples(record.row, origin, textual=record.textual)[0]
            rows.append(_score_row(example, written, shape))
        except BadRow as problem:
            quarantine.add(account, part.name, record.line, problem, record.raw)
    account.used = account.examples = len(rows)
    account.kind = shape
    quarantine.check(account)
    digest = hashlib.sha256()
    for part in located.parts:
        digest.update(part.digest())
    notices = [f"{spec.path}: {text}" for text in (*located.notices, *_converted(plan))]
    return ReadRows(rows, shape, account, digest.hexdigest(), notices)


def added(shape: Shape, scores: Sequence[float], std: Sequence[float] | None) -> dict[str, Any]:
    """The columns that a row with these scores gets; ``std`` is an ensemble's disagreement."""
    if shape == "responses":
        ranks = [int(rank) for rank in ranks_of(scores)]
        more: dict[str, Any] = {} if std is None else {"score_std": list(std)}
        return {"scores": list(scores), "ranks": ranks, **more}
    if shape == "completion":
        return {"score": scores[0], **({} if std is None else {"score_std": std[0]})}
    chosen, rejected = scores
    more = {} if std is None else dict(zip(ADDED[shape][3:], std, strict=True))
    margin = round(chosen - rejected, 9)  # without the noise of the subtraction
    return {"chosen_score": chosen, "rejected_score": rejected, "margin": margin, **more}


# ---------------------------------------------------------------------- shapes


def _records(parts: Sequence[Part]) -> Iterator[tuple[Part, Record]]:
    for part in parts:
        for record in part.records():
            yield part, record


def _shape(head: Sequence[tuple[Part, Record]], spec: DatasetSpec) -> tuple[Shape, Plan]:
    """What the rows are and how they are read, from the columns of the first ones."""
    good = [(part, record) for part, record in head if record.row is not None]
    if not good:
        part, record = head[0]
        problem = record.problem.text if record.problem else "no row"
        raise DataError(f"{part.name}:{record.line}: {problem}; no row can be read")
    part, first = good[0]
    where = f"{part.name}:{first.line}"
    sample = [record.row for _, record in good if record.row is not None]
    textual = all(record.textual for _, record in good)
    columns = spec.columns or {}
    renamed = [_ours(record, columns, cells=False) for _, record in good]
    there = {name for row in renamed for name, value in row.items() if value is not None}

    def plan(kind: str | None, accept: tuple[str, ...] | None) -> Plan:
        return detect(sample, where, columns=columns, kind=kind, accept=accept, textual=textual)

    if {"prompt", "responses"} <= there:
        return "responses", plan("prompt", None)
    if {"chosen", "rejected"} <= there:
        return "preference", plan(None, ("preference",))
    if {"prompt", "completion"} <= there:
        return "completion", plan("completion", None)
    try:  # formats of others, which are recognised by their values
        found = plan(None, ("preference", "completion"))
    except DataError:
        names = ", ".join(dict.fromkeys(name for row in renamed for name in row))
        raise DataError(
            f"{where}: columns {names}: nothing to score; wanted prompt + responses, prompt + "
            "completion, or prompt + chosen + rejected (name yours: --columns prompt=question "
            "responses=answers)"
        ) from None
    return cast("Shape", found.kind), found


def _ours(record: Record, columns: Mapping[str, str], *, cells: bool = True) -> dict[str, Any]:
    """A row under our names, in its order; the cells of a CSV file typed."""
    assert record.row is not None
    ours = {theirs: name for name, theirs in columns.items()}
    kept = {n: v for n, v in record.row.items() if n in ours or n not in columns}
    row = {ours.get(name, name): value for name, value in kept.items()}
    return fields.from_cells(row) if record.textual and cells else row


def _converted(plan: Plan) -> list[str]:
    return [f"read as {conversion.name}" for conversion in plan.conversions]


def _refuse_scored(
    row: dict[str, Any], shape: Shape, file: str, line: int, overwrite: bool
) -> None:
    for name in ADDED[shape]:
        if row.pop(name, None) is not None and not overwrite:
            raise DataError(
                f"{file}:{line}: {name}: the row has it already; --overwrite replaces it (in the "
                "new file: the old one stays as it is)"
            )


# ---------------------------------------------------------------------- rows


def _without_blank(record: Record, columns: Mapping[str, str]) -> Record:
    """A row without those of its responses that say nothing, and their entries of ``ended``."""
    assert record.row is not None
    names = [columns.get(name, name) for name in ("responses", "ended")]
    given, ended = (record.row.get(name) for name in names)
    if not isinstance(given, list):  # a cell of a CSV file, or what is refused later
        return record
    said = [not isinstance(one, (str, list)) or bool(text_of(one).strip()) for one in given]
    if all(said) or not any(said):
        return record
    kept = {names[0]: [one for one, keep in zip(given, said, strict=True) if keep]}
    if isinstance(ended, list) and len(ended) == len(given):
        kept[names[1]] = [one for one, keep in zip(ended, said, strict=True) if keep]
    return record._replace(row=record.row | kept)


def _score_row(example: Example, row: dict[str, Any], shape: Shape) -> ScoreRow:
    names = ADDED[shape]
    columns = {name: value for name, value in example.extras.items() if name not in names}
    if isinstance(example, PreferenceExample):
        assert example.prompt is not None, "a loaded pair has its prompt"
        texts = [example.chosen, example.rejected]
        return ScoreRow(example.origin, row, example.prompt, texts, example, [0, 1], columns)
    if isinstance(example, CompletionExample):
        texts = [example.completion]
        return ScoreRow(example.origin, row, example.prompt, texts, example, [0], columns)
    assert isinstance(example, PromptExample)
    prompt, texts = _responses(example.prompt, columns.pop("responses", None))
    # The same text has the same score, to the last bit: a model reads it once.
    different: list[Text] = []
    for text in texts:
        if text not in different:
            different.append(text)
    ranked = RankedExample(
        origin=example.origin, tools=example.tools, prompt=prompt, responses=different
    )
    places = [different.index(text) for text in texts]
    return ScoreRow(example.origin, row, prompt, texts, ranked, places, columns)


def _responses(prompt: Text, given: Any) -> tuple[Text, list[Text]]:
    """Prompt and responses, all plain or all messages."""
    if given is None:
        raise BadRow("responses", "missing")
    if not isinstance(given, list):
        raise BadRow("responses", "not a list", f"found {fields.found(given)}")
    if not given:
        raise BadRow("responses", "empty")
    replies = [fields.reply(item, f"responses[{index}]") for index, item in enumerate(given)]
    if all(isinstance(part, str) for part in (prompt, *replies)):
        return prompt, replies
    turns: list[Text] = [_as_messages(reply, "assistant") for reply in replies]
    return _as_messages(prompt, "user"), turns


def _as_messages(text: Text, role: str) -> list[Message]:
    return [{"role": role, "content": text}] if isinstance(text, str) else text


def quarantine_of(output: Path) -> Path:
    """Where rows that are not scored are written; folders are read without names in ``_``."""
    return output.with_name(f"_{output.stem}.quarantine.jsonl")
