"""What the scripts that write pages of docs/ have in common."""

from __future__ import annotations

import sys
from pathlib import Path


def between(page: Path, begin: str, end: str, text: str) -> str:
    """The page with ``text`` between its two marks."""
    before, _, rest = page.read_text(encoding="utf-8").partition(begin)
    return f"{before}{begin}\n\n{text}\n{end}{rest.partition(end)[2]}"


def write_or_compare(page: Path, wanted: str, script: str) -> int:
    """With --write write the page; without, 1 and a line where it is out of date."""
    if "--write" in sys.argv[1:]:
        page.write_text(wanted, encoding="utf-8")
        return 0
    if wanted != page.read_text(encoding="utf-8"):
        print(f"{page.name} is out of date: python scripts/{script}.py --write")
        return 1
    return 0
