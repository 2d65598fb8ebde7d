"""How far annotators agree with each other: what accuracy on their choices can reach at most.

A pair has several annotations where a row has ``votes`` (how many chose each: [3, 1], or
{"chosen": 3, "rejected": 1, "tie": 0}) or ``annotators`` (what each chose: "chosen", "rejected" or
"tie"), and where several rows compare the same two responses to the same prompt.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from trimtab.evaluation.comparisons import ScoredRow
from trimtab.evaluation.reward_statistics import entry
from trimtab.evaluation.statistics import cluster_mean

NONE = "no row has several annotators"
_CHOICES = ("chosen", "rejected", "tie")


class Ballot:
    """The votes on one pair; ``first`` and ``second`` are the responses in an arbitrary order."""

    def __init__(self, prompt: str, scores: tuple[float, float]) -> None:
        self.prompt = prompt
        self.scores = scores
        self.votes = [0, 0]
        self.ties = 0


def agreement(rows: Sequence[ScoredRow], seed: int = 0) -> dict[str, Any]:
    """Agreement over the pairs with at least two votes for one response or the other.

    majority      share of a pair's votes that its majority has: no model can do better on these
                  votes, and with few of them it flatters (two of three by chance are 75 %)
    pairwise      how often two annotators of a pair agree
    leave_one_out how often an annotator agrees with the majority of the others, an even split
                  counting half: what to hold a model's accuracy against
    model         share of the votes that went to the response which the model scores higher
    """
    ballots = [b for b in collect(rows) if sum(b.votes) >= 2]
    found: dict[str, Any] = {"pairs": len(ballots)}
    if unread := sum(unreadable(row) for row in rows):
        found["unread_rows"] = unread
    if not ballots:
        return {**found, "note": NONE}
    prompts = [ballot.prompt for ballot in ballots]
    count = len(set(prompts))
    columns = {
        "majority": [max(b.votes) / sum(b.votes) for b in ballots],
        "pairwise": [_pairwise(*b.votes) for b in ballots],
        "leave_one_out": [_leave_one_out(*b.votes) for b in ballots],
        "model": [_model(b) for b in ballots],
    }
    for name, values in columns.items():
        found[name] = entry(cluster_mean(values, prompts, seed=seed), count)
    found["votes"] = sum(sum(b.votes) for b in ballots)
    found["ties"] = sum(b.ties for b in ballots)
    return found


def collect(rows: Sequence[ScoredRow]) -> list[Ballot]:
    """The votes on every pair of responses, over all rows; a row is one annotator's."""
    ballots: dict[tuple[str, str, str], Ballot] = {}
    for row in rows:
        told = votes_of(row)
        seen: set[tuple[str, str, str]] = set()  # a ranking may hold a response twice
        for winner, loser in row.pairs:
            swapped = row.responses[loser] < row.responses[winner]
            first, second = (loser, winner) if swapped else (winner, loser)
            key = (row.prompt, row.responses[first], row.responses[second])
            if key in seen:
                continue
            seen.add(key)
            scores = (row.scores[first], row.scores[second])
            ballot = ballots.setdefault(key, Ballot(row.prompt, scores))
            for_winner, for_loser, ties = told or (1, 0, 0)
            ballot.votes[int(swapped)] += for_winner
            ballot.votes[int(not swapped)] += for_loser
            ballot.ties += ties
    return list(ballots.values())


def votes_of(row: ScoredRow) -> tuple[int, int, int] | None:
    """Votes for the chosen response, for the rejected one and for neither; None: not told.

    Read on pairs only. A column that is something else (a number of annotators, their names) is no
    such statement and is not read.
    """
    if len(row.responses) != 2:
        return None
    votes, choices = row.extras.get("votes"), row.extras.get("annotators")
    if isinstance(votes, dict) and votes and set(votes) <= set(_CHOICES):
        votes = [votes.get(name) or 0 for name in _CHOICES]
    if isinstance(votes, list) and len(votes) in (2, 3):
        whole = [v for v in votes if isinstance(v, int) and not isinstance(v, bool) and v >= 0]
        if len(whole) == len(votes) and sum(whole):
            return whole[0], whole[1], whole[2] if len(whole) == 3 else 0
    if isinstance(choices, list) and choices and all(c in _CHOICES for c in choices):
        counts = Counter(choices)
        return counts["chosen"], counts["rejected"], counts["tie"]
    return None


def unreadable(row: ScoredRow) -> bool:
    """Whether a row has a column of votes that could not be read."""
    told = any(row.extras.get(name) is not None for name in ("votes", "annotators"))
    return told and votes_of(row) is None


def _pairwise(a: int, b: int) -> float:
    count = a + b
    return (a * (a - 1) + b * (b - 1)) / (count * (count - 1))


def _leave_one_out(a: int, b: int) -> float:
    def agrees(others: int, against: int) -> float:
        return float(np.sign(others - against) + 1) / 2

    return (a * agrees(a - 1, b) + b * agrees(b - 1, a)) / (a + b)


def _model(ballot: Ballot) -> float:
    first, second = ballot.scores
    if first == second:
        return 0.0
    return ballot.votes[0 if first > second else 1] / sum(ballot.votes)
