"""``trimtab score``: a reward model or reward functions give the rows of a file their scores.

The order is: options and names are checked, all rows are read, the model is loaded, rows are scored
a chunk at a time into a journal beside the output, and at the end the output is written at once.
A run that was killed goes on where it was, with the same command; rows in = rows scored + bad rows
+ rows left out, each with a reason.
"""

from __future__ import annotations

import dataclasses
import json
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from trimtab.config.data_keys import DatasetSpec
from trimtab.data.locate import locate
from trimtab.data.quarantine import BadRow, Quarantine, SourceReport, reasons
from trimtab.errors import DataError, RecipeError, RunError, UsageError
from trimtab.rewards import score_summary
from trimtab.rewards.combine import checked_weights, names_of, weighted_sum
from trimtab.rewards.functions import OnBad, RewardFunction, check_columns, resolve
from trimtab.rewards.keep import NEXT, Keep, Keeping
from trimtab.rewards.score_journal import CHUNK, Entry, Journal, journal_of
from trimtab.rewards.score_rows import (
    ReadRows,
    ScoreRow,
    added,
    quarantine_of,
    read_rows,
)
from trimtab.rewards.scorers import FunctionScorer, ModelScorer, Scorer, find_model
from trimtab.training import files
from trimtab.training.progress import Progress

