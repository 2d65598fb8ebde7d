"""Scored rows with a known truth."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from trimtab.data.trees import Origin
from trimtab.evaluation.comparisons import Comparisons, ScoredRow


def pair(
    winner: float,
    loser: float,
    *,
    row: int = 1,
    prompt: str | None = None,
    lengths: tuple[int, int] = (5, 5),
    responses: tuple[str, str] | None = None,
    **keys: object,
) -> ScoredRow:
    """A pair, the preferred response first."""
    return ScoredRow(
        origin=Origin("rows", row),
        prompt=f"prompt {row}" if prompt is None else prompt,
        responses=responses or (f"a{row}", f"b{row}"),
        scores=(winner, loser),
        lengths=lengths,
        ranks=(1.0, 2.0),
        pairs=((0, 1),),
        **keys,  # type: ignore[arg-type]
    )


def ranking(
    scores: Sequence[float], ranks: Sequence[float], *, row: int = 1, **keys: object
) -> ScoredRow:
    """K responses and all strictly ordered pairs."""
    found = {
        "lengths": tuple(range(1, len(scores) + 1)),
        "prompt": f"prompt {row}",
        "responses": tuple(f"r{row}.{i}" for i in range(len(scores))),
        **keys,
    }
    places = range(len(scores))
    return ScoredRow(
        origin=Origin("rows", row),
        scores=tuple(scores),
        ranks=tuple(ranks),
        pairs=tuple((i, j) for i in places for j in places if ranks[i] < ranks[j]),
        **found,  # type: ignore[arg-type]
    )


def table(*rows: ScoredRow) -> Comparisons:
    return Comparisons.of(rows)


def bradley_terry(
    prompts: int, per_prompt: int = 1, *, seed: int = 0, spread: float = 1.5, factor: float = 1.0
) -> list[ScoredRow]:
    """Pairs whose outcome has probability sigmoid(difference / factor): exact for factor 1."""
    draws = np.random.default_rng(seed)
    rows: list[ScoredRow] = []
    for number in range(prompts):
        for place in range(per_prompt):
            true = draws.normal(0, spread, 2)
            first_wins = draws.random() < 1 / (1 + np.exp(true[1] - true[0]))
            winner, loser = factor * (true if first_wins else true[::-1])
            row = len(rows) + 1
            names = (f"x{number}.{place}", f"y{number}.{place}")
            rows.append(
                pair(
                    float(winner),
                    float(loser),
                    row=row,
                    prompt=f"p{number}",
                    responses=names if first_wins else (names[1], names[0]),
                )
            )
    return rows
