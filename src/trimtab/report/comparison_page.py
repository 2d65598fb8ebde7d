"""The report of ``trimtab compare``: methods from one model, at one budget, over their KL."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from trimtab.config.resolved import RecipeLine
from trimtab.errors import UsageError
from trimtab.report import parts, read
from trimtab.report.blocks import (
    Answer,
    Block,
    Commands,
    Facts,
    Figure,
    Figures,
    Fold,
    Notice,
    Notices,
    Page,
    Prose,
    Samples,
    Section,
    Table,
)
from trimtab.report.comparison_charts import frontier
from trimtab.report.comparison_file import Base, Chosen, Comparison, Examined, Told
from trimtab.report.measured import Measured, by_name
from trimtab.report.run import Run, chain, is_run, load_run
from trimtab.report.words import count, cut, duration, large, listed, number

NAME = "comparison.json"
_PROMPTS = 4  # whose answers are shown
_RUNS = 60  # whose warnings are looked up


def is_comparison(folder: Path) -> bool:
    """Whether a folder holds a finished comparison."""
    return (folder / NAME).is_file()


def comparison_page(folder: Path) -> Page:
    """The report of a comparison."""
    found = read.shaped(folder / NAME, Comparison)
    if not found.verdict or not any(line.points for line in found.frontier):
        raise UsageError(f"{folder / NAME}: has no verdict or no points")
    runs = runs_of(found, folder)
    sections = [
        Section("frontier", "The frontier", [*frontier(found), *_at_kl(found)]),
        Section("best", "The best of each method", best(found)),
        Section("pairs", "Every pair of methods", pairs(found)),
        Section("samples", "The same prompts, every method", samples(found)),
        _ladder(found),
        Section("warnings", "Warnings, and what to do", _warnings(found, runs)),
        Section("points", "Every checkpoint that was examined", [_points(found)]),
        Section("runs", "The runs, and a row as one of them saw it", _runs(found, runs, folder)),
        Section("recipe", "Recipe", _recipe(found)),
        Section("machine", "Budget, versions, seeds, hardware, time", [_machine(found)]),
        Section("commands", "Run it again", [_commands(found, folder)]),
    ]
    return Page(
        title=found.name,
        subject=f"A comparison of {listed([line.method for line in found.frontier])}",
        verdict=found.verdict[0],
        more=[*found.verdict[1:], found.budget.sentence],
        sections=[section for section in sections if section.blocks],
    )


def runs_of(found: Comparison, folder: Path) -> list[Run]:
    """The runs that are still in the folder; a checkpoint's is the folder above it."""
    runs: dict[Path, Run] = {}
    for point in found.points:
        place = _run_of(point, folder)
        if point.run and place not in runs and is_run(place) and len(runs) < _RUNS:
            try:
                runs[place] = load_run(place)
            except UsageError:
                continue  # told by the report of that run
    return list(runs.values())


def _run_of(point: Examined, folder: Path) -> Path:
    path = folder / point.run
    return path if is_run(path) else path.parent


# ---------------------------------------------------------------------- tables


def _at_kl(found: Comparison) -> list[Block]:
    """What all methods have gained at the same KL, where they have been there."""
    methods = list(dict.fromkeys(name for level in found.at_kl for name in level.gold))
    if not methods:
        return []
    rows = [[name, *(_cell(level.gold.get(name), 3) for level in found.at_kl)] for name in methods]
    head = ["method", *(f"{number(level.kl)} nats" for level in found.at_kl)]
    caption = f"{found.judge.name} at equal KL, interpolated along each frontier"
    return [Table(caption, head, rows, tuple(range(1, len(head))))]


def best(found: Comparison) -> list[Block]:
    """What each method's chosen checkpoint is worth, and what it cost."""
    if not found.chosen:
        return []
    on = sorted({one.chosen_on for one in found.chosen if one.chosen_on})
    said = f"Chosen on {listed(on)}, examined" if on else "Examined"
    golds = {found.base.name: found.base.gold}
    golds |= {one.method: one.gold for one in found.chosen if one.gold is not None}
    chart = by_name(
        golds,
        title="Reward of the best of each method",
        unit=f"{found.judge.name}, 95 % intervals",
        reference=(found.base.gold.mean, found.base.name),
    )
    proxy = [found.proxy.name] if found.proxy else []
    head = ["method", "setting", "step", found.judge.name, *proxy, "KL, nats"]
    rows = [_worth(found, None), *(_worth(found, one) for one in found.chosen)]
    cost = ["method", *_COSTS, "time", "tokens"]
    costs = [_cost(found.base.name, found.base), *(_cost(o.method, o) for o in found.chosen)]
    return [
        Figures([Figure(chart, f"{said} on {found.prompts:,} held-out prompts.")]),
        Table("What it is worth", head, rows, tuple(range(2, len(head)))),
        Table("What came with it, and what it cost", cost, costs, tuple(range(1, len(cost)))),
    ]


