"""``trimtab evaluate``: what a model is worth on held-out rows, as a folder with a report card.

A reward model gets its report card. A causal language model gets the same card on preference rows,
by the log-probability of the responses (the untrained baseline of a reward model), and loss,
perplexity, bits per byte and token accuracy on texts, chats and completions. Where prompts are all
there is, or rewards, a judge or sampling are asked for, its answers are evaluated.

    report_card.json    all numbers, counts and the seed
    report_card.md      verdict, tables and charts
    *.svg               the charts
    scores.jsonl        a line a row: file, line, scores
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trimtab import __version__
from trimtab.data.chat_tokens import fingerprint_tokenizer
from trimtab.data.inspect import FileSource
from trimtab.data.rows import Example
from trimtab.data.sources import Loaded, load_examples
from trimtab.data.tokenise_report import TokeniseReport
from trimtab.errors import RecipeError, RunError
from trimtab.evaluation import answer_text, card_charts, lm_eval_bridge
from trimtab.evaluation.answer_options import AnswerOptions, write_targets
from trimtab.evaluation.answers import is_file
from trimtab.evaluation.card_text import markdown, summary
from trimtab.evaluation.comparisons import ScoredRow
from trimtab.evaluation.evaluate_answers import check as check_answers
from trimtab.evaluation.evaluate_answers import evaluate_answers, finish
from trimtab.evaluation.outcome import Outcome
from trimtab.evaluation.outputs import check_target, rewardbench_rows, write_rows
from trimtab.evaluation.reward_card import comparison_card, text_card
from trimtab.evaluation.rows_to_judge import Judged, Read, Trees, gold_of, judge, read
from trimtab.evaluation.subjects import Candidate, LanguageSubject, facts, find, loaded
from trimtab.models.hub import quiet
from trimtab.training import files
from trimtab.training.progress import Progress

CARD, PAGE, SCORES = "report_card.json", "report_card.md", "scores.jsonl"


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """What is evaluated on what; the command line's options have the same names."""

    model: str
    dataset_name: str | None = None
    baseline: str | None = None
    columns: Mapping[str, str] = dataclasses.field(default_factory=dict[str, str])
    kind: str | None = None
    dataset_split: str = "test"
    max_rows: int | None = None
    max_length: int = 1024
    max_bad_rows: float = 0.0
    token_budget: int = 8192
    output_dir: str | None = None
    seed: int = 0
    answers: AnswerOptions = dataclasses.field(default_factory=AnswerOptions)
    write_outputs: tuple[str, ...] = ()
    lm_eval: tuple[str, ...] = ()
    restart: bool = False

    @property
    def targets(self) -> dict[str, str]:
        """Files that outputs are written to, by format."""
        return write_targets(self.write_outputs)

    @property
    def data(self) -> str:
        """What the rows are called: the data set, the file of answers, or the tasks."""
        return self.dataset_name or ("-".join(self.lm_eval) if self.lm_eval else self.model)


def evaluate_file(options: EvaluateOptions, *, as_json: bool = False) -> int:
    """Evaluate, write the folder, print the verdict (or the card as JSON); returns 0.

    Raises UsageError (RecipeError, DataError) for what is wrong with options, models or rows, and
    RunError where a model's scores are not finite.
    """
    folder = Path(options.output_dir or default_folder(options))
    with Progress(0, "evaluate") as progress:
        outcome = evaluate(options, progress, folder)
    write(outcome, folder)
    finish(folder)
    if as_json:
        print(json.dumps(outcome.card, ensure_ascii=False))
        return 0
    print("\n".join([*summary(outcome.card), "", f"report card: {folder / PAGE}"]))
    return 0


def evaluate(options: EvaluateOptions, progress: Progress, folder: Path) -> Outcome:
    """Everything but the writing. What costs little and may be wrong is looked at first."""
    check(options, folder)
    quiet()
    if options.lm_eval:
        return _named(options, lm_eval_bridge.run(options, progress))
    if is_file(options.model):
        return _answers(options, folder, progress)
    ours = find(options.model, "model")
    wanted = options.answers.given or ("alpaca_eval" in options.targets and "write_outputs")
    if ours.kind == "reward" and wanted:
        raise RecipeError(
            f"{wanted}: {options.model} is a reward model, which gives no answers; to judge those "
            "of others by it give it as --reward-model"
        )
    if wanted:
        return _answers(options, folder, progress)
    assert options.dataset_name is not None
    progress.stage("reading rows")
    source = FileSource(
        options.dataset_name, options.columns, options.kind, split=options.dataset_split
    )
    against = options.baseline
    theirs = find(against, "baseline") if against and not is_file(against) else None
    accepts = ours.accepts & theirs.accepts if theirs else ours.accepts
    rows = load_examples(
        [source], accepts, max_rows=options.max_rows, max_bad_rows=options.max_bad_rows
    )
    for notice in rows.report.notices:
        progress.note(notice)
    examples = rows.examples[0]
    kind = rows.report.sources[0].kind
    if kind == "prompt" and any({"completion", "label"} & e.extras.keys() for e in examples):
        load_examples([source], accepts - {"prompt"}, max_bad_rows=1.0)  # says what was wanted
    if kind == "prompt" or (against and theirs is None):
        return _answers(options, folder, progress)
    if kind in ("preference", "ranked"):
        outcome, report = _comparisons(options, ours, theirs, examples, progress)
    else:
        outcome, report = _texts(options, ours, theirs, examples, progress)
    about = {"data_fingerprint": rows.fingerprint, "rows": _account(rows, report)}
    return _named(options, dataclasses.replace(outcome, card=about | outcome.card))


