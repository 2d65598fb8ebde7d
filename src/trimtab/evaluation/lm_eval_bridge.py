"""lm-eval's tasks (EleutherAI's harness, the extra ``lm-eval``) on a model, as a card of ours.

The model is loaded by lm-eval itself, as transformers has it; a LoRA adapter goes as ``peft``. Data
of most tasks come from a hub: this is where trimtab reaches for the network, because the user named
the task. A task of one's own is a YAML file of lm-eval's.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trimtab.errors import RecipeError, RunError, UsageError
from trimtab.evaluation.lm_eval_text import verdict
from trimtab.evaluation.outcome import Outcome
from trimtab.evaluation.reward_statistics import entry
from trimtab.evaluation.statistics import bootstrap_interval
from trimtab.intervals import Interval, normal_quantile, wilson_interval

if TYPE_CHECKING:
    from trimtab.evaluation.evaluate import EvaluateOptions
    from trimtab.training.progress import Progress

_YAML = (".yaml", ".yml")


def check(options: EvaluateOptions) -> None:
    """Refuse what does not go with tasks, and say what is missing where lm-eval is not there."""
    others = {
        "dataset_name": options.dataset_name,
        "baseline": options.baseline,
        "write_outputs": options.write_outputs,
        options.answers.given or "": options.answers.given,
    }
    wrong = next((name for name, value in others.items() if value), None)
    if wrong:
        raise RecipeError(f"{wrong}: --lm-eval brings its own data and metrics; leave it out")
    for task in options.lm_eval:
        if task.endswith(_YAML) and not Path(task).is_file():
            raise RecipeError(f"lm_eval={task}: no such file")
    if importlib.util.find_spec("lm_eval") is None:
        raise UsageError(
            "lm_eval: the package is not installed; install it with pip install 'trimtab[lm-eval]'"
        )


def run(options: EvaluateOptions, progress: Progress) -> Outcome:
    """Evaluate all tasks; RunError where lm-eval fails, with what it says."""
    import lm_eval  # type: ignore[import-not-found] - an extra
    from lm_eval.tasks import TaskManager  # type: ignore[import-not-found]

    from trimtab.evaluation.subjects import find

    if find(options.model, "model").kind != "language_model":
        raise RecipeError(f"lm_eval: {options.model} is a reward model; give a language model")
    progress.stage(f"lm-eval: {', '.join(options.lm_eval)}")
    try:
        names, folders = _tasks(options.lm_eval)
        found = lm_eval.simple_evaluate(
            model="hf",
            model_args=_model_args(options.model),
            tasks=list(names),
            task_manager=TaskManager(include_path=folders or None),
            batch_size="auto" if _accelerated() else 8,
            device="cuda" if _accelerated() else "cpu",
            limit=options.max_rows,
            random_seed=options.seed,
            numpy_random_seed=options.seed,
            torch_random_seed=options.seed,
            fewshot_random_seed=options.seed,
            bootstrap_iters=1000,
        )
    except (RecipeError, KeyboardInterrupt):
        raise
    except Exception as error:  # whatever a task, its data or its download come to
        said = " ".join(str(error).split())[:300] or type(error).__name__
        raise RunError(f"lm_eval={','.join(options.lm_eval)}: {said}") from error
    assert found is not None, "one process has all results"
    return _outcome(options, found)


def _outcome(options: EvaluateOptions, found: Mapping[str, Any]) -> Outcome:
    samples = found.get("samples") or {}
    tasks = [
        row
        for task, metrics in found["results"].items()
        for row in rows_of(task, metrics, samples.get(task, ()), options.seed)
    ]
    card: dict[str, Any] = {
        "task": "lm_eval",
        "model": {"name": options.model, "kind": "language_model"},
        "seed": options.seed,
        "limit": options.max_rows,
        "lm_eval": found.get("lm_eval_version"),
        "tasks": tasks,
        "versions": dict(found.get("versions", {})),
        "shots": dict(found.get("n-shot", {})),
    }
    card = {"verdict": verdict(card), **card}
    lines = [
        {"task": task, "doc_id": one.get("doc_id"), "filter": one.get("filter"),
         **{name: one.get(name) for name in one.get("metrics", ())}}
        for task, every in samples.items()
        for one in every
    ]  # fmt: skip
    return Outcome(card, {}, lines)


def rows_of(
    task: str, metrics: Mapping[str, Any], samples: Sequence[Mapping[str, Any]], seed: int
) -> list[dict[str, Any]]:
    """One object a metric and filter, with an interval.

    From the documents' own values where the metric is their mean: Wilson's for zeros and ones, the
    bootstrap for others. Otherwise (a perplexity, an F1 of the whole) from lm-eval's standard
    error, by the normal quantile.
    """
    found: list[dict[str, Any]] = []
    for key, value in metrics.items():
        name, _, applied = key.partition(",")
        if not applied or name.endswith("_stderr") or not isinstance(value, (int, float)):
            continue
        own = [one.get(name) for one in samples if one.get("filter") == applied]
        values = [float(v) for v in own if isinstance(v, (bool, int, float))]
        whole = len(values) == len(own) and bool(values)
        if whole and math.isclose(float(np.mean(values)), value, abs_tol=1e-9):
            interval = _of_values(values, seed)
        else:
            error = metrics.get(f"{name}_stderr,{applied}")
            if not isinstance(error, (int, float)):  # "N/A"
                error = math.nan
            half = normal_quantile(0.95) * float(error)
            count = len(own) or int(metrics.get("sample_len", 0))
            interval = Interval(float(value), value - half, value + half, count)
        found.append({"task": task, "metric": name, "filter": applied, **entry(interval)})
    return found


def _of_values(values: Sequence[float], seed: int) -> Interval:
    if set(values) <= {0.0, 1.0}:
        return wilson_interval(sum(values), len(values))
    return bootstrap_interval(values, seed=seed)


def _tasks(given: Sequence[str]) -> tuple[list[str], list[str]]:
    """Names of tasks, and the folders of those that are files."""
    import yaml

    names: list[str] = []
    folders: list[str] = []
    for task in given:
        if not task.endswith(_YAML):
            names.append(task)
            continue
        content = yaml.safe_load(Path(task).read_text(encoding="utf-8"))
        if not isinstance(content, dict) or not isinstance(content.get("task"), str):
            raise RecipeError(f"lm_eval={task}: no task of lm-eval in it: key 'task' is missing")
        names.append(content["task"])
        folders.append(str(Path(task).resolve().parent))
    return names, folders


def _model_args(model: str) -> dict[str, Any]:
    from trimtab.models.hub import locate
    from trimtab.models.load import base_of

    source = locate(model, key="model")
    if source.kind == "adapter":
        base = base_of(source, "model").folder
        return {"pretrained": str(base), "peft": str(source.folder), "dtype": "auto"}
    return {"pretrained": str(source.folder), "dtype": "auto" if _accelerated() else "float32"}


def _accelerated() -> bool:
    import torch

    return torch.cuda.is_available()
