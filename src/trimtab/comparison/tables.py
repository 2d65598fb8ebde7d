"""comparison.md: the verdict, and tables that a person reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from trimtab.comparison.analysis import Analysis, Pair
from trimtab.comparison.cells import Plan
from trimtab.comparison.measured import Setting
from trimtab.comparison.record import KL_ESTIMATOR, budget_sentence, judge_name, proxy_name
from trimtab.comparison.verdict import told
from trimtab.config.compare_recipe import BASE
from trimtab.intervals import Interval


def markdown(plan: Plan, analysis: Analysis, said: dict[str, Any]) -> str:
    """The whole file."""
    cells = analysis.base.cells("gold")
    seeds = f"{cells.shape[0]} seed{'s' * (cells.shape[0] > 1)}"
    choosing = analysis.base.cells("gold", "choose").shape[1]
    proxy = proxy_name(plan)
    lines = [
        f"# {plan.recipe.title}",
        "",
        f"From {plan.recipe.model_name_or_path} with {budget_sentence(plan)}. {seeds}, "
        f"{cells.shape[1]} held-out prompts with {plan.recipe.samples} responses each; settings "
        f"were chosen on {choosing} others. The judge is {judge_name(plan.recipe.judge)}"
        + (f", the proxy {proxy}" if proxy else "")
        + f". KL: {KL_ESTIMATOR}. Intervals are 95 %, over prompts"
        + (" and seeds." if cells.shape[0] > 1 else "."),
        "",
        *[f"* {sentence}" for sentence in said["verdict"]],
        "",
        "## Each method at its best setting",
        "",
        *_chosen(analysis),
        "",
        "## Win rates",
        "",
        "Of the row over the column, ties half; **bold**: not one half, after Holm's correction "
        f"for {len(analysis.pairs)} comparisons.",
        "",
        *_wins(analysis, lambda pair: (pair.win_rate, pair.differs)),
        "",
        "Length-controlled: what would be won at equal length. Nothing is tested here.",
        "",
        *_wins(analysis, lambda pair: (pair.length_controlled, False)),
    ]
    if any(level.gold for level in analysis.at_kl):
        lines += ["", "## Within the same KL", "", *_levels(analysis)]
    lines += ["", "## Every setting", "", *_every(analysis), ""]
    for what, names in (("failed", said["failed"]), ("left out", analysis.measured.left_out)):
        if names:
            texts = [n if isinstance(n, str) else f"{n['cell']}: {n['error']}" for n in names]
            lines += [f"## {what.capitalize()}", "", *[f"* {text}" for text in texts], ""]
    return "\n".join(lines)


def _chosen(analysis: Analysis) -> list[str]:
    heads = ["method", "setting", "step", "judge's reward", "gain", "proxy", "KL, nats"]
    heads += ["length", "ended", "loss on text, change", "seconds", "tokens"]
    lines = header(*heads)
    lines.append(_line(analysis, BASE, analysis.base))
    order = sorted(analysis.chosen.items(), key=lambda item: -analysis.of(item[1], "gold").mean)
    return lines + [_line(analysis, name, one) for name, one in order]


def _line(analysis: Analysis, name: str, one: Setting) -> str:
    same = one is analysis.base
    tax = None if same else analysis.tax(one)
    spent = sum(one.seconds) / len(one.seconds), sum(one.tokens) / len(one.tokens)
    return row(
        [
            name,
            "-" if same else one.label,
            str(one.step) if one.step else "-",
            told(analysis.of(one, "gold")),
            "-" if same else told(analysis.gain(one, analysis.base), sign=True),
            told(analysis.of(one, "proxy"), 2) if one.has("proxy") else "-",
            "0" if same else told(analysis.of(one, "kl"), 2),
            f"{analysis.of(one, 'length').mean:.1f}",
            f"{analysis.of(one, 'ended').mean:.0%}",
            "-" if tax is None else told(tax, sign=True),
            f"{spent[0]:.0f}" if spent[0] else "-",
            f"{spent[1]:,.0f}" if spent[1] else "-",
        ]
    )


def _wins(analysis: Analysis, of: Callable[[Pair], tuple[Interval, bool]]) -> list[str]:
    """A rate of every two with its interval; ``of`` says it, and whether it is bold."""
    names = [
        *sorted(analysis.chosen, key=lambda n: -analysis.of(analysis.chosen[n], "gold").mean),
        BASE,
    ]
    lines = header("", *names)
    for a in names:
        cells: list[str] = []
        for b in names:
            if a == b:
                cells.append("-")
                continue
            rate, bold = of(analysis.pair(a, b))
            cells.append(f"**{told(rate, 2)}**" if bold else told(rate, 2))
        lines.append(row([a, *cells]))
    return lines


def _levels(analysis: Analysis) -> list[str]:
    names = [name for name in analysis.chosen if any(name in lv.gold for lv in analysis.at_kl)]
    lines = header("KL, nats", *names)
    for level in analysis.at_kl:
        cells = [told(level.gold[name]) if name in level.gold else "-" for name in names]
        lines.append(row([f"{level.level:g}", *cells]))
    lines += [
        "",
        "Along the frontiers. A dash: no checkpoint surely went so far. What differs:",
        "",
    ]
    found = [
        f"* {level.level:g} nats: {a} less {b} {told(difference, sign=True)} (p {p:.2g})"
        for level in analysis.at_kl
        for a, b, difference, p in level.differences
        if p < 0.05
    ]
    return lines + (found or ["* nothing"])


def _every(analysis: Analysis) -> list[str]:
    lines = header("method", "setting", "step", "judge's reward", "proxy", "KL, nats", "length")
    for own in analysis.measured.methods.values():
        for one in own:
            lines.append(
                row(
                    [
                        one.method,
                        one.label,
                        str(one.step) if one.step else "-",
                        told(analysis.of(one, "gold")),
                        told(analysis.of(one, "proxy"), 2) if one.has("proxy") else "-",
                        told(analysis.of(one, "kl"), 2),
                        f"{analysis.of(one, 'length').mean:.1f}",
                    ]
                )
            )
    return lines


def header(*names: str) -> list[str]:
    """A Markdown table's head."""
    return [row(names).replace("|  |", "| |"), "|---" * len(names) + "|"]


def row(cells: Sequence[str]) -> str:
    """A line of a Markdown table."""
    return f"| {' | '.join(cells)} |"
