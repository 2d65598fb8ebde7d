"""From a resolved recipe to a finished run folder: what every training verb does.

    recipe → run folder → device, precision, model → rows → trees → stage → self-check → loop →
    a Hugging Face folder with its card

Everything that can be refused is refused before a weight is loaded; everything that takes time
says so first.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from trimtab.algorithms.build import Built, build
from trimtab.algorithms.diagnosis.told import Diagnoses, of_run
from trimtab.algorithms.ensemble import train_ensemble
from trimtab.algorithms.finish import finish
from trimtab.algorithms.resume import REFERENCE, memory, restore, take_best
from trimtab.algorithms.selfcheck import as_record, self_check
from trimtab.config.resolved import Resolved, difference, to_yaml
from trimtab.errors import RunError
from trimtab.training import files
from trimtab.training.algorithm import Micro
from trimtab.training.best import BestRule
from trimtab.training.checkpoint import CheckpointStore
from trimtab.training.loop import Loop, LoopSettings, dump_micro
from trimtab.training.metrics import MetricsLog, read_metrics
from trimtab.training.progress import Mode, Progress
from trimtab.training.run_folder import RunFolder
from trimtab.training.trackers import RunInfo, Trackers, build_trackers, check_report_to


@dataclasses.dataclass(frozen=True)
class RunResult:
    """A run as it ended: its folder (a model folder), its results, whether Ctrl-C ended it."""

    output_dir: Path
    results: dict[str, Any]
    interrupted: bool = False


def run_resolved(resolved: Resolved, command: Sequence[str] | None = None) -> int:
    """Run a training verb; returns the exit code: 0, or 130 after Ctrl-C with a checkpoint."""
    result = train(resolved, command=command or ["trimtab", *sys.argv[1:]])
    return 130 if result.interrupted else 0


def train(resolved: Resolved, *, command: Sequence[str]) -> RunResult:
    """Train as the recipe says, or go on where an earlier start of the same recipe was killed."""
    recipe, control = resolved.recipe, resolved.control
    mode: Mode = "json" if control.json else "quiet" if control.quiet else "auto"
    if getattr(recipe, "ensemble", 1) > 1 and not control.dry_run:
        return _train_ensemble(resolved, mode, command)
    if recipe.threads is not None:
        torch.set_num_threads(recipe.threads)
    assert recipe.output_dir is not None, "resolving a recipe gives it a folder"
    check_report_to(recipe.report_to)
    if control.dry_run:
        return _dry_run(resolved, mode)
    resolved_yaml = to_yaml(resolved)
    with (
        RunFolder.open(
            recipe.output_dir,
            resolved_yaml=resolved_yaml,
            command=list(command),
            recipe_difference=lambda old: difference(old, resolved),
            restart=control.restart,
            resume=control.resume,
        ) as folder,
        Progress(0, resolved.verb, mode=mode) as progress,
        _enough_memory(),
    ):
        return _train_in(folder, resolved, progress, command)


@contextmanager
def _enough_memory() -> Iterator[None]:
    """Running out of memory in one line: which keys to turn, and that nothing is lost."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        text = str(error)
        ran_out = isinstance(error, (MemoryError, torch.OutOfMemoryError))
        if not ran_out and "can't allocate memory" not in text:
            raise
        raise RunError(
            f"out of memory ({' '.join(text.split())[:120]}); lower token_budget or max_length, "
            "set gradient_checkpointing=true or use_peft=true; the same command goes on from the "
            "last checkpoint"
        ) from error


def _train_ensemble(resolved: Resolved, mode: Mode, command: Sequence[str]) -> RunResult:
    """Train every member, each one a run that speaks for itself."""
    whole, results = train_ensemble(resolved, lambda one: train(one, command=command))
    folder = Path(str(resolved.recipe.output_dir))
    if whole:
        with Progress(0, resolved.verb, mode=mode) as progress:
            progress.note(
                f"done: {folder} is an ensemble of {len(results)}, and is taken wherever a reward "
                "model is"
            )
    return RunResult(folder, {"members": results}, interrupted=not whole)


