"""A comparison's two charts: gold over KL, and gold over the proxy."""

from __future__ import annotations

from collections.abc import Sequence

from trimtab.comparison.analysis import Analysis
from trimtab.comparison.cells import Plan
from trimtab.comparison.measured import Setting
from trimtab.report.charts import Point
from trimtab.report.panels import Panel, panel_chart
from trimtab.report.svg import Axis


def charts(plan: Plan, analysis: Analysis, judge: str, proxy: str | None) -> dict[str, str]:
    """SVG by file name; gold against proxy where every method has one."""
    seeds = len(plan.recipe.seeds)
    note = (
        f"Lines: each method's frontier, chosen on other prompts. Dots: all its checkpoints. Bars: "
        f"95 % over prompts{'' if seeds == 1 else f' and {seeds} seeds'}. Grey: the other methods."
    )
    found = {
        "frontier.svg": panel_chart(
            [
                Panel(
                    name,
                    _points(analysis, own, "kl"),
                    _points(analysis, _rest(analysis, name), "kl"),
                )
                for name, own in analysis.frontiers.items()
            ],
            title="Reward gained for distance",
            note=note,
            x=Axis("KL to the model at the start, nats a response", 0.0),
            y=Axis(f"judge's reward ({judge})"),
            start=_point(analysis, analysis.base, "kl"),
        )
    }
    with_proxy = {
        name: own for name, own in analysis.measured.methods.items() if own[0].has("proxy")
    }
    if proxy is not None and with_proxy and analysis.base.has("proxy"):
        found["gold-against-proxy.svg"] = panel_chart(
            [
                Panel(
                    name,
                    _points(analysis, _by(analysis.frontiers[name], "proxy"), "proxy"),
                    _points(analysis, _rest(analysis, name), "proxy"),
                )
                for name in with_proxy
            ],
            title="What the judge says of what the proxy likes",
            note=note,
            x=Axis(f"proxy's reward ({proxy})"),
            y=Axis(f"judge's reward ({judge})"),
            start=_point(analysis, analysis.base, "proxy"),
        )
    return found


def _rest(analysis: Analysis, name: str) -> list[Setting]:
    return [
        one
        for one in analysis.measured.methods[name]
        if not any(one is two for two in analysis.frontiers[name])
    ]


def _by(settings: Sequence[Setting], column: str) -> list[Setting]:
    return sorted(settings, key=lambda one: float(one.cells(column).mean()))


def _points(analysis: Analysis, settings: Sequence[Setting], across: str) -> list[Point]:
    return [_point(analysis, one, across) for one in settings]


def _point(analysis: Analysis, setting: Setting, across: str) -> Point:
    x, gold = analysis.of(setting, across), analysis.of(setting, "gold")
    step = f", step {setting.step}" if setting.step else ""
    hint = f"{setting.method}, {setting.label}{step}: {across} {x.mean:.2f}, gold {gold.mean:.3f}"
    return Point(x.mean, gold.mean, gold.low, gold.high, hint)