MAX_LENGTH, TOKEN_BUDGET = 1024, 8192
DropTied = Literal["none", "all", "any"]
_TIED = {"all": "no response is ranked above another", "any": "responses are tied"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoreOptions:
    """What is scored by what; the command line's options have the same names.

    ``max_length`` (tokens of prompt + response, 1024 by default) and ``token_budget`` (tokens in
    one forward pass, 8192) are the reward model's; ``time_limit`` (seconds for a call of at most
    64 rows) and ``isolate`` are the functions'. ``drop_tied`` leaves out rows of responses: "all"
    those in which no response is ranked above another, "any" those with two that are tied.
    ``keep`` writes the ``keep_top`` (1) best of a row's responses, or the best against the worst,
    of at least ``min_score`` (``rewards/keep.py``); ``keep_cut`` takes those cut off, too.
    """

    file: str
    output: str
    reward_model: str | None = None
    reward_funcs: Sequence[str] = ()
    reward_weights: Sequence[float] | None = None
    columns: Mapping[str, str] = dataclasses.field(default_factory=dict[str, str])
    dataset_split: str = "train"
    max_rows: int | None = None
    max_bad_rows: float = 0.01
    max_length: int | None = None
    token_budget: int | None = None
    isolate: bool = False
    time_limit: float | None = None
    on_bad: OnBad = "stop"
    overwrite: bool = False
    drop_tied: DropTied = "none"
    keep: Keep = "all"
    keep_top: int | None = None
    min_score: float | None = None
    keep_cut: bool = False
    restart: bool = False

    @property
    def keeping(self) -> Keeping:
        """What is written of a row of responses."""
        return Keeping(self.keep, self.keep_top or 1, self.min_score, self.keep_cut)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What came of it: the lines of the output in their order, and the summary's lines."""

    rows: list[dict[str, Any]]
    lines: list[str]


def score_file(options: ScoreOptions, *, mode: str = "auto") -> int:
    """Score a file, write the output, print the summary; returns 0.

    Raises UsageError (RecipeError, DataError) for what is wrong with options, rewards or rows, and
    RunError where a reward fails while it is asked.
    """
    with Progress(0, "score", mode=mode) as progress:  # type: ignore[arg-type] - a Mode
        outcome = score(options, progress)
    print("\n".join(outcome.lines))
    return 0


def score(options: ScoreOptions, progress: Progress) -> Outcome:
    """Everything but the printing."""
    output = check(options)
    if options.reward_model is not None:
        find_model(options.reward_model)
    functions = [resolve(spec, isolate=options.isolate) for spec in options.reward_funcs]
    try:
        for function in functions:
            notice = getattr(function, "notice", None)
            if notice:
                progress.note(notice)
        count = len(functions) + (options.reward_model is not None)
        weights = checked_weights(options.reward_weights, count)
        with Quarantine(quarantine_of(output), options.max_bad_rows) as quarantine:
            read = _read(options, quarantine, functions, progress)
            scorers = _scorers(options, functions, progress)
            journal = Journal(
                journal_of(output),
                [read.fingerprint, dict(options.columns), options.max_rows, read.shape]
                + [scorer.identity for scorer in scorers],
                restart=options.restart,
            )
            try:
                _score_all(read.rows, scorers, journal, progress)
                outcome = _finish(options, read, scorers, weights, journal.entries, quarantine)
                _write(output, outcome.rows)
                journal.close(remove=True)
            except BaseException as error:
                journal.close(remove=isinstance(error, DataError) or not journal.entries)
                raise
        return outcome
    finally:
        for function in functions:
            function.close()


def check(options: ScoreOptions) -> Path:
    """Refuse options that make no sense; returns the output's path, in a folder that is there."""
    if options.reward_model is None and not options.reward_funcs:
        raise UsageError(
            "reward_model: missing; give --reward-model FOLDER (trimtab reward makes one) or "
            "--reward-funcs NAME"
        )
    for name in ("max_length", "token_budget"):
        if getattr(options, name) is not None and options.reward_model is None:
            raise RecipeError(f"{name}: only a reward model reads tokens; leave it out")
    if not options.reward_funcs and (options.isolate or options.time_limit is not None):
        name = "isolate" if options.isolate else "time_limit"
        raise RecipeError(f"{name}: is about reward functions, and there are none; leave it out")
    for name in ("max_rows", "max_length", "token_budget", "keep_top"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise RecipeError(f"{name}={value}: must be at least 1")
    if options.keep_top is not None and options.keep != "best":
        raise RecipeError(f"keep_top={options.keep_top}: has no effect without keep=best")
    if options.min_score is not None and options.keep == "all":
        raise RecipeError(f"min_score={options.min_score:g}: has no effect without keep=best")
    if options.drop_tied != "none" and options.keep != "all":
        raise RecipeError(
            f"drop_tied={options.drop_tied}: with keep={options.keep} nothing tied is written; "
            "leave it out"
        )
    if options.time_limit is not None and not 0 < options.time_limit < float("inf"):
        raise RecipeError(f"time_limit={options.time_limit}: must be a number of seconds above 0")
    output = Path(options.output).expanduser()
    if output.suffix != ".jsonl":
        raise RecipeError(f"output={options.output}: rows are written as .jsonl; name such a file")
    source = Path(options.file).expanduser()
    if output.exists() and source.exists() and output.samefile(source):
        raise RecipeError(f"output={options.output}: that is the file that is scored")
    unfinished = journal_of(output).exists() or options.restart
    if output.is_dir() or (output.exists() and not unfinished):
        raise UsageError(
            f"output={options.output}: exists already; name another file, or --restart to replace "
            "it"
        )
    try:
        files.make_folder(output.parent)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise UsageError(
            f"output={options.output}: no folder can be made there: {reason}"
        ) from None
    return output


# ---------------------------------------------------------------------- the parts


def _read(
    options: ScoreOptions,
    quarantine: Quarantine,
    functions: Sequence[RewardFunction],
    progress: Progress,
) -> ReadRows:
    progress.stage("reading rows")
    source = DatasetSpec(
        path=options.file, columns=dict(options.columns), split=options.dataset_split
    )
    locate(source)  # the cheapest thing that may be wrong
    read = read_rows(
        source,
        quarantine,
        max_rows=options.max_rows,
        overwrite=options.overwrite,
        drop_blank=options.keep != "all",
    )
    for notice in read.notices:
        progress.note(notice)
    if options.keep != "all" and read.shape != "responses":
        raise RecipeError(
            f"keep={options.keep}: {options.file} has no rows of responses to choose from "
            f"(columns prompt + responses); it has {read.shape} rows"
        )
    columns = {name for row in read.rows for name in row.columns}
    for function in functions:
        check_columns(function, columns, ids=False)
    return read


def _scorers(
    options: ScoreOptions, functions: Sequence[RewardFunction], progress: Progress
) -> list[Scorer]:
    found: list[Scorer] = []
    if options.reward_model is not None:
        from trimtab.models.hub import quiet

        quiet()
        progress.stage(f"loading {options.reward_model}")
        found.append(
            ModelScorer(
                options.reward_model,
                max_length=options.max_length or MAX_LENGTH,
                token_budget=options.token_budget or TOKEN_BUDGET,
                on_bad=options.on_bad,
            )
        )
    for name, function in zip(names_of(functions), functions, strict=True):
        found.append(FunctionScorer(name, function, options.time_limit or 60.0, options.on_bad))
    return found


def _score_all(
    rows: Sequence[ScoreRow], scorers: Sequence[Scorer], journal: Journal, progress: Progress
) -> None:
    """Score what the journal does not have yet."""
    if journal.note:
        progress.note(journal.note)
    progress.stage(f"scoring with {', '.join(s.name for s in scorers)}", total=len(rows))
    progress.update(len(journal.entries))
    try:
        for start in range(len(journal.entries), len(rows), CHUNK):
            chunk = rows[start : start + CHUNK]
            by_scorer = [scorer.score(chunk) for scorer in scorers]
            journal.add([list(entry) for entry in zip(*by_scorer, strict=True)])
            progress.update(start + len(chunk))
    except KeyboardInterrupt:
        kept = len(journal.entries)
        progress.note(f"{kept} of {len(rows)} rows are scored; the same command goes on with them")
        raise


def _finish(
    options: ScoreOptions,
    read: ReadRows,
    scorers: Sequence[Scorer],
    weights: Sequence[float],
    entries: Sequence[Entry],
    quarantine: Quarantine,
) -> Outcome:
    """Weigh the scores, leave out the rows without one, and sum up."""
    left = SourceReport(options.file)
    written: list[dict[str, Any]] = []
    kept: list[dict[str, Any]] = []  # what --keep writes in place of the rows
    told: list[score_summary.Row] = []
    parts: dict[str, list[float | None]] = {scorer.name: [] for scorer in scorers}
    for row, entry in zip(read.rows, entries, strict=True):
        scores = weighted_sum([one.values for one in entry], weights)
        known = [score for score in scores if score is not None]
        std = entry[0].std  # of an ensemble, which comes first
        if std is not None:
            std = [abs(weights[0]) * value for value in std]
        one = score_summary.Row(row.texts, known, std)
        problem: BadRow | None = None
        if len(known) < len(scores):
            reason, detail = next(e.why for e in entry if e.why is not None)
            problem = BadRow("", reason, detail)
        elif read.shape == "responses" and score_summary.tied(one, options.drop_tied):
            problem = BadRow("", _TIED[options.drop_tied])
        elif options.keep != "all":
            try:
                kept += options.keeping.rows(row.row, row.texts, known)
            except BadRow as nothing:
                problem = nothing
        if problem is not None:
            quarantine.add(left, row.origin.source, row.origin.row, problem, row.row)
            continue
        for scorer, values in zip(scorers, entry, strict=True):
            parts[scorer.name] += values.values
        told.append(one)
        written.append(row.row | added(read.shape, known, one.std))
    if not written:
        raise DataError(
            f"{options.file}: no row {'is left' if options.keep != 'all' else 'has a score'} "
            f"({reasons(left.bad)}); see "
            f"{quarantine_of(Path(options.output))}"
        )
    cut = sum(one.cut for entry in entries for one in entry)
    lines = _account(options, read, left, len(written), sum(len(r.texts) for r in told), scorers)
    told_of = score_summary.lines(told, read.shape, parts)
    if options.keep != "all":  # what they say of ties is about rankings
        told_of = [line for line in told_of if not line.startswith(" " * 12)]
    lines += told_of
    if cut:
        limit = next(s.max_length for s in scorers if isinstance(s, ModelScorer))
        lines.append(f"cut         {cut} texts reach {limit} tokens with their prompt (max_length)")
    if options.keep != "all":
        lines.append(_kept_line(options, kept, told))
        written = kept
    return Outcome(written, [*lines, f"written     {options.output}", *_next(options, read)])


def _kept_line(
    options: ScoreOptions, kept: Sequence[dict[str, Any]], told: Sequence[score_summary.Row]
) -> str:
    """Rows that are written for rows of responses, and what choosing gained."""
    name = "score" if options.keep == "best" else "chosen_score"
    chosen = sum(row[name] for row in kept) / len(kept)
    means = [sum(row.scores) / len(row.scores) for row in told]
    what = "completions" if options.keep == "best" else "pairs"
    return (
        f"kept        {len(kept)} {what} of {len(told)} rows; score {chosen:.4g} on average, "
        f"against {sum(means) / len(means):.4g} of all responses"
    )


def _account(
    options: ScoreOptions,
    read: ReadRows,
    left: SourceReport,
    written: int,
    texts: int,
    scorers: Sequence[Scorer],
) -> list[str]:
    """Rows in = rows scored + bad rows + rows left out."""
    by = " + ".join(scorer.name for scorer in scorers)
    what = {"responses": "responses", "completion": "completions", "preference": "texts of pairs"}
    lines = [f"{written} rows, {texts} {what[read.shape]} scored by {by}"]
    where = f"; see {quarantine_of(Path(options.output))}"
    account = read.account
    if account.bad_rows:
        lines.append(f"bad rows    {account.bad_rows}: {reasons(account.bad)}{where}")
    if left.bad_rows:
        lines.append(f"left out    {left.bad_rows} rows: {reasons(left.bad)}{where}")
    assert account.rows_in == written + account.bad_rows + left.bad_rows
    return lines


def _next(options: ScoreOptions, read: ReadRows) -> list[str]:
    if read.shape != "responses":
        return []
    if options.keep != "all":
        return [
            f"next        trimtab {NEXT[options.keep]} --model-name-or-path MODEL --dataset-name "
            f"{options.output}"
        ]
    return [
        f"next        trimtab reward --model-name-or-path MODEL --dataset-name {options.output}"
    ]


def _write(output: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write the output so that it is there whole, or not at all."""
    temporary = output.with_name(f".tmp-{output.name}-{uuid.uuid4().hex[:8]}")

    def content(sink: files.Sink) -> None:
        for piece in _encoded(rows):
            sink.write(piece)

    try:
        files.write_file(temporary, content)
        files.replace(temporary, output)
        files.sync_folder(output.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise RunError(f"{output}: cannot be written: {error.strerror or error}") from error


def _encoded(rows: Sequence[dict[str, Any]]) -> Iterator[bytes]:
    for row in rows:
        line = json.dumps(row, ensure_ascii=False, default=str) + "\n"
        try:
            yield line.encode()
        except UnicodeEncodeError:  # half a character in a column that nobody checked
            yield (json.dumps(row, default=str) + "\n").encode()