_COSTS = {  # heading -> measure, decimals
    "length, tokens": ("length", 1),
    "answers that end": ("end_rate", 3),
    "loss on text": ("text_loss", 4),
    "more than at the start": ("tax", 4),
}


def _worth(found: Comparison, one: Chosen | None) -> list[str]:
    if one is None:
        name, worth, kl = [found.base.name, "", ""], found.base, "0"
    else:
        name, worth, kl = [one.method, one.label, f"{one.step:,}"], one, _cell(one.kl, 2)
    return [*name, _cell(worth.gold, 3), *([_cell(worth.proxy, 3)] if found.proxy else []), kl]


def _cost(name: str, one: Base | Chosen) -> list[str]:
    seconds, tokens = getattr(one, "seconds", None), getattr(one, "tokens", None)
    return [
        name,
        *(_cell(getattr(one, measure, None), places) for measure, places in _COSTS.values()),
        "" if seconds is None else duration(seconds),
        "" if tokens is None else large(tokens),
    ]


def _cell(value: Measured | None, places: int) -> str:
    return "–" if value is None else value.words(places)


def pairs(found: Comparison) -> list[Block]:
    """Win rates of all pairs, with the correction for looking at so many."""
    if not found.pairs:
        return []
    head = ["pair", "win rate of the first"]
    controlled = any(one.length_controlled is not None for one in found.pairs)
    head += ["at equal length"] if controlled else []
    head += ["p", "p, corrected", "differ?"]
    rows = [
        [
            f"{one.a} against {one.b}",
            one.win_rate.words(),
            *([_cell(one.length_controlled, 3)] if controlled else []),
            _p(one.p),
            _p(one.p_adjusted),
            "yes" if one.differs else "not shown",
        ]
        for one in found.pairs
    ]
    differ = sum(one.differs for one in found.pairs)
    by = f" ({found.correction})" if found.correction else ""
    return [
        Prose(
            f"Pairs that differ after the correction for so many comparisons{by}: {differ} of "
            f"{len(found.pairs)}. A tie counts one half; 'not shown' is no proof that two are "
            "equal."
        ),
        *_matrix(found),
        Fold(
            f"{count(len(rows), 'pair')}, one by one",
            [Table("Win rates, 95 % intervals", head, rows, tuple(range(1, len(head) - 1)))],
            open=len(rows) <= _FEW,
        ),
    ]


_FEW = 12  # pairs that are shown at once


def _matrix(found: Comparison) -> list[Block]:
    """Win rates of rows over columns; a star where two differ after the correction."""
    names = list(dict.fromkeys(name for one in found.pairs for name in (one.a, one.b)))
    cells: dict[tuple[str, str], str] = {}
    for one in found.pairs:
        star = "*" if one.differs else ""
        cells[one.a, one.b] = number(one.win_rate.mean, 2) + star
        cells[one.b, one.a] = number(1 - one.win_rate.mean, 2) + star
    if len(names) < 3:
        return []
    rows = [[a, *("" if a == b else cells.get((a, b), "–") for b in names)] for a in names]
    caption = "Win rate of the row over the column; * where they differ after the correction"
    return [Table(caption, ["", *names], rows, tuple(range(1, len(names) + 1)))]


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else number(value, 3)


def _points(found: Comparison) -> Block:
    head = ["method", "setting", "seed", "step", found.judge.name, "KL, nats", "run"]
    rows = [
        [p.method, p.label, str(p.seed), f"{p.step:,}", p.gold.words(), p.kl.words(2), p.run]
        for p in found.points[:_MOST_ROWS]
    ]
    left = len(found.points) - len(rows)
    more = f" (the first {len(rows)}; {left} more are in {NAME})" if left > 0 else ""
    table = Table(f"Checkpoints{more}", head, rows, (2, 3, 4, 5))
    return Fold(f"{count(len(found.points), 'checkpoint')}, one by one", [table])


