"""What can be refused before torch is imported, which takes seconds: files that are not here."""

from __future__ import annotations

from typing import Any

from trimtab.config.resolved import Resolved
from trimtab.errors import RecipeError

KEY = "model_name_or_path"


def refuse_early(resolved: Resolved) -> None:
    """Look for the model and the rows of a training recipe; the hub is not asked here.

    Raises RecipeError and DataError as building the run would, for what is missing on disk.
    """
    from trimtab.data.locate import locate as locate_rows
    from trimtab.models.hub import here

    recipe: Any = resolved.recipe
    name = getattr(recipe, KEY)
    if name is not None:
        try:
            here(name)
        except RecipeError as error:
            raise resolved.placed(error, KEY) from None
    for spec in (*recipe.train_specs(), *recipe.eval_specs()):
        locate_rows(spec)
