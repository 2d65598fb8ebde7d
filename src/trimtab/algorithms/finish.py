"""The end of a run: the model folder, its card, the results before and after, in a table."""

from __future__ import annotations

from typing import Any

from trimtab.algorithms.build import Built
from trimtab.config.resolve import Resolved
from trimtab.training.loop import RunState
from trimtab.training.metrics import read_metrics
from trimtab.training.model_card import write_model_card
from trimtab.training.progress import Progress
from trimtab.training.run_folder import RunFolder

# What a person wants to see before and after, if it was measured.
SHOWN = (
    "eval_loss",
    "eval_perplexity",
    "eval_bpb",
    "eval_mean_token_accuracy",
    "eval_rewards/accuracies",
    "eval_rewards/margins",
    "eval_logps/accuracies",
    "eval_logps/chosen",
    "eval_logps/rejected",
)


def finish(
    folder: RunFolder, resolved: Resolved, built: Built, state: RunState, progress: Progress
) -> dict[str, Any]:
    """Write the model and everything about it; the record that it is finished comes last."""
    records = list(read_metrics(folder.path / "metrics.jsonl"))
    evaluations = [r for r in records if any(key.startswith("eval_") for key in r)]
    logged = [r for r in records if "loss" in r]
    results: dict[str, Any] = {
        "steps": state.step,
        "rows": state.rows,
        "num_tokens": state.tokens,
        "trained_tokens": state.trained_tokens,
        "skipped_steps": state.skipped_steps,
    }
    if logged:
        results["train_loss"] = logged[-1]["loss"]
    first, last = (evaluations[0], evaluations[-1]) if evaluations else ({}, {})
    results.update({key: value for key, value in last.items() if key.startswith("eval_")})
    if evaluations and first["step"] < last["step"]:
        before = {k: v for k, v in first.items() if k.startswith("eval_")}
        results.update({f"{key}_before": value for key, value in before.items()})
    folder.place(
        built.save,
        lambda path: write_model_card(
            path, verb=resolved.verb, recipe=resolved.recipe, results=results, source=built.source
        ),
    )
    folder.finish(results)
    for line in table(first if first is not last else {}, last):
        progress.note(line)
    progress.note(f"done: {folder.path} is the model folder; metrics are in metrics.jsonl there")
    return results


def table(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Held-out metrics as aligned lines: name, before, after, with 95 % intervals."""
    names = [name for name in SHOWN if name in after]
    if not names:
        return []
    width = max(len(name) for name in names)
    lines = [f"{'held-out':<{width}}  {'before':>26}  {'after':>26}"]
    lines += [
        f"{name:<{width}}  {_cell(before, name):>26}  {_cell(after, name):>26}" for name in names
    ]
    return lines


def _cell(record: dict[str, Any], name: str) -> str:
    if name not in record:
        return "-"
    text = f"{record[name]:.4g}"
    interval = record.get(f"{name}_ci95")
    return text if interval is None else f"{text} [{interval[0]:.4g}, {interval[1]:.4g}]"
