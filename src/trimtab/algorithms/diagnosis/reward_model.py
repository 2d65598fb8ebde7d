"""Diagnoses of a reward model in training.

at_chance     it tells chosen from rejected no better than a coin
too_good      it is right more often than people agree with each other: something gives it away
below_chance  it prefers the rejected response     (both as in ``preference.py``)
by_length     it goes by length more than people do
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from trimtab.algorithms.diagnosis.history import Facts, Finding, History, done, recent
from trimtab.algorithms.diagnosis.limits import (
    BY_HEART,
    COIN,
    HALF,
    NO_BETTER,
    TOO_GOOD,
)
from trimtab.algorithms.diagnosis.preference import below_chance, by_length, judged


def diagnose(history: History, facts: Facts) -> list[Finding]:
    """What can be said of the run as it stands."""
    return [
        *_at_chance(history, facts),
        *_too_good(history, facts),
        *below_chance(history, facts, "accuracy", "margin", "comparison"),
        *by_length(history, facts, "reward"),
    ]


def _at_chance(history: History, facts: Facts) -> Iterator[Finding]:
    found = judged(history, facts, "accuracy", "margin")
    if found is None or done(history, facts) < HALF:
        return
    if not (found.value <= COIN and found.low <= 0.5 and 0.5 <= found.high <= NO_BETTER):
        return
    now = recent(history, facts)
    trained = now.mean("accuracy") if now is not None else math.nan
    if trained >= BY_HEART and facts.held_out:
        why = (
            f"on training rows it is {trained:.1%}, so it learns those by heart: train fewer "
            "epochs, on more rows, or a smaller share of the model (backbone.share)"
        )
    else:
        why = (
            "raise learning_rate, train longer or on more rows, look whether the judgments are "
            "clear (trimtab data inspect), or keep more of the model (backbone.share=1)"
        )
    yield history.finding(
        "at_chance",
        f"accuracy {found.where} is {found.value:.1%} [{found.low:.1%}, {found.high:.1%}]: this "
        f"reward model knows no more than a coin, and a policy trained on it learns noise; {why}",
        accuracy=found.value,
        low=found.low,
        high=found.high,
    )


def _too_good(history: History, facts: Facts) -> Iterator[Finding]:
    found = judged(history, facts, "accuracy", "margin")
    epoch = history.columns.get("epoch", [math.nan])[-1]
    if found is None or found.low < TOO_GOOD or not (facts.held_out or epoch <= 1):
        return
    last = history.evaluations[-1] if facts.held_out else {}
    now = recent(history, facts)
    longer = last.get("lengths/longer_rewarded", math.nan)
    if not facts.held_out and now is not None:
        longer = now.mean("lengths/longer_rewarded")
    known = not math.isnan(longer)
    hint = f" (the longer response wins in {longer:.0%} of the pairs)" if known else ""
    yield history.finding(
        "too_good",
        f"accuracy {found.where} is {found.value:.1%} [{found.low:.1%}, {found.high:.1%}], and "
        "people agree with each other in 63 to 77 % of comparisons: something gives the chosen "
        f"response away; look for length{hint}, a format, a name or an end that only one side has, "
        "two models that wrote the two sides, and rows that are held out and trained on, too",
        accuracy=found.value,
        low=found.low,
    )
