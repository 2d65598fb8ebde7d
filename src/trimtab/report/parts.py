"""Sections that reports of every kind have: the ladder, warnings, recipe, machine, commands."""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trimtab.catalogue.metrics import metric_of
from trimtab.config.resolved import RecipeLine
from trimtab.report import read
from trimtab.report.blocks import (
    Block,
    Commands,
    Facts,
    Figure,
    Fold,
    Notice,
    Notices,
    Prose,
    Section,
    Table,
    Token,
    Tokens,
)
from trimtab.report.charts import Axis, Point, Series, line_chart
from trimtab.report.run import Run
from trimtab.report.svg import bare
from trimtab.report.verdict import at_end
from trimtab.report.words import count, cut, day, duration, interval, large, number
from trimtab.training.model_card import METHODS

_VALUE, _WHOLE = 240, 2000  # characters of a recipe's value, in short and in full


# ---------------------------------------------------------------------- the ladder


def ladder(runs: Sequence[Run], says: Mapping[str, str] | None = None) -> Section:
    """The stages one after the other: what each learned from, its size, and how long it took."""
    rows = [
        [
            run.name,
            run.verb,
            _from(run),
            _data(run),
            _size(run),
            f"{run.last_step:,}",
            _tokens(run),
            "" if run.seconds is None else duration(run.seconds),
        ]
        for run in runs
    ]
    head = ["stage", "verb", "starts from", "data", "parameters", "steps", "tokens", "time"]
    blocks: list[Block] = [Table("The stages and what went into them", head, rows, (4, 5, 6, 7))]
    if says is None:
        what = [f"{run.name}: {METHODS[run.verb].title}" for run in runs if run.verb in METHODS]
        blocks.insert(0, Prose(f"{'; '.join(what)}."))
    else:
        lines = [(run.name, says[run.name]) for run in runs if run.name in says]
        blocks.append(Facts(lines))
    return Section("ladder", "The ladder", blocks)


def _from(run: Run) -> str:
    name = run.setting("model_name_or_path")
    return name.rstrip("/").rpartition("/")[2] if name else "nothing: new weights"


def _data(run: Run) -> str:
    names = [name.rstrip("/").rpartition("/")[2] for name in run.datasets]
    rows = read.value(run.about, "rows")
    held = " (" + count(rows, "row") + ")" if rows is not None else ""
    return ", ".join(names) + held


def _size(run: Run) -> str:
    if run.parameters is None:
        return "not known"
    trained = read.value(run.about, "trained_parameters")
    if trained is not None and trained < run.parameters:
        return f"{large(run.parameters)}, {large(trained)} trained"
    return large(run.parameters)


def _tokens(run: Run) -> str:
    found = read.value(run.results, "num_tokens")
    if found is None:
        logged = [one for _, one in run.series("num_tokens")]
        found = read.value(logged[-1], "num_tokens") if logged else None
    return "" if found is None else large(found)


# ---------------------------------------------------------------------- what a row looked like


def tokenised(run: Run) -> list[Block]:
    """One example as the model saw it; nothing where the run has not kept one."""
    example = run.about.get("example")
    if not isinstance(example, dict):
        return []
    segments: list[tuple[str, list[Token], int]] = []
    for part in example.get("segments", []):
        ids, texts, trained = (part.get(key, []) for key in ("ids", "tokens", "trained"))
        tokens = [
            Token(visible(str(text)), bool(flag), int(one))
            for one, text, flag in zip(ids, texts, trained, strict=False)
        ]
        segments.append((str(part.get("name", "")), tokens, int(part.get("left_out", 0))))
    if not any(tokens for _, tokens, _ in segments):
        return []
    where = example.get("origin")
    said = f"From {where}: " if where else ""
    return [
        Prose(
            f"{said}tokens that are coloured and underlined are trained on, the grey ones are only "
            "read. Each token has its number as a tooltip; ␣ is a space at the start of a token, "
            "⏎ a new line."
        ),
        Tokens(segments),
    ]


def visible(text: str) -> str:
    """A token with its white space spelt out."""
    shown = text.replace("\r", "␍").replace("\n", "⏎").replace("\t", "⇥")
    if shown.startswith(" "):
        shown = "␣" + shown[1:]
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in shown)


# ---------------------------------------------------------------------- warnings


def warnings(runs: Sequence[Run]) -> Section:
    """The diagnoses that were told, with what to do; that none was is said, too."""
    notices: list[Notice] = []
    for run in runs:
        lasting = at_end(run)
        found = run.diagnoses.get("diagnoses")
        told = found if isinstance(found, list) else run.diagnosed
        last = {(one.get("diagnosis"), one.get("about")): one for one in told}
        for (name, _), one in last.items():
            still = name in lasting
            where = f"{run.name}, step {one.get('step')}"
            end = "" if still else "; not so any more at the end"
            notices.append(Notice(f"{name} ({where}{end})", str(one.get("says", "")), still))
        skipped = read.value(run.results, "skipped_steps")
        if skipped:
            notices.append(
                Notice(
                    f"skipped steps ({run.name})",
                    f"{count(skipped, 'step')} had a loss or gradient that was not finite and "
                    "changed nothing: lower learning_rate, or look at the rows (nonfinite-*.json)",
                )
            )
        stopped = run.results.get("stopped")
        if stopped:
            notices.append(Notice(f"ended early ({run.name})", str(stopped)))
    blocks: list[Block] = [Notices(notices)] if notices else [Prose(_NONE_FIRED)]
    if notices:
        blocks.append(
            Prose("trimtab explain NAME tells when each is told, what it means and what to change.")
        )
    return Section("warnings", "Warnings, and what to do", blocks)