def _dry_run(resolved: Resolved, mode: Mode) -> RunResult:
    """Everything up to the first step, in a folder that is thrown away."""
    with (
        tempfile.TemporaryDirectory() as scratch,
        Progress(0, resolved.verb, mode=mode) as progress,
    ):
        built = build(resolved, Path(scratch), progress, precision=None)
        if resolved.recipe.self_check:
            _self_check(built, Path(scratch), progress)
        steps = built.stage.total_steps
        progress.note(f"dry run: {steps} steps would follow; nothing was written but the cache")
    return RunResult(Path(resolved.recipe.output_dir or "."), {})


def _train_in(
    folder: RunFolder, resolved: Resolved, progress: Progress, command: Sequence[str]
) -> RunResult:
    recipe = resolved.recipe
    store = CheckpointStore(folder.path, keep=recipe.save_total_limit, note=progress.note)
    start = folder.starting_point(store)
    for note in (*resolved.notes, *folder.notes):
        progress.note(note)
    precision = None  # measured anew, unless this run has been
    if start.checkpoint is not None and recipe.precision == "auto":
        precision = start.checkpoint.state["precision"]
    built = build(resolved, folder.path, progress, precision=precision)
    if recipe.self_check and start.checkpoint is None:
        _self_check(built, folder.path, progress)
    with MetricsLog(folder.path / "metrics.jsonl") as log:
        info = RunInfo(
            folder=folder.path,
            project="trimtab",
            name=recipe.run_name or folder.path.name,
            run_id=folder.run_id,
            config=recipe.model_dump(mode="json"),
            first_step=start.checkpoint.step if start.checkpoint else 0,
        )
        trackers = build_trackers(recipe.report_to, info, progress.note)
        remembered = memory(resolved, built)
        diagnoses = of_run(recipe, built.stage)
        hooks = _Hooks(built, remembered, folder, store, log, progress, trackers, diagnoses)
        loop = Loop(built.stage, _settings(recipe, built.stage.total_steps), hooks)
        hooks.loop = loop
        lines = 0
        if start.checkpoint is not None:
            same_run = start.own and folder.decision == "continue"
            restore(loop, start.checkpoint, resolved, built, progress.note, same_run=same_run)
            lines = start.checkpoint.state["metrics_lines"] if start.own else 0
        log.truncate_to_lines(lines)
        hooks.remember(read_metrics(log.path))
        progress.train(loop.state.step, built.stage.total_steps)
        try:
            with _stop_on_signals() as stopping:
                whole = loop.run(should_stop=stopping.is_set)
        finally:
            trackers.close()
        if not whole:
            folder.mark("interrupted")
            progress.note(
                f"stopped after step {loop.state.step}, saved; the same command goes on from there"
            )
            return RunResult(folder.path, {}, interrupted=True)
    if loop.state.stopped is not None:
        progress.note(f"ended early, after step {loop.state.step}: {loop.state.stopped}")
    if recipe.load_best_model_at_end:
        take_best(loop, folder.path, progress.note)
    results = finish(folder, resolved, built, loop, progress, command, diagnoses)
    return RunResult(folder.path, results)


def _self_check(built: Built, folder: Path, progress: Progress) -> None:
    progress.stage("self-check")
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=folder, prefix=".tmp-") as scratch:
        checks = self_check(
            built.stage, save=built.save_and_verify, scratch=Path(scratch), longest=built.longest
        )
    seconds = time.perf_counter() - start
    progress.note(f"self-check: {len(checks)} of {len(checks)} passed in {seconds:.1f} s")
    record = json.dumps(as_record(checks, seconds), indent=1) + "\n"
    files.write_atomic(folder / "selfcheck.json", record.encode())


def _settings(recipe: Any, total_steps: int) -> LoopSettings:
    """The loop's own keys, with shares of all steps turned into steps."""
    samples = recipe.sample_prompts != 0 and recipe.sample_prompts != []
    value_rate = getattr(recipe, "value_learning_rate", None)
    return LoopSettings(
        learning_rate=recipe.learning_rate,
        schedule=recipe.lr_scheduler_type,
        warmup=recipe.warmup_steps,
        min_lr_ratio=recipe.min_lr_ratio,
        optimizer=recipe.optim,
        weight_decay=recipe.weight_decay,
        betas=(recipe.adam_beta1, recipe.adam_beta2),
        epsilon=recipe.adam_epsilon,
        max_grad_norm=recipe.max_grad_norm,
        seed=recipe.seed,
        on_nonfinite=recipe.on_nonfinite,
        max_skipped_steps=recipe.max_skipped_steps,
        logging_steps=recipe.logging_steps,
        eval_steps=steps_of(recipe.eval_steps, total_steps),
        save_steps=steps_of(recipe.save_steps, total_steps),
        sample_steps=(steps_of(recipe.sample_steps, total_steps) or 0) if samples else None,
        eval_on_start=recipe.eval_on_start,
        best=BestRule.of(
            recipe.metric_for_best_model, recipe.greater_is_better, recipe.early_stopping_patience
        )
        if recipe.metric_for_best_model is not None
        else None,
        rate_factors={} if value_rate is None else {"value.": value_rate / recipe.learning_rate},
    )


