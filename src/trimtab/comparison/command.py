"""``trimtab compare``: plan, do what is missing, say what came of it."""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trimtab.comparison.cells import Cell, Plan, Rate, rate_name
from trimtab.comparison.plan import make_plan
from trimtab.comparison.recipe import Read, read_recipe
from trimtab.errors import RunError, UsageError
from trimtab.training import files
from trimtab.training.progress import clock_time

STATE = "compare.json"  # in the comparison's folder: that it is one, and its time so far


def compare(tokens: Sequence[str]) -> int:
    """``trimtab compare TOKENS``; returns the exit code: 0, 1 where a cell failed, or 130."""
    from trimtab.models.hub import quiet

    began = time.perf_counter()
    read = read_recipe(tokens)
    quiet()
    command = shlex.join(["trimtab", "compare", *tokens])
    plan = make_plan(read)
    _check(plan)
    if read.control.dry_run:
        _dry_run(plan)
        return 0
    work = _Comparison(read, plan, command, began)
    return work.run()


def _check(plan: Plan) -> None:
    """What only loading shows: the model at the start, the prompts, the judges."""
    from trimtab.comparison.examine import Examiner

    examiner = Examiner(plan.recipe)
    for spec in {cell.proxy.model_dump_json(): cell.proxy for cell in plan.cells}.values():
        examiner.judge_named(spec)
    folder = plan.folder
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"output_dir={folder}: is not a folder; give another --output-dir")
    ours = (folder / STATE).exists()
    if folder.is_dir() and not ours and any(folder.iterdir()):
        raise UsageError(
            f"output_dir={folder}: holds something else than a comparison; give another "
            "--output-dir"
        )


def _dry_run(plan: Plan) -> None:
    from trimtab.comparison import work

    for cell in plan.cells:
        todo = len(work.missing(plan, cell))
        state = "done" if not todo else f"{todo} to do" if cell.examined else "pilot"
        steps = "" if cell.resolved is None else f", {cell.resolved.recipe.max_steps} steps"
        print(f"{cell.says}{steps}: {state}")
    left = sum(cell.cost for cell in plan.cells if work.missing(plan, cell))
    print(f"{len(plan.cells)} cells; about {clock_time(left)} of one thread in the demo's world")


