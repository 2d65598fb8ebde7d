"""The card of answers for people: its verdict, its Markdown, and what the terminal shows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trimtab.evaluation.verdict import interval, side_of

Entry = Mapping[str, Any]
_NAMES = {
    "ended": "answers that ended by themselves",
    "blank": "blank answers",
    "tokens": "length, tokens",
    "characters": "length, characters",
}
_DIVERSITY = {
    "distinct_1": "distinct-1",
    "distinct_2": "distinct-2",
    "distinct_3": "distinct-3",
    "self_bleu": "self-BLEU",
}
_SCOPES = {
    "prompt": "against the other answers to the same prompt",
    "all": "against the answers to all other prompts",
}


def verdict(card: Mapping[str, Any]) -> list[str]:
    """Who wins by whom, and what else a reader should know first."""
    answers = card["answers"]
    said: list[str] = []
    if "baseline" not in card:
        for name, found in answers["rewards"].items():
            if found is not None:
                said.append(f"Its answers have a mean reward of {interval(found)} by {name}.")
    else:
        said += _against(card)
    ended, tokens = answers["ended"], answers["tokens"]
    if ended is not None:
        length = "" if tokens is None else f", with {interval(tokens, 1)} tokens on average"
        said.append(f"{interval(ended)} of its answers end by themselves{length}.")
    blank = answers["blank"]
    if blank is not None and blank["value"] > 0:
        said.append(
            f"{round(blank['value'] * blank['n'])} of {blank['n']:,} answers are blank: they have "
            "no reward from a model, and lose to any that is not."
        )
    return said


def _against(card: Mapping[str, Any]) -> list[str]:
    found, other = card["baseline"], card["baseline"]["model"]["name"]
    if not found["win_rates"]:
        return [
            f"Nobody judged it against {other}: a win rate needs --reward-model, --reward-funcs or "
            "--judge-url."
        ]
    said: list[str] = []
    for name, one in found["win_rates"].items():
        rate = one["win_rate"]
        if rate is None:
            said.append(f"By {name} nothing could be decided against {other}.")
            continue
        side = side_of(rate, 0.5, ("worse", "better"), "not distinguishable")
        controlled = one["length_controlled"]
        said.append(
            f"By {name} it wins {interval(rate)} of {rate['n']:,} comparisons on "
            f"{rate['prompts']:,} prompts against {other}: {side}. At equal length it would win "
            f"{interval(controlled)}."
        )
        if one.get("malformed"):
            said.append(
                f"{one['malformed']} of the judge's {one['replies']} replies had no verdict; "
                f"{one['undecided']} comparisons are left out for that."
            )
    return said


def facts(card: Mapping[str, Any]) -> str:
    """The line under the verdict: how many answers to how many prompts, how sampled."""
    answers, sampling = card["answers"], card["sampling"]
    parts = [f"{answers['answers']:,} answers to {answers['prompts']:,} prompts"]
    if sampling is not None:
        parts.append(
            f"sampled at temperature {sampling['temperature']:g}, top-p {sampling['top_p']:g}, "
            f"top-k {sampling['top_k']}, at most {sampling['max_completion_length']} tokens"
        )
    if "baseline" in card:
        parts.append(f"{card['baseline']['compared_prompts']:,} prompts in common")
    return "; ".join([*parts, f"seed {card['seed']}"]) + "."


def markdown(card: Mapping[str, Any], plain: Any) -> list[str]:
    """Tables; ``plain`` makes a user's text safe in them."""
    lines = ["## Answers", "", *_table(_sides(card), plain), ""]
    scope = card["answers"]["diversity"]["self_bleu_references"]
    lines += [f"Self-BLEU is {_SCOPES[scope]}.", ""]
    if "baseline" not in card:
        return lines
    found = card["baseline"]
    lines += [f"## Against {plain(found['model']['name'])}", ""]
    for name, one in found["win_rates"].items():
        lines += [f"### Judged by {plain(name)}", "", "| | value | comparisons | prompts |"]
        lines += ["|---|---|---|---|", *(_row(text, e, plain) for text, e in _wins(one)), ""]
        lines += [_counts(one), ""]
    lines += ["### Differences", "", "| | difference | prompts |", "|---|---|---|"]
    for name, gap in _gaps(found):
        lines.append(f"| {plain(name)} | {interval(gap, sign=True)} | {gap['prompts']:,} |")
    return [*lines, ""]


