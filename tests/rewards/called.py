"""A file of reward functions and a call of one, for their tests."""

from __future__ import annotations

from pathlib import Path

import pytest

FILE = """
import asyncio, sys, time
import numpy as np
import neighbour

seen = {}

def everything(prompts, completions, **columns):
    seen.clear()
    seen.update(columns, prompts=prompts, completions=completions)
    return [0.0] * len(completions)

def named(completions, solution, missing=None):
    seen.clear()
    seen.update(solution=solution, missing=missing)
    return [len(one) for one in completions]

def ids(completions, completion_ids=None):
    return [None if completion_ids is None else len(one) for one in completion_ids or completions]

def scaled(completions, scale=1, **columns):
    return [scale * len(one) for one in completions]

async def waits(completions):
    await asyncio.sleep(0)
    return [1.5] * len(completions)

def gives(completions, value):
    return value[0] if len(completions) == 1 and isinstance(value[0], list) else value

def raises(completions):
    numbers = []
    return numbers[3]

def leaves(completions):
    sys.exit(0)

def spins(completions):
    while True:
        try:
            time.sleep(0.001)
        except Exception:
            pass

def prompts_only(prompts):
    return [0.0]

def positional(completions, /):
    return [0.0]

def changes(prompts, completions):
    prompts.clear()
    completions.append("x")
    return [1.0, 2.0]

class Judge:
    def __call__(self, completions):
        return [0.25] * len(completions)

judge = Judge()
constant = 3
"""


@pytest.fixture(name="here")
def reward_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with ``mine.py``, what it imports, and a module of the same content."""
    (tmp_path / "mine.py").write_text(FILE)
    (tmp_path / "neighbour.py").write_text("value = 1\n")
    (tmp_path / "as_module.py").write_text(FILE)
    package = tmp_path / "a_package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "inner.py").write_text("def f(completions):\n    return [7.0] * len(completions)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", list(__import__("sys").path))
    return tmp_path
