"""What answers are worth, as one JSON object: rewards, win rates, length, ending, diversity.

Everything is over prompts: the answers to one share its difficulty. docs/evaluation.md says what
the numbers mean.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from trimtab.evaluation.answer_rewards import Rated, Scores
from trimtab.evaluation.answers import Row
from trimtab.evaluation.diversity import distinct_interval, self_bleu_interval
from trimtab.evaluation.judge import Judged
from trimtab.evaluation.reward_statistics import entry
from trimtab.evaluation.statistics import Interval, cluster_mean, clustered_share
from trimtab.evaluation.win_rate import Contest, outcome_of, win_rate

JUDGE = "judge"  # what the language model's verdicts are called beside the rewards
Entry = dict[str, Any]


def side_statistics(rated: Rated, seed: int) -> dict[str, Any]:
    """Of one side's answers: rewards, how they end, how long and how diverse they are."""
    rows = rated.side.rows
    return {
        "prompts": len(rows),
        "answers": sum(len(row.answers) for row in rows),
        "rewards": {name: _reward(rated, scores, seed) for name, scores in rated.scores.items()},
        "ended": _share(rows, lambda row: row.ended),
        "blank": _share(rows, lambda row: [not text.strip() for text in row.texts]),
        "tokens": _mean(rows, lambda row: row.tokens, seed),
        "characters": _mean(rows, lambda row: [len(text) for text in row.texts], seed),
        "diversity": _diversity(rows, seed),
    }


def _reward(rated: Rated, scores: Sequence[Sequence[float | None]], seed: int) -> Entry | None:
    known = dict(zip(map(id, rated.side.rows), scores, strict=True))
    return _mean(rated.side.rows, lambda row: known[id(row)], seed)


def _values(
    rows: Sequence[Row], of: Callable[[Row], Sequence[float | None] | None]
) -> tuple[list[float], list[str]]:
    """Values that are known, and the prompt of each: rows with the same prompt are one cluster."""
    found = [
        (float(value), row.key[0]) for row in rows for value in of(row) or () if value is not None
    ]
    return [value for value, _ in found], [prompt for _, prompt in found]


def _mean(
    rows: Sequence[Row], of: Callable[[Row], Sequence[float | None] | None], seed: int
) -> Entry | None:
    values, prompts = _values(rows, of)
    if not values:
        return None
    return entry(cluster_mean(values, prompts, seed=seed), len(set(prompts)))


def _share(rows: Sequence[Row], of: Callable[[Row], Sequence[float | None] | None]) -> Entry | None:
    return _tally(list(zip(*_values(rows, of), strict=True)))


def _diversity(rows: Sequence[Row], seed: int) -> dict[str, Any]:
    texts = [text.split() for row in rows for text in row.texts]
    prompts = [row.key[0] for row in rows for _ in row.answers]
    count = len(set(prompts))
    bleu, scope = self_bleu_interval(texts, prompts, seed=seed)

    def told(found: Interval) -> Entry | None:
        return None if np.isnan(found.mean) else entry(found, count)

    return {
        **{f"distinct_{n}": told(distinct_interval(texts, prompts, n)) for n in (1, 2, 3)},
        "self_bleu": told(bleu),
        "self_bleu_references": scope,
    }


# ---------------------------------------------------------------------- against a baseline


def contest_pairs(ours: Sequence[Row], theirs: Sequence[Row]) -> list[tuple[int, int]]:
    """(row, answer) of every comparison: the j-th answers of both, as far as both have them."""
    return [
        (number, place)
        for number, (one, other) in enumerate(zip(ours, theirs, strict=True))
        for place in range(min(len(one.answers), len(other.answers)))
    ]


