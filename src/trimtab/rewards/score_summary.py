"""What ``trimtab score`` says at its end: how scores lie, tie, and go with length."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from trimtab.data.rows import Text
from trimtab.rewards.builtin import text_of
from trimtab.rewards.score_rows import Shape

Floats = NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Row:
    """A scored row: its texts and their scores; an ensemble's disagreement on each."""

    texts: Sequence[Text]
    scores: Sequence[float]
    std: Sequence[float] | None


def lines(
    rows: Sequence[Row], shape: Shape, parts: Mapping[str, Sequence[float | None]]
) -> list[str]:
    """The summary of scored rows, at least one; ``parts`` are the scores of every reward alone."""
    scores = np.array([score for row in rows for score in row.scores])
    found = [f"score       {_spread(scores)}"]
    if len(parts) > 1:
        for name, values in parts.items():
            known = np.array([value for value in values if value is not None])
            silent = len(values) - len(known)
            told = _spread(known) if known.size else "none"
            found.append(f"  {name}: {told}" + (f" · {silent} without one" if silent else ""))
    if shape == "preference":
        found += _pairs(rows)
    if shape == "responses":
        found += _rankings(rows)
    found += _length(rows)
    spreads = [value for row in rows for value in row.std or ()]
    if spreads:
        found.append(
            f"ensemble    members differ by {np.mean(spreads):.4g} (standard deviation, mean over "
            f"{len(spreads)} texts; at most {max(spreads):.4g})"
        )
    return found


def tied(row: Row, which: str) -> bool:
    """Whether all scores of a row are tied ("all"), or some two of them ("any"); or False."""
    different = len(set(row.scores))
    if which == "any":
        return different < max(2, len(row.scores))
    return which == "all" and different < 2


def length_correlation(rows: Sequence[Row]) -> float | None:
    """Correlation of score and length in characters, each less its row's mean where rows have

    several texts (a prompt that asks for more is no bias). None where one of them does not vary.
    """
    several = any(len(row.texts) > 1 for row in rows)
    lengths: list[Floats] = []
    scores: list[Floats] = []
    for row in rows:
        if several and len(row.texts) < 2:
            continue
        length = np.array([len(text_of(text)) for text in row.texts], dtype=np.float64)
        score = np.array(row.scores, dtype=np.float64)
        lengths.append(length - length.mean() * several)
        scores.append(score - score.mean() * several)
    x, y = np.concatenate(lengths), np.concatenate(scores)
    if x.size < 2 or np.ptp(x) < 1e-12 or np.ptp(y) < 1e-12:
        return None
    return float(np.corrcoef(x, y)[0, 1])


def _spread(values: Floats) -> str:
    told = f"mean {values.mean():.4g}"
    if values.size > 1:
        told += f" · sd {values.std(ddof=1):.4g}"
    return f"{told} · {values.min():.4g} to {values.max():.4g}"


def _pairs(rows: Sequence[Row]) -> list[str]:
    margins = np.array([row.scores[0] - row.scores[1] for row in rows])
    right = float((margins > 0).mean() + 0.5 * (margins == 0).mean())
    return [
        f"pairs       chosen scores higher in {right:.1%} (ties count half) · margin "
        f"{_spread(margins)}"
    ]


def _rankings(rows: Sequence[Row]) -> list[str]:
    several = [row for row in rows if len(row.scores) > 1]
    found: list[str] = []
    if several:
        spreads = [float(np.std(row.scores, ddof=1)) for row in several]
        equal = every = 0
        for row in several:
            _, counts = np.unique(np.array(row.scores), return_counts=True)
            equal += int((counts * (counts - 1) // 2).sum())
            every += len(row.scores) * (len(row.scores) - 1) // 2
        found.append(
            f"rankings    sd within a row {np.mean(spreads):.4g} · ties {equal / every:.1%} of "
            f"{every} pairs"
        )
    useless, partly = (sum(tied(row, which) for row in rows) for which in ("all", "any"))
    if useless:
        found.append(
            f"            {useless} of {len(rows)} rows rank nothing (all tied, or one response): "
            "training refuses them; --drop-tied all leaves them out"
        )
    if partly > useless:
        found.append(
            f"            {partly - useless} rows hold some ties: losses over pairs leave those "
            "pairs out, plackett_luce refuses the rows; --drop-tied any leaves them out"
        )
    return found


def _length(rows: Sequence[Row]) -> list[str]:
    found = length_correlation(rows)
    if found is None:
        return []
    within = " within a row" if any(len(row.texts) > 1 for row in rows) else ""
    return [f"length      correlation with score{within} {found:+.2f} (characters)"]
