"""Who wins on the same prompts: win rates with ties as one half, and what length has to do with it.

Two sides answer the same G prompts, each as often; the j-th answers to a prompt are compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from trimtab.evaluation.length_control import length_controlled_win_rate
from trimtab.evaluation.reward_statistics import entry
from trimtab.evaluation.statistics import cluster_mean, cluster_numbers, clustered_share


class Contest(NamedTuple):
    """One comparison.

    prompt      number of the prompt
    outcome     1 for a win of the model, 0 for a loss, 1/2 for a tie; None where nobody can say
    longer      length of the model's answer less that of the baseline's, in characters
    """

    prompt: int
    outcome: float | None
    longer: int


def outcome_of(ours: float | None, theirs: float | None) -> float | None:
    """What scores make of two answers: equal ones tie; None where one has no score."""
    if ours is None or theirs is None:
        return None
    return 0.5 if ours == theirs else float(ours > theirs)


def win_rate(contests: Sequence[Contest], seed: int = 0) -> dict[str, Any]:
    """Win rate of the decided comparisons, as JSON types; None values without any.

    win_rate           ties count one half; Wilson's interval with an effective count over prompts,
                       which does not close up where all are won
    bootstrap          the same with the bootstrap over prompts
    length_controlled  at equal length (``length_control.py``)
    wins, ties, losses, undecided   counts of comparisons
    """
    decided = [one for one in contests if one.outcome is not None]
    values = np.array([one.outcome for one in decided], dtype=np.float64)
    counts = {
        "wins": int((values == 1).sum()),
        "ties": int((values == 0.5).sum()),
        "losses": int((values == 0).sum()),
        "undecided": len(contests) - len(decided),
    }
    if not decided:
        return {"win_rate": None, "bootstrap": None, "length_controlled": None, **counts}
    prompts = cluster_numbers([one.prompt for one in decided])
    number = int(prompts.max()) + 1
    hits = np.bincount(prompts, weights=values)
    controlled = length_controlled_win_rate(
        values, [one.longer for one in decided], prompts.tolist(), seed=seed
    )
    return {
        "win_rate": entry(clustered_share(hits, np.bincount(prompts)), number),
        "bootstrap": entry(cluster_mean(values, prompts, seed=seed), number),
        "length_controlled": entry(controlled, number),
        **counts,
    }
