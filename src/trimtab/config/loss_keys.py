"""The recipe's ``loss``: a name, a weighted sum, or a file, with all of its hyper-parameters."""

from __future__ import annotations

import os
from typing import Any

from pydantic import Field, PrivateAttr, model_serializer, model_validator

from trimtab.config.data_keys import Keys
from trimtab.config.loss_file import LossFileError, read_loss_file
from trimtab.config.loss_schema import LossSchema, loss_schema, loss_schemas, read_parameter
from trimtab.config.loss_sum import LossSumError, is_sum, parse_sum, sum_schema
from trimtab.config.suggest import did_you_mean
from trimtab.config.values import Location, as_mapping, conflict


class LossChoice(Keys):
    """A preference loss by name or from a file, and all of its hyper-parameters, after reading."""

    name: str = Field(default="dpo", description="Name of the loss.")
    file: Location | None = Field(
        default=None,
        description="A loss of your own, FILE.py:FUNCTION (or a class); its keyword-only "
        "parameters are keys like those of the built-in ones, e.g. --loss.beta.",
    )
    parameters: dict[str, bool | int | float | str | None] = Field(
        default_factory=dict, description="Its keyword arguments."
    )
    _schema: LossSchema = PrivateAttr()

    @model_validator(mode="before")
    @classmethod
    def _from_flat(cls, value: Any) -> Any:
        """Take ``simpo``, ``{name: simpo, gamma: 1}`` or what ``model_dump`` gave.

        ``{file: my_loss.py:my_loss, beta: 0.2}`` is a loss of the user's own.
        """
        if isinstance(value, str):
            value = {"name": value}
        given = as_mapping(value)
        if given is None:
            return value
        file = given.pop("file", None)
        if file is not None and "name" in given:
            conflict("loss.file", f"{file!r} and name {given['name']!r}: give one of the two")
        name = given.pop("name", "dpo")
        given |= as_mapping(given.pop("parameters", None)) or {}
        schema = _named(name) if file is None else _own(file)
        title = schema.name
        if file is None and is_sum(name):
            title, given = name, _flat_members(given)
        return {"name": title, "file": file, "parameters": _parameters(schema, given)}

    @model_serializer
    def _flat(self) -> dict[str, Any]:
        found: dict[str, Any] = {"name": self.name} if self.file is None else {"file": self.file}
        if self.weights is None:
            return {**found, **self.parameters}
        for key, value in self.parameters.items():
            member, _, leaf = key.partition(".")
            found.setdefault(member, {})[leaf] = value
        return found

    @property
    def weights(self) -> dict[str, float] | None:
        """Weights of the losses by name, where this is a sum of several (or of one, weighted)."""
        return parse_sum(self.name) if self.file is None and is_sum(self.name) else None

    def model_post_init(self, context: Any) -> None:
        """Read the declaration once: a user's file may change while the run is being built."""
        self._schema = _named(self.name) if self.file is None else _own(self.file)

    @property
    def schema_(self) -> LossSchema:
        """What the loss declares about itself."""
        return self._schema


def _flat_members(given: dict[str, Any]) -> dict[str, Any]:
    """``{dpo: {beta: 0.2}, beta: 0.1}`` as ``{dpo.beta: 0.2, beta: 0.1}``."""
    found: dict[str, Any] = {}
    for key, value in given.items():
        inner = as_mapping(value)
        found |= {key: value} if inner is None else {f"{key}.{k}": v for k, v in inner.items()}
    return found


def _named(name: Any) -> LossSchema:
    if is_sum(name):
        try:
            return sum_schema(name)
        except LossSumError as error:
            conflict("loss", str(error))
    schema = loss_schema(name)
    if schema is None:
        names = sorted(loss_schemas())
        own = f"; for a loss of your own use loss.file ({name})" if ".py" in str(name) else ""
        conflict(
            "loss",
            f"{name!r} is no loss here; losses are {', '.join(names)}"
            + (own or did_you_mean(str(name), names)),
        )
    return schema


def _own(file: Any) -> LossSchema:
    try:
        return read_loss_file(os.path.expanduser(str(file)))
    except LossFileError as error:
        conflict("loss.file", str(error))


def _parameters(schema: LossSchema, given: dict[str, Any]) -> dict[str, Any]:
    given = {_whose(schema, key): value for key, value in given.items()}
    for key in given:
        if key not in schema.parameters:
            conflict(f"loss.{key}", schema.refusal(key))
    return {
        key: read_parameter(f"loss.{key}", parameter, given[key])
        if key in given
        else parameter.default
        for key, parameter in schema.parameters.items()
    }


def _whose(schema: LossSchema, key: str) -> str:
    """``beta`` as ``dpo.beta`` in a sum where dpo alone has one; as it is everywhere else."""
    owners = [name for name in schema.parameters if name.partition(".")[2] == key]
    if len(owners) > 1:
        keys = ", ".join(f"loss.{owner}" for owner in owners)
        conflict(f"loss.{key}", f"several losses of the sum have one; give {keys}")
    return owners[0] if owners else key
