"""From the runs of a benchmark to figures: medians, ratios, the share of the machine's limit."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks import on_policy as replay
from trimtab.plan import flops
from trimtab.plan.flops import Shape, training, tree_of

WITH_REFERENCE = ("dpo",)

DTYPES = {"fp32": "float32", "bf16": "bfloat16"}

# Largest difference in the first step's loss (nats), in DPO's log-probs (relative) and in mean
# scores, between arms that compute the same. In bf16 every layer rounds to 8 bits.
LOSS_LIMIT = 1e-4
LOSS_LIMIT_BF16 = 2e-2


def seconds_per_row(run: Mapping[str, Any], warmup: int) -> float:
    """Of the timed steps, and of the reference pass over all rows where there was one."""
    steps = sum(run["step_seconds"][warmup:]) / sum(run["rows"][warmup:])
    if not run["reference_rows"]:
        return steps
    return steps + run["reference_seconds"] / run["reference_rows"]


def useful_per_row(
    shape: Shape,
    verb: str,
    trees: Sequence[Sequence[Mapping[str, Any]]],
    lora_rank: int | None,
    passes: int = 1,
) -> float:
    """Useful operations of a row, over the given steps; of a response in the on-policy cases."""
    every = [tree_of(tree) for step in trees for tree in step]
    if verb in replay.VERBS:
        total = flops.on_policy(shape, every, passes=passes, critic=verb == "ppo")
        return total / sum(len(tree.branches) for tree in every)
    reference = verb in WITH_REFERENCE
    return training(shape, every, reference=reference, lora_rank=lora_rank) / len(every)


def arm_figures(runs: Sequence[Mapping[str, Any]], warmup: int) -> dict[str, Any]:
    """Medians over the runs of an arm."""

    def median(name: str) -> float:
        return statistics.median(run[name] for run in runs)

    found = {
        "runs": len(runs),
        "precision": runs[0]["precision"],
        "peak_mb": median("peak_mb"),
        "train_peak_mb": median("train_peak_mb"),
        "seconds_to_first_step": median("seconds_to_first_step"),
        "seconds_to_first_step_end": median("seconds_to_first_step_end"),
    }
    if sum(runs[0]["rows"][warmup:]) and warmup:
        every = [1.0 / seconds_per_row(run, warmup) for run in runs]
        found |= {
            "rows_per_second": statistics.median(every),
            "rows_per_second_range": [min(every), max(every)],
        }
    return found


def loss_gap(first: Mapping[str, Any], other: Mapping[str, Any], verb: str) -> dict[str, Any]:
    """Largest differences of what both sides logged, over the steps that both took.

    ``first_loss`` is before any update: the same weights and rows. ``loss`` also has the optimizer
    in it. DPO's first loss is ln 2 whatever the log-probs are, so those are compared as well; the
    other trainers log means where ours logs sums. Of a reward model also the mean score and the
    mean margin: a loss of random scores says little of each. On-policy runs log the steps over the
    rollout that both sides share; its ``checks`` are before any update.
    """
    pairs = list(zip(first["log"], other["log"], strict=False))
    found: dict[str, Any] = {
        "first_loss": abs(pairs[0][0]["loss"] - pairs[0][1]["loss"]),
        "loss": max(abs(a["loss"] - b["loss"]) for a, b in pairs),
        "logps_relative": None,
        "scores": None,
    }
    if verb in WITH_REFERENCE:
        found["logps_relative"] = max(
            abs(a[name] - b[name]) / abs(b[name])
            for a, b in pairs[:1]
            for name in ("logps/chosen", "logps/rejected")
        )
    if verb == "reward":
        ours, theirs = pairs[0]
        found["scores"] = max(abs(ours[n] - theirs[n]) for n in ("margin", "mean_reward"))
    if verb in replay.VERBS:
        found["checks"] = replay.gaps(first, other)
    return found


def disagreement(gap: Mapping[str, Any], precisions: set[str]) -> str | None:
    """Why two arms have not computed the same, in words; None where they have."""
    if "checks" in gap:
        return replay.disagreement(gap["checks"])
    limit = LOSS_LIMIT if precisions == {"fp32"} else LOSS_LIMIT_BF16
    for name in ("first_loss", "logps_relative", "scores"):
        value = gap[name]
        if value is not None and not value <= limit:
            return f"{name} differs by {value:.2g}, more than {limit:g}"
    return None


def case_figures(case: Mapping[str, Any], shape: Shape | None) -> dict[str, Any]:
    """All figures of a case: of each arm, and of the first arm against the others."""
    arms = {name: runs for name, runs in case["runs"].items() if runs}
    warmup = case["warmup_steps"]
    figures = {name: arm_figures(runs, warmup) for name, runs in arms.items()}
    names = list(figures)
    if not names:
        return {}
    base = figures[names[0]]
    for name in names:
        own = figures[name]
        if "trees" in arms[names[0]][0] and shape is not None and "rows_per_second" in own:
            own |= _limit(case, shape, arms, name, own)
        if name == names[0]:
            continue
        own["ratio_peak"] = base["peak_mb"] / own["peak_mb"]
        for key in ("seconds_to_first_step", "seconds_to_first_step_end"):
            own[f"ratio_{key}"] = base[key] / own[key]
        if "rows_per_second" in own:
            own["ratio_rows"] = base["rows_per_second"] / own["rows_per_second"]
        if case["measures"] != "startup":
            own["loss_gap"] = loss_gap(arms[names[0]][0], arms[name][0], case["verb"])
    return figures


def _limit(
    case: Mapping[str, Any],
    shape: Shape,
    arms: Mapping[str, Sequence[Mapping[str, Any]]],
    name: str,
    own: Mapping[str, Any],
) -> dict[str, Any]:
    rank = case["lora"]["r"] if case["arms"][name].get("lora") else None
    trees = next(runs for runs in arms.values() if "trees" in runs[0])[0]["trees"]
    timed = trees[case["warmup_steps"] : len(arms[name][0]["rows"])]
    useful = useful_per_row(shape, case["verb"], timed, rank, case["passes"])
    found: dict[str, Any] = {"useful_gflop_per_row": useful / 1e9}
    dtype = DTYPES[own["precision"]]
    measured = [m["rates"][dtype] for m in case["machine"]]
    if measured:
        rate = max(m["best_gflops"] for m in measured)
        found["machine_gflops"] = rate
        found["share_of_limit"] = useful / 1e9 * own["rows_per_second"] / rate
    return found


# ---------------------------------------------------------------------- Markdown

_HEAD = (
    "| case | arm | precision | rows/s | trimtab / arm | peak MB | trimtab / arm | of the limit "
    "| first-step loss differs by |\n|---|---|---|---|---|---|---|---|---|"
)
_START = (
    "| case | arm | s to the first step | trimtab / arm | s to its end | trimtab / arm |\n"
    "|---|---|---|---|---|---|"
)


def markdown(results: Mapping[str, Any]) -> str:
    """The results as a page."""
    machine = results["machine"]
    commits = ", ".join(
        sorted({c.get("commit", results["commit"]) for c in results["cases"].values()})
    )
    commits = commits or results["commit"]
    lines = [
        f"# {results['date']}: {machine['cpu']}, {results['threads']} threads",
        "",
        f"trimtab at {commits}; TRL 1.16.0 (PPO: 1.12.0); up to {results['repeats']} runs an arm, "
        "in turn, medians; `trimtab / arm` is trimtab's figure divided by the arm's. "
        "[README.md](../README.md) says what each column means.",
    ]
    cases = results["cases"]
    timed = {n: c for n, c in cases.items() if c["measures"] != "startup" and c["figures"]}
    started = {n: c for n, c in cases.items() if c["measures"] == "startup" and c["figures"]}
    if timed:
        lines += ["", "## Training", "", _HEAD]
        lines += [line for name, case in timed.items() for line in _training_rows(name, case)]
    if started:
        lines += ["", "## Time to the first step (5,000 rows)", "", _START]
        lines += [line for name, case in started.items() for line in _startup_rows(name, case)]
    if "help" in results:
        pages = results["help"]["median_seconds"]
        imports = ", ".join(results["help"]["imports_torch"]) or "none"
        lines += ["", "## Help", "", "| command | s |", "|---|---|"]
        lines += [f"| `{name}` | {seconds:.2f} |" for name, seconds in pages.items()]
        lines += ["", f"Pages that import torch: {imports}."]
    notes = [f"- {name}: {note}" for name, case in cases.items() for note in case["notes"]]
    if notes:
        lines += ["", "## Notes", "", *notes]
    return "\n".join(lines) + "\n"


def _training_rows(name: str, case: Mapping[str, Any]) -> list[str]:
    rows = []
    for arm, f in case["figures"].items():
        gap = f.get("loss_gap")
        cells = [
            name,
            arm,
            f["precision"],
            f"{f['rows_per_second']:.3g}",
            _cell(f.get("ratio_rows"), "{:.2f}"),
            f"{f['peak_mb']:.0f}",
            _cell(f.get("ratio_peak"), "{:.2f}"),
            _cell(f.get("share_of_limit"), "{:.0%}"),
            _cell(gap and gap["first_loss"], "{:.1e}"),
        ]
        rows.append("| " + " | ".join(cells) + " |")
    return rows


def _startup_rows(name: str, case: Mapping[str, Any]) -> list[str]:
    rows = []
    for arm, f in case["figures"].items():
        cells = [name, arm]
        for key in ("seconds_to_first_step", "seconds_to_first_step_end"):
            cells += [f"{f[key]:.1f}", _cell(f.get(f"ratio_{key}"), "{:.2f}")]
        rows.append("| " + " | ".join(cells) + " |")
    return rows


def _cell(value: Any, form: str) -> str:
    return "" if value is None else form.format(value)
