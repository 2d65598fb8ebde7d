"""The end of a run: the model folder, its card, the results before and after, in a table."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trimtab.algorithms.about import write_about
from trimtab.algorithms.build import Built
from trimtab.algorithms.diagnosis.told import Diagnoses
from trimtab.config.resolved import Resolved
from trimtab.models.save import ADAPTER
from trimtab.models.score_head import head_of
from trimtab.report.page import report_line
from trimtab.training.loop import Loop
from trimtab.training.metrics import read_metrics
from trimtab.training.model_card import Card, write_model_card
from trimtab.training.progress import Progress
from trimtab.training.run_folder import RunFolder

# What a person wants to see before and after, if it was measured.
SHOWN = (
    "eval_loss",
    "eval_perplexity",
    "eval_bpb",
    "eval_mean_token_accuracy",
    "eval_accuracy",
    "eval_margin",
    "eval_mean_reward",
    "eval_macro_f1",
    "eval_lm_loss",
    "eval_reward",
    "eval_kl",
    "eval_length",
    "eval_rewards/accuracies",
    "eval_rewards/margins",
    "eval_logps/accuracies",
    "eval_logps/chosen",
    "eval_logps/rejected",
    "eval_displacement/chosen",
    "eval_displacement/rejected",
    "eval_displacement/elsewhere",
)
MOST_CLASSES = 12  # whose recall is shown; all are in all_results.json


def finish(
    folder: RunFolder,
    resolved: Resolved,
    built: Built,
    loop: Loop,
    progress: Progress,
    command: Sequence[str],
    diagnoses: Diagnoses | None = None,
) -> dict[str, Any]:
    """Write the model and everything about it; the record that it is finished comes last."""
    state = loop.state
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
    if loop.best.step is not None:
        results |= {"best_step": loop.best.step, "best_metric": loop.best.value}
        if resolved.recipe.load_best_model_at_end:  # what was measured of the model that is kept
            last = next(r for r in evaluations if r["step"] == loop.best.step)
    if state.stopped is not None:
        results["stopped"] = state.stopped
    results.update({key: value for key, value in last.items() if key.startswith("eval_")})
    if first.get("step") == 0 and not getattr(built.stage, "named_reference", True):
        # The policy is still its own reference: implicit rewards are 0 and accuracies say nothing.
        first = {k: v for k, v in first.items() if not k.startswith("eval_rewards/")}
    if evaluations and first["step"] < last["step"]:
        before = {k: v for k, v in first.items() if k.startswith("eval_")}
        results.update({f"{key}_before": value for key, value in before.items()})
    if built.conclude is not None:
        built.conclude()
    told = diagnoses.summary() if diagnoses is not None else None
    results |= peaks(told)
    folder.place(
        built.save_and_verify,
        *built.stage.beside(built.tokenizer, built.stop_ids),
        lambda path: _write_card(path, card(resolved, built, command, results)),
        lambda path: _write_diagnoses(path, told),
        lambda path: write_about(path, built, state.step),
    )
    folder.finish(results)
    for line in table(first if first.get("step") != last.get("step") else {}, last):
        progress.note(line)
    for line in (*peak_lines(told), *diagnosis_lines(told)):
        progress.note(line)
    progress.note(report_line(folder.path))
    if head_of(built.stage.policy.model) is None:
        start = resolved.recipe.model_name_or_path
        beside = "" if start is None else f" --vs {shlex.quote(str(start))}"
        progress.note(f"ask it: trimtab chat {shlex.quote(str(folder.path))}{beside}")
    progress.note(f"done: {folder.path} is the model folder; metrics are in metrics.jsonl there")
    return results


def peaks(told: dict[str, Any] | None) -> dict[str, Any]:
    """Where watched rewards were highest, as results."""
    found: dict[str, Any] = {}
    for name, every in (told or {}).get("peaks", {}).items():
        for one in every:
            key = f"{'eval_' if one['held_out'] else ''}watch/{name}/peak"
            found |= {key: one["value"], f"{key}_step": one["step"]}
    return found


def peak_lines(told: dict[str, Any] | None) -> list[str]:
    """The same as sentences."""
    lines: list[str] = []
    for name, every in (told or {}).get("peaks", {}).items():
        for one in every:
            where = "on held-out prompts" if one["held_out"] else "on rollouts"
            lines.append(
                f"watched reward {name} {where}: {one['start']:.4g} at the start, highest with "
                f"{one['value']:.4g} at step {one['step']}, {one['last']:.4g} at the end"
            )
    return lines


def diagnosis_lines(told: dict[str, Any] | None) -> list[str]:
    """What was diagnosed, as it was told last, and whether it is so at the end."""
    last = {(one["diagnosis"], one["about"]): one for one in (told or {}).get("diagnoses", [])}
    lines: list[str] = []
    for (name, _), one in last.items():
        still = "" if name in (told or {})["at_end"] else "; not so any more at the end"
        lines.append(f"diagnosis {name} (step {one['step']}{still}): {one['says']}")
    if lines:
        lines.append(f"trimtab explain {next(iter(last))[0]}: when this is told, and why")
    return lines


def _write_diagnoses(folder: Path, told: dict[str, Any] | None) -> None:
    if told is not None:
        text = json.dumps(told, indent=1) + "\n"
        (folder / "diagnoses.json").write_text(text, encoding="utf-8")


def card(resolved: Resolved, built: Built, command: Sequence[str], results: dict[str, Any]) -> Card:
    """The model card of a run."""
    recipe: Any = resolved.recipe
    loss = getattr(recipe, "loss", None)
    keys = ("learning_rate", "lr_scheduler_type", "warmup_steps", "optim", "max_grad_norm", "seed")
    hyperparameters: dict[str, Any] = {key: getattr(recipe, key) for key in keys}
    hyperparameters["rows per optimizer step"] = recipe.rows_per_step
    hyperparameters["precision"] = built.precision.name
    if hasattr(recipe, "alpha"):
        hyperparameters["alpha"] = recipe.alpha
    if loss is not None:
        if resolved.verb == "online_dpo":
            hyperparameters["loss"] = loss.name
        hyperparameters.update({f"loss.{key}": value for key, value in loss.parameters.items()})
        if loss.weights is not None:
            hyperparameters["loss"] = loss.name
        if (file := getattr(loss, "file", None)) is not None:
            digest = built.identities["contents of loss.file"]
            hyperparameters["loss.file"] = f"{Path(file).name} (SHA-256 {digest[:16]})"
    if recipe.use_peft:  # an adapter that was trained further has its own
        adapter: Any = built.stage.policy.model.peft_config[ADAPTER]  # type: ignore[index]
        hyperparameters.update({"lora_r": adapter.r, "lora_alpha": adapter.lora_alpha})
    head = head_of(built.stage.policy.model)
    return Card(
        name=Path(recipe.output_dir).name,
        verb=_method(resolved.verb, loss),
        command=shlex.join(command),
        base_model=recipe.model_name_or_path,
        datasets=[spec.path for spec in recipe.train_specs()],
        data=[rows.summary for rows in built.rows],
        hyperparameters=hyperparameters,
        results={k: v for k, v in results.items() if isinstance(v, (int, float))},
        adapter=recipe.use_peft,
        conversational=bool(built.tokenizer.chat_template),
        kind="text-generation" if head is None else "text-classification",
        offset=0.0 if head is None else head.offset,
        classes=() if head is None else tuple(str(label) for label in head.labels),
        end=_end(built.tokenizer),
    )


def _method(verb: str, loss: Any) -> str:
    """What the card says the model was trained with: the verb, or the loss of a preference verb."""
    return verb if loss is None or verb == "online_dpo" else loss.schema_.name


def _end(tokenizer: Any) -> str:
    """What stands behind a whole text and has to be written there: the end token, or nothing."""
    added = tokenizer("a").input_ids[-1] == tokenizer.eos_token_id
    return "" if added else tokenizer.eos_token or ""


def _write_card(folder: Path, content: Card) -> None:
    write_model_card(folder, content)


def table(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Held-out metrics as aligned lines: name, before, after, with 95 % intervals."""
    watched = [n for n in after if n.startswith("eval_watch/") and n.endswith("/mean")]
    names = [name for name in SHOWN if name in after] + watched
    if not names:
        return []
    width = max(len(name) for name in names)
    lines = [f"{'held-out':<{width}}  {'before':>26}  {'after':>26}"]
    lines += [
        f"{name:<{width}}  {_cell(before, name):>26}  {_cell(after, name):>26}" for name in names
    ]
    if recall := after.get("eval_recall"):
        shares = [f"{name} {share:.4g}" for name, share in list(recall.items())[:MOST_CLASSES]]
        more = ", ..." if len(recall) > MOST_CLASSES else ""
        lines.append(f"recall by class: {', '.join(shares)}{more}")
    return lines


def _cell(record: dict[str, Any], name: str) -> str:
    if name not in record:
        return "-"
    text = f"{record[name]:.4g}"
    interval = record.get(f"{name}_ci95")
    return text if interval is None else f"{text} [{interval[0]:.4g}, {interval[1]:.4g}]"
