"""The faults that ``doctor_mutants.py`` plants in real rows: one function each.

A function changes the rows and gives the lines in which its fault is to be found, or None where the
rows are of another kind. ``_change`` makes one of a function that edits a single row (and gives
False where that row will not do).
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Sequence
from typing import Any

Row = dict[str, Any]
Rows = list[Row]
Planted = Sequence[int] | None  # lines in which the fault is to be found; None: no such rows
Plant = Callable[[Rows, random.Random], Planted]


def said(value: Any) -> str:
    """What a text or the last message of a conversation says."""
    return value if isinstance(value, str) else value[-1]["content"]


def saying(value: Any, text: str) -> Any:
    """``value`` with other words at its end."""
    if isinstance(value, str):
        return text
    return [*value[:-1], {**value[-1], "content": text}]


def longer(row: Row) -> int:
    """1 where the best response is longer than the worst, -1 where it is shorter."""
    if "chosen" in row:
        best, worst = said(row["chosen"]), said(row["rejected"])
    elif "responses" in row:
        values = row.get("ranks") or [-score for score in row["scores"]]
        best, worst = (said(row["responses"][values.index(pick(values))]) for pick in (min, max))
    else:
        return 0
    return (len(best) > len(worst)) - (len(best) < len(worst))


def _drawn(rows: Rows, rng: random.Random, *columns: str) -> int | None:
    """The position of a random row, None where rows lack one of the columns."""
    if not all(column in rows[0] for column in columns):
        return None
    return rng.randrange(len(rows))


def _change(*columns: str) -> Callable[[Callable[..., Any]], Callable[..., Planted]]:
    """A fault of one row with these columns, made by a function of that row."""

    def made(edit: Callable[[Row], Any]) -> Plant:
        def plant(rows: Rows, rng: random.Random) -> Planted:
            at = _drawn(rows, rng, *columns)
            if at is None or edit(rows[at]) is False:
                return None
            return [at + 1]

        return plant

    return made


def _text_column(row: Row) -> str:
    """Where a response, or a text, stands."""
    return next(n for n in ("chosen", "completion", "messages", "text", "prompt") if n in row)


def _set_text(row: Row, edit: Callable[[str], str]) -> None:
    """Edit the response, or the text."""
    if "responses" in row:
        row["responses"][0] = saying(row["responses"][0], edit(said(row["responses"][0])))
    else:
        name = _text_column(row)
        row[name] = saying(row[name], edit(said(row[name])))


@_change()
def _empty_text(row: Row) -> None:
    _set_text(row, lambda text: " \n")


@_change()
def _malformed(row: Row) -> None:
    row[_text_column(row)] = 3.5


@_change()
def _marker(row: Row) -> None:
    _set_text(row, lambda text: f"{text}[/INST]")


@_change()
def _speaker(row: Row) -> bool | None:
    if "text" in row or not {"chosen", "completion", "messages", "responses"} & row.keys():
        return False
    _set_text(row, lambda text: f"{text}\n\nHuman: And what else?")
    return None


@_change("chosen")
def _identical(row: Row) -> None:
    row["chosen"] = copy.deepcopy(row["rejected"])


@_change("chosen")
def _nearly_identical(row: Row) -> bool | None:
    if "prompt" not in row:
        return False  # an implicit prompt would take nearly all of it
    row["chosen"] = saying(row["rejected"], said(row["rejected"]) + "\n")
    return None


@_change("responses")
def _all_same(row: Row) -> None:
    row["responses"] = [row["responses"][0]] * len(row["responses"])


@_change("responses")
def _all_tied(row: Row) -> None:
    row.pop("ranks", None)
    row["scores"] = [0.5] * len(row["responses"])


@_change("responses")
def _not_a_number(row: Row) -> None:
    row["scores"] = [float("nan")] * len(row["responses"])


def _upside_down(rows: Rows, rng: random.Random) -> Planted:
    """Scores beside all ranks, in one row the wrong way round."""
    at = _drawn(rows, rng, "responses", "ranks")
    if at is None:
        return None
    for row in rows:
        row["scores"] = [-rank for rank in row["ranks"]]
    rows[at]["scores"] = list(rows[at]["ranks"])
    return [at + 1]


def _turned_round(rows: Rows, rng: random.Random) -> Planted:
    """Scores beside all ranks, the wrong way round."""
    if _drawn(rows, rng, "responses", "ranks") is None:
        return None
    for row in rows:
        row["scores"] = list(row["ranks"])
    return list(range(1, len(rows) + 1))


@_change("responses")
def _itself(row: Row) -> None:
    values = row.get("ranks") or row["scores"]
    best, worst = values.index(min(values)), values.index(max(values))
    row["responses"][best] = row["responses"][worst]
    return False if len(set(row["responses"])) == 1 else None


@_change("responses")
def _twice(row: Row) -> None:
    row["responses"].append(row["responses"][0])
    for name in ("ranks", "scores"):
        if row.get(name):
            row[name].append(row[name][0])


@_change("chosen")
def _negative_margin(row: Row) -> None:
    row["margin"] = -1.5


@_change("messages")
def _two_users(row: Row) -> None:
    row["messages"].insert(0, {"role": "user", "content": "Hello?"})


@_change("prompt")
def _assistant_first(row: Row) -> bool | None:
    if isinstance(row["prompt"], str):
        return False
    row["prompt"] = [{"role": "assistant", "content": "Welcome."}, *row["prompt"]]
    return None


@_change("prompt")
def _prompt_in_answer(row: Row) -> bool | None:
    asked = said(row["prompt"])
    names = [name for name in ("chosen", "rejected", "completion") if name in row]
    if len(asked) < 20 or not names:
        return False
    for name in names:
        row[name] = saying(row[name], f"{asked} {said(row[name])}")
    return None


@_change("chosen")
def _nothing_shared(row: Row) -> bool | None:
    if "prompt" in row or not isinstance(row["chosen"], str):
        return False
    row["chosen"], row["rejected"] = "Yes, by all means.", "No, rather not."
    return None


def _shifted(rows: Rows, rng: random.Random) -> Planted:
    """The rejected sides of two rows, exchanged: conversations about different things."""
    at = _drawn(rows, rng, "chosen")
    if at is None or "prompt" in rows[0] or isinstance(rows[0]["chosen"], str):
        return None
    other = (at + 1) % len(rows)
    rows[at]["rejected"], rows[other]["rejected"] = rows[other]["rejected"], rows[at]["rejected"]
    return sorted((at + 1, other + 1))


def _swapped(rows: Rows, rng: random.Random) -> Planted:
    """The same pair again, the other way round."""
    at = _drawn(rows, rng, "chosen")
    if at is None:
        return None
    row = rows[at]
    rows.append({**row, "chosen": row["rejected"], "rejected": row["chosen"]})
    return [at + 1, len(rows)]


def _circle(rows: Rows, rng: random.Random) -> Planted:
    """Three pairs after one prompt, in a circle."""
    at = _drawn(rows, rng, "chosen", "prompt")
    if at is None:
        return None
    third = saying(rows[at]["chosen"], said(rows[at - 1]["chosen"]) + " Or so.")
    row = rows[at]
    rows.append({**row, "chosen": row["rejected"], "rejected": third})
    rows.append({**row, "chosen": third, "rejected": row["chosen"]})
    return [at + 1, len(rows) - 1, len(rows)]


def _other_label(rows: Rows, rng: random.Random) -> Planted:
    """The same text again, with another label."""
    at = _drawn(rows, rng, "label")
    if at is None:
        return None
    label = rows[at]["label"]
    rows.append({**rows[at], "label": not label if isinstance(label, bool) else 1 - label})
    return [at + 1, len(rows)]


def _one_label(rows: Rows, rng: random.Random) -> Planted:
    """All rows get the label of one."""
    at = _drawn(rows, rng, "label")
    if at is None:
        return None
    label = rows[at]["label"]
    for row in rows:
        row["label"] = label
    return range(1, len(rows) + 1)


def _longest_first(rows: Rows, rng: random.Random) -> Planted:
    """The longer response is chosen, always."""
    if _drawn(rows, rng, "chosen") is None:
        return None
    for row in rows:
        if longer(row) < 0:
            row["chosen"], row["rejected"] = row["rejected"], row["chosen"]
    return [line for line, row in enumerate(rows, 1) if longer(row) > 0]


def _copied(rows: Rows, rng: random.Random) -> Planted:
    """A row again."""
    rows.append(copy.deepcopy(rng.choice(rows)))
    return [len(rows)]


def _shouted(rows: Rows, rng: random.Random) -> Planted:
    """A row again, in capitals and with a space in front of its text."""
    row = copy.deepcopy(rng.choice(rows))
    if "prompt" not in row and isinstance(row.get("chosen"), str):
        return None  # its prompt is what both sides share, and would be lost
    _set_text(row, lambda text: f" {text.upper()}")
    rows.append(row)
    return [len(rows)]


PLANTS: tuple[tuple[str, Plant], ...] = (
    ("malformed-row", _malformed),
    ("empty-text", _empty_text),
    ("identical-pair", _identical),
    ("identical-pair", _all_same),
    ("prompt-mismatch", _shifted),
    ("no-shared-prompt", _nothing_shared),
    ("not-finite", _not_a_number),
    ("all-tied", _all_tied),
    ("contradictory-pair", _swapped),
    ("preference-cycle", _circle),
    ("outranks-itself", _itself),
    ("ranks-turned-round", _turned_round),
    ("order-against-scores", _upside_down),
    ("order-against-scores", _negative_margin),
    ("conflicting-labels", _other_label),
    ("single-label", _one_label),
    ("length-bias", _longest_first),
    ("repeated-response", _twice),
    ("nearly-identical-pair", _nearly_identical),
    ("duplicate-row", _copied),
    ("near-duplicate-row", _shouted),
    ("template-marker", _marker),
    ("speaker-label", _speaker),
    ("roles-out-of-order", _two_users),
    ("roles-out-of-order", _assistant_first),
    ("prompt-repeated", _prompt_in_answer),
)

# ---------------------------------------------------------------------- held-out rows


def _held_out_row(rows: Rows, held_out: Rows, rng: random.Random) -> Planted:
    """A held-out row in the training set, in capitals."""
    row = copy.deepcopy(rng.choice(held_out))
    if "prompt" in row or not isinstance(row.get("chosen"), str):
        _set_text(row, str.upper)
    rows.append(row)
    return [len(rows)]


def _held_out_prompt(rows: Rows, held_out: Rows, rng: random.Random) -> Planted:
    """The prompt of a held-out row before other responses."""
    if "prompt" not in rows[0] or len(rows[0].keys() - {"source", "answer", "solution"}) < 2:
        return None
    at = rng.randrange(len(rows))
    rows[at]["prompt"] = rng.choice(held_out)["prompt"]
    return [at + 1]


# ---------------------------------------------------------------------- with a model

_LONG = "and then some more " * 600  # far beyond 1,024 tokens


@_change()
def _control_token(row: Row) -> bool | None:
    if "text" in row:
        return False
    _set_text(row, lambda text: f"{text} <|im_start|> and so on")
    return None


@_change()
def _two_ends(row: Row) -> bool | None:
    value = row.get("chosen") or row.get("messages")
    if value is None or isinstance(value, str):
        return False
    _set_text(row, lambda text: f"{text}<|im_end|>")
    return None


@_change("prompt")
def _long_prompt(row: Row) -> None:
    row["prompt"] = saying(row["prompt"], said(row["prompt"]) + _LONG)


@_change()
def _long_response(row: Row) -> bool | None:
    if "text" in row or (_text_column(row) == "prompt" and "responses" not in row):
        return False
    _set_text(row, lambda text: text + _LONG)
    return None


@_change("chosen", "prompt")
def _same_start(row: Row) -> None:
    for side in ("chosen", "rejected"):
        row[side] = saying(row[side], f"{_LONG} {said(row[side])}")


MODEL_PLANTS: tuple[tuple[str, Plant], ...] = (
    ("control-token", _control_token),
    ("doubled-end", _two_ends),
    ("prompt-too-long", _long_prompt),
    ("response-cut", _long_response),
    ("identical-when-cut", _same_start),
)


HELD_OUT_PLANTS = (("held-out-row", _held_out_row), ("held-out-prompt", _held_out_prompt))
