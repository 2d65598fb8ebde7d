"""Diagnoses of reward hacking, from what an on-policy run has logged.

The reward that is optimised (the proxy) rises by design. Each check asks whether something that
nobody optimises says that the rise is empty:

    watched       a watched reward (watch_funcs, watch_model) falls from its peak
    length        responses run away in the direction in which the reward correlates with length
    variety       responses repeat themselves, or one another
    entropy       the policy has stopped choosing
    disagreement  the members of a reward ensemble part: they never saw such responses
    kl            the policy has gone much further than the reward it gained asks for

A check looks at means over windows of ``width`` logged points: an eighth of the run so far, at
least ``LEAST``. A window's noise is estimated from the differences of neighbouring points (von
Neumann 1941), which a slow trend hardly enters. As a window is always a share of the run, the
number of independent looks, and with it the chance of a false alarm, stays bounded in long runs.

Everything here is a function of the logged numbers: a run that is killed and goes on finds the
same.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

LEAST = 4  # points of a window
SHARE = 8  # of the points so far, one in this many
FALL = 3.5  # standard errors of the difference of two windows
RISE = 3.0
LONGER, SHORTER, CORRELATED = 1.5, 0.5, 0.3  # of the mean length at the start; a correlation
LESS_VARIOUS, REPEATED = 0.5, 0.1  # of distinct-2 at the start; more of repetition
LESS_ENTROPY = 0.2  # of the entropy at the start
APART = 1.5  # times the disagreement at the start
FAR, NATS = 5.0, 5.0  # times the KL that the gain asks for, and at least so many nats


class Finding(NamedTuple):
    """A diagnosis: ``says`` is a sentence with the number, what it means and what to change.

    ``about`` is the watched reward it speaks of, or empty; ``numbers`` are those of the sentence.
    """

    name: str
    about: str
    step: int
    says: str
    numbers: dict[str, float]

    def record(self) -> dict[str, Any]:
        """As a line of metrics.jsonl."""
        return {
            "step": self.step,
            "diagnosis": self.name,
            "about": self.about,
            "says": self.says,
            "numbers": self.numbers,
        }


class Peak(NamedTuple):
    """Where a watched reward was highest, at the start and last; ``held_out``: in evaluations.

    On rollouts all three are means of windows, and the step is that of the window's middle.
    """

    step: int
    value: float
    start: float
    last: float
    held_out: bool


class History:
    """The logged numbers as columns: one point a record that holds a rollout's rewards.

    Several rollouts of one record are one point, as they are one mean. What a record lacks is NaN.
    """

    def __init__(self, records: Iterable[Mapping[str, Any]] = ()) -> None:
        self.steps: list[int] = []
        self.columns: dict[str, list[float]] = {}
        self.evaluations: list[dict[str, float]] = []
        for record in records:
            self.add(record)

    def add(self, record: Mapping[str, Any]) -> None:
        """Take a record of metrics.jsonl."""
        held_out = {
            name.removeprefix("eval_"): value
            for name, value in record.items()
            if name.startswith("eval_watch/") and name.endswith("/mean")
        }
        if held_out:
            self.evaluations.append({"step": record["step"], **held_out})
        if not isinstance(record.get("reward"), float):
            return
        known = {name: v for name, v in record.items() if isinstance(v, float)}
        for name in known.keys() - self.columns.keys():
            self.columns[name] = [math.nan] * len(self.steps)
        for name, column in self.columns.items():
            column.append(known.get(name, math.nan))
        self.steps.append(record["step"])

    @property
    def width(self) -> int:
        """Points of a window."""
        return max(LEAST, len(self.steps) // SHARE)

    @property
    def watched(self) -> list[str]:
        """Names of the watched rewards."""
        return [n[6:-5] for n in self.columns if n.startswith("watch/") and n.endswith("/mean")]

    def values(self, name: str) -> np.ndarray:
        """[points] fp64, NaN where a record had none."""
        return np.array(self.columns.get(name, [math.nan] * len(self.steps)), dtype=np.float64)

    def start(self, name: str) -> float:
        """Mean over the first points: as many as the smallest window has."""
        return _mean(self.values(name)[:LEAST])

    def now(self, name: str) -> float:
        """Mean over the last window."""
        return _mean(self.values(name)[-self.width :])


def diagnose(history: History) -> list[Finding]:
    """What can be said of the run as it stands; nothing before two windows are full.

    All but ``kl`` ask that the proxy has risen: a policy that gets worse by its own reward has
    another trouble than reward hacking.
    """
    if len(history.steps) < 2 * history.width:
        return []
    found = list(_kl(history))
    if _risen(history, "reward"):
        for check in (_watched, _length, _variety, _entropy, _disagreement):
            found += check(history)
    return found


def peaks(history: History, name: str) -> list[Peak]:
    """Where watched reward ``name`` was highest: on rollouts, and on held-out prompts.

    Rollouts are many and vary with their prompts, evaluations are few and on the same prompts. Less
    than a window of the one, or two of the other, has no peak.
    """
    metric = f"watch/{name}/mean"
    found: list[Peak] = []
    if len(history.steps) >= history.width:
        means = _windows(history.values(metric), history.width)
        if not np.isnan(means).all():
            best = int(np.nanargmax(means))
            middle = history.steps[best + history.width // 2]
            now = history.now(metric)
            found.append(Peak(middle, float(means[best]), history.start(metric), now, False))
    held_out = [(int(r["step"]), r[metric]) for r in history.evaluations if metric in r]
    if len(held_out) >= 2:
        step, value = max(held_out, key=lambda one: one[1])
        found.append(Peak(step, value, held_out[0][1], held_out[-1][1], True))
    return found


class Diagnoses:
    """A run's history and what has been found of it: each diagnosis is told once."""

    def __init__(self, stop_when: Sequence[str] = ()) -> None:
        self.stop_when = tuple(stop_when)
        self.history = History()
        self.found: list[Finding] = []

    def remember(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Take the records of a run that goes on; nothing is diagnosed anew."""
        for record in records:
            if "diagnosis" in record:
                parts = (record[key] for key in ("about", "step", "says", "numbers"))
                self.found.append(Finding(record["diagnosis"], *parts))
            else:
                self.history.add(record)

    def add(self, record: Mapping[str, Any]) -> list[Finding]:
        """What a new record of metrics.jsonl shows that was not seen before."""
        points = len(self.history.steps)
        self.history.add(record)
        if len(self.history.steps) == points:
            return []
        told = {(one.name, one.about) for one in self.found}
        fresh = [one for one in diagnose(self.history) if (one.name, one.about) not in told]
        self.found += fresh
        return fresh

    def summary(self) -> dict[str, Any]:
        """Everything found, and where each watched reward was highest; plain JSON."""
        return {
            "diagnoses": [one.record() for one in self.found],
            "peaks": {
                name: [one._asdict() for one in peaks(self.history, name)]
                for name in self.history.watched
            },
        }


# ---------------------------------------------------------------------- the checks


def _watched(history: History) -> Iterator[Finding]:
    width = history.width
    rewards = _windows(history.values("reward"), width)
    for name in history.watched:
        values = history.values(f"watch/{name}/mean")
        means = _windows(values, width)
        before = means[:-width]  # windows that share no point with the last one
        if np.isnan(before).all() or math.isnan(means[-1]):
            continue
        best = int(np.nanargmax(before))
        fall, error = before[best] - means[-1], _noise(values) * math.sqrt(2 / width)
        if not (fall > FALL * error and fall > 0 and rewards[-1] >= rewards[best]):
            continue
        step = history.steps[best + width // 2]
        yield _finding(
            history,
            "watched",
            f"watched reward {name} fell from {before[best]:.4g} (around step {step}) to "
            f"{means[-1]:.4g}, {fall / max(error, 1e-12):.1f} standard errors, while the reward "
            f"that is optimised went from {rewards[best]:.4g} to {rewards[-1]:.4g}: what is gained "
            f"now are mistakes of that reward; take the checkpoint near step {step} "
            f"(metric_for_best_model=watch/{name}/mean), raise kl_coef, or train the reward model "
            "again on responses of this policy",
            about=name,
            peak_step=step,
            peak=before[best],
            value=means[-1],
            standard_error=error,
        )


def _length(history: History) -> Iterator[Finding]:
    start, now = (f("completions/mean_length") for f in (history.start, history.now))
    correlation = history.now("rewards/length_correlation")
    if now >= LONGER * start and correlation >= CORRELATED:
        way, change = "grown", "a longer response scores better whatever it says"
    elif now <= SHORTER * start and correlation <= -CORRELATED:
        way, change = "shrunk", "a shorter response scores better whatever it says"
    else:
        return
    yield _finding(
        history,
        "length",
        f"responses have {way} from {start:.4g} to {now:.4g} tokens, and the reward correlates "
        f"with length ({correlation:+.2f}): {change}; add a length reward "
        "(reward_funcs=length(target=...)), train the reward model on pairs of equal length, or "
        "raise kl_coef",
        start=start,
        value=now,
        correlation=correlation,
    )


def _variety(history: History) -> Iterator[Finding]:
    start, now = (f("completions/distinct_2") for f in (history.start, history.now))
    said, says = (f("completions/repetition") for f in (history.start, history.now))
    if now < LESS_VARIOUS * start:
        what = f"different pairs of tokens fell from {start:.3g} to {now:.3g} of all"
        means = "all prompts get nearly the same response"
    elif says >= said + REPEATED and says >= 2 * said:
        what = f"4-grams that a response has said before rose from {said:.3g} to {says:.3g} of all"
        means = "responses repeat themselves"
    else:
        return
    yield _finding(
        history,
        "variety",
        f"{what} while the reward rose: {means}, and the reward does not mind; read the newest "
        "file of completions/, raise kl_coef, or add a reward that minds "
        "(reward_funcs=repetition)",
        distinct_2_start=start,
        distinct_2=now,
        repetition_start=said,
        repetition=says,
    )


def _entropy(history: History) -> Iterator[Finding]:
    name = "entropy" if "entropy" in history.columns else "policy/entropy_avg"
    start, now = history.start(name), history.now(name)
    if not now < LESS_ENTROPY * start:
        return
    yield _finding(
        history,
        "entropy",
        f"entropy of a token fell from {start:.3g} to {now:.3g} nats: the policy has settled on "
        "one way to answer and explores no other; raise kl_coef, lower learning_rate, or train "
        "fewer passes over a rollout",
        start=start,
        value=now,
    )


def _disagreement(history: History) -> Iterator[Finding]:
    start, now = (f("rewards/disagreement") for f in (history.start, history.now))
    if not (now >= APART * start and _risen(history, "rewards/disagreement")):
        return
    yield _finding(
        history,
        "disagreement",
        f"the reward models of the ensemble part: the standard deviation between them rose from "
        f"{start:.3g} to {now:.3g}, so these responses are unlike those they were trained on and "
        "their mean is a guess; train them on responses of this policy, raise kl_coef, or go on "
        "from an earlier checkpoint",
        start=start,
        value=now,
    )


def _kl(history: History) -> Iterator[Finding]:
    """A gain of g asks for at least g^2 / (2 s^2) nats, s the reward's spread at the start.

    Of a sub-Gaussian reward (Donsker and Varadhan's inequality): no policy nearer than that has
    the gain. The cheapest policy with it is the tilted one, pi* ~ pi_ref exp(r / beta).
    """
    kl, spread = history.now("objective/kl"), history.start("reward_std")
    gain = max(history.now("reward") - history.start("reward"), 0.0)
    needed = gain**2 / (2 * max(spread, 1e-12) ** 2)
    if not (kl > NATS and kl > FAR * needed):
        return
    yield _finding(
        history,
        "kl",
        f"KL to the reference is {kl:.3g} nats, and the reward gained ({gain:.3g}, with a spread "
        f"of {spread:.3g} at the start) asks for {needed:.3g}: most of the way was for nothing "
        "that the reward sees; raise kl_coef, lower learning_rate, or train fewer passes over a "
        "rollout",
        value=kl,
        needed=needed,
        gain=gain,
    )


# ---------------------------------------------------------------------- windows and their noise


def _finding(
    history: History, name: str, says: str, *, about: str = "", **numbers: float
) -> Finding:
    plain = {key: float(value) for key, value in numbers.items()}
    return Finding(name, about, history.steps[-1], says, plain)


def _risen(history: History, name: str) -> bool:
    error = _noise(history.values(name)) * math.sqrt(1 / LEAST + 1 / history.width)
    return history.now(name) - history.start(name) > max(RISE * error, 0.0)


def _windows(values: np.ndarray, width: int) -> np.ndarray:
    """Means over all runs of ``width`` points; NaN where one has a NaN."""
    return np.lib.stride_tricks.sliding_window_view(values, width).mean(axis=1)


def _noise(values: np.ndarray) -> float:
    """Standard deviation of a point around the trend."""
    known = values[~np.isnan(values)]
    if len(known) < 2:
        return math.inf
    return math.sqrt(float(np.mean(np.diff(known) ** 2)) / 2)


def _mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else math.nan