_MOST_ROWS = 300


def samples(found: Comparison) -> list[Block]:
    """The same prompts, with the answer of every method."""
    return [
        Samples(
            cut(sample.prompt),
            [Answer(one.method, _facts(one, found), cut(one.text)) for one in sample.answers],
        )
        for sample in found.samples[:_PROMPTS]
    ]


def _facts(one: Told, found: Comparison) -> list[str]:
    said = [f"{found.judge.name} {number(one.gold, 3)}"]
    if one.proxy is not None:
        said.append(f"{found.proxy.name if found.proxy else 'proxy'} {number(one.proxy, 3)}")
    return said if one.length is None else [*said, count(one.length, "token")]


# ---------------------------------------------------------------------- how it was made


def _warnings(found: Comparison, runs: Sequence[Run]) -> list[Block]:
    """Runs that failed, what had to be left out, and the diagnoses of the runs."""
    notices = [
        Notice(f"failed: {one.get('cell', '')}", str(one.get("error", ""))) for one in found.failed
    ]
    notices += [Notice("left out", str(one)) for one in found.left_out]
    blocks: list[Block] = [Notices(notices)] if notices else []
    return [*blocks, *(parts.warnings(runs).blocks if runs else [])]


def _ladder(found: Comparison) -> Section:
    path = Path(found.base.run)
    if not found.base.run or not is_run(path):
        return Section("ladder", "", [])
    try:
        return parts.ladder(chain(load_run(path)))
    except UsageError:
        return Section("ladder", "", [])


def _recipe(found: Comparison) -> list[Block]:
    """As of a run: what was chosen, and below it every value, each with where it came from."""
    values = list(_flat(found.recipe))
    if not values:
        return []
    if found.recipe_from is None:
        rows = [[key, cut(text, 240)] for key, text in values]
        return [Table("The recipe, every value", ["key", "value"], rows)]
    alone = [one for one in values if "." not in one[0]]
    return parts.recipe(
        [
            RecipeLine(
                key.partition(".")[0] if "." in key else "The comparison",
                key,
                text,
                found.recipe_from.get(key, "default"),
            )
            for key, text in [*alone, *(one for one in values if "." in one[0])]
        ]
    )


def _flat(values: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    """Dotted keys with their values in YAML's words."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", _text(value)


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return f"[{', '.join(map(_text, value))}]"
    if isinstance(value, Mapping) and value:
        return f"{{{', '.join(f'{key}: {_text(one)}' for key, one in value.items())}}}"
    return json.dumps(value)


def _runs(found: Comparison, runs: Sequence[Run], folder: Path) -> list[Block]:
    """Where the page of each chosen run is, and one row as a model saw it."""
    facts: list[tuple[str, str]] = []
    for one in found.chosen:
        for point in found.points:
            same = (point.method, point.label, point.step) == (one.method, one.label, one.step)
            if same and point.run and (_run_of(point, folder) / _PAGE).is_file():
                name = point.run.partition("/checkpoint-")[0]
                facts.append((f"{one.method}, seed {point.seed}", f"{name}/{_PAGE}"))
                break
    blocks: list[Block] = [Prose(_PAGES), Facts(facts)] if facts else []
    shown = next((tokens for run in runs if (tokens := parts.tokenised(run))), [])
    return [*blocks, *shown]


_PAGE = "report.html"
_PAGES = (
    "Every run has a page of its own in its folder, with its curves and what is healthy, its "
    "warnings, a row as the model saw it and its whole recipe; trimtab report FOLDER writes it "
    "again. Seen from the folder of this comparison, those of the chosen checkpoints are:"
)


def _machine(found: Comparison) -> Block:
    pairs = [
        ("budget", found.budget.sentence),
        ("seeds", ", ".join(map(str, found.seeds))),
        ("held-out prompts", f"{found.prompts:,}"),
    ]
    if found.environment:
        pairs += parts.environment(found.environment)
    if found.seconds is not None:
        pairs.append(("took", duration(found.seconds)))
    return Facts(pairs)


def _commands(found: Comparison, folder: Path) -> Block:
    lines = [(found.command, "what was run")] if found.command else []
    return Commands([*lines, (f"trimtab report {parts.shell(folder)}", "this page again")])
