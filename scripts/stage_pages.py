"""What docs/stages/ says of metrics and diagnoses, from the entries of ``trimtab explain``.

A page names them, and the tables below are made: ``<!-- watch: loss, kl -->``, ``<!-- wrong: stuck
-->``, each up to ``<!-- to here -->``.

python scripts/stage_pages.py            # say what is out of date (exit code 1)
python scripts/stage_pages.py --write    # write the tables into the pages
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from trimtab.algorithms.diagnosis.catalogue import CATALOGUE
from trimtab.catalogue.metrics import metric_of

STAGES = Path(__file__).resolve().parent.parent / "docs" / "stages"
_BLOCK = re.compile(r"<!-- (watch|wrong): (.+?) -->\n.*?<!-- to here -->", re.DOTALL)


def watched(names: list[str]) -> list[str]:
    """Metrics with what is healthy."""
    lines = ["| metric | healthy | what it is |", "|---|---|---|"]
    for name in names:
        one = metric_of(name)
        assert one is not None, f"no metric {name}"
        unit = f" ({one.unit})" if one.unit else ""
        cells = (f"`{name}`", one.healthy or "-", f"{one.what.removesuffix('.')}{unit}")
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return lines


def diagnosed(names: list[str]) -> list[str]:
    """Diagnoses, which the run itself tells, with what to change."""
    lines = ["| told by the run as | what it is | what to change |", "|---|---|---|"]
    for name in names:
        one = CATALOGUE[name]
        cells = (f"[`{name}`](../diagnoses.md#{name})", one.what, one.change)
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return lines


def page(text: str) -> str:
    """A page as it ought to be."""

    def block(found: re.Match[str]) -> str:
        kind, names = found.groups()
        lines = (watched if kind == "watch" else diagnosed)(names.split(", "))
        return "\n".join([f"<!-- {kind}: {names} -->", "", *lines, "", "<!-- to here -->"])

    return _BLOCK.sub(block, text)


def main() -> int:
    """Write, or compare."""
    code = 0
    for path in sorted(STAGES.glob("*.md")):
        text = path.read_text(encoding="utf-8")
        wanted = page(text)
        if wanted == text:
            continue
        if "--write" in sys.argv[1:]:
            path.write_text(wanted, encoding="utf-8")
        else:
            print(f"stages/{path.name} is out of date: python scripts/stage_pages.py --write")
            code = 1
    return code


if __name__ == "__main__":
    sys.exit(main())
