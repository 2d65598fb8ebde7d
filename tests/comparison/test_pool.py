"""Cells in processes of their own: the same numbers, and Ctrl-C."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from trimtab.cli import main

from .test_compare import contents


@pytest.mark.slow
def test_two_processes_find_what_one_finds_and_stop_at_ctrl_c(recipe: Path, tmp_path: Path) -> None:
    """Ctrl-C ends with 130 and no process left; the same command goes on to the same numbers."""
    calm, two = tmp_path / "calm", tmp_path / "two"
    assert main(["compare", str(recipe), "--output-dir", str(calm), "--quiet"]) == 0
    command = [sys.executable, "-m", "trimtab", "compare", str(recipe), "--jobs", "2"]
    command += ["--output-dir", str(two)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("[1/"):
                break
        process.send_signal(signal.SIGINT)
        began = time.monotonic()
        assert process.wait(60) == 130
        assert time.monotonic() - began < 60
        assert "goes on from there" in process.stderr.read()
    done = len(list((two / "examinations").iterdir()))
    assert 0 < done < len(contents(calm))
    assert subprocess.run(command, check=False, capture_output=True).returncode == 0
    assert contents(two) == contents(calm)
