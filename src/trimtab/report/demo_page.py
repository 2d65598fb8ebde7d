"""The report of ``trimtab demo``: one ladder, every model asked the same requests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from trimtab.errors import UsageError
from trimtab.report import parts, read
from trimtab.report.blocks import (
    Answer,
    Block,
    Commands,
    Facts,
    Figures,
    Fold,
    Page,
    Prose,
    Samples,
    Section,
    Table,
)
from trimtab.report.curves import curves_of
from trimtab.report.demo_charts import charts
from trimtab.report.demo_file import FIRST, REFERENCE, SUMMARY, Summary, stories
from trimtab.report.measured import Measured
from trimtab.report.read import Record
from trimtab.report.run import Run, is_run, load_run
from trimtab.report.verdict import verdict
from trimtab.report.words import count, cut, day, duration, listed, number

SETTINGS = "demo.json"
_COLUMNS = {  # measure -> heading, decimals
    "gold_reward": ("gold reward", 3),
    "learned_reward": ("learned reward", 2),
    "win_rate": ("win rate against sft", 3),
    "kl": ("KL to sft, nats a story", 1),
    "length": ("length, tokens", 1),
    "ends": ("stories that end", 3),
}
_REQUESTS = 3  # whose stories are shown


def is_demo(folder: Path) -> bool:
    """Whether a folder holds a demo, finished or not."""
    return (folder / SETTINGS).is_file()


def demo_page(folder: Path) -> Page:
    """The report of a demo's folder."""
    if not (folder / SUMMARY).is_file():
        raise UsageError(
            f"{folder}: holds a demo that is not finished; the command in {SETTINGS}'s folder, run "
            f"again, goes on with it (trimtab report {folder}/sft shows a stage that is done)"
        )
    found = read.shaped(folder / SUMMARY, Summary)
    if REFERENCE not in found.models or "gold_reward" not in found.models[REFERENCE]:
        raise UsageError(f"{folder / SUMMARY}: has no gold_reward of {REFERENCE}")
    ladder = folder if found.seeds == 1 else folder / f"seed-{found.seed}"
    runs = stages_of(ladder)
    sections = [
        Section("result", "The result", result(found)),
        Section("charts", "Frontier: gold reward, KL, length", charts(found, ladder, runs)),
        Section("samples", "The same requests before and after", samples(ladder, found)),
        parts.ladder(runs, found.stages or None) if runs else Section("ladder", "The ladder", []),
        Section("calibration", "Calibration of the reward model", _calibration(runs)),
        Section("curves", "Curves, stage by stage", [b for run in runs for b in _curves(run)]),
        Section("tokens", "A training row as the model saw it", _tokens(runs)),
        parts.warnings(runs),
        Section("recipe", "Recipes", [_recipe(run) for run in runs]),
        Section(
            "machine", "Versions, seed, hardware, time", [machine(found, runs)] if runs else []
        ),
        Section("commands", "Run it again", [commands(folder, ladder, runs)]),
    ]
    return Page(
        title="From no model to aligned ones",
        subject=f"trimtab demo, seed {_seeds(found)}",
        verdict=demo_verdict(found),
        more=more(found),
        sections=[section for section in sections if section.blocks],
    )


def stages_of(folder: Path) -> list[Run]:
    """The runs in a folder, in the order in which they were started."""
    found = [load_run(path) for path in sorted(folder.iterdir()) if is_run(path)]
    return sorted(
        found, key=lambda run: read.value(run.starts[0], "time") or 0 if run.starts else 0
    )


def _seeds(found: Summary) -> str:
    if found.seeds == 1:
        return str(found.seed)
    return f"{found.seed} to {found.seed + found.seeds - 1}"


# ---------------------------------------------------------------------- in words


def demo_verdict(found: Summary) -> str:
    """The best model against the one that all start from, as far as intervals go."""
    aligned = aligned_models(found)
    base = found.models[REFERENCE]["gold_reward"]
    if not aligned:
        return f"The sft model's stories have a gold reward of {base.words()}."
    best = max(aligned, key=lambda name: found.models[name]["gold_reward"].mean)
    measures = found.models[best]
    gold = measures["gold_reward"]
    if not gold.above(base):
        return (
            f"No aligned model is clearly better than the sft model: the best, {best}, has a gold "
            f"reward of {gold.words()}, sft {base.words()}."
        )
    said = (
        f"{best} tells the best stories: a gold reward of {gold.words()}, of 1 at most, against "
        f"{base.words()} of the sft model"
    )
    if "win_rate" in measures and "kl" in measures:
        said += (
            f"; its story is the better one in {measures['win_rate'].words()} of pairs, at a KL of "
            f"{measures['kl'].words(1)} nats"
        )
    close = [
        name
        for name in aligned
        if name != best and not gold.above(found.models[name]["gold_reward"])
    ]
    if close:
        are = "is" if len(close) == 1 else "are"
        said += f" ({listed(close)} {are} too close to it to call)"
    return f"{said}."


def aligned_models(found: Summary) -> list[str]:
    """The models that were trained on preferences or rewards and have a gold reward."""
    return [
        name
        for name, measures in found.models.items()
        if name not in (REFERENCE, FIRST) and "gold_reward" in measures
    ]


