"""Which loss the sources of a recipe choose: one by name, a sum, or one of the user's own.

The last source that says anything decides; weights of members alone change a sum that an earlier
source chose. Hyper-parameters that an earlier source gave to another loss are refused: a beta of
DPO must not slip into SimPO.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from trimtab.config.loss_schema import loss_schema
from trimtab.config.loss_sum import (
    SFT,
    WEIGHT,
    LossSumError,
    is_member,
    is_sum,
    parse_sum,
    read_weight,
    write_sum,
)
from trimtab.config.merge import Given
from trimtab.config.verbs import Verb
from trimtab.errors import RecipeError

NAME, FILE, NLL = "loss.name", "loss.file", "nll_weight"


class _Choice(NamedTuple):
    """A loss by ``key``, its name or its file; ``weights`` by name where it is a sum."""

    key: str
    text: str
    where: str
    weights: Mapping[str, Given] | None = None

    @property
    def shown(self) -> str:
        """The loss in words."""
        if self.weights is None:
            return self.text
        return write_sum({name: entry.value for name, entry in self.weights.items()})

    @property
    def loss(self) -> str:
        """The loss without the likelihood; one alone, of weight 1, by its name."""
        if self.weights is None:
            return self.text
        weights = {name: entry.value for name, entry in self.weights.items() if name != SFT}
        return next(iter(weights)) if list(weights.values()) == [1.0] else write_sum(weights)


def choose_loss(verb: Verb, sources: Sequence[Mapping[str, Given]], given: dict[str, Given]) -> str:
    """The loss's name, or its FILE.py:FUNCTION where ``given`` is left with a ``loss.file``.

    ``given`` is the sources laid over each other; the key that did not win is taken out of it, and
    a sum is written as one text under ``loss.name``.
    """
    standard = verb.loss or "dpo"
    states = _states(sources)
    chosen = states[-1] if states else None
    for path in [p for p in given if p in (NAME, FILE) or _is_weight(p)]:
        if chosen is None or path != chosen.key or chosen.weights is not None:
            del given[path]
    if chosen is None:
        return standard
    loss = chosen.shown
    if verb.loss is not None and loss != verb.loss:
        use = f"--loss.file {loss}" if chosen.key == FILE else f"--loss {_quoted(loss)}"
        raise RecipeError(
            f"loss: trimtab {verb.name} trains {verb.loss}, not {loss!r} ({chosen.where}); use "
            f"trimtab dpo {use}"
        )
    if chosen.weights is not None:
        loss = _take_sum(chosen, given)
    elif chosen.key == NAME and loss_schema(loss) is None:
        return loss  # the recipe's own check names the losses there are
    _refuse_strays(sources, states, given, standard, loss)
    return loss


def _take_sum(chosen: _Choice, given: dict[str, Given]) -> str:
    """Write a sum into ``given``: the likelihood as its own key, one loss alone by its name."""
    weights = dict(chosen.weights or {})
    likelihood, loss = weights.pop(SFT, None), chosen.loss
    if likelihood is not None:
        if NLL in given:
            raise RecipeError(
                f"nll_weight: {given[NLL].value} ({given[NLL].where}), and sft is in the loss "
                f"{chosen.shown!r} ({likelihood.where}): they are one term, give one of the two"
            )
        given[NLL] = likelihood
    if not weights:
        raise RecipeError(f"loss: {chosen.shown!r} ({chosen.where}) is trimtab sft; use that verb")
    if loss in weights:
        for path in [p for p in given if p.startswith(f"loss.{loss}.")]:
            given[f"loss.{path.removeprefix(f'loss.{loss}.')}"] = given.pop(path)
    given[NAME] = Given(loss, chosen.where, {})
    return loss


def _states(sources: Sequence[Mapping[str, Given]]) -> list[_Choice | None]:
    """What is chosen after each of the sources."""
    states: list[_Choice | None] = []
    for source in sources:
        before = states[-1] if states else None
        found = _in(source)
        if found is not None and found.key == WEIGHT:
            merged = {**(before.weights or {}), **(found.weights or {})} if before else None
            where = before.where if before and before.weights is not None else found.where
            found = _Choice(NAME, "", where, merged or found.weights)
        states.append(found or before)
    return states


def _in(source: Mapping[str, Given]) -> _Choice | None:
    """The choice of one source; its key is ``weight`` where members alone are given."""
    name, file = source.get(NAME), source.get(FILE)
    if file is not None and file.value is None:  # null is 'not set'
        file = None
    members = {p.split(".")[1]: entry for p, entry in source.items() if _is_weight(p)}
    if file is not None and (name is not None or members):
        other = name or next(iter(members.values()))
        shown = f"loss {name.value!r}" if name else "a sum"
        raise RecipeError(
            f"loss.file: {file.value!r} ({file.where}) and {shown} ({other.where}): "
            "give one of the two"
        )
    if file is not None:
        return _Choice(FILE, str(file.value), file.where)
    if name is not None and members:
        first = next(iter(members.values()))
        raise RecipeError(
            f"loss: {name.value!r} ({name.where}) and the weight of a member ({first.where}): "
            "write the whole sum in one way"
        )
    try:
        if members:
            weights = {
                n: entry._replace(value=read_weight(n, entry.value)) for n, entry in members.items()
            }
            return _Choice(WEIGHT, "", next(iter(members.values())).where, weights)
        if name is not None and is_sum(name.value):
            weights = {n: Given(w, name.where, {}) for n, w in parse_sum(str(name.value)).items()}
            return _Choice(NAME, "", name.where, weights)
    except LossSumError as error:
        where = (name or next(iter(members.values()))).where
        raise RecipeError(f"loss: {error} ({where})") from None
    return None if name is None else _Choice(NAME, str(name.value), name.where)


def _is_weight(path: str) -> bool:
    group, _, rest = path.partition(".")
    member, _, key = rest.partition(".")
    return group == "loss" and key == WEIGHT and is_member(member)


def _refuse_strays(
    sources: Sequence[Mapping[str, Given]],
    states: Sequence[_Choice | None],
    given: Mapping[str, Given],
    standard: str,
    chosen: str,
) -> None:
    """RecipeError for a hyper-parameter that was written for another loss than the chosen one."""
    last = states[-1]
    assert last is not None
    for source, state in zip(sources, states, strict=True):
        meant_for = standard if state is None else state.loss
        # A sum whose weights a later source changed keeps its place.
        if meant_for == chosen or (state is not None and state.where == last.where):
            continue
        for path, entry in source.items():
            inside = path.removeprefix("loss.")
            if inside == path or path in (NAME, FILE) or _is_weight(path):
                continue
            if inside.partition(".")[0] in (last.weights or {}):
                continue  # a key of a member says itself whom it is for
            if given.get(path) is entry:
                raise RecipeError(
                    f"{path}: {entry.value} was meant for {meant_for} ({entry.where}), and the "
                    f"loss is {chosen} ({last.where}); give --{path} for {chosen}, or take it out"
                )


def _quoted(loss: str) -> str:
    return f'"{loss}"' if " " in loss else loss