def summary(card: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Rows of name, value and count for the terminal."""
    found = card.get("baseline")
    rows: list[tuple[str, str, str]] = []
    if found is not None:
        for name, one in found["win_rates"].items():
            rows.append((f"judged by {name}", "", ""))
            rows += [(f"  {t}", interval(e), _of(e)) for t, e in _wins(one) if e is not None]
        rows += [(f"{name}, difference", interval(gap, sign=True), _of(gap))
                 for name, gap in _gaps(found)]  # fmt: skip
    for name, sides in _sides(card).items():
        if sides[0] is not None:
            rows.append((name, interval(sides[0]), _of(sides[0])))
    return rows


def _of(found: Entry) -> str:
    return f"n = {found['n']:,}, {found['prompts']:,} prompts"


def _sides(card: Mapping[str, Any]) -> dict[str, list[Entry | None]]:
    """Every number of one side by name: the model's, and the baseline's where there is one."""
    sides = [card["answers"]] + ([card["baseline"]["answers"]] if "baseline" in card else [])
    found: dict[str, list[Entry | None]] = {}
    for name in card["answers"]["rewards"]:
        found[f"reward by {name}"] = [side["rewards"].get(name) for side in sides]
    for key, name in _NAMES.items():
        found[name] = [side[key] for side in sides]
    for key, name in _DIVERSITY.items():
        found[name] = [side["diversity"][key] for side in sides]
    return {name: entries for name, entries in found.items() if any(entries)}


def _table(sides: Mapping[str, list[Entry | None]], plain: Any) -> list[str]:
    two = any(len(entries) == 2 for entries in sides.values())
    head = "| | this model | n | prompts |" + (" baseline | n | prompts |" if two else "")
    lines = [head, "|---|---|---|---|" + ("---|---|---|" if two else "")]
    for name, entries in sides.items():
        cells = [_cells(one) for one in entries]
        lines.append(f"| {plain(name)} | " + " | ".join(cells) + " |")
    return lines


def _cells(found: Entry | None) -> str:
    if found is None:
        return "- | - | -"
    return f"{interval(found)} | {found['n']:,} | {found['prompts']:,}"


def _row(name: str, found: Entry | None, plain: Any) -> str:
    return f"| {plain(name)} | {_cells(found)} |"


def _wins(one: Mapping[str, Any]) -> list[tuple[str, Entry | None]]:
    found: list[tuple[str, Entry | None]] = [
        ("win rate, ties as one half", one["win_rate"]),
        ("the same, bootstrap over prompts", one["bootstrap"]),
        ("win rate at equal length", one["length_controlled"]),
    ]
    if "replies" in one:
        found += [
            ("both orders of the answers agree", one["orders_agree"]),
            ("the answer in the first place wins", one["first_place_wins"]),
        ]
    return found


def _counts(one: Mapping[str, Any]) -> str:
    said = f"{one['wins']} won, {one['ties']} tied, {one['losses']} lost"
    said += f", {one['undecided']} undecided"
    if "replies" in one:
        said += (
            f"; {one['replies']} replies, {one['malformed']} of them without a verdict; "
            f"{one['equal_answers']} comparisons of equal answers, which were not asked"
        )
    return said + "."


def _gaps(found: Mapping[str, Any]) -> list[tuple[str, Entry]]:
    named = [(f"reward by {name}", gap) for name, gap in found["reward_differences"].items()]
    named += [(_NAMES[key], found[key]) for key in ("tokens", "characters")]
    return [(name, gap) for name, gap in named if gap is not None]
