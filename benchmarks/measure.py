"""What both sides measure by: clocks and memory of the process. Imports no torch and no trainer."""

from __future__ import annotations

import dataclasses
import itertools
import json
import resource
import sys
import time
from pathlib import Path
from typing import Any, Protocol

_STATUS = Path("/proc/self/status")

# What of a logged step is compared, as far as a trainer logs it.
LOGGED = ("loss", "logps/chosen", "logps/rejected", "margin", "mean_reward")


def _status(field: str) -> float | None:
    if not _STATUS.exists():
        return None
    for line in _STATUS.read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024
    return None


def memory_mb() -> float | None:
    """Resident memory now; None where the system does not say."""
    return _status("VmRSS")


def peak_mb() -> float:
    """Highest resident memory of the process, or since ``reset_peak`` where that works."""
    # Not ru_maxrss first: it survives exec, so that it may be the parent's.
    found = _status("VmHWM")
    if found is not None:
        return found
    scale = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale


def reset_peak() -> None:
    """Start counting the peak anew (Linux)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


class Accelerator(Protocol):
    """What ``torch.cuda`` has of clocks and memory."""

    def synchronize(self) -> None:
        """Wait until everything that was begun is done."""
        ...

    def max_memory_allocated(self) -> int:
        """Highest memory in bytes."""
        ...

    def reset_peak_memory_stats(self) -> None:
        """Start counting the peak anew."""
        ...


@dataclasses.dataclass
class Recorder:
    """The times of a run's steps and its memory, on whichever side it happens."""

    started: float  # time.time() just before the process was started
    # Of an accelerator: its work is waited for before a clock is read, and the memory is its own.
    accelerator: Accelerator | None = None
    begins: list[float] = dataclasses.field(default_factory=list)
    ends: list[float] = dataclasses.field(default_factory=list)
    cpu: list[float] = dataclasses.field(default_factory=list)
    first_step: float | None = None
    first_step_end: float | None = None
    reference_seconds: float = 0.0
    reference_rows: int = 0
    imported_mb: float | None = None
    peak_before_mb: float = 0.0
    train_peak_mb: float = 0.0

    def imported(self) -> None:
        """Everything has been imported; neither model nor rows are there."""
        self.imported_mb = memory_mb()

    def begin(self) -> None:
        """An optimizer step begins."""
        if self.first_step is None:
            self._wait()
            self.first_step = time.time() - self.started
            self.peak_before_mb = self._peak_mb()
            if self.accelerator:
                self.accelerator.reset_peak_memory_stats()
            reset_peak()
        self.begins.append(time.perf_counter())
        self.cpu = self.cpu or [time.process_time()]

    def end(self) -> None:
        """An optimizer step has ended."""
        self._wait()
        self.ends.append(time.perf_counter())
        self.cpu.append(time.process_time())
        if self.first_step_end is None:
            self.first_step_end = time.time() - self.started
        self.train_peak_mb = self._peak_mb()

    def _wait(self) -> None:
        if self.accelerator:
            self.accelerator.synchronize()

    def _peak_mb(self) -> float:
        if self.accelerator:
            return self.accelerator.max_memory_allocated() / 2**20
        return peak_mb()

    def result(self) -> dict[str, Any]:
        """Seconds of each step, from the end of the one before it, so that nothing is left out.

        ``cpu_seconds`` are those of all threads: what another process takes is not in them, as long
        as threads that wait for each other do not spin.
        """
        starts = [self.begins[0], *self.ends[:-1]]
        return {
            "step_seconds": [round(e - s, 4) for s, e in zip(starts, self.ends, strict=True)],
            "cpu_seconds": [round(b - a, 4) for a, b in itertools.pairwise(self.cpu)],
            "reference_seconds": round(self.reference_seconds, 4),
            "reference_rows": self.reference_rows,
            "seconds_to_first_step": self.first_step,
            "seconds_to_first_step_end": self.first_step_end,
            "imported_mb": self.imported_mb,
            "peak_mb": max(self.peak_before_mb, self.train_peak_mb),
            "train_peak_mb": self.train_peak_mb,
            "host_peak_mb": peak_mb(),
        }


def emit(result: dict[str, Any]) -> None:
    """The result as the last line of standard output."""
    sys.stdout.flush()
    print("\n" + json.dumps(result), flush=True)
