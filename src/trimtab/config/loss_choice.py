"""Which loss the sources of a recipe choose: one by name, or one of the user's own from a file.

The last source that says anything decides. Hyper-parameters that an earlier source gave to another
loss are refused: a beta of DPO must not slip into SimPO.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from trimtab.config.loss_schema import loss_schema
from trimtab.config.merge import Given
from trimtab.config.verbs import Verb
from trimtab.errors import RecipeError

NAME, FILE = "loss.name", "loss.file"


def choose_loss(verb: Verb, sources: Sequence[Mapping[str, Given]], given: dict[str, Given]) -> str:
    """The loss's name, or its FILE.py:FUNCTION where ``given`` is left with a ``loss.file``.

    ``given`` is the sources laid over each other; the key that did not win is taken out of it.
    """
    standard = verb.loss or "dpo"
    key, loss = _last(sources) or (NAME, standard)
    for other in (NAME, FILE):
        if other != key:
            given.pop(other, None)
    named = given.get(key)
    if named is None:
        return standard
    if verb.loss is not None and loss != verb.loss:
        use = f"--loss.file {loss}" if key == FILE else f"--loss {loss}"
        raise RecipeError(
            f"loss: trimtab {verb.name} trains {verb.loss}, not {loss!r} ({named.where}); use "
            f"trimtab dpo {use}"
        )
    if key == NAME and loss_schema(loss) is None:
        return loss  # the recipe's own check names the losses there are
    _refuse_strays(sources, given, standard, loss, named.where)
    return loss


def _last(sources: Sequence[Mapping[str, Given]]) -> tuple[str, str] | None:
    """The key and the loss of the last source that names one."""
    found = None
    for source in sources:
        found = _in(source) or found
    return found


def _in(source: Mapping[str, Given]) -> tuple[str, str] | None:
    name, file = source.get(NAME), source.get(FILE)
    if file is not None and file.value is None:  # null is 'not set'
        file = None
    if name is not None and file is not None:
        raise RecipeError(
            f"loss.file: {file.value!r} ({file.where}) and loss {name.value!r} ({name.where}): "
            "give one of the two"
        )
    if file is not None:
        return FILE, str(file.value)
    return None if name is None else (NAME, str(name.value))


def _refuse_strays(
    sources: Sequence[Mapping[str, Given]],
    given: Mapping[str, Given],
    standard: str,
    chosen: str,
    where: str,
) -> None:
    """RecipeError for a hyper-parameter that was written for another loss than the chosen one."""
    meant_for = standard
    for source in sources:
        meant_for = (_in(source) or ("", meant_for))[1]
        for path, entry in source.items():
            if not path.startswith("loss.") or path in (NAME, FILE) or meant_for == chosen:
                continue
            if given.get(path) is entry:
                raise RecipeError(
                    f"{path}: {entry.value} was meant for {meant_for} ({entry.where}), and the "
                    f"loss is {chosen} ({where}); give --{path} for {chosen}, or take it out"
                )
