"""Diagnoses of preference training on rows, from what it logs of training and held-out pairs.

    displacement  log p(chosen) falls with log p(rejected): the probability goes elsewhere
    stuck         the loss stays where it was at the start, ln 2 for DPO
    saturated     margins so wide that hardly any gradient is left
    small_beta    the policy goes far and its margin hardly counts it: beta is too small
    below_chance  the rejected response is preferred
    by_length     the longer (or the shorter) response is preferred more than the data says

Where there are held-out rows, they decide what they can: training rows are learned by heart. Means
over training rows are of the last eighth of the run, and of ``PAIRS`` rows at least.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

from trimtab.algorithms.diagnosis.history import Facts, Finding, History, Recent, done, recent
from trimtab.algorithms.diagnosis.limits import (
    BY_LENGTH,
    EARLY,
    ERRORS,
    FAR,
    FAR_PER_TOKEN,
    LEAST_MARGIN,
    NARROW,
    ONE_SIDED,
    PER_TOKEN,
    STILL,
    SURE,
    WIDE,
)
from trimtab.config.diagnoses import SATURATING


def diagnose(history: History, facts: Facts) -> list[Finding]:
    """What can be said of the run as it stands."""
    found: list[Finding] = []
    for check in (_displacement, _stuck, _saturated, _small_beta):
        found += check(history, facts)
    found += below_chance(history, facts, "rewards/accuracies", "rewards/margins", "pair")
    found += by_length(history, facts, "implicit reward")
    return found


# ---------------------------------------------------------------------- where the probability goes


def _displacement(history: History, facts: Facts) -> Iterator[Finding]:
    now = recent(history, facts)
    if facts.held_out:
        yield from _displaced_held_out(history, facts, now)
    elif facts.fresh_reference and now is not None:
        chosen, rejected = (now.mean(f"displacement/{side}") for side in ("chosen", "rejected"))
        per_token, both = (
            now.mean(f"displacement/{name}") for name in ("chosen_per_token", "both_fell")
        )
        if per_token <= -PER_TOKEN and rejected < 0 and both >= 0.5:
            yield history.finding(
                "displacement",
                f"log p(chosen) of training rows is {-chosen:.3g} nats a response below the "
                f"reference's ({-per_token:.2g} a token), log p(rejected) {-rejected:.3g} below, "
                f"both of them in {both:.0%} of the pairs: probability goes to responses that are "
                "neither; give eval_dataset_name to see whether held-out responses suffer, "
                + _hold_up(facts),
                severity=-per_token,
                chosen=chosen,
                rejected=rejected,
                both_fell=both,
            )


def _displaced_held_out(history: History, facts: Facts, now: Recent | None) -> Iterator[Finding]:
    per_token = "logps/chosen_per_token"
    known = [one for one in history.evaluations if per_token in one and "logps/rejected" in one]
    if len(known) < 2:
        return
    first, last = known[0], known[-1]
    fell, chosen, rejected = (
        last[name] - first[name] for name in (per_token, "logps/chosen", "logps/rejected")
    )
    interval = last.get("displacement/chosen_per_token_ci95")
    noise = facts.fresh_reference and interval is not None and interval[1] >= 0
    if fell > -PER_TOKEN or chosen >= 0 or rejected >= 0 or noise:
        return
    trained = now.mean("displacement/chosen") if now is not None else math.nan
    by_heart = (
        f" (of training rows log p(chosen) rose by {trained:.3g}: they are learned by heart, train "
        "fewer epochs)"
        if facts.fresh_reference and trained > 0
        else ""
    )
    elsewhere = last.get("displacement/elsewhere", math.nan) if facts.fresh_reference else math.nan
    kept = f"exp(-{elsewhere:.2g}) = {math.exp(-elsewhere):.2g}" if elsewhere > 0 else ""
    gone = f" (the two keep {kept} of the probability they had)" if kept else ""
    how = "the margin is made by pushing" if chosen > rejected else "training pushes"
    yield history.finding(
        "displacement",
        f"held-out log p(chosen) fell from {first['logps/chosen']:.4g} to "
        f"{last['logps/chosen']:.4g} nats a response ({-fell:.2g} a token), log p(rejected) from "
        f"{first['logps/rejected']:.4g} to {last['logps/rejected']:.4g}: {how} both down, and the "
        f"probability goes to responses that are neither{gone}"
        f"{by_heart}; " + _hold_up(facts),
        severity=-fell,
        chosen=chosen,
        rejected=rejected,
        chosen_per_token=fell,
        elsewhere=elsewhere,
    )


def _hold_up(facts: Facts) -> str:
    """What to change where the chosen response loses probability."""
    known = facts.fresh_reference and facts.beta is not None
    beta = f"raise beta (now {facts.beta:g}), " if known else ""
    return (
        "add the likelihood of the chosen response (nll_weight=0.1 or more), take a loss that "
        f"holds it up (loss=dpop, irpo or apo_zero), {beta}lower "
        f"learning_rate{_rate(facts)}, or keep an earlier checkpoint "
        "(metric_for_best_model=logps/chosen)"
    )


def _small_beta(history: History, facts: Facts) -> Iterator[Finding]:
    now = recent(history, facts)
    if now is None or facts.beta is None or not facts.fresh_reference:
        return
    gap, per_token = (
        now.mean(f"displacement/chosen{of}") - now.mean(f"displacement/rejected{of}")
        for of in ("", "_per_token")
    )
    margin = _gap(now)
    if gap >= FAR and per_token >= FAR_PER_TOKEN and margin < NARROW:
        yield history.finding(
            "small_beta",
            f"chosen and rejected have moved apart by {gap:.3g} nats a response ({per_token:.2g} a "
            f"token) and the margin is {margin:.2g}: with beta={facts.beta:g} the loss hardly "
            "counts how far the policy is from its reference, and goes on pushing; raise beta (at "
            f"{2 / gap:.1g} so far would be a margin of 2), or lower "
            f"learning_rate{_rate(facts)}",
            gap=gap,
            per_token=per_token,
            margin=margin,
            beta=facts.beta,
        )


# ---------------------------------------------------------------------- margins


def _gap(now: Recent) -> float:
    """Mean reward of chosen less that of rejected responses, whether they came as pairs or not."""
    return now.mean("rewards/chosen") - now.mean("rewards/rejected")


def _stuck(history: History, facts: Facts) -> Iterator[Finding]:
    now = recent(history, facts)
    if now is None or not facts.fresh_reference or done(history, facts) < EARLY:
        return
    gap, loss, start = _gap(now), now.mean("loss"), history.columns["loss"][0]
    # Not the margin: losses scale it by anything from 0.01 to 1000.
    moved = [abs(now.mean(f"displacement/{side}")) for side in ("chosen", "rejected")]
    if not all(one < STILL for one in moved):
        return
    known = " (ln 2, as of a coin)" if abs(loss - math.log(2)) < 0.01 else ""
    norm = now.mean("grad_norm")
    yield history.finding(
        "stuck",
        f"the loss is {loss:.4f}{known} and was {start:.4f} at the start, the margin is {gap:.2g}, "
        f"no log-prob is further than {max(moved):.2g} nats a response from where it was: after "
        f"{history.step} steps the policy still is its reference; raise "
        f"learning_rate{_rate(facts)} (a gradient norm of {norm:.2g} is there to be followed), "
        "train more steps, or look whether chosen and rejected differ (trimtab data inspect)",
        loss=loss,
        start=start,
        margin=gap,
        grad_norm=norm,
    )


def _saturated(history: History, facts: Facts) -> Iterator[Finding]:
    now = recent(history, facts)
    if now is None:
        return
    if facts.loss not in SATURATING:
        return
    gap, right = _gap(now), now.mean("rewards/accuracies")
    beyond = gap - facts.target
    if not (beyond >= WIDE and right >= SURE):
        return
    held_out = _last(history, "rewards/accuracies")
    said = "" if held_out is None else f" (held out: {held_out['rewards/accuracies']:.1%})"
    yield history.finding(
        "saturated",
        f"the margin of training pairs is {gap:.3g} and {right:.1%} of them are right{said}: the "
        f"loss weighs such a pair by sigmoid(-{beyond:.3g}) = {_sigmoid(-beyond):.1g}, nothing is "
        "left to learn from them and the rest drifts; stop here or at an earlier checkpoint, train "
        f"fewer epochs, lower learning_rate{_rate(facts)}, or take a loss with a margin to aim at "
        "(loss=ipo, cdpo)",
        margin=gap,
        accuracy=right,
    )


# ---------------------------------------------------------------------- shared with reward models


class Share(NamedTuple):
    """A share with its 95 % interval, where it is from, and the margin with it."""

    value: float
    low: float
    high: float
    where: str
    margin: float


def judged(history: History, facts: Facts, accuracy: str, margin: str) -> Share | None:
    """Accuracy and margin of the last evaluation or, without held-out rows, of recent training."""
    if facts.held_out:
        last = _last(history, accuracy)
        if last is None or f"{accuracy}_ci95" not in last:
            return None
        low, high = last[f"{accuracy}_ci95"]
        return Share(last[accuracy], low, high, "held out", last.get(margin, math.nan))
    now = recent(history, facts)
    if now is None or math.isnan(now.mean(accuracy)):
        return None
    value, error = now.mean(accuracy), 1.0 / math.sqrt(now.rows)  # two errors of a share near 0.5
    return Share(value, value - error, value + error, "on training rows", now.mean(margin))


def below_chance(
    history: History, facts: Facts, accuracy: str, margin: str, unit: str
) -> Iterator[Finding]:
    """The rejected response wins more often than not, by more than chance."""
    found = judged(history, facts, accuracy, margin)
    if found is None or done(history, facts) < EARLY:
        return
    least = LEAST_MARGIN if facts.fresh_reference else 0.0
    if found.high < 0.5 and found.margin < -least:
        yield history.finding(
            "below_chance",
            f"accuracy {found.where} is {found.value:.1%} [{found.low:.1%}, {found.high:.1%}], "
            f"with a mean margin of {found.margin:.2g}: the rejected response of a {unit} is "
            "preferred more often than not; look whether chosen and rejected are swapped "
            "(columns, ranks: 1 is the best, labels), whether held-out rows were judged by "
            "somebody else, and with trimtab data inspect what the model sees",
            accuracy=found.value,
            high=found.high,
            margin=found.margin,
        )


def by_length(history: History, facts: Facts, reward: str) -> Iterator[Finding]:
    """One of two lengths gets the higher reward more often than it is the chosen one."""
    if done(history, facts) < EARLY:
        return
    last = _last(history, "lengths/longer_rewarded") if facts.held_out else None
    if facts.held_out:
        if last is None:
            return
        model, data = last["lengths/longer_rewarded"], last["lengths/chosen_longer"]
        rows, where = last["pairs"] * last.get("lengths/compared", 1.0), "held out"
    else:
        now = recent(history, facts)
        if now is None:
            return
        model, data = now.mean("lengths/longer_rewarded"), now.mean("lengths/chosen_longer")
        rows, where = now.rows * now.mean("lengths/compared"), "on training rows"
    side = 1.0 if model > 0.5 else -1.0
    # Of pairs that differ in length and reward alone; NaN where that is not known.
    excess, error = side * (model - data), 0.5 / math.sqrt(rows) if rows else math.inf
    if (
        last is not None and "accuracy_ci95" in last
    ):  # comparisons of one ranking are not independent
        low, high = last["accuracy_ci95"]
        error = max(error, (high - low) / 4)
    if not (excess >= BY_LENGTH and excess > ERRORS * error and abs(model - 0.5) >= ONE_SIDED):
        return
    longer, theirs, ours = ("longer", data, model) if side > 0 else ("shorter", 1 - data, 1 - model)
    yield history.finding(
        "by_length",
        f"{where}, the {longer} response has the higher {reward} in {ours:.0%} of the pairs and is "
        f"the chosen one in {theirs:.0%}: length counts for more than people meant it to; balance "
        "the lengths of chosen and rejected responses, "
        + (
            "or take a loss that discounts length (loss=r_dpo, ld_dpo, ln_dpo or simpo)"
            if reward == "implicit reward"
            else "or watch a reward that minds it where this one is optimised (reward_funcs=length)"
        ),
        model=model,
        data=data,
    )


def _last(history: History, name: str) -> dict[str, Any] | None:
    """The last evaluation, if it has the number and is one of a trained model."""
    last = history.evaluations[-1] if history.evaluations else {}
    return last if name in last and last["step"] > 0 else None


def _rate(facts: Facts) -> str:
    return "" if facts.learning_rate is None else f" (now {facts.learning_rate:g})"


def _sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))