def against(
    ours: Rated, theirs: Rated, verdicts: Sequence[Judged] | None, seed: int
) -> dict[str, Any]:
    """Both sides' rows with the same prompts, in order: differences, and win rates by each judge.

    A blank answer loses to one that is not, whatever has no score for it.
    """
    left, right = ours.side.rows, theirs.side.rows
    pairs = contest_pairs(left, right)
    prompts = [left[i].key[0] for i, _ in pairs]
    numbers = {prompt: number for number, prompt in enumerate(dict.fromkeys(prompts))}
    longer = [len(left[i].texts[j]) - len(right[i].texts[j]) for i, j in pairs]

    def rate(outcomes: Sequence[float | None]) -> dict[str, Any]:
        contests = [
            Contest(numbers[prompt], outcome, gap)
            for prompt, outcome, gap in zip(prompts, outcomes, longer, strict=True)
        ]
        return win_rate(contests, seed)

    def blank_decides(i: int, j: int) -> float | None:
        ours, theirs = (bool(rows[i].texts[j].strip()) for rows in (left, right))
        return None if ours and theirs else outcome_of(float(ours), float(theirs))

    found: dict[str, Any] = {"reward_differences": {}, "win_rates": {}}
    for name in ours.scores:
        found["reward_differences"][name] = _difference(
            [_gap(ours.scores[name][i], theirs.scores[name][i]) for i in range(len(left))],
            [row.key[0] for row in left],
            seed,
        )
        outcomes: list[float | None] = []
        for i, j in pairs:
            by_score = outcome_of(ours.scores[name][i][j], theirs.scores[name][i][j])
            outcomes.append(blank_decides(i, j) if by_score is None else by_score)
        found["win_rates"][name] = rate(outcomes)
    if verdicts is not None:
        found["win_rates"][JUDGE] = rate([one.outcome for one in verdicts])
        found["win_rates"][JUDGE] |= _judging(verdicts, prompts)
    for name, of in (("tokens", lambda row: row.tokens), ("characters", _characters)):
        gaps = [_gap(of(one), of(other)) for one, other in zip(left, right, strict=True)]
        found[name] = _difference(gaps, [row.key[0] for row in left], seed)
    return found


def _characters(row: Row) -> list[int]:
    return [len(text) for text in row.texts]


def _gap(
    ours: Sequence[float | None] | None, theirs: Sequence[float | None] | None
) -> float | None:
    """Mean of one row's known values less that of the other's."""
    one = [value for value in ours or () if value is not None]
    other = [value for value in theirs or () if value is not None]
    return sum(one) / len(one) - sum(other) / len(other) if one and other else None


def _difference(gaps: Sequence[float | None], prompts: Sequence[str], seed: int) -> Entry | None:
    known = [(gap, prompt) for gap, prompt in zip(gaps, prompts, strict=True) if gap is not None]
    if not known:
        return None
    names = [prompt for _, prompt in known]
    return entry(cluster_mean([gap for gap, _ in known], names, seed=seed), len(set(names)))


def _judging(verdicts: Sequence[Judged], prompts: Sequence[str]) -> dict[str, Any]:
    """How far the judge can be trusted: both orders alike, and the first place's share of wins."""
    asked = [(one, p) for one, p in zip(verdicts, prompts, strict=True) if one.asked]
    whole = [(one, p) for one, p in asked if one.outcome is not None]
    malformed = sum((one.first is None) + (one.second is None) for one, _ in asked)
    agree = [(float(one.agree), p) for one, p in whole]
    first = [
        (float(verdict == "A"), p)
        for one, p in asked
        for verdict in (one.first, one.second)
        if verdict in ("A", "B")
    ]
    return {
        "replies": 2 * len(asked),
        "malformed": malformed,
        "equal_answers": len(verdicts) - len(asked),
        "orders_agree": _tally(agree),
        "first_place_wins": _tally(first),
    }


def _tally(flags: Sequence[tuple[float, str]]) -> Entry | None:
    if not flags:
        return None
    hits: dict[str, list[float]] = {}
    for flag, prompt in flags:
        one = hits.setdefault(prompt, [0.0, 0.0])
        one[0] += flag
        one[1] += 1
    return entry(clustered_share(*zip(*hits.values(), strict=True)), len(hits))


def lines(ours: Rated, theirs: Rated | None, verdicts: Mapping[tuple[int, int], Judged]) -> list[
    dict[str, Any]
]:  # fmt: skip
    """One object an answer for ``scores.jsonl``; ``verdicts`` by row and answer of ``ours``."""

    def scores_of(scores: Scores, i: int, j: int) -> dict[str, float | None]:
        return {name: rows[i][j] for name, rows in scores.items() if j < len(rows[i])}

    found: list[dict[str, Any]] = []
    others = {row.key: i for i, row in enumerate(theirs.side.rows)} if theirs else {}
    for i, row in enumerate(ours.side.rows):
        for j, text in enumerate(row.texts):
            line: dict[str, Any] = {"prompt": row.prompt, "answer": text}
            line |= {} if row.ended is None else {"ended": row.ended[j]}
            line |= {} if row.tokens is None else {"tokens": row.tokens[j]}
            line["rewards"] = scores_of(ours.scores, i, j)
            other = others.get(row.key)
            if theirs is not None and other is not None and j < len(theirs.side.rows[other].texts):
                line["baseline_answer"] = theirs.side.rows[other].texts[j]
                line["baseline_rewards"] = scores_of(theirs.scores, other, j)
            if (i, j) in verdicts:
                one = verdicts[i, j]
                line["judge"] = {"first": one.first, "second": one.second, "outcome": one.outcome}
            found.append(line)
    return found
