"""The report of ``trimtab compare``: methods from one model, at one budget, over their KL."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import fmean
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
    Page,
    Prose,
    Samples,
    Section,
    Table,
)
from trimtab.report.comparison_file import Chosen, Comparison, Examined, FrontierPoint, Told
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
    runs = runs_of(found)
    sections = [
        Section("frontier", "The frontier", frontier(found)),
        Section("best", "The best of each method", best(found)),
        Section("pairs", "Every pair of methods", pairs(found)),
        Section("samples", "The same prompts, every method", samples(found)),
        _ladder(found),
        parts.warnings(runs) if runs else Section("warnings", "", []),
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


def runs_of(found: Comparison) -> list[Run]:
    """The runs that are still where the file says; a checkpoint's is the folder above it."""
    runs: dict[Path, Run] = {}
    for point in found.points:
        path = Path(point.run)
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
    gold, base, many = found.judge.name, found.base, len(found.seeds)
    over = f"{found.prompts:,} held-out prompts" + (f" and {many} seeds" if many > 1 else "")
    better = "Up" if found.judge.higher_is_better else "Down"
    drawn = plane(
        _lines(found, lambda method, point: (point.kl, point.gold)),
        title=f"{gold} against KL",
        x=_kl(found),
        y=gold,
        caption=f"{better} is better, left is nearer to {base.name}. Every line is one setting "
        "over its training, every mark a checkpoint, and a method whose marks lie above another's "
        f"gains more at the same KL. Bars are 95 % intervals over {over}.",
        base=Place(base.name, _ZERO, base.gold),
    )
    drawn += _proxies(found)
    drawn += _of_points(
        found,
        "length",
        "length, tokens",
        "Length of answers against KL",
        "Length that runs away with KL is often what the reward pays for.",
    )
    drawn += _of_points(
        found,
        "text_loss",
        "nats a token",
        "Loss on held-out text against KL",
        "The tax: how much worse a model has become at text that nobody rewarded; "
        f"{base.name} is where no KL is spent.",
    )
    notes = [Prose(f"KL is {found.kl_estimator}.")] if found.kl_estimator else []
    return [Figures(drawn), *notes]


_ZERO = Measured(mean=0, low=0, high=0)
Measures = Callable[[str, FrontierPoint], tuple[Measured | None, Measured | None]]


def _kl(found: Comparison) -> str:
    return f"KL to {found.base.name}, nats a response"


def _lines(found: Comparison, measures: Measures) -> dict[str, list[Place]]:
    """By method its checkpoints, setting by setting in the order of training."""
    lines: dict[str, list[Place]] = {}
    for line in found.frontier:
        for point in sorted(line.points, key=lambda point: (point.label, point.step)):
            across, up = measures(line.method, point)
            if across is not None and up is not None:
                name = " ".join([line.method, point.label]).strip()
                place = Place(f"{name}, step {point.step:,}", across, up, point.label)
                lines.setdefault(line.method, []).append(place)
    return lines


def _proxies(found: Comparison) -> list[Figure]:
    lines = _lines(found, lambda method, point: (point.proxy, point.gold))
    if found.proxy is None or not lines:
        return []
    base = found.base
    return plane(
        lines,
        title=f"{found.judge.name} against {found.proxy.name}",
        x=f"{found.proxy.name} (proxy, trained on)",
        y=f"{found.judge.name} (gold)",
        caption="A line that goes right without going up is over-optimisation: what is gained are "
        "mistakes of the proxy.",
        base=None if base.proxy is None else Place(base.name, base.proxy, base.gold),
    )


def _of_points(
    found: Comparison, measure: str, unit: str, title: str, caption: str
) -> list[Figure]:
    def measures(method: str, point: FrontierPoint) -> tuple[Measured, Measured | None]:
        return point.kl, _over_seeds(found, method, point, measure)

    lines = _lines(found, measures)
    if not lines:
        return []
    start = getattr(found.base, measure)
    base = None if start is None else Place(found.base.name, _ZERO, start)
    return plane(lines, title=title, x=_kl(found), y=unit, caption=caption, base=base)


def _same(found: Comparison, method: str, point: FrontierPoint | Chosen) -> list[Examined]:
    return [
        one
        for one in found.points
        if one.method == method and one.label == point.label and one.step == point.step
    ]


def _over_seeds(
    found: Comparison, method: str, point: FrontierPoint | Chosen, measure: str
) -> Measured | None:
    """A measure of a checkpoint: its own with one seed, the mean of all with several."""
    known = [one for p in _same(found, method, point) if (one := getattr(p, measure)) is not None]
    if len(known) == 1:
        return known[0]
    return Measured(mean=fmean(one.mean for one in known)) if known else None


# ---------------------------------------------------------------------- tables


def best(found: Comparison) -> list[Block]:
    """What each method's chosen checkpoint is worth, and what it cost."""
    if not found.chosen:
        return []
    head = ["method", "setting", "step", found.judge.name]
    head += [found.proxy.name] if found.proxy else []
    head += ["KL, nats"]
    rows = [_worth(found, None), *(_worth(found, one) for one in found.chosen)]
    cost = ["method", "length, tokens", "answers that end", "text loss", "time", "tokens"]
    costs = [_cost(found, None), *(_cost(found, one) for one in found.chosen)]
    on = {one.chosen_on for one in found.chosen if one.chosen_on}
    said = f"Chosen on {listed(sorted(on))}; " if on else ""
    golds = {found.base.name: found.base.gold}
    for one in found.chosen:
        if (point := _point(found, one)) is not None:
            golds[one.method] = point.gold
    chart = by_name(
        golds,
        title=f"{found.judge.name} of the best of each method",
        unit=f"{found.judge.name}, 95 % intervals",
        reference=(found.base.gold.mean, found.base.name),
    )
    return [
        Figures([Figure(chart, f"{said}examined on {found.prompts:,} held-out prompts.")]),
        Table("What it is worth", head, rows, tuple(range(2, len(head)))),
        Table("What came with it, and what it cost", cost, costs, tuple(range(1, len(cost)))),
    ]


def _point(found: Comparison, one: Chosen) -> FrontierPoint | None:
    for line in found.frontier:
        for point in line.points:
            if (line.method, point.label, point.step) == (one.method, one.label, one.step):
                return point
    return None


def _worth(found: Comparison, one: Chosen | None) -> list[str]:
    if one is None:
        name, gold, proxy, kl = [found.base.name, "", ""], found.base.gold, found.base.proxy, "0"
    else:
        point = _point(found, one)
        gold, proxy = (None, None) if point is None else (point.gold, point.proxy)
        kl = _cell(None if point is None else point.kl, 2)
        name = [one.method, one.label, f"{one.step:,}"]
    return [*name, _cell(gold, 3), *([_cell(proxy, 3)] if found.proxy else []), kl]


def _cost(found: Comparison, one: Chosen | None) -> list[str]:
    measures = (("length", 1), ("end_rate", 3), ("text_loss", 4))
    if one is None:
        cells = [_cell(getattr(found.base, name), places) for name, places in measures]
        return [found.base.name, *cells, "", ""]
    same = _same(found, one.method, one)
    seconds = [p.seconds for p in same if p.seconds is not None]
    tokens = [p.tokens for p in same if p.tokens is not None]
    return [
        one.method,
        *(_cell(_over_seeds(found, one.method, one, name), places) for name, places in measures),
        duration(fmean(seconds)) if seconds else "",
        large(fmean(tokens)) if tokens else "",
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
