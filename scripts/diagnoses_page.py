"""The tables of docs/diagnoses.md, from the catalogue of diagnoses.

python scripts/diagnoses_page.py            # say what is out of date (exit code 1)
python scripts/diagnoses_page.py --write    # write the sections into docs/diagnoses.md
"""

from __future__ import annotations

import sys
from pathlib import Path

from generated import between, write_or_compare

from trimtab.algorithms.diagnosis.catalogue import CATALOGUE
from trimtab.config.diagnoses import FAMILIES

PAGE = Path(__file__).resolve().parent.parent / "docs" / "diagnoses.md"
BEGIN, END = "<!-- from the catalogue: scripts/diagnoses_page.py -->", "<!-- to here -->"


def sections() -> str:
    """Every family with its diagnoses; what two families share stands in the first."""
    lines: list[str] = []
    seen: set[str] = set()
    for family, names in FAMILIES.items():
        lines += [f"## {family[0].upper()}{family[1:]}", ""]
        for name in names:
            if name in seen:
                lines += [f"`{name}`: as above.", ""]
                continue
            seen.add(name)
            one = CATALOGUE[name]
            papers = ", ".join(
                f"[{paper}](https://arxiv.org/abs/{paper.removeprefix('arXiv:')})"
                for paper in filter(None, one.paper.split(", "))
            )
            lines += [f"### `{name}`", "", one.what, ""]
            rows = {"Told when": one.when, "Means": one.means, "Change": one.change}
            rows |= {"Reads": one.looks, **({"Paper": papers} if papers else {})}
            lines += [f"- **{label}**: {text}" for label, text in rows.items()] + [""]
    return "\n".join(lines)


def page() -> str:
    """The page as it ought to be."""
    return between(PAGE, BEGIN, END, sections())


if __name__ == "__main__":
    sys.exit(write_or_compare(PAGE, page(), "diagnoses_page"))
