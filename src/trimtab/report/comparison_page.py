"""The report of ``trimtab compare``: methods from one model, at one budget, over their KL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

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
from trimtab.report.comparison_file import Base, Chosen, Comparison, Line, Told
from trimtab.report.measured import Measured, Place, by_name, plane
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
        Section("frontier", "The frontier", frontier(found)),
        Section("best", "The best of each method", best(found)),
        Section("pairs", "Every pair of methods", pairs(found)),
        Section("samples", "The same prompts, every method", samples(found)),
        _ladder(found),
        Section("warnings", "Warnings, and what to do", _warnings(found, runs)),
        Section("points", "Every checkpoint that was examined", [_points(found)]),
        Section("recipe", "Recipe", _recipe(found.recipe)),
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
        path = folder / point.run
        place = path if is_run(path) else path.parent
        if point.run and place not in runs and is_run(place) and len(runs) < _RUNS:
            try:
                runs[place] = load_run(place)
            except UsageError:
                continue  # told by the report of that run
    return list(runs.values())


# ---------------------------------------------------------------------- frontier


def frontier(found: Comparison) -> list[Block]:
    """Gold against KL, gold against proxy, length and text loss against KL."""
    gold, base = found.judge.name, found.base
    better = "Up" if found.judge.higher_is_better else "Down"
    kl = f"KL to {base.name}, nats a response"
    drawn = [
        Figure(
            plane(
                _lines(found.frontier, "kl", "gold"),
                title="Reward against KL",
                x=kl,
                y=gold,
                base=Place(base.name, _ZERO, base.gold),
                dots=_lines(found.curves, "kl", "gold"),
            ),
            f"{better} is better, left is nearer to {base.name}: a method whose line lies above "
            "another's gains more at the same KL. Lines join the frontier of each method by "
            f"growing KL; bars are 95 % intervals {_over(found)}.",
        )
    ]
    lines = _lines(found.frontier, "proxy", "gold")
    if found.proxy is not None and lines:
        chart = plane(
            lines,
            title="Reward against its proxy",
            x=f"{found.proxy.name}, which was trained on",
            y=gold,
            base=None if base.proxy is None else Place(base.name, base.proxy, base.gold),
        )
        drawn.append(Figure(chart, _PROXY))
    for measure, title, unit, says in _BESIDE:
        lines, start = _lines(found.frontier, "kl", measure), getattr(base, measure)
        if lines:
            place = None if start is None else Place(base.name, _ZERO, start)
            drawn.append(Figure(plane(lines, title=title, x=kl, y=unit, base=place), says))
    notes = [f"KL is {found.kl_estimator}." if found.kl_estimator else ""]
    notes.append(f"Intervals: {found.intervals}." if found.intervals else "")
    return [Figures(drawn), *(Prose(note) for note in notes if note), *_at_kl(found)]


_ZERO = Measured(mean=0, low=0, high=0)
_PROXY = (
    "A line that goes right without going up is over-optimisation: what is gained are mistakes of "
    "the proxy."
)
_BESIDE = (
    (
        "length",
        "Length of answers against KL",
        "length, tokens",
        "Length that runs away with KL is often what the reward pays for.",
    ),
    (
        "text_loss",
        "Loss on held-out text against KL",
        "nats a token",
        "The tax: how much worse a model has become at text that nobody rewarded.",
    ),
)


def _over(found: Comparison) -> str:
    seeds = f" and {len(found.seeds)} seeds" if len(found.seeds) > 1 else ""
    return f"over {found.prompts:,} held-out prompts{seeds}"


def _lines(lines: Sequence[Line], across: str, up: str) -> dict[str, list[Place]]:
    """By method its checkpoints that have both measures, by growing ``across``."""
    found: dict[str, list[Place]] = {}
    for line in lines:
        places = [
            Place(f"{line.method} {point.label}, step {point.step:,}", x, y)
            for point in line.points
            if (x := getattr(point, across)) is not None and (y := getattr(point, up)) is not None
        ]
        if places:
            found[line.method] = sorted(places, key=lambda place: place.across.mean)
    return found


def _at_kl(found: Comparison) -> list[Block]:
    """What all methods have gained at the same KL, where they have been there."""
    methods = list(dict.fromkeys(name for level in found.at_kl for name in level.gold))
    if not methods:
        return []
    rows = [[name, *(_cell(level.gold.get(name), 3) for level in found.at_kl)] for name in methods]
    head = ["method", *(f"{number(level.kl)} nats" for level in found.at_kl)]
    caption = f"{found.judge.name} at equal KL, interpolated along each frontier"
    return [Table(caption, head, rows, tuple(range(1, len(head))))]


# ---------------------------------------------------------------------- tables


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


def _recipe(values: Mapping[str, Any]) -> list[Block]:
    rows = [[key, cut(str(value), 240)] for key, value in _flat(values)]
    return [Table("The recipe, every value", ["key", "value"], rows)] if rows else []


def _flat(values: Mapping[str, Any], before: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            found += _flat(value, f"{before}{key}.")
        else:
            found.append((f"{before}{key}", value))
    return found


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
