"""What can be refused before torch is imported, which takes seconds: files that are not here."""

from __future__ import annotations

from typing import Any


def refuse_early(recipe: Any) -> None:
    """Look for the model and the rows of a training recipe; the hub is not asked here.

    Raises RecipeError and DataError as building the run would, for what is missing on disk.
    """
    from trimtab.data.locate import locate as locate_rows
    from trimtab.models.hub import here

    name = getattr(recipe, "model_name_or_path", None)
    if name is not None:
        here(name)
    for spec in (*recipe.train_specs(), *recipe.eval_specs()):
        locate_rows(spec)
