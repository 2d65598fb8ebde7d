"""Row sets of every format without a fault, and the faults to plant in them at known rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from tests.data.mask_checks import assistant, system, user

Rows = list[dict[str, Any]]
COUNT = 12  # rows of a clean set; a planted row that is appended has the line COUNT + 1
THINGS = "kettle ladder violin harbour meadow engine lantern compass orchard saddle tunnel anchor"


def _question(index: int) -> str:
    return f"What is a {THINGS.split()[index]} good for?"


def _answers(index: int) -> tuple[str, str]:
    """Better and worse; which of them is longer alternates, so that length tells nothing."""
    short = f"For the {THINGS.split()[index]}'s own sake."
    long = f"Many people keep a {THINGS.split()[index]} for quiet work on rainy days."
    return (short, long) if index % 2 else (long, short)


def preference() -> Rows:
    return [
        {"prompt": _question(i), "chosen": _answers(i)[0], "rejected": _answers(i)[1]}
        for i in range(COUNT)
    ]


def implicit() -> Rows:
    """Plain pairs whose prompt is their common start."""
    return [
        {name: f"{row['prompt']}\n{row[name]}" for name in ("chosen", "rejected")}
        for row in preference()
    ]


def conversations() -> Rows:
    """Pairs as whole conversations, the prompt in both."""
    rows: Rows = []
    for row in preference():
        past = [system("Be brief."), user("Hello."), assistant("Hello!"), user(row["prompt"])]
        rows.append({name: [*past, assistant(row[name])] for name in ("chosen", "rejected")})
    return rows


def messages() -> Rows:
    """Pairs as messages, the prompt in a column of its own."""
    return [
        {
            "prompt": [user(row["prompt"])],
            "chosen": [assistant(row["chosen"])],
            "rejected": [assistant(row["rejected"])],
        }
        for row in preference()
    ]


def ranked() -> Rows:
    rows: Rows = []
    for i, row in enumerate(preference()):
        middle = f"A {THINGS.split()[i]} has several uses."
        rows.append(
            {
                "prompt": row["prompt"],
                "responses": [middle, row["rejected"], row["chosen"]],
                "ranks": [2, 3, 1],
                "scores": [0.5, 0.1, 0.9],
            }
        )
    return rows


def completion() -> Rows:
    return [{"prompt": row["prompt"], "completion": row["chosen"]} for row in preference()]


def unpaired() -> Rows:
    return [{**row, "label": i % 2 == 0} for i, row in enumerate(completion())]


def labelled() -> Rows:
    return [
        {"text": row["chosen"], "label": ("dull", "fine", "great")[i % 3]}
        for i, row in enumerate(preference())
    ]


def text() -> Rows:
    return [{"text": f"{row['chosen']} {row['rejected']}"} for row in preference()]


def chat() -> Rows:
    rows: Rows = []
    for row in preference():
        end = [user("Thanks."), assistant("!")]
        rows.append({"messages": [user(row["prompt"]), assistant(row["chosen"]), *end]})
    return rows


def prompt() -> Rows:
    return [{"prompt": row["prompt"], "solution": str(i)} for i, row in enumerate(preference())]


CLEAN: dict[str, Callable[[], Rows]] = {
    made.__name__: made
    for made in (
        preference, implicit, conversations, messages, ranked, completion, unpaired, labelled, text,
        chat, prompt,
    )
}  # fmt: skip


class Plant(NamedTuple):
    """A fault to plant: its name, the format, what to do to the clean rows, the lines to find."""

    fault: str
    kind: str
    change: Callable[[Rows], Any]
    lines: list[int]


def _set(line: int, **values: Any) -> Callable[[Rows], Any]:
    return lambda rows: rows[line - 1].update(values)


def _add(*rows: dict[str, Any]) -> Callable[[Rows], Any]:
    return lambda clean: clean.extend(rows)


def _copy(line: int, **values: Any) -> Callable[[Rows], Any]:
    return lambda rows: rows.append({**rows[line - 1], **values})


def _swap(rows: Rows) -> None:
    rows.append({**rows[4], "chosen": rows[4]["rejected"], "rejected": rows[4]["chosen"]})


def _shift(rows: Rows) -> None:
    """The rejected column is one row off from line 3 to line 4."""
    rows[2]["rejected"], rows[3]["rejected"] = rows[3]["rejected"], rows[2]["rejected"]


def _circle(rows: Rows) -> None:
    a, b, c = "First of all, rest.", "Second, work on it.", "Third, think twice."
    for better, worse in ((a, b), (b, c), (c, a)):
        rows.append({"prompt": "What now?", "chosen": better, "rejected": worse})


def _longer_first(rows: Rows) -> None:
    for row in rows:
        row["chosen"], row["rejected"] = sorted((row["chosen"], row["rejected"]), key=len)[::-1]


def _loud(rows: Rows) -> None:
    rows.append({name: f" {value.upper()}\n" for name, value in rows[2].items()})


def _relabel(name: Any) -> Callable[[Rows], Any]:
    def change(rows: Rows) -> None:
        for row in rows:
            row["label"] = name

    return change


def _worst_is_one(rows: Rows) -> None:
    for row in rows:
        row["ranks"] = [4 - rank for rank in row["ranks"]]


def _tied_twice(rows: Rows) -> None:
    rows[1].update(responses=_TWICE, ranks=[1, 2, 1], scores=[1, 0, 1])


def _overrule(rows: Rows) -> None:
    """Another ranking of line 2's responses, with the last two the other way round."""
    rows.append({**rows[1], "ranks": [3, 2, 1], "scores": [0.1, 0.5, 0.9]})


