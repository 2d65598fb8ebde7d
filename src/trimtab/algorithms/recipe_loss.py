"""The preference loss of a recipe: one of ``PREFERENCE_LOSSES``, or the user's own from a file."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

from trimtab.config.loss_file import split_loss_file
from trimtab.config.recipes import LossChoice
from trimtab.errors import RecipeError, RunError
from trimtab.losses.contract import LossSpec, bind, describe, try_out
from trimtab.losses.from_file import failure, load_loss
from trimtab.losses.sums import bind_sum, describe_sum


@dataclasses.dataclass(frozen=True)
class RecipeLoss:
    """A loss ready to be used; ``identities``: what a resumed run has to find unchanged, by name.

    ``loss`` is its name or its function or class, ``path`` the file of a user's own, ``weights``
    the members of a sum.
    """

    spec: LossSpec
    loss: str | Callable[..., Any]
    parameters: Mapping[str, Any]
    path: str | None = None
    weights: Mapping[str, float] | None = None
    identities: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def make(self, **changes: Any) -> Callable[..., Any]:
        """A fresh one with the recipe's hyper-parameters; ``changes`` are laid over them."""
        if self.weights is not None:
            return bind_sum(self.weights, {**self.parameters, **changes})
        bound = bind(self.loss, {**self.parameters, **changes})
        return bound if self.path is None else _Own(bound, self.path)


def recipe_loss(choice: LossChoice) -> RecipeLoss:
    """Read the loss's declaration and try it on made-up inputs, before any weight is loaded.

    RecipeError, one line, for impossible hyper-parameters, and for whatever is wrong with a loss of
    the user's own.
    """
    if choice.file is None:
        weights = choice.weights
        spec = describe(choice.name) if weights is None else describe_sum(weights)
        found = RecipeLoss(spec, choice.name, choice.parameters, weights=weights)
        try:
            made = found.make()
            if weights is not None:  # its members are tried alone; together they share a step
                try_out(spec, made)
        except ValueError as error:
            raise RecipeError(f"loss.{error}") from None
        return found
    path, name = split_loss_file(choice.file)
    try:
        own = load_loss(path, name)
    except ValueError as error:
        raise RecipeError(f"loss.file: {error}") from None
    try:
        spec = describe(own.loss)._replace(name=choice.name)
    except ValueError as error:
        raise RecipeError(f"loss.file: {path}: {error}") from None
    _same_declaration(choice, spec)
    try:
        bind(own.loss, choice.parameters)
    except Exception as error:
        raise RecipeError(_refusal(choice, path, error)) from None
    identities = {"contents of loss.file": own.sha256}
    return RecipeLoss(spec, own.loss, choice.parameters, path, identities=identities)


class _Own:
    """A user's loss in a run: what it raises there is an error of the run, and no bug of ours."""

    def __init__(self, loss: Any, path: str) -> None:
        self._loss = loss
        self._path = path

    def __call__(self, **inputs: Any) -> Any:
        try:
            return self._loss(**inputs)
        except Exception as error:
            raise RunError(f"loss.file: {failure(self._path, error)}") from error

    def __getattr__(self, name: str) -> Any:  # prepare, state_dict and load_state_dict
        return getattr(self._loss, name)


def _same_declaration(choice: LossChoice, spec: LossSpec) -> None:
    """A decorator or a base class can make another signature of what the file's text says."""
    schema = choice.schema_
    text = ({k: p.default for k, p in schema.parameters.items()}, schema.needs, schema.kind)
    live = (spec.hyperparameters, spec.needs | spec.prepare_needs, spec.kind)
    if text != live:
        raise RecipeError(
            f"loss.file: {choice.file}: its parameters are others when it runs than in the file's "
            "text; write them out, without a decorator or a base class that changes them"
        )


def _refusal(choice: LossChoice, path: str, error: Exception) -> str:
    """An impossible hyper-parameter by its key; anything else by its place in the file."""
    message = str(error)
    if isinstance(error, ValueError):
        if re.match(r"(\w+)=", message) and message.partition("=")[0] in choice.parameters:
            return f"loss.{message} ({choice.file})"
        if message.startswith(f"{choice.name}:") or message.startswith(f"{choice.name}."):
            return f"loss.file: {path}: {message}"
    return f"loss.file: {failure(path, error)} (on made-up inputs, before training)"
