"""The demo's charts: the frontier, gold against proxy, win rates, reward against length."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from trimtab.report.blocks import Block, Figure, Figures, Fold, Table
from trimtab.report.charts import Axis, Point, Series, line_chart
from trimtab.report.demo_file import REFERENCE, Checkpoint, Models, Summary, stories
from trimtab.report.measured import Place, by_name, plane
from trimtab.report.panels import Panel, panel_chart
from trimtab.report.run import Run
from trimtab.report.samples import cloud, gold_and_proxy, rollout_tables
from trimtab.report.svg import bare
from trimtab.report.words import count

_CLOUDS = ("sft", "ppo", "dpo", "simpo")


def charts(found: Summary, ladder: Path, runs: Sequence[Run]) -> list[Block]:
    """All of them; what a summary has no numbers for is left out."""
    models = found.models
    drawn: list[Figure] = []
    if (chart := frontier_chart(found)) is not None:
        drawn.append(Figure(bare(chart), _FRONTIER))
    for key, title, x, caption in (
        (
            "kl",
            "Gold reward against KL, every model at its end",
            "KL to sft, nats a story",
            _AT_END,
        ),
        ("learned_reward", "Gold against learned reward", "learned reward (proxy)", _PROXY),
    ):
        if places := _ends(models, key):
            drawn.append(Figure(plane(places, title=title, x=x, y="gold reward"), caption))
    wins = {n: one["win_rate"] for n, one in models.items() if n != REFERENCE and "win_rate" in one}
    if wins:
        chart = by_name(
            wins,
            title="Whose story is better: the model's or sft's?",
            unit="share of pairs that the model wins",
            reference=(0.5, "even"),
        )
        drawn.append(Figure(chart, "By gold reward, on the same request; a tie counts one half."))
    if (lengths := _lengths(ladder, models)) is not None:
        drawn.append(lengths)
    for run in runs:
        if tables := rollout_tables(run):
            rollouts = gold_and_proxy(tables, run)
            drawn += [] if rollouts is None else [rollouts]
    return [*([Figures(drawn)] if drawn else []), *_checkpoints(found)]


_FRONTIER = (
    "Every mark is a checkpoint of one method, in the order of training from sft on; bars are 95 % "
    "intervals both ways. A line that rises steeply gains much for little change, one that runs to "
    "the right only goes away. Checkpoints on the way answered a part of the requests, so that "
    "their bars are longer."
)
_AT_END = (
    "Up is better, left is nearer to the model they start from. A method that lies above and left "
    "of another gains more for less change. Bars are 95 % intervals."
)
_PROXY = (
    "The proxy is what ppo was trained to raise. Where a model lies right of the others without "
    "lying above them, it has learned what the reward model likes rather than what is good."
)


def frontier_chart(found: Summary) -> str | None:
    """Gold reward over KL at every checkpoint, a panel a method; None without checkpoints."""
    start = found.models[REFERENCE]
    if not found.frontier or "gold_reward" not in start:
        return None
    gold = start["gold_reward"]
    return panel_chart(
        [
            Panel(way.method, [_point(way.method, one) for one in way.points])
            for way in found.frontier
        ],
        title="Frontier: gold reward gained for KL to sft",
        note="A mark a checkpoint, sft at the left. Bars: 95 %. Grey: the others.",
        x=Axis("KL to sft, nats a story"),
        y=Axis("gold reward"),
        start=Point(0.0, gold.mean, gold.low, gold.high),
    )


def _checkpoints(found: Summary) -> list[Block]:
    """The frontier's numbers."""
    rows = [
        [
            way.method,
            "end" if one.step is None else f"{one.step:,}",
            one.gold.words(),
            one.kl.words(2),
            "–" if one.learned is None else one.learned.words(2),
        ]
        for way in found.frontier
        for one in way.points
    ]
    if not rows:
        return []
    head = ["method", "step", "gold reward", "KL to sft, nats a story", "learned reward"]
    table = Table("Checkpoints, means with 95 % intervals", head, rows, (1, 2, 3, 4))
    return [Fold(f"The frontier in numbers: {count(len(rows), 'checkpoint')}", [table])]


def _point(method: str, one: Checkpoint) -> Point:
    when = "its end" if one.step is None else f"step {one.step:,}"
    hint = f"{method}, {when}: {one.gold.words()} at {one.kl.words(2)}"
    return Point(
        one.kl.mean, one.gold.mean, one.gold.low, one.gold.high, hint, one.kl.low, one.kl.high
    )


def _ends(models: Models, across: str) -> dict[str, list[Place]]:
    """Gold reward over another measure; nothing unless all models have both."""
    if not all(across in one and "gold_reward" in one for one in models.values()):
        return {}
    return {n: [Place(n, one[across], one["gold_reward"])] for n, one in models.items()}


def _lengths(ladder: Path, models: Models) -> Figure | None:
    series: list[Series] = []
    for name in _CLOUDS:
        rows = stories(ladder, name) if name in models else []
        if points := cloud(rows, "tokens", "gold", most=90):
            series.append(Series(name, points, joined=False, marks="small"))
    if not series:
        return None
    chart = line_chart(
        series,
        title="Gold reward and length of single stories",
        x=Axis("length, tokens"),
        y=Axis("gold reward"),
    )
    return Figure(
        bare(chart),
        "Every point is a story. A cloud that moves to the right as it rises is a model that has "
        "learned to write more.",
    )