class _Comparison:
    def __init__(self, read: Read, plan: Plan, command: str, began: float) -> None:
        self.read = read
        self.plan = plan
        self.command = command
        self.began = began
        self.failed: list[dict[str, str]] = []

    def run(self) -> int:
        files.make_folder(self.plan.folder)
        state = self.plan.folder / STATE
        spent = json.loads(state.read_text())["seconds"] if state.exists() else 0.0
        # At once, too: a folder that a kill left is known as a comparison's.
        self._remember(state, spent)
        try:
            whole = self._cells()
        finally:
            seconds = spent + time.perf_counter() - self.began
            self._remember(state, seconds)
        if not whole:
            self._say("stopped; the same command goes on from there")
            return 130
        self._write(seconds)
        return 1 if self.failed else 0

    def _remember(self, state: Path, seconds: float) -> None:
        now = {"seconds": round(seconds, 1), "command": self.command}
        files.write_atomic(state, (json.dumps(now) + "\n").encode())

    def _say(self, text: str) -> None:
        if not self.read.control.quiet:
            print(text, file=sys.stderr, flush=True)

    # ------------------------------------------------------------------ cells

    def _cells(self) -> bool:
        """Pilots where the budget wants them, then everything that is missing."""
        pilots = [cell for cell in self.plan.cells if cell.kind == "pilot"]
        if pilots:
            if not self._do(pilots):
                return False
            rates = {
                rate_name(cell.method, cell.settings): Rate(
                    **json.loads(self.plan.place(cell.key).read_text())["rate"]
                )
                for cell in pilots
                if self.plan.place(cell.key).exists()
            }
            if len(rates) < len(pilots):
                raise RunError(
                    f"budget.unit={self.plan.recipe.budget.unit}: what a step takes could not be "
                    f"measured: {self.failed[0]['cell']}: {self.failed[0]['error']}"
                )
            self.plan = make_plan(self.read, rates)
        for note in self.plan.notes:
            self._say(note)
        return self._do(self.plan.cells)

    def _do(self, cells: Sequence[Cell]) -> bool:
        from trimtab.comparison import work
        from trimtab.comparison.pool import Outcome, run_cells

        todo = [cell for cell in cells if work.missing(self.plan, cell)]
        done = len(cells) - len(todo)
        jobs = min(self.read.control.jobs, max(1, len(todo)))
        self._say(
            f"{self.plan.recipe.title}: {len(cells)} cells"
            + (f", {done} of them done before" if done else "")
            + (f"; {jobs} at a time" if jobs > 1 else "")
        )
        began = time.perf_counter()
        left = sum(cell.cost for cell in todo)
        seen = {"cost": 0.0, "seconds": 0.0, "count": done}

        def told(outcome: Outcome) -> None:
            seen["cost"] += outcome.cell.cost
            seen["count"] += 1
            if outcome.failed is not None:
                self.failed.append({"cell": outcome.cell.says, "error": outcome.failed})
            share = seen["cost"] / max(left, 1e-9)
            rest = (time.perf_counter() - began) * (1 - share) / max(share, 1e-9)
            ahead = f" · {clock_time(rest)} left" if seen["count"] < len(cells) else ""
            how = self._worth(outcome.cell) if outcome.failed is None else outcome.failed
            mark = "" if outcome.failed is None else "FAILED: "
            self._say(
                f"[{seen['count']:.0f}/{len(cells)}] {outcome.cell.says}: {mark}{how} "
                f"({outcome.seconds:.0f} s){ahead}"
            )

        return run_cells(self.plan, todo, self.read.control.jobs, told)

    def _worth(self, cell: Cell) -> str:
        """The last examination of a cell in a few words."""
        from trimtab.comparison import work

        if cell.kind == "pilot":
            return "measured"
        found = work.read(self.plan, cell, max(cell.examined))["examine"]
        return f"gold {_mean(found['gold']):.3f}, KL {_mean(found['kl']):.2f}"

    # ------------------------------------------------------------------ what came of it

    def _write(self, seconds: float) -> None:
        from trimtab.comparison.analysis import Analysis
        from trimtab.comparison.charts import charts
        from trimtab.comparison.measured import gather
        from trimtab.comparison.record import judge_name, proxy_name, record
        from trimtab.comparison.tables import markdown
        from trimtab.comparison.verdict import verdict
        from trimtab.report.page import report_line

        folder = self.plan.folder
        measured = gather(self.plan)
        if measured is None or not measured.methods:
            whose = self.failed[0] if self.failed else {"cell": "-", "error": "nothing was done"}
            raise RunError(f"nothing to compare: {whose['cell']}: {whose['error']}")
        analysis = Analysis(measured, self.plan.recipe.kl_levels)
        judge = judge_name(self.plan.recipe.judge)
        told: dict[str, Any] = {
            "command": self.command,
            "seconds": round(seconds, 1),
            "failed": self.failed,
            "recipe_from": self.read.origins(),
            "verdict": verdict(analysis, judge),
        }
        whole = record(self.plan, analysis, told)
        _put(folder / "comparison.json", json.dumps(whole, indent=1, allow_nan=False) + "\n")
        _put(folder / "comparison.md", markdown(self.plan, analysis, told))
        for name, drawn in charts(self.plan, analysis, judge, proxy_name(self.plan)).items():
            _put(folder / name, drawn)
        if self.failed:
            self._say(f"{len(self.failed)} cells failed; the same command tries them again")
        print("\n".join(["", *[f"* {one}" for one in told["verdict"]], ""]))
        print(f"in {folder}: comparison.md, frontier.svg, comparison.json")
        print(report_line(folder))  # a page that cannot be drawn undoes no comparison


def _put(path: Path, text: str) -> None:
    files.write_atomic(path, text.encode())


def _mean(table: list[list[float]]) -> float:
    values = [value for row in table for value in row]
    return sum(values) / len(values)
