"""Weighted sums of losses in a recipe: how they are written, and what they declare.

    loss: {dpo: 0.8, bco_pair: 0.2, sft: 1.0}           in a recipe
    --loss "0.8 dpo + 0.2 bco_pair + sft"               on the command line
    loss: {dpo: {weight: 0.8, beta: 0.2}, sft: 1.0}     with hyper-parameters
    --loss.dpo.beta 0.2                                 the same on the command line

``sft`` is the likelihood of the chosen responses per token of the step, the recipe's
``nll_weight``; the other members are losses of one kind.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from trimtab.config.loss_schema import LossSchema, loss_schemas
from trimtab.config.suggest import did_you_mean

SFT = "sft"
WEIGHT = "weight"

_NUMBER = r"(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_TERM = re.compile(
    rf"(?:(?P<before>{_NUMBER})\s*\*?\s*)?(?P<name>[A-Za-z_]\w*)(?:\s*=\s*(?P<after>{_NUMBER}))?"
)
# Between terms: a comma, or a plus that is no exponent's (1e+3).
_BETWEEN = re.compile(r",|(?<![\d.][eE])\+")


class LossSumError(ValueError):
    """A sum that cannot be read or cannot be; the message is one line."""


def is_sum(text: Any) -> bool:
    """Whether the value of ``loss`` is a sum and not a name: ``dpo + 0.1 sft``, ``0.5 dpo``."""
    if not isinstance(text, str) or ".py" in text:  # a file's path may hold anything
        return False
    return bool(re.search(r"[+*,=\s]|^[\d.]", text.strip()))


def parse_sum(text: str) -> dict[str, float]:
    """``0.8 dpo + 0.2*bco_pair`` or ``dpo=0.8,bco_pair=0.2`` as weights by name, in order."""
    found: dict[str, float] = {}
    for part in _BETWEEN.split(text):
        term = _TERM.fullmatch(part.strip())
        if term is None or (term["before"] and term["after"]):
            raise LossSumError(
                f"{part.strip()!r} in {text!r} is no term of a sum of losses, such as "
                "'dpo + 0.1 sft' or 'dpo=1,sft=0.1'"
            )
        name = term["name"]
        if name in found:
            raise LossSumError(f"{name} stands twice in {text!r}")
        found[name] = read_weight(name, term["before"] or term["after"] or "1")
    return found


def read_weight(name: str, value: Any) -> float:
    """A member's weight. LossSumError unless it is a positive number."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = -1.0
    if isinstance(value, bool) or not 0 < number < float("inf"):
        raise LossSumError(f"{value!r} as the weight of {name} is not a positive number")
    return number


def write_sum(weights: Mapping[str, float]) -> str:
    """The sum as one text that ``parse_sum`` reads back: ``0.8*dpo + bco_pair``."""
    return " + ".join(
        name if weight == 1 and len(weights) > 1 else f"{weight!r}*{name}"
        for name, weight in weights.items()
    )


def is_member(name: str) -> bool:
    """Whether a key inside ``loss`` names a member of a sum."""
    return name == SFT or name in loss_schemas()


def sum_schema(text: str) -> LossSchema:
    """What a sum declares: all that its members ask for, their keys as ``<loss>.<key>``."""
    weights = parse_sum(text)
    known = loss_schemas()
    for name in weights:
        if name == SFT:
            raise LossSumError("sft: give its weight as nll_weight")
        if name not in known:
            hint = did_you_mean(name, known)
            raise LossSumError(f"{name!r} in {text!r} is no loss here{hint}")
    schemas = [known[name] for name in weights]
    kinds = {schema.kind for schema in schemas}
    if len(kinds) > 1:
        listed = ", ".join(f"{schema.name} ({schema.kind})" for schema in schemas)
        raise LossSumError(f"{text!r}: a sum is of losses of one kind, and not {listed}")
    return LossSchema(
        "+".join(weights),
        schemas[0].kind,
        {f"{s.name}.{key}": p for s in schemas for key, p in s.parameters.items()},
        frozenset().union(*(schema.needs for schema in schemas)),
        "a weighted sum",
    )
