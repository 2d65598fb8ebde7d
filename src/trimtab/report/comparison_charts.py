"""A comparison's charts of all checkpoints: the frontier, proxy, length, loss on text."""

from __future__ import annotations

from collections.abc import Sequence

from trimtab.report.blocks import Block, Figure, Figures, Prose
from trimtab.report.comparison_file import Comparison, Line
from trimtab.report.measured import Measured, Place, plane


def frontier(found: Comparison) -> list[Block]:
    """Gold against KL, proxy and length; length and text loss against KL."""
    drawn = [_against_kl(found)]
    if found.proxy is not None and (figure := _against_proxy(found)) is not None:
        drawn.append(figure)
    if (figure := _against_length(found)) is not None:
        drawn.append(figure)
    for measure, title, unit, says in _BESIDE:
        lines, start = _lines(found.frontier, "kl", measure), getattr(found.base, measure)
        if lines:
            place = None if start is None else Place(found.base.name, _ZERO, start)
            chart = plane(lines, title=title, x=_kl(found), y=unit, base=place)
            drawn.append(Figure(chart, says))
    notes = [f"KL is {found.kl_estimator}." if found.kl_estimator else ""]
    notes.append(f"Intervals: {found.intervals}." if found.intervals else "")
    return [Figures(drawn), *(Prose(note) for note in notes if note)]


def _kl(found: Comparison) -> str:
    return f"KL to {found.base.name}, nats a response"


def _against_kl(found: Comparison) -> Figure:
    base = found.base
    better = "Up" if found.judge.higher_is_better else "Down"
    chart = plane(
        _lines(found.frontier, "kl", "gold"),
        title="Reward against KL",
        x=_kl(found),
        y=found.judge.name,
        base=Place(base.name, _ZERO, base.gold),
        dots=_lines(found.curves, "kl", "gold"),
    )
    return Figure(
        chart,
        f"{better} is better, left is nearer to {base.name}: a method whose line lies above "
        "another's gains more at the same KL. Lines join the frontier of each method by "
        f"growing KL; bars are 95 % intervals {_over(found)}.{_dots(found)}",
    )


def _against_proxy(found: Comparison) -> Figure | None:
    lines, base = _lines(found.frontier, "proxy", "gold"), found.base
    if found.proxy is None or not lines:
        return None
    chart = plane(
        lines,
        title="Reward against its proxy",
        x=f"{found.proxy.name}, which was trained on",
        y=found.judge.name,
        base=None if base.proxy is None else Place(base.name, base.proxy, base.gold),
    )
    return Figure(chart, _PROXY)


def _against_length(found: Comparison) -> Figure | None:
    """Whether reward is bought with length: all checkpoints, the frontier joined by its KL."""
    lines, base = _lines(found.frontier, "length", "gold", along="kl"), found.base
    if not lines:
        return None
    chart = plane(
        lines,
        title="Reward against length",
        x="length, tokens",
        y=found.judge.name,
        base=None if base.length is None else Place(base.name, base.length, base.gold),
        dots=_lines(found.curves, "length", "gold"),
    )
    return Figure(
        chart,
        "Lines join the frontier of each method by growing KL. One that goes right as it rises "
        f"gains by longer answers; one that goes straight up does not.{_dots(found)}",
    )


def _dots(found: Comparison) -> str:
    return " Small marks: the other checkpoints." if found.curves else ""


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


def _lines(
    lines: Sequence[Line], across: str, up: str, along: str | None = None
) -> dict[str, list[Place]]:
    """By method its checkpoints that have both measures, by growing ``across``, or ``along``."""
    found: dict[str, list[Place]] = {}
    for line in lines:
        places = [
            (Place(f"{line.method} {point.label}, step {point.step:,}", x, y), by.mean)
            for point in line.points
            if (x := getattr(point, across)) is not None
            and (y := getattr(point, up)) is not None
            and (by := getattr(point, along or across)) is not None
        ]
        if places:
            found[line.method] = [place for place, _ in sorted(places, key=lambda one: one[1])]
    return found
