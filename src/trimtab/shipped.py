"""Files that come with trimtab beside its code: the recipes, and the tested set of versions.

In a checkout they stand at its top, where people look for them; ``setup.py`` copies them into the
package's folder ``shipped`` when a wheel is built.
"""

from __future__ import annotations

from pathlib import Path

RECIPES = "recipes"
CONSTRAINTS = "constraints.txt"
"""The tested set: ``name==version`` lines."""

_PACKAGE = Path(__file__).resolve().parent


def shipped(name: str) -> Path | None:
    """Where ``name`` (``recipes/tiny/dpo.yaml``) is, or None where this trimtab has no such."""
    for top in (_PACKAGE / "shipped", _PACKAGE.parents[1]):
        if (top / name).exists():
            return top / name
    return None


def or_shipped(path: Path) -> Path:
    """``path``, or the shipped file where it is none of the user's and begins with ``recipes/``.

    So the commands in the recipes' headers work wherever trimtab is installed.
    """
    if path.is_absolute() or path.parts[:1] != (RECIPES,) or path.exists():
        return path
    return shipped(path.as_posix()) or path


def recipe_named(path: Path) -> Path:
    """``recipes/tiny/dpo.yaml`` of ``tiny/dpo``, as ``trimtab recipes ls`` has it; else ``path``.

    Only where there is no such file or folder of the user's and such a recipe is shipped.
    """
    if path.is_absolute() or path.exists():
        return path
    beside = path if path.parts[:1] == (RECIPES,) else RECIPES / path
    named = beside.with_name(f"{beside.name}.yaml")
    return path if shipped(named.as_posix()) is None else named
