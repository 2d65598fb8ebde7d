"""Before and after: the same prompts answered by the first and the last model of a run."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from trimtab.report import read
from trimtab.report.blocks import Answer, Block, Figure, Figures, Prose, Samples
from trimtab.report.charts import Axis, Point, Series, line_chart
from trimtab.report.curves import watched
from trimtab.report.read import Record
from trimtab.report.run import Run
from trimtab.report.svg import bare
from trimtab.report.words import count, cut, number

PROMPTS = 4  # whose samples are shown
CLOUD = 150  # points of a scatter
_BEFORE = "before training"


def before_and_after(run: Run) -> list[Block]:
    """The fixed prompts of a run, at its first and its last sampling."""
    paths = _numbered(run.path / "completions", r"completions_(\d+)\.parquet")
    if len(paths) < 2:
        return []
    (first, old), (last, new) = paths[0], paths[-1]
    after = {str(row.get("prompt")): row for row in read.table(new)}
    blocks: list[Block] = []
    for row in read.table(old)[:PROMPTS]:
        prompt = str(row.get("prompt"))
        if prompt not in after:
            continue
        answers = [
            Answer(_BEFORE if step == 0 else f"step {step:,}", facts(one), _answer(one))
            for step, one in ((first, row), (last, after[prompt]))
        ]
        blocks.append(Samples(cut(prompt), answers))
    said = (
        "Greedy continuations of fixed prompts: what differs between the two is what the weights "
        "have learned."
    )
    return [Prose(said), *blocks] if blocks else []


def facts(row: Record) -> list[str]:
    """What is known of an answer: its rewards, its length."""
    found: list[str] = []
    for name, held in row.items():
        if name == "reward" or name.startswith(("rewards/", "watch/")):
            shown = read.value({"x": held}, "x")
            if shown is not None:
                found.append(f"{name.rpartition('/')[2]} {number(shown, 3)}")
    tokens = read.value(row, "tokens")
    found.append(
        count(tokens, "token")
        if tokens is not None
        else count(len(str(row.get("completion", "")).split()), "word")
    )
    return list(dict.fromkeys(found))


def _answer(row: Record) -> str:
    return cut(str(row.get("completion", ""))) or "(nothing)"


def _numbered(folder: Path, pattern: str) -> list[tuple[int, Path]]:
    if not folder.is_dir():
        return []
    found = [(re.fullmatch(pattern, path.name), path) for path in folder.iterdir()]
    return sorted((int(match[1]), path) for match, path in found if match)


# ---------------------------------------------------------------------- rollouts


def rollouts(run: Run) -> list[Block]:
    """What was sampled in training: the first rollout and the last, by reward, length and KL."""
    tables = rollout_tables(run)
    if not tables:
        return []
    drawn = [
        chart
        for chart in (reward_and_length(tables, run.name), gold_and_proxy(tables, run))
        if chart is not None
    ]
    blocks: list[Block] = [Figures(drawn)] if drawn else []
    best, worst = _extremes(tables[-1][1])
    if best is not None and worst is not None:
        title = tables[-1][0]
        blocks.append(
            Prose(f"The response with the highest and with the lowest reward of {title}:")
        )
        for one in (best, worst):
            answer = Answer("highest" if one is best else "lowest", facts(one), _answer(one))
            blocks.append(Samples(cut(str(one.get("prompt"))), [answer]))
    return blocks


def rollout_tables(run: Run) -> list[tuple[str, list[Record]]]:
    """The first rollout of a run and its last, each with its name; empty without any."""
    paths = _numbered(run.path / "completions", r"rollout_(\d+)\.parquet")
    ends = [paths[0], paths[-1]] if len(paths) > 1 else paths
    return [(f"rollout {place + 1}", read.table(path)) for place, path in ends]


def _extremes(rows: Sequence[Record]) -> tuple[Record | None, Record | None]:
    known = [row for row in rows if read.value(row, "reward") is not None]
    if len(known) < 2:
        return None, None
    ordered = sorted(known, key=lambda row: read.value(row, "reward") or 0.0)
    return ordered[-1], ordered[0]


def reward_and_length(tables: Sequence[tuple[str, Sequence[Record]]], name: str) -> Figure | None:
    """Reward over length, a point a response."""
    series = [
        Series(title, cloud(rows, "tokens", "reward"), joined=False, marks="small")
        for title, rows in tables
    ]
    if not any(one.points for one in series):
        return None
    chart = line_chart(
        series,
        title=f"Reward and length: {name}",
        x=Axis("length, tokens"),
        y=Axis("reward"),
        height=280,
    )
    return Figure(
        bare(chart),
        "Every point is a response. A cloud that rises to the right gives longer answers more, "
        "whatever they say: a policy will grow longer on it.",
    )


def gold_and_proxy(tables: Sequence[tuple[str, Sequence[Record]]], run: Run) -> Figure | None:
    """A reward that is only watched over the one that is optimised, a point a response."""
    for name, _ in watched(run):
        column = name.removesuffix("/mean")
        series = [
            Series(title, cloud(rows, "reward", column), joined=False, marks="small")
            for title, rows in tables
        ]
        if not any(one.points for one in series):
            continue
        short = column.partition("/")[2]
        chart = line_chart(
            series,
            title=f"Watched and optimised reward: {run.name}",
            x=Axis("reward that is optimised"),
            y=Axis(f"{short}, only watched"),
            height=280,
        )
        return Figure(
            bare(chart),
            f"Every point is a response. Where the cloud moves right without moving up, the policy "
            f"gains reward that {short} does not see.",
        )
    return None


def cloud(rows: Sequence[Record], x: str, y: str, most: int = CLOUD) -> list[Point]:
    """Points of the rows that have both numbers, evenly thinned to at most ``most``."""
    found = [
        Point(across, up)
        for row in rows
        if (across := read.value(row, x)) is not None and (up := read.value(row, y)) is not None
    ]
    step = max(1, -(-len(found) // most))
    return found[::step]
