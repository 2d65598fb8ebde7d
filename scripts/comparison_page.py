"""docs/comparison/: what the comparisons in the demo's world gave, as they wrote it.

python scripts/comparison_page.py           # of runs/compare-world and its three experiments
python scripts/comparison_page.py world     # of one

``trimtab compare recipes/compare/NAME.yaml`` makes runs/compare-NAME (docs/comparison.md). Where
runs/compare-world has none, that of ``trimtab demo --thorough`` is taken: runs/demo/comparison.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
THOROUGH = ROOT / "runs" / "demo" / "comparison"
NAMES = ("world", "coverage", "quality", "noise")


def main(names: list[str]) -> int:
    """Copy tables and charts; 1 and a line for each comparison that is not there."""
    target = ROOT / "docs" / "comparison"
    target.mkdir(exist_ok=True)
    code = 0
    for name in names or NAMES:
        found = ROOT / "runs" / f"compare-{name}"
        if name == "world" and not (found / "comparison.md").is_file() and THOROUGH.is_dir():
            found = THOROUGH
        if not (found / "comparison.md").is_file():
            print(f"{found}: no finished comparison; trimtab compare recipes/compare/{name}.yaml")
            code = 1
            continue
        shutil.copyfile(found / "comparison.md", target / f"{name}.md")
        for chart in ("frontier", "gold-against-proxy"):
            shutil.copyfile(found / f"{chart}.svg", target / f"{name}-{chart}.svg")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