def _say(line: int, where: str, content: str) -> Callable[[Rows], Any]:
    def change(rows: Rows) -> None:
        rows[line - 1][where][-1]["content"] = content

    return change


def _turns(line: int, speakers: str) -> Callable[[Rows], Any]:
    """Turns of u, a and s: user, assistant, system."""
    by = {"u": user, "a": assistant, "s": system}
    return _set(line, messages=[by[who](f"turn {i}") for i, who in enumerate(speakers)])


def _repeat_prompt(rows: Rows) -> None:
    for name in ("chosen", "rejected"):
        rows[6][name] = rows[6]["prompt"] + " " + rows[6][name]


_TWICE = ["Twice.", "Once.", "Twice."]
_ALL = list(range(1, COUNT + 1))
PLANTS: tuple[Plant, ...] = (
    Plant("malformed-row", "preference", _set(3, chosen=7), [3]),
    Plant("malformed-row", "chat", _set(4, messages=[{"role": "boss", "content": "x"}]), [4]),
    Plant("malformed-row", "labelled", _set(4, label=None), [4]),
    Plant("empty-text", "preference", _set(5, rejected=" \n"), [5]),
    Plant("empty-text", "completion", _set(2, completion=""), [2]),
    Plant("empty-text", "text", _set(9, text=""), [9]),
    Plant("empty-text", "chat", _say(6, "messages", ""), [6]),
    Plant("identical-pair", "preference", _set(8, chosen="Same.", rejected="Same."), [8]),
    Plant("identical-pair", "ranked", _set(8, responses=["Same."] * 3), [8]),
    Plant("prompt-mismatch", "conversations", _shift, [3, 4]),
    Plant("no-shared-prompt", "implicit", _set(3, chosen="Yes, do.", rejected="No, wait."), [3]),
    Plant("not-finite", "ranked", _set(2, scores=[float("nan"), 0.1, 0.2]), [2]),
    Plant("not-finite", "preference", _set(2, weight=float("inf")), [2]),
    Plant("all-tied", "ranked", _set(2, ranks=[1, 1, 1]), [2]),
    Plant("contradictory-pair", "preference", _swap, [5, 13]),
    Plant("contradictory-pair", "messages", _swap, [5, 13]),
    Plant("contradictory-pair", "ranked", _overrule, [2, 13]),
    Plant("preference-cycle", "preference", _circle, [13, 14, 15]),
    Plant("outranks-itself", "ranked", _set(2, responses=_TWICE), [2]),
    Plant("ranks-turned-round", "ranked", _worst_is_one, _ALL),
    Plant("order-against-scores", "ranked", _set(2, scores=[0.1, 0.5, 0.9]), [2]),
    Plant("order-against-scores", "preference", _set(2, margin=-0.5), [2]),
    Plant("order-against-scores", "messages", _set(2, score_chosen=3, score_rejected=8.5), [2]),
    Plant("conflicting-labels", "labelled", _copy(1, label="great"), [1, 13]),
    Plant("conflicting-labels", "unpaired", _copy(3, label=False), [3, 13]),
    Plant("single-label", "unpaired", _relabel(True), _ALL),
    Plant("single-label", "labelled", _relabel("fine"), _ALL),
    Plant("length-bias", "preference", _longer_first, _ALL),
    Plant("repeated-response", "ranked", _tied_twice, [2]),
    Plant("nearly-identical-pair", "preference", _set(3, chosen="Yes.", rejected=" yes."), [3]),
    Plant("duplicate-row", "preference", _copy(4), [13]),
    Plant("duplicate-row", "ranked", _copy(4, ranks=[20, 30, 10]), [13]),
    Plant("duplicate-row", "chat", _copy(4), [13]),
    Plant("duplicate-row", "text", _copy(4), [13]),
    Plant("duplicate-row", "labelled", _copy(4), [13]),
    Plant("duplicate-row", "prompt", _copy(4), [13]),
    Plant("duplicate-row", "unpaired", _copy(4), [13]),
    Plant("near-duplicate-row", "preference", _loud, [13]),
    Plant("near-duplicate-row", "text", _loud, [13]),
    Plant("near-duplicate-row", "completion", _loud, [13]),
    Plant("template-marker", "completion", _set(2, completion="[INST] Why? [/INST] So."), [2]),
    Plant("template-marker", "text", _set(2, text="<|im_start|>user\nHi<|im_end|>"), [2]),
    Plant("template-marker", "chat", _say(2, "messages", "Fine.</s>"), [2]),
    Plant("template-marker", "messages", _say(2, "prompt", "### Instruction:\nSay it."), [2]),
    Plant("speaker-label", "preference", _set(2, rejected="Fine.\n\nHuman: And then?"), [2]),
    Plant("speaker-label", "messages", _say(5, "chosen", "Assistant: I would rest."), [5]),
    Plant("roles-out-of-order", "chat", _turns(2, "uua"), [2]),
    Plant("roles-out-of-order", "chat", _turns(2, "aua"), [2]),
    Plant("roles-out-of-order", "chat", _turns(2, "uasua"), [2]),
    Plant("roles-out-of-order", "chat", _turns(2, "uau"), [2]),
    Plant("roles-out-of-order", "messages", _set(2, prompt=[user("a"), system("b")]), [2]),
    Plant("prompt-repeated", "preference", _repeat_prompt, [7]),
)  # fmt: skip