_NONE_FIRED = (
    "No diagnosis fired. docs/diagnoses.md lists what is watched for; it cannot see what was not "
    "measured."
)


# ---------------------------------------------------------------------- numbers


def numbers(run: Run) -> Block | None:
    """Every number of the log, first and last, with what is healthy: for looking things up."""
    rows: list[list[str]] = []
    for prefix, source in (("", run.logged), ("eval_", run.evaluations)):
        names = dict.fromkeys(name for one in source for name in one if name.startswith(prefix))
        for name in names:
            if name == "step" or name.endswith("_ci95") or (not prefix and "eval_" in name):
                continue
            known = [one for one in source if read.value(one, name) is not None]
            if not known:
                continue
            row = [name, *(_with_ends(one, name) for one in (known[0], known[-1]))]
            found = metric_of(name)
            rows.append([*row, "" if found is None else found.healthy])
    if not rows:
        return None
    head = ["number", "first", "last", "healthy"]
    return Table("Numbers of the log, the first and the last of each", head, rows, (1, 2))


def _with_ends(record: Mapping[str, Any], name: str) -> str:
    return interval(read.value(record, name), *read.ends(record, name))


# ---------------------------------------------------------------------- calibration


def calibration(run: Run) -> Figure | None:
    """How often a reward model is right, over how sure it is; None without a curve."""
    known = [one["eval_confidence"] for one in run.evaluations if one.get("eval_confidence")]
    if not known:
        return None
    curve = known[-1]
    points = [
        Point(
            one["predicted"],
            one["value"],
            one["low"],
            one["high"],
            f"{number(one['predicted'], 3)} sure, right in "
            f"{interval(one['value'], one['low'], one['high'], 3)}, n = {one['n']}",
        )
        for one in curve
    ]
    lowest = min([0.5, *(p.low for p in points if p.low is not None)])
    chart = line_chart(
        [Series(f"{len(points)} bins of equal mass", points, joined=False)],
        title=f"Is it as often right as it is sure? {run.name}",
        x=Axis("how sure it is: σ of the difference of the two rewards", 0.5, 1, percent=True),
        y=Axis("right", lowest, 1, percent=True),
        diagonal="exactly as sure as it should be",
        height=300,
    )
    total = sum(one["n"] for one in curve)
    return Figure(
        bare(chart),
        f"{total:,} held-out comparisons, 95 % intervals over prompts. Below the line it is too "
        "sure of itself: a policy will trust differences that mean nothing.",
    )


# ---------------------------------------------------------------------- recipe, machine, commands


def recipe(lines: Sequence[RecipeLine]) -> list[Block]:
    """Values that somebody chose in a table; all of them, with where each came from, below."""
    chosen = [one for one in lines if one.origin and not one.origin.startswith("default")]
    head = ["key", "value", "from"]
    blocks: list[Block] = []
    if chosen:
        rows = [[one.key, cut(one.value, _VALUE) or "(below)", one.origin] for one in chosen]
        blocks.append(Table("What was chosen", head, rows))
    tables: list[Block] = []
    for title, group in itertools.groupby(lines, key=lambda one: one.title):
        rows = [[one.key, cut(one.value, _WHOLE), one.origin] for one in group]
        tables.append(Table(title, head, rows))
    blocks.append(Fold(f"The full recipe: {count(len(lines), 'key')}, defaults included", tables))
    return blocks


def machine(run: Run) -> Block:
    """Versions, seed, hardware, time."""
    found = run.environment
    pairs = [("seed", run.setting("seed") or "none"), *environment(found)]
    begun = [stamp for one in run.starts if (stamp := read.value(one, "time")) is not None]
    if begun:
        pairs.append(("started", day(begun[0])))
    if len(begun) > 1:
        pairs.append(("starts", f"{len(begun)}: it was stopped and went on"))
    ended = read.value(run.record, "time")
    if ended is not None:
        pairs.append(("finished" if run.finished else "last word", day(ended)))
    if run.seconds is not None:
        pairs.append(("took", duration(run.seconds)))
    if run.record.get("run_id"):
        pairs.append(("run", str(run.record["run_id"])))
    checks = run.selfcheck.get("checks")
    if isinstance(checks, list):
        pairs.append(("self-check", f"{count(len(checks), 'check')} passed before the first step"))
    return Facts(pairs)


def environment(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What environment.json says of the machine."""
    pairs: list[tuple[str, str]] = []
    packages = found.get("packages")
    if isinstance(packages, dict):
        pairs.append(("versions", ", ".join(f"{name} {v}" for name, v in packages.items())))
    if found.get("python"):
        pairs.append(("Python", f"{found['python']}, {found.get('platform', '')}"))
    if found.get("cpu"):
        threads = found.get("threads")
        used = f", {count(threads, 'thread')}" if isinstance(threads, int) else ""
        pairs.append(("processor", f"{found['cpu']}, {found.get('cpu_count')} cores{used}"))
    pairs.append(("accelerator", str(found.get("cuda") or "none")))
    if found.get("git_commit"):
        pairs.append(("commit of the working folder", str(found["git_commit"])))
    return pairs


def shell(path: Path) -> str:
    """A path as a shell takes it."""
    return shlex.quote(str(path))


def commands(run: Run) -> Block:
    """The command that made a run, and what can be done with it."""
    lines = [
        (str(one["command"]), "what was run" if place == 0 else "and what went on with it")
        for place, one in enumerate(run.starts[:1])
        if one.get("command")
    ]
    shown = shell(run.path)
    lines.append(
        (
            f"trimtab {run.verb} {shown}/config.resolved.yaml --output-dir {shown}-again",
            "the same recipe, every value written out, into another folder",
        )
    )
    lines.append((f"trimtab report {shown}", "this page again"))
    return Commands(lines)
