"""The tables of docs/losses.md, from the code, the golden numbers and ``trimtab verify-loss``.

    python scripts/loss_tables.py            # say what is out of date (exit code 1)
    python scripts/loss_tables.py --write    # write the tables into docs/losses.md

Every loss goes through ``verify`` with its default hyper-parameters (some 20 seconds of CPU time);
a test holds each row against the same functions.
"""

from __future__ import annotations

import argparse
import inspect
import json
import re
import sys
from pathlib import Path
from typing import Any

import torch

from trimtab.config.recipes import LossChoice
from trimtab.losses import PREFERENCE_LOSSES, Pair, SequenceLogprobs, bind, describe
from trimtab.proof.verify import Verdict, verify

ROOT = Path(__file__).resolve().parent.parent
DOCS, GOLDEN = ROOT / "docs" / "losses.md", ROOT / "tests" / "golden" / "losses.json"

GLANCE = "| Loss | Compares | Needs | Divisor | Hyper-parameters and defaults | At π = π₀ |"
FAMILY = "| Loss | Formula | Paper | Case A at the defaults | Optimum | What holds |"
VALUES = "| Loss | Setting | A | B | C |"

DIVISORS = {"pair": "pairs", "unpaired": "sequences", "ranking": "prompts"}
# Objectives with a likelihood of their own unit, and a filter.
OWN_DIVISORS = {
    "orpo": "pairs, and tokens for its likelihood",
    "cpo": "pairs, and tokens for its likelihood",
    "beta_dpo": "kept pairs",
}
OPTIMA = {
    "pi*, the optimum of KL-regularised reward maximisation": "π*",
    "IPO's optimum": "IPO's",
    "an optimum of its own": "its own",
    "collapses: the probability of some responses goes to 0 without end": "none: it collapses",
    "not settled: it has kinks, and the search stopped at one": "at a kink",
}
HOLDS = {
    "unchanged by translation": "shift",
    "swapping: L(l,w) - L(w,l) = reward margin": "swap",
    "beta only scales log-probs": "scale",
}


def verified(name: str) -> Verdict:
    """A built-in loss on the bench, with its defaults."""
    return verify(LossChoice.model_validate({"name": name}))


def glance_row(name: str, found: Verdict) -> str:
    """One row of the table "At a glance"."""
    spec = found.spec
    needs = ", ".join(sorted(spec.needs - {"policy"}, key=_reference_first))
    divisor = OWN_DIVISORS.get(name, DIVISORS[spec.kind])
    defaults = ", ".join(f"{key}={value}" for key, value in spec.hyperparameters.items())
    cells = (f"[`{name}`](#{name})", spec.kind, needs, divisor, defaults, _at_reference(found))
    return "| " + " | ".join(cells) + " |"


def _reference_first(name: str) -> tuple[bool, str]:
    return name != "reference", name


def _at_reference(found: Verdict) -> str:
    check = next(c for c in found.checks if c.name == "value at policy = reference")
    if check.status == "does not apply":
        return "(no reference)"
    if check.value is None:
        return check.detail.split(" for ")[0]  # ln K!
    if check.status == "note":
        return "by row"
    words = re.search(r"\((.*)\)", check.detail)
    return words[1] if words and words[1] != "1/2" else f"{check.value:.7g}"


def family_row(name: str, found: Verdict) -> str:
    """One row of the table "The whole family"."""
    text = inspect.getdoc(PREFERENCE_LOSSES[name]) or ""
    summary, _, rest = text.partition("\n")
    formula = summary.partition(": ")[2].removesuffix(".")
    paper = re.search(r"arXiv:(\d+\.\d+)", rest)
    link = f"[{paper[1]}](https://arxiv.org/abs/{paper[1]})" if paper else "(a note)"
    value = case(name, found.spec.hyperparameters, "A")
    holds = [w for check, w in HOLDS.items() if _says(found, check) == "yes"]
    lengths = next(c for c in found.checks if c.name == "depends on lengths")
    if lengths.status == "yes":
        holds.append("means" if "only" in lengths.detail else "lengths count")
    cells = (
        f"`{name}`",
        formula.replace("|", "\\|").replace("``", "`"),
        link,
        "" if value is None else f"{value:.7g}",
        OPTIMA[found.optimum.verdict],
        ", ".join(holds),
    )
    return "| " + " | ".join(cells) + " |"


def _says(found: Verdict, name: str) -> str:
    return next(check.status for check in found.checks if check.name == name)


def value_row(entry: dict[str, Any]) -> str:
    """One row of the table of golden values."""
    settings = ", ".join(f"{key}={value}" for key, value in entry["hyperparameters"].items())
    values = " | ".join(str(entry[letter]["value"]) for letter in "ABC")
    return f"| `{entry['loss']}` | {settings} | {values} |"


def case(name: str, hyperparameters: dict[str, Any], letter: str) -> float | None:
    """A paired loss of sums in one of the golden cases; None for all others."""
    spec = describe(name)
    if spec.kind != "pair" or spec.needs - {"policy", "reference"}:
        return None
    given = golden()["cases"][letter]

    def side(who: str, which: str) -> SequenceLogprobs:
        total = torch.tensor([given[f"{who}_{which}"]], dtype=torch.float64)
        return SequenceLogprobs(total, torch.tensor([given[f"{which}_length"]]))

    inputs = {
        who: Pair(side(who, "chosen"), side(who, "rejected")) for who in ("policy", "reference")
    }
    loss = bind(name, hyperparameters)
    return loss(**{key: inputs[key] for key in spec.needs}).losses.item()


def golden() -> dict[str, Any]:
    """The golden numbers of the tests."""
    return json.loads(GOLDEN.read_text(encoding="utf-8"))


def tables() -> dict[str, list[str]]:
    """Rows of every table by its header."""
    found = {name: verified(name) for name in PREFERENCE_LOSSES}
    return {
        GLANCE: [glance_row(name, verdict) for name, verdict in found.items()],
        FAMILY: [family_row(name, verdict) for name, verdict in found.items()],
        VALUES: [value_row(entry) for entry in golden()["pairs"]],
    }


def rows_in(text: str, header: str) -> list[str]:
    """The rows of the table with this header, as they stand in a text."""
    lines = text.splitlines()
    rows = []
    for line in lines[lines.index(header) + 2 :]:
        if not line.startswith("|"):
            break
        rows.append(line)
    return rows


def main() -> int:
    """Check or write; 1 where a table is out of date."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write the tables into docs/losses.md")
    write = parser.parse_args().write
    text, stale = DOCS.read_text(encoding="utf-8"), 0
    for header, rows in tables().items():
        old = rows_in(text, header)
        for row in rows:
            if row not in old:
                stale += 1
                print(row)
        if write:
            rule = "|" + "---|" * header.count(" | ") + "---|"
            before, after = text.split(header, 1)
            left = after.split("\n", 2)[2].split("\n")[len(old) :]
            text = before + "\n".join([header, rule, *rows]) + "\n" + "\n".join(left)
    if write:
        DOCS.write_text(text, encoding="utf-8")
    print(f"{stale} rows are {'new' if write else 'out of date'}")
    return 0 if write else min(stale, 1)


if __name__ == "__main__":
    sys.exit(main())
