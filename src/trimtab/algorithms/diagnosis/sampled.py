"""Diagnoses of on-policy training that are no reward hacking: numbers that say something is broken.

no_value       the value function explains nothing of the returns
impossible_kl  a KL that no two policies can have, or that these two cannot have yet
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from trimtab.algorithms.diagnosis.history import (
    LEAST,
    Facts,
    Finding,
    History,
    done,
    noise,
)
from trimtab.algorithms.diagnosis.limits import (
    AT_START,
    BEFORE_A_STEP,
    NEGATIVE,
    NOTHING,
    RISE,
    STILL_LEARNING,
)


def diagnose(history: History, facts: Facts) -> list[Finding]:
    """What can be said of the run as it stands."""
    return [*_no_value(history, facts), *_impossible_kl(history, facts)]


def _no_value(history: History, facts: Facts) -> Iterator[Finding]:
    name = "val/explained_variance"
    if len(history.steps) < 2 * history.width or name not in history.columns:
        return
    start, now = history.start(name), history.now(name)
    if not now <= NOTHING or (history.risen(name) and done(history, facts) < STILL_LEARNING):
        return
    yield history.finding(
        "no_value",
        f"the value function explains {now:.2g} of the returns' variance (1 is all of it, below 0 "
        f"is worse than a constant; {start:.2g} at the start): advantages are as noisy as without "
        "it; give it a higher rate (value_learning_rate, 3 to 10 times learning_rate), more "
        "num_ppo_epochs, cliprange_value=null if val/clipfrac_avg is high, or an earlier run's "
        "values (value_model=RUN/value_model), or take grpo or rloo, which need none",
        start=start,
        value=now,
    )


def _impossible_kl(history: History, facts: Facts) -> Iterator[Finding]:
    for check in (_negative, _apart_at_start, _apart_before_a_step):
        found = check(history, facts)
        if found is not None:
            says, value = found
            yield history.finding("impossible_kl", says, value=value)
            return


_SAME = (
    "sampling and training do not compute the same distribution; look at what was changed of the "
    "sampler, dropout or precision, and report it with the recipe: trimtab explain impossible_kl"
)


def _negative(history: History, facts: Facts) -> tuple[str, float] | None:
    name = "objective/kl"
    if len(history.steps) < LEAST or name not in history.columns:
        return None
    now = history.now(name)
    error = noise(history.values(name)) / math.sqrt(history.width)
    if not now < -max(NEGATIVE, RISE * error):
        return None
    return (
        f"KL to the reference is {now:.3g} nats, {-now / max(error, 1e-12):.1f} standard errors "
        f"below 0, which no KL can be: {_SAME}",
        now,
    )


def _apart_at_start(history: History, facts: Facts) -> tuple[str, float] | None:
    """The policy is its own reference before the first step: in the first rollout, and held out."""
    if not facts.fresh_reference:
        return None
    values = [one["kl"] for one in history.evaluations[:1] if one["step"] == 0 and "kl" in one]
    if history.steps and history.steps[0] <= facts.steps_per_rollout:
        values += history.columns.get("objective/kl", [math.nan])[:1]
    for value in values:
        if abs(value) > AT_START:
            return (
                f"KL to the reference is {value:.3g} nats before anything was learned, where the "
                f"policy is the reference and it is 0: {_SAME}",
                value,
            )
    return None


def _apart_before_a_step(history: History, facts: Facts) -> tuple[str, float] | None:
    """One step a rollout: the policy that is trained is the one that sampled."""
    name = "policy/approxkl_avg"
    if facts.steps_per_rollout != 1 or len(history.steps) < LEAST or name not in history.columns:
        return None
    now = history.now(name)
    if not now > BEFORE_A_STEP:
        return None
    return (
        f"policy/approxkl_avg is {now:.3g} with one step a rollout, where the policy that is "
        f"trained is the one that sampled and it is 0: {_SAME}",
        now,
    )
