"""Faults planted in real rows: does ``trimtab data check`` find each of them, and nothing else?

    python scripts/doctor_mutants.py --data ../shared/data [--model models/smollm2-135m-instruct]

Of every file (and of what can be made of it: pairs without a prompt, completions, unpaired rows)
the rows without a finding are taken, as many with a longer chosen response as with a shorter one;
the check must then find nothing. Each fault is planted ``--repeats`` times in rows drawn at random,
and the findings must be that fault, in those rows. Prints a table; exit code 1 if anything differs.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from trimtab.data.doctor.check import CheckOptions, Diagnosis, diagnose
from trimtab.data.doctor.faults import FAULTS

Row = dict[str, Any]
Rows = list[Row]
Planted = Sequence[int] | None  # lines in which the fault is to be found; None: no such rows
ROWS = 400  # of a set


def said(value: Any) -> str:
    """What a text or the last message of a conversation says."""
    return value if isinstance(value, str) else value[-1]["content"]


def saying(value: Any, text: str) -> Any:
    """``value`` with other words at its end."""
    if isinstance(value, str):
        return text
    return [*value[:-1], {**value[-1], "content": text}]


# ---------------------------------------------------------------------- the sets


def sets(data: Path) -> Iterator[tuple[str, Rows]]:
    """Names and rows of all files, and of the formats that they lack."""
    for path in sorted(data.glob("*.jsonl")):
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        name = path.stem
        if name == "math_labeled":
            rows = [{"prompt": r["prompt"], "responses": r["responses"], "scores": r["correct"]}
                    for r in rows]  # fmt: skip
        yield name, rows
        if name == "preference_plain":
            yield (
                "without a prompt",
                [
                    {side: f"{r['prompt']}\n\n{r[side]}" for side in ("chosen", "rejected")}
                    for r in rows
                ],
            )
            yield "completions", [{"prompt": r["prompt"], "completion": r["chosen"]} for r in rows]
            yield (
                "unpaired",
                [
                    {"prompt": r["prompt"], "completion": r[side], "label": side == "chosen"}
                    for i, r in enumerate(rows)
                    for side in (["chosen", "rejected"][i % 2],)
                ],
            )
        if name == "preference":
            yield (
                "conversations",
                [{side: r["prompt"] + r[side] for side in ("chosen", "rejected")} for r in rows],
            )


def clean(rows: Rows, folder: Path, options: dict[str, Any]) -> Rows:
    """Rows without a finding, at most ``ROWS``, with no bias of length."""
    found = check(rows, folder, options)
    ill = {found.rows.place(at.row)[1] for f in found.findings for at in f.rows
           if f.fault.name not in ("length-bias", "single-label")}  # fmt: skip
    left = [row for line, row in enumerate(rows, 1) if line not in ill]
    sides = {-1: [], 0: [], 1: []}
    for row in left:
        sides[longer(row)].append(row)
    most = min(ROWS // 2, len(sides[1]), len(sides[-1]))
    picked = [*sides[1][:most], *sides[-1][:most], *sides[0][: ROWS - 2 * most]]
    random.Random(0).shuffle(picked)
    return picked


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


def check(rows: Rows, folder: Path, options: dict[str, Any]) -> Diagnosis:
    """The diagnosis of ``rows``."""
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return diagnose(CheckOptions(files=[str(path)], **options))


# ---------------------------------------------------------------------- the faults


def drawn(rows: Rows, rng: random.Random, *columns: str) -> int | None:
    """The position of a random row, None where rows lack one of the columns."""
    if not all(column in rows[0] for column in columns):
        return None
    return rng.randrange(len(rows))


def change(*columns: str) -> Callable[[Callable[..., Any]], Callable[..., Planted]]:
    """A fault of one row with these columns, made by a function of that row."""

    def made(edit: Callable[[Row], Any]) -> Callable[[Rows, random.Random], Planted]:
        def plant(rows: Rows, rng: random.Random) -> Planted:
            at = drawn(rows, rng, *columns)
            if at is None or edit(rows[at]) is False:
                return None
            return [at + 1]

        return plant

    return made


def text_column(row: Row) -> str:
    """Where a response, or a text, stands."""
    return next(n for n in ("chosen", "completion", "messages", "text", "prompt") if n in row)


def set_text(row: Row, edit: Callable[[str], str]) -> None:
    """Edit the response, or the text."""
    if "responses" in row:
        row["responses"][0] = saying(row["responses"][0], edit(said(row["responses"][0])))
    else:
        name = text_column(row)
        row[name] = saying(row[name], edit(said(row[name])))


@change()
def empty_text(row: Row) -> None:
    set_text(row, lambda text: " \n")


@change()
def malformed(row: Row) -> None:
    row[text_column(row)] = 3.5


@change()
def marker(row: Row) -> None:
    set_text(row, lambda text: f"{text}[/INST]")


@change()
def speaker(row: Row) -> bool | None:
    if "text" in row or not {"chosen", "completion", "messages", "responses"} & row.keys():
        return False
    set_text(row, lambda text: f"{text}\n\nHuman: And what else?")
    return None


@change("chosen")
def identical(row: Row) -> None:
    row["chosen"] = copy.deepcopy(row["rejected"])


@change("chosen")
def nearly_identical(row: Row) -> bool | None:
    if "prompt" not in row:
        return False  # an implicit prompt would take nearly all of it
    row["chosen"] = saying(row["rejected"], said(row["rejected"]) + "\n")
    return None


@change("responses")
def all_same(row: Row) -> None:
    row["responses"] = [row["responses"][0]] * len(row["responses"])


@change("responses")
def all_tied(row: Row) -> None:
    row.pop("ranks", None)
    row["scores"] = [0.5] * len(row["responses"])


@change("responses")
def not_a_number(row: Row) -> None:
    row["scores"] = [float("nan")] * len(row["responses"])


@change("responses", "ranks")
def upside_down(row: Row) -> None:
    row["scores"] = row["ranks"]


@change("responses")
def itself(row: Row) -> None:
    values = row.get("ranks") or row["scores"]
    best, worst = values.index(min(values)), values.index(max(values))
    row["responses"][best] = row["responses"][worst]
    return False if len(set(row["responses"])) == 1 else None


@change("responses")
def twice(row: Row) -> None:
    row["responses"].append(row["responses"][0])
    for name in ("ranks", "scores"):
        if row.get(name):
            row[name].append(row[name][0])


@change("chosen")
def negative_margin(row: Row) -> None:
    row["margin"] = -1.5


@change("messages")
def two_users(row: Row) -> None:
    row["messages"].insert(0, {"role": "user", "content": "Hello?"})


@change("prompt")
def assistant_first(row: Row) -> bool | None:
    if isinstance(row["prompt"], str):
        return False
    row["prompt"] = [{"role": "assistant", "content": "Welcome."}, *row["prompt"]]
    return None


@change("prompt")
def prompt_in_answer(row: Row) -> bool | None:
    asked = said(row["prompt"])
    names = [name for name in ("chosen", "rejected", "completion") if name in row]
    if len(asked) < 20 or not names:
        return False
    for name in names:
        row[name] = saying(row[name], f"{asked} {said(row[name])}")
    return None


@change("chosen")
def nothing_shared(row: Row) -> bool | None:
    if "prompt" in row or not isinstance(row["chosen"], str):
        return False
    row["chosen"], row["rejected"] = "Yes, by all means.", "No, rather not."
    return None


def shifted(rows: Rows, rng: random.Random) -> Planted:
    """The rejected sides of two rows, exchanged: conversations about different things."""
    at = drawn(rows, rng, "chosen")
    if at is None or "prompt" in rows[0] or isinstance(rows[0]["chosen"], str):
        return None
    other = (at + 1) % len(rows)
    rows[at]["rejected"], rows[other]["rejected"] = rows[other]["rejected"], rows[at]["rejected"]
    return sorted((at + 1, other + 1))


def swapped(rows: Rows, rng: random.Random) -> Planted:
    """The same pair again, the other way round."""
    at = drawn(rows, rng, "chosen")
    if at is None:
        return None
    row = rows[at]
    rows.append({**row, "chosen": row["rejected"], "rejected": row["chosen"]})
    return [at + 1, len(rows)]


def circle(rows: Rows, rng: random.Random) -> Planted:
    """Three pairs after one prompt, in a circle."""
    at = drawn(rows, rng, "chosen", "prompt")
    if at is None:
        return None
    third = saying(rows[at]["chosen"], said(rows[at - 1]["chosen"]) + " Or so.")
    row = rows[at]
    rows.append({**row, "chosen": row["rejected"], "rejected": third})
    rows.append({**row, "chosen": third, "rejected": row["chosen"]})
    return [at + 1, len(rows) - 1, len(rows)]


def other_label(rows: Rows, rng: random.Random) -> Planted:
    """The same text again, with another label."""
    at = drawn(rows, rng, "label")
    if at is None:
        return None
    label = rows[at]["label"]
    rows.append({**rows[at], "label": not label if isinstance(label, bool) else 1 - label})
    return [at + 1, len(rows)]


def one_label(rows: Rows, rng: random.Random) -> Planted:
    """All rows get the label of one."""
    at = drawn(rows, rng, "label")
    if at is None:
        return None
    label = rows[at]["label"]
    for row in rows:
        row["label"] = label
    return range(1, len(rows) + 1)


def longest_first(rows: Rows, rng: random.Random) -> Planted:
    """The longer response is chosen, always."""
    if drawn(rows, rng, "chosen") is None:
        return None
    for row in rows:
        if longer(row) < 0:
            row["chosen"], row["rejected"] = row["rejected"], row["chosen"]
    return [line for line, row in enumerate(rows, 1) if longer(row) > 0]


def copied(rows: Rows, rng: random.Random) -> Planted:
    """A row again."""
    rows.append(copy.deepcopy(rng.choice(rows)))
    return [len(rows)]


def shouted(rows: Rows, rng: random.Random) -> Planted:
    """A row again, in capitals and with a space in front of its text."""
    row = copy.deepcopy(rng.choice(rows))
    if "prompt" not in row and isinstance(row.get("chosen"), str):
        return None  # its prompt is what both sides share, and would be lost
    set_text(row, lambda text: f" {text.upper()}")
    rows.append(row)
    return [len(rows)]


PLANTS: tuple[tuple[str, Callable[[Rows, random.Random], Planted]], ...] = (
    ("malformed-row", malformed),
    ("empty-text", empty_text),
    ("identical-pair", identical),
    ("identical-pair", all_same),
    ("prompt-mismatch", shifted),
    ("no-shared-prompt", nothing_shared),
    ("not-finite", not_a_number),
    ("all-tied", all_tied),
    ("contradictory-pair", swapped),
    ("preference-cycle", circle),
    ("outranks-itself", itself),
    ("order-against-scores", upside_down),
    ("order-against-scores", negative_margin),
    ("conflicting-labels", other_label),
    ("single-label", one_label),
    ("length-bias", longest_first),
    ("repeated-response", twice),
    ("nearly-identical-pair", nearly_identical),
    ("duplicate-row", copied),
    ("near-duplicate-row", shouted),
    ("template-marker", marker),
    ("speaker-label", speaker),
    ("roles-out-of-order", two_users),
    ("roles-out-of-order", assistant_first),
    ("prompt-repeated", prompt_in_answer),
)

# ---------------------------------------------------------------------- held-out rows


def held_out_row(rows: Rows, held_out: Rows, rng: random.Random) -> Planted:
    """A held-out row in the training set, in capitals."""
    row = copy.deepcopy(rng.choice(held_out))
    if "prompt" in row or not isinstance(row.get("chosen"), str):
        set_text(row, str.upper)
    rows.append(row)
    return [len(rows)]


def held_out_prompt(rows: Rows, held_out: Rows, rng: random.Random) -> Planted:
    """The prompt of a held-out row before other responses."""
    if "prompt" not in rows[0] or len(rows[0].keys() - {"source", "answer", "solution"}) < 2:
        return None
    at = rng.randrange(len(rows))
    rows[at]["prompt"] = rng.choice(held_out)["prompt"]
    return [at + 1]


# ---------------------------------------------------------------------- with a model

_LONG = "and then some more " * 600  # far beyond 1,024 tokens


@change()
def control_token(row: Row) -> bool | None:
    if "text" in row:
        return False
    set_text(row, lambda text: f"{text} <|im_start|> and so on")
    return None


@change()
def two_ends(row: Row) -> bool | None:
    value = row.get("chosen") or row.get("messages")
    if value is None or isinstance(value, str):
        return False
    set_text(row, lambda text: f"{text}<|im_end|>")
    return None


@change("prompt")
def long_prompt(row: Row) -> None:
    row["prompt"] = saying(row["prompt"], said(row["prompt"]) + _LONG)


@change()
def long_response(row: Row) -> bool | None:
    if "text" in row or (text_column(row) == "prompt" and "responses" not in row):
        return False
    set_text(row, lambda text: text + _LONG)
    return None


@change("chosen", "prompt")
def same_start(row: Row) -> None:
    for side in ("chosen", "rejected"):
        row[side] = saying(row[side], f"{_LONG} {said(row[side])}")


MODEL_PLANTS: tuple[tuple[str, Callable[[Rows, random.Random], Planted]], ...] = (
    ("control-token", control_token),
    ("doubled-end", two_ends),
    ("prompt-too-long", long_prompt),
    ("response-cut", long_response),
    ("identical-when-cut", same_start),
)


# ---------------------------------------------------------------------- the run


class Tally:
    """What was planted, and what was found otherwise than expected."""

    def __init__(self) -> None:
        self.planted: Counter[str] = Counter()
        self.wrong: list[str] = []

    def count(self, name: str, fault: str, lines: Sequence[int], found: Diagnosis) -> None:
        """Compare one diagnosis with what was planted."""
        self.planted[fault] += 1
        expected = {fault: list(lines)} if fault else {}
        got = {
            finding.fault.name: [found.rows.place(at.row)[1] for at in finding.rows]
            for finding in found.findings
        }
        if got != expected:
            self.wrong.append(f"{name}: {fault or 'clean'}: wanted {expected}, found {got}"[:300])


def examine(name: str, rows: Rows, folder: Path, repeats: int, tally: Tally) -> None:
    """Plant everything that needs no model in one set."""
    base = clean(rows, folder, {})
    tally.count(name, "", [], check(base, folder, {}))
    for fault, plant in PLANTS:
        for repeat in range(repeats):
            mutant = copy.deepcopy(base)
            lines = plant(mutant, random.Random(repeat))
            if lines is not None:
                tally.count(name, fault, lines, check(mutant, folder, {}))
    held_out, other = base[:50], folder / "held_out.jsonl"
    other.write_text("".join(json.dumps(row) + "\n" for row in held_out), encoding="utf-8")
    options = {"against": [str(other)]}
    apart = clean(base[50:], folder, options)
    tally.count(name, "", [], check(apart, folder, options))
    for fault, graft in (("held-out-row", held_out_row), ("held-out-prompt", held_out_prompt)):
        for repeat in range(repeats):
            mutant = copy.deepcopy(apart)
            lines = graft(mutant, held_out, random.Random(repeat))
            if lines is not None:
                tally.count(name, fault, lines, check(mutant, folder, options))


def examine_tokens(name: str, rows: Rows, folder: Path, model: str, tally: Tally) -> None:
    """Plant in one set what a tokenizer is needed for; once, because it takes its time."""
    base = clean(rows, folder, {"model": model})[:100]
    options = {"model": model}
    for fault, plant in MODEL_PLANTS:
        mutant = copy.deepcopy(base)
        lines = plant(mutant, random.Random(1))
        if lines is not None:
            found = check(mutant, folder, options)
            found.findings = [f for f in found.findings if f.fault.name != "length-bias"]
            tally.count(name, fault, lines, found)


def main() -> int:
    """Examine every set; 1 where anything was found otherwise than planted."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    tally = Tally()
    with tempfile.TemporaryDirectory() as scratch:
        for name, rows in sets(options.data):
            before = tally.planted.total()
            examine(name, rows, Path(scratch), options.repeats, tally)
            if options.model and name in ("preference", "preference_plain", "sft", "sentiment"):
                examine_tokens(name, rows[:1000], Path(scratch), options.model, tally)
            print(f"{name}: {tally.planted.total() - before} mutants", flush=True)
    for fault in FAULTS:
        print(f"{tally.planted[fault.name]:>5}  {fault.name}")
    print(f"{tally.planted['']:>5}  (clean)")
    for line in tally.wrong:
        print(line)
    print(f"{tally.planted.total()} sets, {len(tally.wrong)} otherwise than planted")
    return 1 if tally.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
