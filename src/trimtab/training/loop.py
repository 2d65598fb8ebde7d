"""The training loop: one for every stage.

A step: micro-batches from the algorithm, each term divided by its own count over the whole step,
gradients added up in fp32, a finite check before anything reaches the weights, clipping, the
optimizer. After a step, in this order: log, evaluate, sample, save. A checkpoint is written last,
so that a run resumed from it has logged exactly what the undisturbed one had. The best evaluation
so far is saved at once; what ends a run early (no better one for long, or what ``Hooks.log`` says)
makes that step the last one.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from trimtab.errors import NumericError
from trimtab.training.algorithm import Algorithm, Micro
from trimtab.training.best import Best, BestRule
from trimtab.training.metrics import Means
from trimtab.training.optim import (
    build_optimizer,
    load_optimizer_tensors,
    optimizer_tensors,
    set_learning_rate,
)
from trimtab.training.precision import MasterWeights
from trimtab.training.schedule import Schedule, learning_rate
from trimtab.training.seeds import derive
from trimtab.training.stream_norms import StreamNorms
from trimtab.training.terms import Metric


@dataclasses.dataclass(frozen=True)
class LoopSettings:
    """The recipe's keys that the loop reads, resolved: steps are numbers of optimizer steps."""

    learning_rate: float
    schedule: Schedule
    warmup: float
    min_lr_ratio: float
    optimizer: str
    weight_decay: float
    betas: tuple[float, float]
    epsilon: float
    max_grad_norm: float
    seed: int
    on_nonfinite: str
    max_skipped_steps: int
    logging_steps: int
    eval_steps: int | None
    save_steps: int | None
    sample_steps: int | None
    eval_on_start: bool
    best: BestRule | None = None
    rate_factors: Mapping[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class RunState:
    """Everything that changes during a run and is not a weight, an optimizer slot or a metric.

    ``begun``: what comes before the first step is done; ``stopped``: why the run ended early.
    """

    step: int = 0
    rows: int = 0
    tokens: int = 0
    trained_tokens: int = 0
    skipped_steps: int = 0
    begun: bool = False
    stopped: str | None = None


class Hooks(Protocol):
    """What happens around the steps; the run (``run.py``) brings it, so that the loop stays pure.

    ``log`` records metrics and may return why to stop, ``sample`` generates, ``save`` writes a
    checkpoint, ``evaluating`` is called before and after held-out rows are evaluated, ``dump``
    writes a batch that broke the run and returns its path, ``progress`` shows a step.
    """

    def log(self, step: int, record: dict[str, Any]) -> str | None: ...  # noqa: D102
    def progress(self, step: int) -> None: ...  # noqa: D102
    def sample(self, step: int) -> None: ...  # noqa: D102
    def save(self, step: int) -> None: ...  # noqa: D102
    def evaluating(self, step: int, going_on: bool) -> None: ...  # noqa: D102
    def dump(self, step: int, micro: Micro) -> Path: ...  # noqa: D102


class Loop:
    """Optimizes an algorithm's terms. ``run`` goes from the current step to the last one."""

    def __init__(self, algorithm: Algorithm, settings: LoopSettings, hooks: Hooks) -> None:
        self.algorithm = algorithm
        self.settings = settings
        self.hooks = hooks
        self.masters = MasterWeights(algorithm.model)
        self.optimizer = build_optimizer(
            self.masters.masters,
            name=settings.optimizer,
            weight_decay=settings.weight_decay,
            betas=settings.betas,
            epsilon=settings.epsilon,
            rate_factors=settings.rate_factors,
        )
        self.state = RunState()
        self.best = Best()
        self._improved = False  # by the last evaluation, and not saved yet
        self.window = Means()  # since the last log
        self._window_start = time.perf_counter()
        self._window_tokens = self._window_steps = 0

    # ------------------------------------------------------------------ the run

    def run(self, should_stop: Callable[[], bool] = lambda: False) -> bool:
        """Train until the last step, or until ``should_stop``; True when the last step is done."""
        self._window_start = time.perf_counter()
        if self.state.step == 0 and not self.state.begun:
            self._begin()
        saved_at = self.state.step
        while not self._over():
            self.train_step()
            self.hooks.progress(self.state.step)
            self._after_step()
            if self._due(self.settings.save_steps) or self._over() or self._improved:
                self._save()
                saved_at = self.state.step
            if not self._over() and should_stop():
                if saved_at != self.state.step:
                    self.hooks.save(self.state.step)
                return False
        return True

    def _begin(self) -> None:
        """What comes before the first step."""
        if self.settings.eval_on_start:
            self._evaluate()
        if self.settings.sample_steps is not None:
            self._aside(self.hooks.sample)
        self.state.begun = True
        if self._improved:
            self._save()

    def _over(self) -> bool:
        return self.state.stopped is not None or self.state.step >= self.algorithm.total_steps

    def _stop(self, reason: str | None) -> None:
        """Make this step the last one; a run that is at its end does not end early."""
        if reason is not None and not self._over():
            self.state.stopped = reason

    def _save(self) -> None:
        self._improved = False
        self._aside(self.hooks.save)

    def _aside(self, hook: Callable[[int], None]) -> None:
        """Call a hook whose time is not training time."""
        start = time.perf_counter()
        hook(self.state.step)
        self._window_start += time.perf_counter() - start

    def _due(self, every: int | None) -> bool:
        return every is not None and every > 0 and self.state.step % every == 0

    def _after_step(self) -> None:
        logged = self._over() or self._due(self.settings.logging_steps)
        if logged:
            self._log()
        if self._over() or self._due(self.settings.eval_steps):
            self._evaluate()
        if self._over() and not logged:  # the evaluation ended the run
            self._log()
        if self.settings.sample_steps is not None and (
            self._over() or self._due(self.settings.sample_steps)
        ):
            self._aside(self.hooks.sample)

    # ------------------------------------------------------------------ one step

    def train_step(self) -> None:
        """One optimizer step; a non-finite loss or gradient leaves the weights as they were."""
        step = self.state.step
        micros = self.algorithm.micros(step)
        seen = Means()
        for name, metric in self.algorithm.prepare(step, micros).items():
            seen.add(name, metric)
        culprit = self._accumulate(step, micros, seen)
        norm = self.masters.gradient_norm()
        if culprit is None and not math.isfinite(norm.item()):
            culprit = micros[0] if len(micros) == 1 else self._find_nonfinite(step, micros)
        if culprit is not None:
            self._refuse(step, culprit)
        else:
            self._update(step, norm)
            seen.add("grad_norm", Metric(norm.item(), 1.0))
            self.window.merge(seen)
        self.masters.clear_gradients()
        self.state.step += 1
        self._window_steps += 1
        self._count(micros)

    def _totals(self, micros: Sequence[Micro]) -> dict[str, float]:
        """The count of every term over the whole step: the one divisor it has."""
        totals: dict[str, float] = {}
        for micro in micros:
            for name, count in self.algorithm.counts(micro).items():
                totals[name] = totals.get(name, 0.0) + count
        return totals

    def _accumulate(self, step: int, micros: Sequence[Micro], seen: Means) -> Micro | None:
        """Forward and backward over all micro-batches; returns the one with a non-finite loss."""
        totals = self._totals(micros)
        objective = 0.0
        values: dict[str, float] = {}
        apart = StreamNorms(self.masters) if self._logs(step, micros) else None
        for number, micro in enumerate(micros):
            if apart is not None:
                apart.begin(micro.stream)
            torch.manual_seed(derive(self.settings.seed, "forward", step, number))
            outcome = self.algorithm.terms(micro)
            promised = self.algorithm.counts(micro)
            loss: Tensor | None = None
            for term in outcome.terms:
                assert term.count == promised[term.name], f"{term.name}: counts disagree"
                if totals[term.name] == 0:
                    continue
                mean = term.sum / totals[term.name]
                values[term.name] = values.get(term.name, 0.0) + mean.item()
                part = term.weight * mean
                loss = part if loss is None else loss + part
            if loss is None:
                continue
            value = loss.item()
            if not math.isfinite(value):
                return micro
            objective += value
            loss.backward()
            for name, metric in outcome.metrics.items():
                seen.add(name, metric)
        if apart is not None:
            for name, norm in apart.end().items():
                seen.add(f"grad_norm/{name}", Metric(norm, 1.0))
        seen.add("loss", Metric(objective, 1.0))
        if len(values) > 1:
            for name, value in values.items():
                seen.add(f"loss/{name}", Metric(value, 1.0))
        return None

    def _logs(self, step: int, micros: Sequence[Micro]) -> bool:
        """Whether the gradients of several streams are told apart: where the step is logged."""
        logged = (step + 1) % self.settings.logging_steps == 0
        return logged and len({micro.stream for micro in micros}) > 1

    def _update(self, step: int, norm: Tensor) -> None:
        if self.settings.max_grad_norm > 0:
            self.masters.clip(norm, self.settings.max_grad_norm)
        set_learning_rate(self.optimizer, self.rate(step))
        self.optimizer.step()
        self.masters.cast_to_working()

    def rate(self, step: int) -> float:
        """Learning rate of optimizer step ``step``."""
        s = self.settings
        return learning_rate(
            step,
            peak=s.learning_rate,
            schedule=s.schedule,
            total_steps=self.algorithm.total_steps,
            warmup=s.warmup,
            min_ratio=s.min_lr_ratio,
        )

    def _find_nonfinite(self, step: int, micros: Sequence[Micro]) -> Micro:
        """The first micro-batch whose own gradient is not finite (all losses were)."""
        totals = self._totals(micros)
        for number, micro in enumerate(micros):
            self.masters.clear_gradients()
            torch.manual_seed(derive(self.settings.seed, "forward", step, number))
            for term in self.algorithm.terms(micro).terms:
                if totals[term.name]:
                    (term.weight * term.sum / totals[term.name]).backward(retain_graph=True)
            if not math.isfinite(self.masters.gradient_norm().item()):
                return micro
        return micros[0]

    def _refuse(self, step: int, micro: Micro) -> None:
        """Stop the run, or count a skipped step; the weights were not touched."""
        self.state.skipped_steps += 1
        self.window.add("skipped_steps", Metric(1.0, 1.0))
        path = self.hooks.dump(step, micro)
        origin = micro.batch.origins[0]
        where = f"step {step + 1}: loss or gradient is not finite"
        batch = f"batch from {origin.source}:{origin.row} written to {path}"
        if self.settings.on_nonfinite == "stop":
            raise NumericError(
                f"{where}; weights untouched, {batch}; lower learning_rate (now "
                f"{self.settings.learning_rate:g}), look at that batch, or set on_nonfinite=skip"
            )
        if self.state.skipped_steps > self.settings.max_skipped_steps:
            raise NumericError(
                f"{where} for the {self.state.skipped_steps}th time, more than "
                f"max_skipped_steps={self.settings.max_skipped_steps}; {batch}"
            )

    def _count(self, micros: Sequence[Micro]) -> None:
        for micro in micros:
            tokens = micro.batch.ids.numel()
            self.state.tokens += tokens
            self.state.trained_tokens += micro.batch.target.numel()
            self.state.rows += micro.batch.tree_count if micro.stream == "main" else 0
            self._window_tokens += tokens

    # ------------------------------------------------------------------ records

    def _log(self) -> None:
        seconds = max(time.perf_counter() - self._window_start, 1e-9)
        step = self.state.step
        record: dict[str, Any] = self.window.means()
        record["learning_rate"] = self.rate(step - 1)
        record["epoch"] = round(self.algorithm.epoch(step), 6)
        record["num_tokens"] = self.state.tokens
        record |= self.algorithm.counted(step)
        if self.state.skipped_steps:
            record["skipped_steps"] = self.state.skipped_steps
        speed = self._window_tokens / seconds
        # Billions of weights on a small machine: a token may take a minute.
        record["time/tokens_per_second"] = round(speed, 1) if speed >= 10 else float(f"{speed:.3g}")
        record["time/step_time"] = float(f"{seconds / max(self._window_steps, 1):.4g}")
        self.window.reset()
        self._window_start = time.perf_counter()
        self._window_tokens = self._window_steps = 0
        self._stop(self.hooks.log(step, record))

    def _evaluate(self) -> None:
        start = time.perf_counter()
        self.hooks.evaluating(self.state.step, True)
        found = self.algorithm.evaluate(self.state.step)
        self.hooks.evaluating(self.state.step, False)
        if found:
            record: dict[str, Any] = {f"eval_{name}": value for name, value in found.items()}
            record["epoch"] = round(self.algorithm.epoch(self.state.step), 6)
            record["time/eval_seconds"] = round(time.perf_counter() - start, 3)
            self._stop(self.hooks.log(self.state.step, record))
        if (rule := self.settings.best) is not None:
            self._improved = rule.improves(self.best, found, self.state.step)
            self._stop(rule.out_of_patience(self.best))
        self._window_start += time.perf_counter() - start

    # ------------------------------------------------------------------ checkpoints

    def checkpoint(self) -> tuple[dict[str, Any], dict[str, dict[str, Tensor]]]:
        """All state of the run: a JSON part and named tensors by file."""
        state = {
            "run": dataclasses.asdict(self.state),
            "best": dataclasses.asdict(self.best),
            "window": self.window.state_dict(),
            "algorithm": self.algorithm.state_dict(),
        }
        tensors = {
            "masters": self.masters.tensors(),
            "optimizer": optimizer_tensors(self.optimizer, self.masters.masters),
        }
        return state, tensors

    def restore(self, state: dict[str, Any], tensors: dict[str, dict[str, Tensor]]) -> None:
        """Put back what ``checkpoint`` gave."""
        self.state = RunState(**state["run"])
        self.best = Best(**state.get("best", {}))  # older checkpoints have none
        self.window.load_state_dict(state["window"])
        self.algorithm.load_state_dict(state["algorithm"])
        self.masters.load(tensors["masters"])
        load_optimizer_tensors(self.optimizer, self.masters.masters, tensors["optimizer"])


def dump_micro(path: Path, step: int, micro: Micro) -> Path:
    """Write the trees of a micro-batch as JSON, to look at what broke a run."""
    trees = [tree._asdict() for tree in micro.batch.trees]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"step": step, "stream": micro.stream, "trees": trees}, indent=1))
    return path
