"""``trimtab VERB --help``: every key of the recipe with its type, default and meaning."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from trimtab.cli.texts import TRAINING
from trimtab.config.hints import CONTROLS
from trimtab.config.loss_schema import LossSchema, loss_schemas
from trimtab.config.recipes import LossKeys
from trimtab.config.schema import Key, recipe_keys
from trimtab.config.verbs import LOSS_DEFAULTS, VERBS, Verb, loss_defaults


def print_verb_help(name: str, console: Console | None = None) -> None:
    """Print the help of a training verb."""
    out = console or Console(highlight=False)
    verb, text = VERBS[name], TRAINING[name]
    usage = escape("[recipe.yaml] [--key value | --group.key value]")
    out.print(f"Usage: [bold]trimtab {name}[/] {usage}\n")
    out.print(f"{text.summary}\n")
    out.print(Padding(escape(text.objective), (0, 2)), style="cyan")
    out.print(f"\nExample: {text.example}\n", soft_wrap=True, markup=False)
    out.print(
        "Every key can stand in the recipe (key: value), on the command line (--key value, with - "
        "or _) or in the environment (TRIMTAB_KEY=value); the command line wins. null is 'not set'."
        "\n",
        markup=False,
    )
    defaults = LOSS_DEFAULTS.get(verb.loss or "", {})
    tables: dict[str, Table] = {}
    for key in recipe_keys(verb.recipe).values():
        if key.path == "loss.name" or (key.path == "loss" and verb.loss is not None):
            continue
        table = tables.setdefault(key.title, _table())
        if key.path.startswith("loss."):
            _add_parameter(table, key, verb)
        else:
            default = defaults.get(key.path, key.default)
            table.add_row(_option(key, default), _meaning(key, default))
    for title, table in tables.items():
        out.print(f"[bold]{title}[/]")
        _print(table, out)
        if title == LossKeys.TITLE and verb.loss is None:
            out.print("[bold]Losses[/]")
            _print(_losses(verb), out)
    out.print("[bold]This command[/]")
    _print(_controls(), out)


def _table() -> Table:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column()
    return table


def _print(table: Table, out: Console) -> None:
    """Print with names whole, however narrow the terminal: only the meaning wraps."""
    names = [Text.from_markup(str(cell)).cell_len for cell in table.columns[0].cells]
    table.columns[0].min_width = max(names) + 2  # the gap counts
    out.print(table)


def _option(key: Key, default: Any) -> str:
    name = _dashed(key.path)
    if key.shape == "flag" and default is True and "." not in name:
        name = f"[no-]{name}"
    indent = "  " * (1 + key.path.count("."))
    return f"{indent}[cyan]--{escape(name)}[/]"


def _dashed(path: str) -> str:
    return path.replace("_", "-")


def _meaning(key: Key, default: Any) -> str:
    kind = "true or false" if key.shape == "flag" else key.type_label.replace("|", ", ")
    if key.shape == "group" and key.path != "loss":
        kind = "its keys follow"
    last = "required" if default is ... else f"default {_shown(default)}"
    last = _REQUIRED.get(key.path, last)
    return f"{escape(key.description)} [dim]{escape(f'[{kind}; {last}]')}[/]"


# Null in the schema, because another key can stand in for them.
_REQUIRED = {
    "model_name_or_path": "required, or new_model in pretrain",
    "dataset_name": "required, or datasets",
    "mix.dataset_name": "required, or mix.datasets",
}


def _shown(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return str(value) if value != {} else "none"


def _add_parameter(table: Table, key: Key, verb: Verb) -> None:
    """A hyper-parameter, in verbs that stand for one loss; ``loss.file``, in those that do not."""
    if verb.loss is None:
        if key.path == "loss.file":
            table.add_row(_option(key, None), _meaning(key, None))
        return
    schema = loss_schemas()[verb.loss]
    name = key.path.removeprefix("loss.")
    if name in schema.parameters:
        default = _shown(schema.parameters[name].default)
        meaning = f"Hyper-parameter of {verb.loss}; --loss.{_dashed(name)} is the same."
        last = escape(f"[{key.type_label}; default {default}]")
        table.add_row(f"  [cyan]--{_dashed(name)}[/]", f"{meaning} [dim]{last}[/]")


def _losses(verb: Verb) -> Table:
    table = _table()
    for schema in loss_schemas().values():
        parameters = ", ".join(
            f"--{_dashed(name)} {_shown(p.default)}" for name, p in schema.parameters.items()
        )
        meaning = f"{escape(_plain(schema))} [cyan]{escape(parameters)}[/]"
        others = loss_defaults(verb, schema.name)
        if others:
            changed = ", ".join(f"{key} {_shown(value)}" for key, value in others.items())
            meaning += f" [dim]{escape(f'[its defaults: {changed}]')}[/]"
        table.add_row(f"  [cyan]--loss {schema.name}[/]", meaning)
    return table


def _plain(schema: LossSchema) -> str:
    """Its objective, where a verb says it, or the first line of its docstring."""
    text = TRAINING.get(schema.name)
    return text.objective if text else schema.summary.replace("``", "")


def _controls() -> Table:
    table = _table()
    table.add_row("  [cyan]--config[/] FILE", "The recipe, as an option.")
    for name, meaning in CONTROLS.items():
        value = " PATH" if name == "resume" else ""
        table.add_row(f"  [cyan]--{_dashed(name)}[/]{value}", escape(meaning))
    table.add_row("  [cyan]--help[/]", "Show this.")
    return table
