"""How long `trimtab --help` and every `VERB --help` take, and whether they import torch."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

LIMIT_SECONDS = 0.5
_IMPORTED = (
    "import sys; from trimtab.cli import main; sys.stdout = open(sys.argv[1], 'w'); "
    "main(sys.argv[2:]); sys.exit('torch' in sys.modules)"
)


def commands() -> list[list[str]]:
    """The arguments of every help page."""
    from trimtab.config.verbs import VERBS

    tools = [["data"], ["data", "inspect"], ["demo"]]
    return [["--help"], *([*verb, "--help"] for verb in ([[v] for v in VERBS] + tools))]


def measure(repeats: int) -> dict[str, Any]:
    """Median seconds of each help page, as a process of its own, and those that import torch."""
    program = str(Path(sys.executable).parent / "trimtab")
    seconds: dict[str, float] = {}
    torch: list[str] = []
    for arguments in commands():
        name = " ".join(["trimtab", *arguments])
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            subprocess.run([program, *arguments], check=True, capture_output=True)
            times.append(time.perf_counter() - start)
        seconds[name] = round(statistics.median(times), 3)
        code = [sys.executable, "-c", _IMPORTED, "/dev/null", *arguments]
        if subprocess.run(code, capture_output=True).returncode:
            torch.append(name)
    return {"median_seconds": seconds, "imports_torch": torch, "limit_seconds": LIMIT_SECONDS}