def more(found: Summary) -> list[str]:
    """Who else is better, and what these numbers cannot say."""
    base = found.models[REFERENCE]["gold_reward"]
    above = [n for n in aligned_models(found) if found.models[n]["gold_reward"].above(base)]
    said: list[str] = []
    if above:
        said.append(f"Above sft with their whole interval: {listed(above)}.")
    said.append(
        f"Every model told {count(found.tellings, 'story').replace('storys', 'stories')} on each "
        f"of {found.requests:,} requests that no training row combines. Intervals: "
        f"{found.intervals}."
    )
    if found.seeds == 1:
        said.append("One training seed: another one may order models that are close otherwise.")
    return said


# ---------------------------------------------------------------------- result


def result(found: Summary) -> list[Block]:
    """The table of all models."""
    columns = {
        key: text
        for key, text in _COLUMNS.items()
        if any(key in measures for measures in found.models.values())
    }
    rows = [
        [name, *(_cell(name, key, measures, columns[key][1]) for key in columns)]
        for name, measures in found.models.items()
    ]
    head = ["model", *(text for text, _ in columns.values())]
    numbers = tuple(range(1, len(head)))
    return [
        Table("Every model, means with 95 % intervals", head, rows, numbers),
        Prose(
            "The gold reward is computed from the story itself and is 1 at best; the learned one "
            "is the reward model's, which ppo was trained on. The demonstrations that sft learned "
            f"from score {number(found.demonstrations_gold_reward, 3)}. KL is {found.kl}."
        ),
    ]


def _cell(model: str, key: str, measures: dict[str, Measured], places: int) -> str:
    if key not in measures or (model == REFERENCE and key in ("win_rate", "kl")):
        return "–"
    return measures[key].words(places)


# ---------------------------------------------------------------------- samples


def samples(ladder: Path, found: Summary) -> list[Block]:
    """The first requests, with the first story of every model."""
    told = {name: stories(ladder, name)[:: max(1, found.tellings)] for name in found.models}
    told = {name: rows for name, rows in told.items() if rows}
    blocks: list[Block] = []
    for place in range(_REQUESTS):
        rows = {name: every[place] for name, every in told.items() if place < len(every)}
        if not rows:
            break
        request = str(next(iter(rows.values())).get("request", "")).strip()
        answers = [
            Answer(name, _facts(row), cut(str(row.get("story", "")).strip()))
            for name, row in rows.items()
            if str(row.get("request", "")).strip() == request
        ]
        blocks.append(Samples(cut(request), answers))
    return blocks


def _facts(row: Record) -> list[str]:
    said = [
        f"{name} {number(value, places)}"
        for name, places in (("gold", 3), ("learned", 2))
        if (value := read.value(row, name)) is not None
    ]
    tokens = read.value(row, "tokens")
    return said if tokens is None else [*said, count(tokens, "token")]


# ---------------------------------------------------------------------- the stages


def _curves(run: Run) -> list[Block]:
    drawn = curves_of(run)
    blocks: list[Block] = [Prose(verdict(run))]
    blocks += [Figures(drawn)] if drawn else []
    if (table := parts.numbers(run)) is not None:
        blocks.append(Fold("Every number of the log", [table]))
    return [Fold(f"{run.name}: {verdict(run)}", blocks[1:])]


def _calibration(runs: Sequence[Run]) -> list[Block]:
    drawn = [one for run in runs if (one := parts.calibration(run)) is not None]
    return [Figures(drawn)] if drawn else []


def _tokens(runs: Sequence[Run]) -> list[Block]:
    """One row of prose and one of preferences: the sft stage's and dpo's."""
    blocks: list[Block] = []
    for run in runs:
        if run.name in ("sft", "dpo") and (shown := parts.tokenised(run)):
            blocks += [Prose(f"{run.name}:"), *(shown if not blocks else shown[1:])]
    return blocks


def _recipe(run: Run) -> Block:
    return Fold(f"{run.name}: trimtab {run.verb}", parts.recipe(run.recipe))


def machine(found: Summary, runs: Sequence[Run]) -> Block:
    """Versions, seeds, hardware, and the time from the first start to the last end."""
    pairs = [("seed", _seeds(found)), *parts.environment(runs[0].environment)]
    begun = [t for run in runs for one in run.starts if (t := read.value(one, "time")) is not None]
    ended = [t for run in runs if (t := read.value(run.record, "time")) is not None]
    if begun and ended:
        pairs += [("started", day(min(begun))), ("last stage ended", day(max(ended)))]
    if found.seconds is not None:
        pairs.append(("took, since its last start", duration(found.seconds)))
    return Facts(pairs)


def commands(folder: Path, ladder: Path, runs: Sequence[Run]) -> Block:
    """The whole demo, one stage of it, and what comes next."""
    shown = parts.shell(folder)
    inside = parts.shell(ladder)
    made = [str(run.starts[0]["command"]) for run in runs[:1] if run.starts]
    lines = [(line, "what was run") for line in made]
    lines += [
        (
            f"trimtab {run.verb} {inside}/{run.name}/config.resolved.yaml "
            f"--output-dir {inside}/{run.name}-again",
            f"the stage {run.name} again, every value written out",
        )
        for run in runs
        if run.name in ("ppo", "dpo")
    ]
    lines.append(
        (
            f"trimtab data inspect {inside}/data/pairs.jsonl --model {inside}/sft",
            "what the preference stages saw, token by token",
        )
    )
    lines.append((f"trimtab report {shown}", "this page again"))
    return Commands(lines)
