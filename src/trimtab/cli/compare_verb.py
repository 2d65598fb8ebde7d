"""``trimtab compare``: its keys are the recipe's, which the parser never sees."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, get_args

from cyclopts import Parameter

_HELP = """Usage: trimtab compare recipe.yaml [--key value | --group.key value]

Train several methods from one model under one budget, over a grid of their strength; examine every
checkpoint; draw the frontier of reward against KL. Finished parts are kept by what they depend on:
a method that is added costs only itself, and the same command goes on where it was stopped.

Example: trimtab compare recipes/compare/tiny.yaml --jobs 2

Every key can stand in the recipe, or on the command line (--budget.amount 512, --seeds 0,1,
--methods.dpo.learning_rate 1e-4), which wins.
"""


def compare(*tokens: Annotated[str, Parameter(allow_leading_hyphen=True, show=False)]) -> int:
    """Train several methods from one model, and draw reward against KL."""
    if any(token in ("--help", "-h") for token in tokens):
        _print_help()
        return 0
    from trimtab.comparison.command import compare as run

    return run(tokens)


def _print_help() -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from trimtab.comparison.recipe import CONTROLS
    from trimtab.config.compare_recipe import CompareRecipe

    out = Console(highlight=False)
    out.print(_HELP, markup=False)
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column()
    for name, option, last in _rows(CompareRecipe):
        table.add_row(f"  [cyan]--{name}[/]", f"{escape(option)} [dim]{escape(last)}[/]")
    out.print("[bold]The comparison[/]")
    out.print(table)
    controls = Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)
    for name, meaning in CONTROLS.items():
        value = " N" if name == "jobs" else ""
        controls.add_row(f"  [cyan]--{name.replace('_', '-')}[/]{value}", escape(meaning))
    out.print("[bold]This command[/]")
    out.print(controls)


def _rows(model: Any, prefix: str = "") -> Sequence[tuple[str, str, str]]:
    """Every key with its meaning and default; a group's keys follow it."""
    from pydantic import BaseModel

    found: list[tuple[str, str, str]] = []
    for name, field in model.model_fields.items():
        path = f"{prefix}{name.replace('_', '-')}"
        default = "required"
        if not field.is_required():
            default = f"default {_shown(field.get_default(call_default_factory=True))}"
        found.append((path, field.description or "", f"[{default}]"))
        parts = (field.annotation, *get_args(field.annotation))
        inner = [p for p in parts if isinstance(p, type) and issubclass(p, BaseModel)]
        if inner:
            found += _rows(inner[0], f"{path}.")
    return found


def _shown(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return ",".join(f"{item:g}" for item in value) or "none"  # type: ignore[union-attr]
    return "none" if value == {} else str(value)
