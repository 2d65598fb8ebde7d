"""The curves of a run: which numbers of its log are drawn together, and what they say in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from trimtab.catalogue.metrics import metric_of
from trimtab.report import read
from trimtab.report.blocks import Figure
from trimtab.report.charts import Axis, Band, Point, Series, line_chart
from trimtab.report.run import Run
from trimtab.report.svg import bare
from trimtab.report.words import interval, number

MOST_POINTS = 160  # of a line; more cannot be told apart at this width
_MARKED = 40  # points up to which each has a mark


class Curve(NamedTuple):
    """Numbers of the log in one chart.

    ``metrics`` are (name, what the legend says); ``held_out`` draws the ``eval_`` number of each
    beside it, or alone ("only"). ``unit`` is the upright axis. ``more`` is said after what the
    catalogue says of the first number, or after ``what``, where that of all verbs would not do.
    """

    title: str
    metrics: Sequence[tuple[str, str]]
    unit: str
    held_out: str = "too"
    percent: bool = False
    band: bool = True
    more: str = ""
    what: str = ""


_OVERFIT = "A held-out loss that rises while the training loss falls: rows are learned by heart."
_MINIMISED = "What is minimised."
_LOSS = Curve(
    "Loss",
    [("loss", "training")],
    "loss",
    what="It says nothing of how well the policy does: rollouts change with it.",
)
_TEXT = [
    Curve("Loss", [("loss", "training")], "nats a token", what=_MINIMISED, more=_OVERFIT),
    Curve(
        "Next token guessed", [("mean_token_accuracy", "training")], "share of tokens", percent=True
    ),
]
_PAIRS = [
    Curve(
        "Loss",
        [("loss", "training")],
        "loss",
        what=_MINIMISED,
        more=f"Losses with a reference begin at a known value, DPO's is ln 2 = 0.693. {_OVERFIT}",
    ),
    Curve(
        "Implicit rewards",
        [
            ("rewards/chosen", "chosen"),
            ("rewards/rejected", "rejected"),
            ("rewards/margins", "margin"),
        ],
        "implicit reward",
        held_out="not",
        band=False,
        more="The margin is what the loss widens. Both may fall while it grows: common in DPO, "
        "and harmless only while held-out log p(chosen) holds.",
    ),
    Curve(
        "Preferred response wins",
        [("rewards/accuracies", "training")],
        "share of pairs",
        percent=True,
    ),
    Curve(
        "Log-probability, held out",
        [("logps/chosen", "chosen"), ("logps/rejected", "rejected")],
        "nats a response",
        held_out="only",
        more="A falling chosen line is displacement: probability goes to responses that nobody "
        "judged.",
    ),
]
_REWARD = [
    Curve(
        "Loss",
        [("loss", "training")],
        "loss",
        what=_MINIMISED,
        more=f"A coin is at ln 2 = 0.693. {_OVERFIT}",
    ),
    Curve(
        "Preferred response wins",
        [("accuracy", "training")],
        "share of comparisons",
        percent=True,
        what="How often the preferred response has the higher reward. Healthy: 60 to 80 % held "
        "out, as people agree with each other; above 95 % something else gives it away.",
    ),
    Curve("Margin", [("margin", "training")], "reward, preferred less other"),
]
_SAMPLED = [
    Curve(
        "KL to the reference",
        [("objective/kl", "rollouts")],
        "nats a response",
        more="A reward that is bought with much KL is often a mistake of the reward.",
    ),
    Curve("Length of responses", [("completions/mean_length", "rollouts")], "tokens"),
    Curve(
        "Responses cut off at the limit",
        [("completions/clipped_ratio", "rollouts")],
        "share of responses",
        percent=True,
    ),
    Curve(
        "Entropy of a token", [("policy/entropy_avg", "rollouts"), ("entropy", "rollouts")], "nats"
    ),
    Curve(
        "Prompts that teach nothing",
        [("frac_reward_zero_std", "rollouts")],
        "share of prompts",
        percent=True,
    ),
    Curve("Value function", [("val/explained_variance", "rollouts")], "explained variance"),
    Curve("Repetition", [("completions/repetition", "rollouts")], "share of 4-grams", percent=True),
    Curve("Text loss of the second stream", [("mix_nll", "training")], "nats a token"),
]
_CLASSES = [
    Curve("Loss", [("loss", "training")], "loss", what=_MINIMISED, more=_OVERFIT),
    Curve(
        "Right class",
        [("accuracy", "training")],
        "share of texts",
        percent=True,
        band=False,
        what="How often the class with the highest score is the right one.",
    ),
    Curve("Macro F1", [("macro_f1", "")], "F1", held_out="only"),
]
_SECOND = [
    Curve("Size of the gradient", [("grad_norm", "before clipping")], "norm", held_out="not"),
    Curve("Learning rate", [("learning_rate", "schedule")], "learning rate", held_out="not"),
]

ON_POLICY = ("ppo", "grpo", "rloo", "online_dpo", "raft")
TEXT = ("pretrain", "sft")


def curves_of(run: Run) -> list[Figure]:
    """What a person wants to see first of a run of its verb."""
    if run.verb in ON_POLICY:
        wanted = [_scores(run), *_SAMPLED]
        wanted += [] if run.verb in ("ppo", "grpo", "rloo") else [_LOSS]
    elif run.verb in TEXT:
        wanted = _TEXT
    elif run.verb == "classify":
        wanted = _CLASSES
    else:
        wanted = _REWARD if run.verb == "reward" else _PAIRS
    return figures(run, wanted)


def second_curves(run: Run) -> list[Figure]:
    """What is of interest when something looks odd."""
    more = [_LOSS] if run.verb in ("ppo", "grpo", "rloo") else []
    return figures(run, [*more, *_SECOND])


def figures(run: Run, curves: Sequence[Curve]) -> list[Figure]:
    """The charts of those curves of which the log has at least two points."""
    return [drawn for curve in curves if (drawn := figure(run, curve)) is not None]


def figure(run: Run, curve: Curve) -> Figure | None:
    """One chart with its caption; None where there is nothing to draw."""
    lines: list[Series] = []
    said: list[str] = []
    for name, legend in curve.metrics:
        if curve.held_out != "only":
            _line(run, name, legend, False, lines, said)
        if curve.held_out != "not":
            held = "held out" if len(curve.metrics) == 1 else f"{legend}, held out"
            _line(run, name, held, True, lines, said)
    if not any(len(line.points) > 1 for line in lines):
        return None
    band = _band(curve.metrics[0][0], curve) if curve.band else None
    chart = line_chart(
        lines,
        title=f"{curve.title}: {run.name}",
        x=Axis("optimizer steps"),
        y=Axis(curve.unit, percent=curve.percent),
        band=band,
        height=280,
    )
    return Figure(bare(chart), " ".join([*_caption(curve), *said]))


def _line(
    run: Run, name: str, legend: str, held_out: bool, lines: list[Series], said: list[str]
) -> None:
    found = run.series(name, held_out=held_out)
    if not found or any(line.name == legend for line in lines):
        return
    full = f"eval_{name}" if held_out else name
    points: list[Point] = []
    for step, record in found:
        y = read.value(record, full)
        assert y is not None
        low, high = read.ends(record, full)
        hint = f"step {step:,.0f}: {interval(y, low, high)}"
        points.append(Point(step, y, low, high, hint))
    points = thinned(points)
    lines.append(Series(legend, points, marks="all" if len(points) <= _MARKED else "none"))
    first, last = points[0], points[-1]
    ends = [first, last] if len(points) > 1 else [last]
    told = ", ".join(f"{interval(p.y, p.low, p.high)} at step {p.x:,.0f}" for p in ends)
    said.append(f"{legend[:1].upper()}{legend[1:]}: {told}.")


def _caption(curve: Curve) -> list[str]:
    found = metric_of(curve.metrics[0][0]) if len(curve.metrics) == 1 else None
    known = found is not None and not curve.what
    said = [
        curve.what or (found.what if found is not None else ""),
        curve.more,
        f"Healthy: {found.healthy}." if known and found is not None and found.healthy else "",
    ]
    return [one for one in said if one]


def _band(name: str, curve: Curve) -> Band | None:
    found = metric_of(name)
    if found is None or found.band is None:
        return None
    low, high = found.band
    ends = [None if end is None else _end(end, curve.percent) for end in (low, high)]
    if ends[0] is None:
        return Band(low, high, f"healthy: below {ends[1]}")
    if ends[1] is None:
        return Band(low, high, f"healthy: above {ends[0]}")
    return Band(low, high, f"healthy: {ends[0]} to {ends[1]}")


def _end(end: float, percent: bool) -> str:
    return f"{number(100 * end)}%" if percent else number(end)


def _scores(run: Run) -> Curve:
    """The reward that is optimised, with those that are watched or have no weight."""
    metrics = [("reward", "optimised"), *watched(run)[:2]]
    return Curve("Reward", metrics, "reward", more="" if len(metrics) == 1 else _WATCHED)


def watched(run: Run) -> list[tuple[str, str]]:
    """(name in the log, legend) of rewards that are measured and optimised by nobody."""
    seen = list(dict.fromkeys(name for record in run.logged for name in record))
    found = [name for name in seen if name.startswith("watch/") and name.endswith("/mean")]
    parts = [name for name in seen if name.startswith("rewards/") and name.endswith("/mean")]
    weights = [one.strip() for one in run.setting("reward_weights").split(",")]
    if len(weights) == len(parts):
        found += [name for name, w in zip(parts, weights, strict=True) if _is_zero(w)]
    return [(name, f"only watched: {name.split('/')[1]}") for name in found]


def _is_zero(text: str) -> bool:
    try:
        return float(text) == 0
    except ValueError:
        return False


_WATCHED = "A watched reward that falls while the optimised one rises is reward hacking."


def thinned(points: Sequence[Point], most: int = MOST_POINTS) -> list[Point]:
    """At most about ``most`` of the points: the lowest and the highest of every stretch.

    First and last stay; so does every peak that the whole line would show.
    """
    if len(points) <= most:
        return list(points)
    kept = {0, len(points) - 1}
    stretches = most // 2 - 1
    for part in range(stretches):
        inside = range(len(points) * part // stretches, len(points) * (part + 1) // stretches)
        kept.add(min(inside, key=lambda i: points[i].y))
        kept.add(max(inside, key=lambda i: points[i].y))
    return [points[i] for i in sorted(kept)]
