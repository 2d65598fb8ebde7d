"""A plan for people."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from trimtab.plan.memory import LIBRARIES
from trimtab.plan.plan import Plan


def show(plan: Plan, console: Console | None = None) -> None:
    """Print ``plan``."""
    out = console or Console(highlight=False)
    share = "all" if plan.trained == plan.weights else f"{plan.trained:,}"
    facts = Table.grid(padding=(0, 2))
    facts.add_row("model", Text(f"{plan.model}: {plan.weights:,} weights, {share} trained"))
    facts.add_row("precision", Text(plan.precision))
    facts.add_row("batches", Text(plan.batches.source))
    out.print(facts)
    out.print()
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_column()
    for name, size in plan.memory.parts.items():
        table.add_row(name, amount(size), "")
    worst = plan.memory.worst
    for name, size in plan.memory.moments[worst].items():
        if size:
            table.add_row(name, amount(size), f"while {worst}")
    named = sum(plan.memory.parts.values()) + sum(plan.memory.moments[worst].values())
    table.add_row("allocator, rows", amount(plan.memory.peak - named), "")
    table.add_row("libraries", amount(LIBRARIES), "Python, torch, transformers")
    table.add_row(Text("memory", "bold"), Text(amount(plan.memory.total), "bold"), _room(plan))
    out.print(table)
    out.print()
    for line in _time(plan):
        out.print(Text(line))
    if plan.remedies:
        out.print()
        out.print("to make it fit:")
        for one in plan.remedies:
            enough = "fits" if plan.room is not None and one.total <= plan.room else "too much"
            out.print(Text(f"  {one.change}: {amount(one.total)} ({enough})"))
        if all(one.total > (plan.room or 0) for one in plan.remedies):
            out.print("  else a smaller model, a shorter max_length, or a larger machine")
    for note in plan.notes:
        out.print(Text(f"note: {note}", "yellow"))


def _room(plan: Plan) -> Text:
    if plan.room is None:
        return Text("")
    if plan.fits:
        return Text(f"fits: {amount(plan.room)} are free here", "green")
    return Text(f"does not fit: {amount(plan.room)} are free here", "bold red")


def _time(plan: Plan) -> list[str]:
    found = plan.duration
    parts = [f"{clock(found.step)} a step"]
    if found.rollout:
        parts.append(f"{clock(found.rollout)} a rollout")
    if found.before:
        parts.append(f"{clock(found.before)} for reference log-probs, once (cached)")
    steps = plan.batches.steps
    total = "" if found.total is None else f"about {clock(found.total)} for {steps:,} steps: "
    return [
        f"time: {total}{', '.join(parts)}; on top come loading, the self-check, "
        "evaluations, samples and checkpoints",
        f"      {_source(plan)}",
    ]


def _source(plan: Plan) -> str:
    found = plan.duration
    rate = f"{found.gflops:.0f} GFLOP/s measured here just now"
    if found.share is None:
        return f"from {rate}, and useful operations"
    return f"from a trial of its own micro-batches: {found.share:.0%} of {rate}"


def amount(size: int) -> str:
    """Bytes for people; GB are 10^9."""
    return f"{size / 1e9:,.2f} GB" if size >= 1e9 else f"{size / 1e6:,.0f} MB"


def clock(seconds: float) -> str:
    """A duration for people."""
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 90:
        return f"{seconds:.1f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    hours = seconds / 3600
    return f"{hours:.1f} h" if hours < 72 else f"{hours / 24:,.0f} days"
