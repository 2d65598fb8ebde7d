"""TRL's own code on the golden cases, where its virtual environment is there (``make bench``)."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from .support import GOLDEN

ROOT = Path(__file__).parents[2]
TRL = ROOT / "build" / "bench" / "trl" / "bin" / "python"
ENTRIES = {entry["loss"]: entry for entry in GOLDEN["pairs"]}


@pytest.mark.slow
def test_trl_gives_the_golden_values_where_the_forms_agree() -> None:
    """Fifteen losses, ipo, apo and bco among them; IPO over sums is another number."""
    if not TRL.exists():
        pytest.skip(f"needs {TRL.relative_to(ROOT)}: make bench makes it")
    done = subprocess.run(
        [TRL, "-m", "benchmarks.trl_losses"],
        input=json.dumps(GOLDEN),
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found) == 15
    for name, values in found.items():
        for letter, value in values.items():
            # The alpha-divergence is in fp32 there.
            wanted = ENTRIES[name][letter]["value"]
            assert value == pytest.approx(wanted, rel=1e-6, abs=1e-9), (name, letter)
    assert found["ipo"]["A"] != pytest.approx(ENTRIES["ipo_sum"]["A"]["value"], rel=1e-2)
