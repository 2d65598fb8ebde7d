"""Held-out text: loss, perplexity, bits per byte and token accuracy, with intervals over rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trimtab.data.trees import TokenTree
from trimtab.evaluation.comparisons import Floats
from trimtab.evaluation.reward_statistics import entry
from trimtab.evaluation.statistics import cluster_bootstrap

_BITS = 1 / math.log(2)


class TextRow(NamedTuple):
    """One row: -log p summed over tokens, their number and UTF-8 bytes, how many were likeliest."""

    source_file: str
    row: int
    nll: float
    tokens: int
    size: int
    right: int
    source: str | None = None


def text_bytes(tree: TokenTree, tokenizer: Any) -> int:
    """UTF-8 length of the text that is scored, control tokens left out."""
    total = 0
    for branch in tree.branches:
        ids = [i for i, trained in zip(branch.ids, branch.trained, strict=True) if trained]
        total += len(tokenizer.decode(ids, skip_special_tokens=True).encode())
    return total


def text_statistics(rows: Sequence[TextRow], seed: int = 0) -> dict[str, Any]:
    """Of all rows, and of each source where they have several.

    loss is per token in nats: the sum over all rows by their tokens, not a mean of means.
    """
    found = _statistics(rows, seed)
    names = list(dict.fromkeys(row.source for row in rows if row.source))
    if len(names) > 1:
        by_source = [(name, [row for row in rows if row.source == name]) for name in names]
        by_source.sort(key=lambda pair: -len(pair[1]))
        found["by_source"] = [{"name": name, **_statistics(part, seed)} for name, part in by_source]
    return found


def _statistics(rows: Sequence[TextRow], seed: int) -> dict[str, Any]:
    columns = _columns(rows)

    def interval(statistic: Callable[[Floats], Floats]) -> dict[str, Any]:
        return entry(cluster_bootstrap(statistic, columns, range(len(rows)), seed=seed))

    loss = interval(_loss)
    return {
        "loss": loss,
        "perplexity": {**loss, **{k: _exp(loss[k]) for k in ("value", "low", "high")}},
        "bits_per_byte": interval(_bits_per_byte) if columns[:, 2].any() else None,
        "token_accuracy": interval(_accuracy),
        "tokens": int(columns[:, 1].sum()),
        "bytes": int(columns[:, 2].sum()),
    }


def text_difference(
    before: Sequence[TextRow], after: Sequence[TextRow], *, same_tokens: bool, seed: int = 0
) -> dict[str, Any]:
    """``after`` less ``before`` on the same rows, which are drawn in pairs.

    Bits per byte compare any two models. Loss and token accuracy are over tokens, and are compared
    where both models cut the text into the same ones.
    """
    columns = np.concatenate((_columns(before), _columns(after)), axis=1)

    def interval(statistic: Callable[[Floats], Floats]) -> dict[str, Any]:
        found = cluster_bootstrap(
            lambda totals: statistic(totals[:, 4:]) - statistic(totals[:, :4]),
            columns,
            range(len(columns)),
            seed=seed,
        )
        return entry(found)

    found: dict[str, Any] = {}
    if columns[:, 2].any() and columns[:, 6].any():
        found["bits_per_byte"] = interval(_bits_per_byte)
    if same_tokens:
        found |= {"loss": interval(_loss), "token_accuracy": interval(_accuracy)}
    return found


def _columns(rows: Sequence[TextRow]) -> NDArray[np.float64]:
    return np.array([(r.nll, r.tokens, r.size, r.right) for r in rows], dtype=np.float64)


def _loss(totals: Floats) -> Floats:
    return totals[:, 0] / totals[:, 1]


def _bits_per_byte(totals: Floats) -> Floats:
    return totals[:, 0] * _BITS / totals[:, 2]


def _accuracy(totals: Floats) -> Floats:
    return totals[:, 3] / totals[:, 1]


def _exp(value: float | None) -> float | None:
    return None if value is None else math.exp(min(value, 700.0))