def _named(options: EvaluateOptions, outcome: Outcome) -> Outcome:
    """The card with what every card begins with, and the files beside it."""
    own = dict(outcome.card)
    card: dict[str, Any] = {
        "verdict": own.pop("verdict"),
        "trimtab": __version__,
        "dataset": options.data,
        **own,
    }
    card["files"] = sorted((CARD, PAGE, SCORES, *outcome.charts, *own.get("files", ())))
    return dataclasses.replace(outcome, card=card)


def _answers(options: EvaluateOptions, folder: Path, progress: Progress) -> Outcome:
    """The card of sampled answers, or of those in a file."""
    if "rewardbench" in options.targets:
        raise RecipeError(
            "write_outputs=rewardbench: its rows are scores of preference pairs, and here answers "
            "are evaluated; write alpaca_eval, or leave the rewards out"
        )
    found = evaluate_answers(options, folder, progress)
    card = found.card | {"files": found.files}
    return _named(options, Outcome({"verdict": answer_text.verdict(card), **card}, {}, found.lines))


def check(options: EvaluateOptions, folder: Path) -> None:
    """Refuse options that make no sense, and an output folder that cannot be written to."""
    if options.lm_eval:
        lm_eval_bridge.check(options)
    elif options.dataset_name is None and not is_file(options.model):
        raise RecipeError("dataset_name: missing; name a file, a folder or a hub id")
    if options.dataset_name is not None and not options.dataset_name.strip():
        raise RecipeError("dataset_name: is empty; name a file, a folder or a hub id")
    for path in options.targets.values():
        check_target(path)
    check_answers(options)
    for name in ("max_rows", "max_length", "token_budget"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise RecipeError(f"{name}={value}: must be at least 1")
    # Nothing is made yet: a refused command leaves no empty folder behind.
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        what = "may not be written to" if there.is_dir() else "is no folder"
        raise RecipeError(f"output_dir={folder}: {there} {what}; give another --output-dir")


def default_folder(options: EvaluateOptions) -> str:
    """``runs/evaluate-<model>-<data>``."""
    names = [_stem(options.model), _stem(options.data)]
    return "runs/evaluate-" + "-".join(names)


def _stem(path: str) -> str:
    """The last part of a path or hub id, without the ending of a data file."""
    parts = [part for part in re.split(r"[/\\]", path) if part not in ("", ".", "..")] or ["here"]
    last = re.sub(r"\.(jsonl|json|csv|parquet)(\.gz|\.zst)?$", "", parts[-1])
    if re.fullmatch(r"checkpoint-\d+", last) and len(parts) > 1:
        last = f"{parts[-2]}-{last}"
    return re.sub(r"[^A-Za-z0-9._]+", "-", last).strip("-.") or "data"


# ---------------------------------------------------------------------- comparisons


def _comparisons(
    options: EvaluateOptions,
    ours: Candidate,
    theirs: Candidate | None,
    examples: Sequence[Example],
    progress: Progress,
) -> tuple[Outcome, TokeniseReport]:
    gold, gold_source = gold_of(examples)

    def judged(candidate: Candidate) -> tuple[Judged, dict[str, Any]]:
        progress.stage(f"loading {candidate.name}")
        with loaded(candidate, options.token_budget) as subject:
            trees = Trees(subject, examples, options.max_length)
            progress.stage(f"scoring with {candidate.name}", total=len(trees.trees))
            found = judge(subject, trees, gold, options.token_budget, progress.update)
            return found, facts(subject, options.max_length)

    found, model = judged(ours)
    baseline = None
    if theirs is not None:
        other, other_facts = judged(theirs)
        baseline = (other_facts, other.rows)
    card = comparison_card(
        found.rows, model=model, gold_source=gold_source, baseline=baseline, seed=options.seed
    )
    if "alpaca_eval" in options.targets:
        raise RecipeError(
            "write_outputs=alpaca_eval: these rows are comparisons; ask for answers, e.g. with "
            "--num-generations 1"
        )
    if "rewardbench" in options.targets:
        first = next(iter(found.rows.values()))
        write_rows(options.targets["rewardbench"], rewardbench_rows(first, examples))
    charts = card_charts.comparison_charts(card, found.rows)
    lines = _score_lines(found.rows, baseline[1] if baseline else {})
    return Outcome(card, charts, lines), found.report


def _score_lines(
    rows: Mapping[str, Sequence[ScoredRow]], baseline: Mapping[str, Sequence[ScoredRow]]
) -> list[dict[str, Any]]:
    """One object a row: where it is, ranks and lengths, and the scores under their names."""
    first = next(iter(rows.values()))
    lines: dict[tuple[str, int], dict[str, Any]] = {}
    for row in first:
        lines[row.origin.source, row.origin.row] = {
            "file": row.origin.source,
            "line": row.origin.row,
            "source": row.source,
            "ranks": list(row.ranks),
            "lengths": list(row.lengths),
            **({"gold": list(row.gold)} if row.gold else {}),
        }
    for prefix, table in (("", rows), ("baseline_", baseline)):
        for name, found in table.items():
            for row in found:
                line = lines.get((row.origin.source, row.origin.row))
                if line is not None:
                    line[prefix + name] = list(row.scores)
    return list(lines.values())


# ---------------------------------------------------------------------- texts


def _texts(
    options: EvaluateOptions,
    ours: Candidate,
    theirs: Candidate | None,
    examples: Sequence[Example],
    progress: Progress,
) -> tuple[Outcome, TokeniseReport]:
    def predicted(candidate: Candidate) -> tuple[Read, dict[str, Any], str]:
        progress.stage(f"loading {candidate.name}")
        with loaded(candidate, options.token_budget) as subject:
            assert isinstance(subject, LanguageSubject), "a reward model takes no such rows"
            trees = Trees(subject, examples, options.max_length)
            progress.stage(f"reading with {candidate.name}", total=len(trees.trees))
            found = read(subject, trees, options.token_budget, progress.update)
            identity = fingerprint_tokenizer(subject.renderer.tokenizer)
            return found, facts(subject, options.max_length), identity

    if options.targets:
        raise RecipeError(
            f"write_outputs={options.write_outputs[0]}: text has no outputs; leave it out"
        )
    found, model, tokens = predicted(ours)
    baseline, same = None, False
    if theirs is not None:
        other, other_facts, other_tokens = predicted(theirs)
        baseline, same = (other_facts, other.rows), tokens == other_tokens
    card = text_card(
        found.rows, model=model, baseline=baseline, same_tokens=same, seed=options.seed
    )
    lines = [
        {
            "file": row.source_file,
            "line": row.row,
            "source": row.source,
            "nll": row.nll,
            "tokens": row.tokens,
            "bytes": row.size,
            "right": row.right,
        }
        for row in found.rows
    ]
    return Outcome(card, card_charts.text_charts(card), lines), found.report


# ---------------------------------------------------------------------- what is written


def _account(rows: Loaded, report: TokeniseReport) -> dict[str, Any]:
    """Rows read = rows evaluated + bad ones + dropped ones, each with a reason."""
    source = rows.report.sources[0]
    return {
        "kind": source.kind,
        "read": source.rows_in,
        "bad": dict(source.bad),
        "dropped": {reason: found.count for reason, found in report.dropped.items()},
        "evaluated": report.rows - report.rows_dropped,
        "prompts_cut": report.prompts_cut,
        "responses_cut": report.responses_cut,
    }


def write(outcome: Outcome, folder: Path) -> None:
    """Write the folder; charts that an earlier evaluation left there and this one lacks go."""
    page = markdown(outcome.card, set(outcome.charts))
    lines = (json.dumps(line, ensure_ascii=False) + "\n" for line in outcome.lines)
    texts = {
        **outcome.charts,
        SCORES: "".join(lines),
        PAGE: page,
        CARD: json.dumps(outcome.card, ensure_ascii=False, indent=1) + "\n",
    }
    try:
        files.make_folder(folder)
        for name, text in texts.items():
            files.write_atomic(folder / name, text.encode())
        for name in card_charts.FILES:
            if name not in outcome.charts:
                (folder / name).unlink(missing_ok=True)
    except OSError as error:
        raise RunError(
            f"output_dir={folder}: cannot be written to: {error.strerror or error}; give another "
            "--output-dir"
        ) from error
