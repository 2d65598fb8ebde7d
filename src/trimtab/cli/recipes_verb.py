"""``trimtab recipes ls | show | cp``: the recipes that come with trimtab."""

from __future__ import annotations

import json
import sys
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console
from rich.table import Table
from rich.text import Text


def ls(*, as_json: Annotated[bool, Parameter(name="--json", negative="")] = False) -> int:
    """List the recipes: name, verb, what each does, on which hardware, how long, what came out.

    In a pipe a line each, apart by tabs, with the first sentence of that.

    Parameters
    ----------
    as_json
        Print one JSON list instead.
    """
    from trimtab.config.recipe_files import recipe_files

    found = recipe_files()
    if as_json:
        rows = [{"name": one.name, "verb": one.verb, "about": one.about} for one in found]
        print(json.dumps(rows, ensure_ascii=False))
    elif sys.stdout.isatty():
        table = Table("recipe", "verb", "", box=None, padding=(0, 2, 0, 0), pad_edge=False)
        for one in found:
            table.add_row(Text(one.name, "cyan"), one.verb, Text(one.about))
        out = Console(highlight=False)
        out.print(table)
        out.print("\ntrimtab recipes show NAME prints one, trimtab recipes cp NAME FILE copies it.")
    else:  # a line each, for grep and cut
        for one in found:
            print(f"{one.name}\t{one.verb}\t{one.in_short}")
    return 0


def show(name: str, /) -> int:
    """Print a recipe as it is.

    Parameters
    ----------
    name
        As in ls: tiny/dpo.
    """
    from trimtab.config.recipe_files import find_recipe_file

    print(find_recipe_file(name).read_text(encoding="utf-8"), end="")
    return 0


def cp(
    name: str,
    file: str,
    /,
    *,
    overwrite: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """Copy a recipe to change it.

    Parameters
    ----------
    name
        As in ls: tiny/dpo.
    file
        The copy: a new file, or a folder.
    overwrite
        Replace a file that is there.
    """
    from trimtab.config.recipe_files import copy_recipe_file, files_named, verb_of_file

    copy = copy_recipe_file(name, file, overwrite=overwrite)
    if copy.suffix != ".yaml":
        print(copy)
        return 0
    print(f"{copy}: now trimtab {verb_of_file(copy)} {copy}")
    for other in files_named(copy):
        print(f"it names {other}, shipped as well; for a copy: trimtab recipes cp {other} FILE")
    return 0
