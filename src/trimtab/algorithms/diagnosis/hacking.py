"""Diagnoses of reward hacking, from what an on-policy run has logged.

The reward that is optimised (the proxy) rises by design. Each check asks whether something that
nobody optimises says that the rise is empty:

    watched       a watched reward (watch_funcs, watch_model) falls from its peak
    length        responses run away in the direction in which the reward correlates with length
    variety       responses repeat themselves, or one another
    entropy       the policy has stopped choosing
    disagreement  the members of a reward ensemble part: they never saw such responses
    kl            the policy has gone much further than the reward it gained asks for

A check looks at means over windows (``history.py``), and at nothing before two of them are full.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from trimtab.algorithms.diagnosis.history import Facts, Finding, History, noise, windows
from trimtab.algorithms.diagnosis.limits import (
    APART,
    CORRELATED,
    FALL,
    FAR_FOR_GAIN,
    LESS_ENTROPY,
    LESS_VARIOUS,
    LONGER,
    NATS,
    REPEATED,
    SHORTER,
)


class Peak(NamedTuple):
    """Where a watched reward was highest, at the start and last; ``held_out``: in evaluations.

    On rollouts all three are means of windows, and the step is that of the window's middle.
    """

    step: int
    value: float
    start: float
    last: float
    held_out: bool


def diagnose(history: History, facts: Facts = Facts()) -> list[Finding]:  # noqa: B008 - a tuple
    """What can be said of the run as it stands; nothing before two windows are full.

    All but ``kl`` ask that the proxy has risen: a policy that gets worse by its own reward has
    another trouble than reward hacking.
    """
    if len(history.steps) < 2 * history.width:
        return []
    found = list(_kl(history))
    if history.risen("reward"):
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
        means = windows(history.values(metric), history.width)
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


# ---------------------------------------------------------------------- the checks


def _watched(history: History) -> Iterator[Finding]:
    width = history.width
    rewards = windows(history.values("reward"), width)
    for name in history.watched:
        values = history.values(f"watch/{name}/mean")
        means = windows(values, width)
        before = means[:-width]  # windows that share no point with the last one
        if np.isnan(before).all() or math.isnan(means[-1]):
            continue
        best = int(np.nanargmax(before))
        fall, error = before[best] - means[-1], noise(values) * math.sqrt(2 / width)
        if not (fall > FALL * error and fall > 0 and rewards[-1] >= rewards[best]):
            continue
        step = history.steps[best + width // 2]
        yield history.finding(
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
    yield history.finding(
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
    yield history.finding(
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
    yield history.finding(
        "entropy",
        f"entropy of a token fell from {start:.3g} to {now:.3g} nats: the policy has settled on "
        "one way to answer and explores no other; raise kl_coef, lower learning_rate, or train "
        "fewer passes over a rollout",
        start=start,
        value=now,
    )


def _disagreement(history: History) -> Iterator[Finding]:
    start, now = (f("rewards/disagreement") for f in (history.start, history.now))
    if not (now >= APART * start and history.risen("rewards/disagreement")):
        return
    yield history.finding(
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
    if not (kl > NATS and kl > FAR_FOR_GAIN * needed):
        return
    yield history.finding(
        "kl",
        f"KL to the reference is {kl:.3g} nats, and the reward gained ({gain:.3g}, with a spread "
        f"of {spread:.3g} at the start) asks for {needed:.3g}: most of the way was for nothing "
        "that the reward sees; raise kl_coef, lower learning_rate, or train fewer passes over a "
        "rollout",
        value=kl,
        needed=needed,
        gain=gain,
    )