def steps_of(value: float | None, total_steps: int) -> int | None:
    """A number of steps: itself, or below 1 that share of all steps (at least one)."""
    if value is None:
        return None
    return max(1, round(value * total_steps)) if value < 1 else int(value)


class _Hooks:
    """What the loop leaves to the run: records, samples, checkpoints, broken batches."""

    def __init__(
        self,
        built: Built,
        remembered: dict[str, Any],
        folder: RunFolder,
        store: CheckpointStore,
        metrics: MetricsLog,
        progress: Progress,
        trackers: Trackers,
        diagnoses: Diagnoses | None,
    ) -> None:
        self.built = built
        self.remembered = remembered  # by every checkpoint
        self.folder = folder
        self.store = store
        self.metrics = metrics
        self.shown = progress
        self.trackers = trackers
        self.loop: Loop | None = None
        self.diagnoses = diagnoses

    def remember(self, records: Iterable[dict[str, Any]]) -> None:
        """Take what an earlier start of the run has logged."""
        if self.diagnoses is not None:
            self.diagnoses.remember(records)

    def log(self, step: int, record: dict[str, Any]) -> str | None:
        self.metrics.append({"step": step, **record})
        self.shown.log(step, record)
        self.trackers.log(step, record)
        if self.diagnoses is None:
            return None
        reason = None
        for found in self.diagnoses.add({"step": step, **record}):
            self.metrics.append(found.record())
            title = self.diagnoses.title(found.name)
            self.shown.note(f"step {step}: {title} ({found.name}): {found.says}")
            if found.name in self.diagnoses.stop_when:
                reason = reason or f"diagnosis {found.name} (stop_when)"
        return reason

    def progress(self, step: int) -> None:
        self.shown.update(step)

    def evaluating(self, step: int, going_on: bool) -> None:
        held_out = self.built.stage.held_out
        if held_out is None:
            return
        if going_on:
            self.shown.stage(f"evaluating {len(held_out)} held-out rows")
        else:
            self.shown.train(step)

    def sample(self, step: int) -> None:
        if self.built.samples is None:
            return
        rows = self.built.samples.generate(step)
        for prompt, completion in rows[:1]:
            self.shown.note(f"step {step}: {_end(prompt)} → {_short(completion)}")

    def save(self, step: int) -> None:
        assert self.loop is not None
        self.metrics.sync()
        state, tensors = self.loop.checkpoint()
        if own := self.built.stage.tensors():
            tensors[REFERENCE] = own
        state["metrics_lines"] = self.metrics.lines
        state.update(self.remembered)
        self.store.best = self.loop.best.step
        self.store.save(step, state=state, tensors=tensors, writers=[self.built.save])

    def dump(self, step: int, micro: Micro) -> Path:
        return dump_micro(self.folder.path / f"nonfinite-step-{step + 1}.json", step + 1, micro)


def _short(text: str, limit: int = 90) -> str:
    line = " ".join(text.split())
    return repr(line if len(line) <= limit else line[: limit - 1] + "…")


def _end(text: str, limit: int = 90) -> str:
    """The end of a prompt, where the question is: a template's system message comes first."""
    line = " ".join(text.split())
    return repr(line if len(line) <= limit else "…" + line[1 - limit :])


@contextmanager
def _stop_on_signals() -> Iterator[threading.Event]:
    """Ctrl-C and SIGTERM end the run after the step, saved; a second Ctrl-C ends it at once."""
    stopping = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stopping
        return

    def stop(number: int, frame: object) -> None:
        if stopping.is_set():
            raise KeyboardInterrupt
        stopping.set()
        with suppress(OSError):  # not print: this may have come in the middle of one
            os.write(2, b"stopping after this step and saving; again to stop at once\n")

    old = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stopping
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
