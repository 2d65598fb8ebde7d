"""What a report card says, in sentences: the first thing that a reader sees."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trimtab.evaluation.agreement import NONE

NAMES = {
    "reward": "The reward model",
    "log_prob": "By its summed log-probability, the language model",
    "log_prob_per_token": "By its log-probability per token, the language model",
}
_FEW = 100
_TOO_GOOD = 0.99


def comparison_verdict(card: Mapping[str, Any]) -> list[str]:
    """Sentences about every way of scoring, the ceiling and the baseline."""
    said: list[str] = []
    for name, scoring in card["scorings"].items():
        said += _accuracy(name, scoring)
        if name == "reward":
            said.append(_calibration(scoring["calibration"]))
        said.append(_length(scoring["length"]))
        said += _gold(scoring)
    told = card["agreement"]
    if told.get("note") != NONE:
        said.append(
            "Annotators agree with the majority of the others in "
            f"{interval(told['leave_one_out'])} of {told['votes']:,} votes; the model agrees with "
            f"{interval(told['model'])} of them."
        )
    if "baseline" in card:
        said += [_baseline(card, one) for one in card["baseline"]["differences"]]
    count = card["counts"]["comparisons"]
    if count < _FEW:
        said.append(f"With {count} comparisons the intervals are wide: evaluate on more rows.")
    return said


def text_verdict(card: Mapping[str, Any]) -> list[str]:
    """Sentences about held-out text."""
    text, counts = card["text"], card["counts"]
    bits = text["bits_per_byte"]
    said = [
        f"Held-out loss {interval(text['loss'])} nats per token (perplexity "
        f"{interval(text['perplexity'], 2)}"
        + (f", {interval(bits)} bits per byte" if bits else "")
        + f") over {counts['tokens']:,} tokens of {counts['rows']:,} rows; "
        f"{interval(text['token_accuracy'])} of the tokens are the likeliest."
    ]
    if "baseline" in card:
        other, change = card["baseline"]["model"]["name"], card["baseline"]["difference"]
        for name, unit in (("loss", "nats per token"), ("bits_per_byte", "bits per byte")):
            if name in change:
                side = side_of(change[name], 0.0, ("lower", "higher"), "not distinguishable")
                shown = interval(change[name], sign=True)
                said.append(f"Against {other} the difference is {shown} {unit}: {side}.")
                break
    return said


def interval(found: Mapping[str, Any], places: int = 3, *, sign: bool = False) -> str:
    """``0.634 [0.590, 0.676]``; the value alone where its interval is not known."""

    if found["value"] is None:
        return "not defined"
    value, *ends = (
        None if found[key] is None else signed(found[key], places, plus=sign)
        for key in ("value", "low", "high")
    )
    return f"{value} (no interval)" if None in ends else f"{value} [{ends[0]}, {ends[1]}]"


def signed(value: float, places: int = 3, *, plus: bool = False) -> str:
    """A number with a real minus sign, and never a negative nothing."""
    shown = f"{round(value, places) + 0.0:{'+' if plus else ''}.{places}f}"
    return shown.replace("-", "\N{MINUS SIGN}")


def side_of(found: Mapping[str, Any], to: float, sides: tuple[str, str], neither: str) -> str:
    """Below, above, or neither, by the interval."""
    low, high = found["low"], found["high"]
    if low is None or high is None or low <= to <= high:
        return neither
    return sides[0] if high < to else sides[1]


def _accuracy(name: str, scoring: Mapping[str, Any]) -> list[str]:
    overall = scoring["accuracy"]["overall"]
    chance = side_of(overall, 0.5, ("worse than chance", "better than chance"),
                   "not distinguishable from chance")  # fmt: skip
    said = [
        f"{NAMES[name]} scores the preferred answer higher in {interval(overall)} of "
        f"{overall['n']:,} comparisons of {overall['prompts']:,} prompts: {chance}."
    ]
    longer, gain = scoring["length"]["longer_wins"], scoring["length"]["over_longer_wins"]
    side = side_of(gain, 0.0, ("worse than that", "better than that"), "no better and no worse, as "
                 "far as these rows tell")  # fmt: skip
    said.append(f"Preferring the longer answer gives {longer['value']:.3f}; it is {side}.")
    if overall["value"] > _TOO_GOOD:
        said.append("That is suspiciously good: are these rows held out?")
    return said


def _calibration(found: Mapping[str, Any]) -> str:
    slope, ece, null = found["slope"], found["ece"]["value"], found["ece_if_calibrated"]
    error = f"ECE {ece:.3f}, where noise alone would show {null['mean']:.3f}"
    if slope is None:
        return f"No factor of its scores predicts best, all comparisons falling one way ({error})."
    if slope["low"] is not None and slope["high"] is not None and slope["high"] <= 0:
        return f"Its scores point the wrong way, so its probabilities mislead ({error})."
    best = f"scores times {slope['value']:.2f} would predict best"
    side = side_of(slope, 1.0, (f"too sure: {best}", f"not sure enough: {best}"), "")
    if side:
        return f"Its probabilities are {side} ({error})."
    if ece > null["high"]:
        return f"Its probabilities are off, though not by a factor of the scores ({error})."
    return f"Its probabilities are right as far as these rows tell ({error})."


def _length(found: Mapping[str, Any]) -> str:
    correlation = found["partial_correlation"]
    if correlation["value"] is None:
        return "The answers to a prompt are all equally long: length plays no part."
    side = side_of(correlation, 0.0, ("shorter", "longer"), "")
    if not side:
        return (
            "Whatever the label, its scores do not follow length as far as these rows tell "
            f"(partial correlation {interval(correlation, 2)})."
        )
    return (
        f"Whatever the label, {side} answers score higher "
        f"(partial correlation {interval(correlation, 2)})."
    )


def _gold(scoring: Mapping[str, Any]) -> list[str]:
    said: list[str] = []
    gold, best = scoring["gold"], scoring["best_of_n"]
    if gold is not None and gold["choices_agree"]["value"] < 1:
        said.append(
            f"By the gold reward it is right in {interval(gold['accuracy'])}; the choices it is "
            f"judged by agree with the gold reward in {gold['choices_agree']['value']:.3f}."
        )
    if best is not None and best["curve"] and best["curve"][-1]["captured"]:
        last = best["curve"][-1]
        if last["captured"]["value"] is not None:
            said.append(
                f"Choosing the best of {last['n']} by its scores brings "
                f"{interval(last['captured'], 2)} of the gain in gold reward that is there."
            )
    return said


def _baseline(card: Mapping[str, Any], one: Mapping[str, Any]) -> str:
    change = one["difference"]
    side = side_of(change, 0.0, ("worse", "better"), "not distinguishable")
    ways = ""
    if one["scoring"] != one["baseline_scoring"] or len(card["scorings"]) > 1:
        ways = f" ({one['scoring']} against {one['baseline_scoring']})".replace("_", " ")
    return (
        f"Against {card['baseline']['model']['name']}{ways} the difference in accuracy is "
        f"{interval(change, sign=True)}: {side}."
    )
