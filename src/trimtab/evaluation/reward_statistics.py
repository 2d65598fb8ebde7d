"""What a set of comparisons says about the scores that judged them: accuracy, calibration, length.

Comparisons of one prompt are not independent, so every interval is over prompts: Wilson's with an
effective count for shares, a sandwich for the calibration slope, a bootstrap that draws whole
prompts for the rest. All are at 95 %.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimtab.evaluation.comparisons import Comparisons, Flags, Floats, ScoredRow
from trimtab.evaluation.statistics import (
    Interval,
    centred_bootstrap,
    cluster_bootstrap,
    cluster_mean,
    cluster_numbers,
    clustered_share,
    ratio,
)
from trimtab.intervals import t_quantile

BINS = 10  # of the reliability curve
LEAST_IN_BIN = 20
MARGIN_BINS = 5
_NULL_DRAWS = 1000


def accuracy(found: Comparisons, seed: int = 0) -> dict[str, Any]:
    """Share of comparisons whose preferred response scores higher, in all and in groups.

    ``per_prompt`` counts every prompt once, however many comparisons it has.
    """
    right = found.right
    per_prompt = _by_cluster(right, found.prompt)
    every = cluster_mean(per_prompt, np.arange(len(per_prompt)), seed=seed)
    known = ~np.isnan(found.margin)
    return {
        "overall": share(right, found.prompt),
        "per_prompt": entry(every, len(per_prompt)),
        "score_ties": int((found.winner == found.loser).sum()),
        "by_source": by_name(found, found.source) if np.any(found.source != "") else [],
        "by_k": by_name(found, found.k),
        "by_score_difference": by_size(found, np.abs(found.gap)),
        "by_data_margin": by_size(found.where(known), found.margin[known]),
        "without_data_margin": int((~known).sum()),
    }


def share(flags: Flags, prompts: NDArray[np.int64]) -> dict[str, Any]:
    """A share with its interval over prompts."""
    numbers = cluster_numbers(prompts)
    hits = np.bincount(numbers, weights=flags.astype(np.float64))
    return entry(clustered_share(hits, np.bincount(numbers)), len(hits))


def entry(found: Interval, prompts: int | None = None) -> dict[str, Any]:
    """An interval as JSON types, and how many prompts it is over; what is not known is None."""

    def number(value: float) -> float | None:
        return float(value) if np.isfinite(value) else None

    ends = {"low": number(found.low), "high": number(found.high)}
    known = {"value": number(found.mean), **ends, "n": found.n}
    return known if prompts is None else {**known, "prompts": prompts}


def by_name(found: Comparisons, names: NDArray[Any]) -> list[dict[str, Any]]:
    """Accuracy for every value of a column; names by how often they occur, numbers in order."""
    values, counts = np.unique(names, return_counts=True)
    if names.dtype.kind in "US":
        values = values[np.argsort(-counts, kind="stable")]
    return [
        {
            "name": str(value) or "(no source)",
            **share(found.right[names == value], found.prompt[names == value]),
        }
        for value in values
    ]


def by_size(found: Comparisons, sizes: Floats) -> list[dict[str, Any]]:
    """Accuracy in bins of equally many comparisons by size; equal sizes stay in one bin.

    ``MARGIN_BINS`` of them, or fewer so that each has some twenty comparisons.
    """
    if not len(sizes):
        return []
    bins = bin_count(len(sizes), MARGIN_BINS)
    edges = np.unique(np.quantile(sizes, np.linspace(0, 1, bins + 1)))
    place = np.clip(np.searchsorted(edges, sizes, side="right") - 1, 0, max(len(edges) - 2, 0))
    groups: list[dict[str, Any]] = []
    for number in np.unique(place):
        mask = place == number
        least, most = float(sizes[mask].min()), float(sizes[mask].max())
        name = f"{least:.3g} to {most:.3g}".replace("-", "\N{MINUS SIGN}")
        groups.append({"name": name, "from": least, "to": most}
                      | share(found.right[mask], found.prompt[mask]))  # fmt: skip
    return groups


# ---------------------------------------------------------------------- calibration


def calibration(found: Comparisons, seed: int = 0) -> dict[str, Any]:
    """How far sigmoid(r_first - r_second) is the probability that the first is preferred.

    curve       reliability in bins of equal mass: mean prediction, share observed
    ece         sum over bins of |mean prediction - share observed|, by mass (Naeini et al. 2015).
                Noise alone keeps it above 0: ``ece_if_calibrated`` is what the same predictions
                would show if they were exactly right, the mean and the 97.5 % quantile
    brier       mean of (prediction - outcome)^2; 0.25 for a coin
    log_loss    mean of -log of the probability given to what was observed; ln 2 for a coin
    slope       factor of the scores that predicts best; below 1 the model is too sure
    """
    gap, prompts = found.gap, found.prompts
    predicted = sigmoid(np.where(found.first, gap, -gap))
    outcome = found.first.astype(np.float64)
    bins = equal_mass(predicted, bin_count(len(found)))
    squares = np.square(sigmoid(gap) - 1)
    losses = np.logaddexp(0, -gap)
    return {
        "curve": _curve(predicted, outcome, bins, found.prompt),
        "ece": entry(expected_error(predicted, outcome, bins, found.prompt, seed), prompts),
        "ece_if_calibrated": _null_error(predicted, bins, seed),
        "brier": entry(cluster_mean(squares, found.prompt, seed=seed), prompts),
        "log_loss": entry(cluster_mean(losses, found.prompt, seed=seed), prompts),
        "slope": calibration_slope(gap, found.prompt),
    }


def sigmoid(values: Floats) -> Floats:
    """1 / (1 + exp(-x)) without overflow."""
    return np.exp(-np.logaddexp(0, -values))


def bin_count(comparisons: int, most: int = BINS) -> int:
    """``most`` bins, or fewer so that each has some twenty comparisons."""
    return int(np.clip(comparisons // LEAST_IN_BIN, 1, most))


def equal_mass(predicted: Floats, bins: int) -> NDArray[np.int64]:
    """[n] the bin of each prediction: equally many in each, in order of their size."""
    place = np.empty(len(predicted), dtype=np.int64)
    order = np.argsort(predicted, kind="stable")
    place[order] = np.arange(len(predicted)) * bins // len(predicted)
    return place


def expected_error(
    predicted: Floats, outcome: Floats, bins: NDArray[np.int64], prompts: Any, seed: int = 0
) -> Interval:
    """Expected calibration error over given bins, with a centred bootstrap over prompts.

    What is covered has the noise of as many comparisons in it, as ``ece_if_calibrated`` has.
    """
    columns = np.zeros((len(predicted), int(bins.max()) + 2))
    columns[np.arange(len(predicted)), bins] = predicted - outcome
    columns[:, -1] = 1
    error = centred_bootstrap(
        lambda totals: np.abs(totals[:, :-1]).sum(axis=1) / totals[:, -1],
        columns,
        prompts,
        seed=seed,
    )
    return error._replace(low=max(0.0, error.low) if np.isfinite(error.low) else error.low)


def _null_error(predicted: Floats, bins: NDArray[np.int64], seed: int) -> dict[str, float]:
    """The same error where each outcome is drawn with the probability predicted for it."""
    draws = np.random.Generator(np.random.Philox(key=seed))
    errors: list[float] = []
    for _ in range(_NULL_DRAWS):
        difference = predicted - (draws.random(len(predicted)) < predicted)
        sums = np.bincount(bins, weights=difference)
        errors.append(float(np.abs(sums).sum() / len(predicted)))
    return {"mean": float(np.mean(errors)), "high": float(np.quantile(errors, 0.975))}


def _curve(
    predicted: Floats, outcome: Floats, bins: NDArray[np.int64], prompts: NDArray[np.int64]
) -> list[dict[str, Any]]:
    curve: list[dict[str, Any]] = []
    for number in np.unique(bins):
        mask = bins == number
        observed = share(outcome[mask] > 0, prompts[mask])
        curve.append({"predicted": float(predicted[mask].mean())} | observed)
    return curve


def confidence_curve(gap: Floats, prompts: NDArray[np.int64]) -> list[dict[str, Any]]:
    """How often the preferred response scores higher, over how sure the scores are of their choice.

    Of comparisons with gaps r_w - r_l the scores are sigmoid(|gap|) sure, 0.5 and up, and right
    where the gap is above 0; bins of equal mass, with intervals over prompts. It needs no order
    of the two responses, as the reliability curve of ``calibration`` does.
    """
    sure = sigmoid(np.abs(gap))
    bins = equal_mass(sure, bin_count(len(sure)))
    return _curve(sure, (gap > 0).astype(np.float64), bins, prompts)


def calibration_slope(gap: Floats, prompts: NDArray[np.int64]) -> dict[str, Any] | None:
    """Factor s that maximises sum log sigmoid(s gap), with a sandwich interval over prompts and t.

    Logistic regression of the outcome on the difference of scores, without intercept, which the
    symmetry of first and second rules out. None where no finite s is best: all comparisons are
    right, or all are wrong.
    """
    if not (gap.min() < 0 < gap.max()):
        return None

    def slope_of(factor: float) -> float:
        return float((gap * sigmoid(-factor * gap)).sum())

    reach = 1.0 / float(np.abs(gap).max())
    while slope_of(reach) > 0 or slope_of(-reach) < 0:
        reach *= 2
    best = _root(gap, slope_of, reach)
    misses = sigmoid(-best * gap)
    numbers = cluster_numbers(prompts)
    scores = np.bincount(numbers, weights=gap * misses)
    information = float((np.square(gap) * misses * (1 - misses)).sum())
    clusters = len(scores)
    if clusters < 2:
        return entry(Interval(best, -np.inf, np.inf, len(gap)), clusters)
    spread = clusters / (clusters - 1) * float(np.square(scores).sum()) / information**2
    half = t_quantile(0.95, clusters - 1) * float(np.sqrt(spread))
    return entry(Interval(best, best - half, best + half, len(gap)), clusters)


def _root(gap: Floats, slope_of: Callable[[float], float], reach: float) -> float:
    """Where a falling slope is 0 between -reach and reach: Newton's steps, halves where they leave.

    The slope is that of sum log sigmoid(s gap).
    """
    low, high, best = -reach, reach, 0.0
    for _ in range(100):
        slope = slope_of(best)
        low, high = (best, high) if slope > 0 else (low, best)
        misses = sigmoid(-best * gap)
        curve = float((np.square(gap) * misses * (1 - misses)).sum())
        step = best + slope / curve if curve > 0 else low
        following = step if low < step < high else (low + high) / 2
        if abs(following - best) <= 1e-14 * reach:
            return following
        best = following
    return best


# ---------------------------------------------------------------------- length


def length_bias(found: Comparisons, rows: Sequence[ScoredRow], seed: int = 0) -> dict[str, Any]:
    """Whether scores follow length beyond what preferences ask for.

    partial_correlation  of score and length in tokens, given the label
    shorter, longer      accuracy where the preferred response is the shorter, or the longer
    equal                accuracy where both are equally long
    longer_wins          the baseline that prefers the longer response; equal lengths are not right
    over_longer_wins     accuracy less that of the baseline, on the same comparisons
    """
    shorter = found.winner_length < found.loser_length
    longer = found.winner_length > found.loser_length
    groups = {"shorter": shorter, "longer": longer, "equal": ~(shorter | longer)}
    gain = found.right.astype(np.float64) - longer
    return {
        "partial_correlation": partial_correlation(rows, seed),
        **{
            name: share(found.right[mask], found.prompt[mask]) if mask.any() else None
            for name, mask in groups.items()
        },
        "longer_wins": share(longer, found.prompt),
        "over_longer_wins": entry(cluster_mean(gain, found.prompt, seed=seed), found.prompts),
    }


def partial_correlation(rows: Sequence[ScoredRow], seed: int = 0) -> dict[str, Any]:
    """Correlation of score and length within rows, given the label, over responses.

        (r_sl - r_sy r_ly) / sqrt((1 - r_sy^2) (1 - r_ly^2))

    The label y of a response is the share of its comparisons that it wins; all three are taken
    less their mean over the row, so that easy and hard prompts do not matter. For pairs this is
    the correlation of r_w - r_l with length_w - length_l. Undefined (None) where all lengths are
    equal.
    """
    parts: list[Floats] = []
    prompts: list[str] = []
    for row in rows:
        wins = np.zeros((2, len(row.scores)))
        for winner, loser in row.pairs:
            wins[0, winner] += 1
            wins[1, loser] += 1
        used = wins.sum(axis=0) > 0
        if not used.any():
            continue
        label = wins[0, used] / wins.sum(axis=0)[used]
        values = np.stack((np.array(row.scores)[used], np.array(row.lengths)[used], label))
        values = values - values.mean(axis=1, keepdims=True)
        parts.append(values)
        prompts += [row.prompt] * int(used.sum())
    score, length, label = np.concatenate(parts, axis=1)
    columns = np.stack(
        (score**2, length**2, label**2, score * length, score * label, length * label), axis=1
    )
    found = cluster_bootstrap(_partial, columns, prompts, seed=seed)
    return entry(found, len(set(prompts)))


def _partial(totals: Floats) -> Floats:
    """Partial correlation from sums of squares and products: ss, ll, yy, sl, sy, ly."""
    ss, ll, yy, sl, sy, ly = totals.T
    # What label leaves unexplained; rounding must not make nothing of it a little.
    score, length = ss - sy**2 / yy, ll - ly**2 / yy
    score = np.where(score > 1e-12 * ss, score, np.nan)
    length = np.where(length > 1e-12 * ll, length, np.nan)
    return (sl - sy * ly / yy) / np.sqrt(score * length)


def _by_cluster(flags: Flags, prompts: NDArray[np.int64]) -> Floats:
    """Mean of each cluster."""
    numbers = cluster_numbers(prompts)
    return np.bincount(numbers, weights=flags.astype(np.float64)) / np.bincount(numbers)


# ---------------------------------------------------------------------- gold


def against_gold(found: Comparisons, seed: int = 0) -> dict[str, Any] | None:
    """Accuracy by the known gold reward, and how often the data's own choice agrees with it.

    The second is the ceiling for accuracy on noisy choices. Comparisons without a gold reward, and
    those where it is equal, are left out; None without any.
    """
    decided = ~np.isnan(found.gold_gap) & (found.gold_gap != 0)
    if not decided.any():
        return None
    part = found.where(decided)
    right = part.gap * part.gold_gap > 0
    return {
        "accuracy": share(right, part.prompt),
        "choices_agree": share(part.gold_gap > 0, part.prompt),
        "ties": int((found.gold_gap == 0).sum()),
    }


def difference(before: Comparisons, after: Comparisons, seed: int = 0) -> dict[str, Any]:
    """Accuracy of ``after`` less that of ``before`` on the same comparisons, paired by prompt."""
    assert np.array_equal(before.prompt, after.prompt), "not the same comparisons"
    first, second = before.right, after.right
    change = second.astype(np.float64) - first
    columns = np.column_stack((change, np.ones_like(change)))
    found = cluster_bootstrap(ratio, columns, after.prompt, seed=seed)
    return {
        "difference": entry(found, after.prompts),
        "both_right": int((first & second).sum()),
        "only_model": int((second & ~first).sum()),
        "only_baseline": int((first & ~second).sum()),
        "both_wrong": int((~first & ~second).sum()),
    }
