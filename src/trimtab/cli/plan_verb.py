"""``trimtab plan``: what a recipe will need."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from trimtab.errors import UsageError

USAGE = """Usage: trimtab plan [VERB] [recipe.yaml] [--key value ...] [--json]

Memory by part and time of a recipe, before a weight is loaded. The recipe and the keys are those of
the verb; without VERB the recipe's own line `verb: dpo` says which it is. --json prints one object.
The time comes from a trial of the recipe's own work on random weights, up to 40 s.

The model's shape comes from its folder, from a table of common ones, or from the hub's config.json;
rows that are here are tokenised (and cached for the run). Exit code 1 where it does not fit.
"""


def plan(tokens: Sequence[str]) -> int:
    """``trimtab plan TOKENS``: 0, or 1 where the run has no room here."""
    if not tokens or any(token in ("--help", "-h") for token in tokens):
        print(USAGE, end="")
        return 0
    verb, rest = _verb(list(tokens))
    from trimtab.config.resolve import resolve

    resolved = resolve(verb, rest)
    from trimtab.plan.plan import as_json
    from trimtab.plan.plan import plan as make
    from trimtab.plan.show import show

    if resolved.control.json:
        made = make(resolved)
        print(as_json(made))
    else:
        from rich.console import Console

        with Console(stderr=True).status("looking for the model's shape") as status:
            made = make(resolved, status.update)
        show(made)
    return 1 if made.fits is False else 0


def _verb(tokens: list[str]) -> tuple[str, list[str]]:
    """The verb, and what is the training verb's own line.

    UsageError for a comparison, which is many runs, and for what is neither verb nor recipe.
    """
    from trimtab.config.recipe_files import COMPARE, verb_of_file
    from trimtab.config.resolved import RESOLVED_NAME
    from trimtab.config.suggest import did_you_mean
    from trimtab.config.verbs import VERBS
    from trimtab.shipped import or_shipped, recipe_named

    first = tokens[0]
    if first in VERBS:
        return first, tokens[1:]
    if first == COMPARE:
        named = len(tokens) > 1 and not tokens[1].startswith("-")
        raise _comparison(tokens[1] if named else "RECIPE")
    path = Path(first)
    if (path / RESOLVED_NAME).is_file():
        path = path / RESOLVED_NAME
    path = or_shipped(recipe_named(path))
    if not first.endswith((".yaml", ".yml")) and not path.is_file():
        raise UsageError(
            f"plan: {first}: give a verb or a recipe first, e.g. trimtab plan recipe.yaml"
            f"{did_you_mean(first, VERBS)}"
        )
    verb = verb_of_file(path)
    if verb is None:
        raise UsageError(
            f"plan: {first} does not say which verb it is for; trimtab plan VERB {first}, or a "
            "line 'verb: dpo' in it"
        )
    if verb == COMPARE:
        raise _comparison(first)
    return verb, tokens


def _comparison(recipe: str) -> UsageError:
    return UsageError(
        "plan: takes the recipe of one run, and a comparison is many: trimtab compare "
        f"{recipe} --dry-run lists them"
    )
