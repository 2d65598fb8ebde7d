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
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from doctor_plants import HELD_OUT_PLANTS, MODEL_PLANTS, PLANTS, Rows, longer

from trimtab.data.doctor.check import CheckOptions, Diagnosis, diagnose
from trimtab.data.doctor.faults import FAULTS

ROWS = 400  # of a set


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


def check(rows: Rows, folder: Path, options: dict[str, Any]) -> Diagnosis:
    """The diagnosis of ``rows``."""
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return diagnose(CheckOptions(files=[str(path)], **options))


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
    for fault, graft in HELD_OUT_PLANTS:
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
            tally.count(name, fault, lines, check(mutant, folder, options))


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
            print(f"{name}: {tally.planted.total() - before} sets", flush=True)
    for fault in FAULTS:
        print(f"{tally.planted[fault.name]:>5}  {fault.name}")
    print(f"{tally.planted['']:>5}  nothing planted")
    for line in tally.wrong:
        print(line)
    print(f"{tally.planted.total()} sets, {len(tally.wrong)} otherwise than planted")
    return 1 if tally.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
