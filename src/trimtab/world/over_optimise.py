"""``python -m trimtab.world.over_optimise``: a learned reward optimised until it means nothing.

The demo's sft model is trained with PPO on a small reward model from few rankings, with next to no
KL penalty and for long; the gold reward is watched and optimised by nobody. The learned reward (the
proxy) rises to the end, the gold reward rises and then falls. Written to the output folder:

    curve.json   proxy, gold, KL and lengths of every evaluation on held-out requests; the peak of
                 the gold reward; when a diagnosis fired, and what was lost by then
    curve.svg    proxy and gold as shares of their largest gains
    reward/ ppo/ the two runs, with metrics.jsonl and diagnoses.json

The same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import trimtab
from trimtab.algorithms.diagnosis.told import Diagnoses
from trimtab.report.charts import Axis, Point, Series, line_chart
from trimtab.training import files
from trimtab.training.metrics import read_metrics
from trimtab.training.run_folder import finished_recipe
from trimtab.world.calibrate import train
from trimtab.world.command import begin, exit_code, require_positive
from trimtab.world.corpus import held_out_requests, kwise_rows, train_requests, write_jsonl

GOLD = "eval_watch/gold/mean"
PASSES = 2  # over a rollout
SHOWN = ("reward", "watch/gold/mean", "kl", "length", "completions/repetition")


@dataclasses.dataclass(frozen=True)
class Settings:
    """How weak the proxy is, and how long and how loosely it is optimised."""

    rankings: int = 200
    share: float = 0.25  # of the policy's weights
    rollouts: int = 56
    prompts: int = 96  # a rollout
    kl_coef: float = 0.002
    learning_rate: float = 2e-4
    requests: int = 96  # held out
    evaluations: int = 16
    seed: int = 0


def over_optimise(demo: Path, folder: Path, settings: Settings) -> dict[str, Any]:
    """Train the proxy and the policy, as far as that is not done; returns what curve.json holds."""
    begin("run", demo, folder, dataclasses.asdict(settings), models=("pretrain", "sft"))
    if finished_recipe(folder / "reward" / "model") is None:
        train(
            demo / "pretrain",
            kwise_rows(settings.rankings, settings.seed),
            folder / "reward",
            seed=settings.seed,
            num_train_epochs=4,
            per_device_train_batch_size=4,
            backbone={"share": settings.share},
        )
    if finished_recipe(folder / "ppo") is None:
        run = trimtab.ppo(**ppo_keys(demo, folder, settings))
        if run.interrupted:
            raise KeyboardInterrupt
    found = summarise(diagnosed(read_metrics(folder / "ppo" / "metrics.jsonl")))
    found = {"settings": dataclasses.asdict(settings), **found}
    files.write_atomic(folder / "curve.json", (json.dumps(found, indent=1) + "\n").encode())
    files.write_atomic(folder / "curve.svg", chart(found).encode())
    return found


def ppo_keys(demo: Path, folder: Path, settings: Settings) -> dict[str, Any]:
    """Keys of ``trimtab ppo``; writes the requests."""
    prompts, held_out = folder / "prompts.jsonl", folder / "prompts_eval.jsonl"
    count = min(4096, settings.rollouts * settings.prompts)
    write_jsonl(prompts, [{"prompt": one} for one in train_requests(count, settings.seed)])
    asked = held_out_requests(settings.requests, settings.seed + 7)
    write_jsonl(held_out, [{"prompt": one} for one in asked])
    steps = settings.rollouts * PASSES
    return {
        "model_name_or_path": str(demo / "sft"),
        "dataset_name": str(prompts),
        "eval_dataset_name": str(held_out),
        "reward_model": str(folder / "reward" / "model"),
        "watch_funcs": ["trimtab.world.reward:gold"],
        "metric_for_best_model": GOLD,
        "max_completion_length": 130,
        "per_device_train_batch_size": settings.prompts,
        "num_ppo_epochs": PASSES,
        "max_steps": steps,
        "kl_coef": settings.kl_coef,
        "learning_rate": settings.learning_rate,
        "logging_steps": PASSES,  # a rollout a line
        "eval_steps": max(PASSES, steps // settings.evaluations // PASSES * PASSES),
        "sample_prompts": 2,
        "sample_max_new_tokens": 130,
        "precision": "fp32",
        "threads": 1,
        "seed": settings.seed,
        "cache_dir": str(folder / "cache"),
        "output_dir": str(folder / "ppo"),
    }


# ---------------------------------------------------------------------- what came of it


def diagnosed(records: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """A log with the diagnoses that today's rules give, in the place of those that it holds."""
    diagnoses = Diagnoses()
    found: list[Mapping[str, Any]] = []
    for record in records:
        if "diagnosis" not in record:
            found += [record, *(one.record() for one in diagnoses.add(record))]
    return found


def summarise(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The curve on held-out requests, the peak of gold, and each diagnosis with what it cost.

    ``lost`` is what the gold reward had fallen below its peak at the first evaluation after the
    diagnosis, as a share of its gain from the start to the peak; 0 where the peak came later.
    """
    evaluated = [record for record in records if GOLD in record]
    curve = [_point(record) for record in evaluated]
    gold = [point["watch/gold/mean"] for point in curve]
    best = max(range(len(gold)), key=gold.__getitem__)
    gain = gold[best] - gold[0]
    diagnoses: list[dict[str, Any]] = []
    for record in records:
        if "diagnosis" not in record:
            continue
        after = [i for i, point in enumerate(curve) if point["step"] >= record["step"]]
        seen = after[0] if after else len(curve) - 1
        fallen = gold[best] - gold[seen] if seen > best else 0.0
        diagnoses.append({**record, "gold": gold[seen], "lost": fallen / gain if gain > 0 else 0.0})
    last = (gold[best] - gold[-1]) / gain if gain > 0 else 0.0
    return {
        "intervals": "95 %, over requests",
        "curve": curve,
        "peak": {"step": curve[best]["step"], "gold": gold[best], "gain": gain},
        "lost_at_the_end": last,
        "diagnoses": diagnoses,
    }


def _point(record: Mapping[str, Any]) -> dict[str, Any]:
    names = [*SHOWN, *(f"{name}_ci95" for name in SHOWN)]
    held = {name: record[f"eval_{name}"] for name in names if f"eval_{name}" in record}
    return {"step": record["step"], **held}


def table(found: Mapping[str, Any]) -> list[str]:
    """The curve as a Markdown table, and a line for the peak and each diagnosis."""
    lines = [
        "| step | learned reward (proxy) | gold reward | KL to sft, nats | tokens | repetition |",
        "|---" * 6 + "|",
    ]
    for point in found["curve"]:
        cells = [_cell(point, name) for name in SHOWN]
        lines.append(f"| {point['step']} | {' | '.join(cells)} |")
    peak = found["peak"]
    lines += [
        "",
        f"gold reward highest at step {peak['step']}: {peak['gold']:.3f}, a gain of "
        f"{peak['gain']:.3f}; at the end {found['lost_at_the_end']:.0%} of that is lost",
    ]
    lines += [
        f"step {one['step']}, {one['diagnosis']} ({one['lost']:.0%} of the gain lost): "
        f"{one['says']}"
        for one in found["diagnoses"]
    ]
    return lines


def _cell(point: Mapping[str, Any], name: str) -> str:
    interval = point.get(f"{name}_ci95")
    # Rounded first: a KL of 1e-7, at the start, is 0.
    ends = (
        ""
        if interval is None
        else " [{:.3g}, {:.3g}]".format(*(round(end, 3) + 0.0 for end in interval))
    )
    return f"{round(point[name], 3) + 0.0:.3g}{ends}"


def chart(found: Mapping[str, Any]) -> str:
    """Proxy and gold over steps, each from 0 at the start to 1 at its highest; the diagnoses."""
    curve = found["curve"]
    series = [
        Series("learned reward (proxy)", _shares(curve, "reward")),
        Series("gold reward", gold := _shares(curve, "watch/gold/mean")),
    ]
    fired = [
        Point(one["step"], _between(gold, one["step"]), hint=f"{one['diagnosis']}: {one['says']}")
        for one in found["diagnoses"]
    ]
    if fired:
        series.append(Series("diagnosis, on the gold reward", fired, joined=False))
    return line_chart(
        series,
        title="Over-optimisation: the proxy rises, the gold reward falls",
        x=Axis("optimizer steps", 0.0),
        y=Axis("share of the largest gain", percent=True),
    )


def _shares(curve: Sequence[Mapping[str, Any]], name: str) -> list[Point]:
    start, top = curve[0][name], max(point[name] for point in curve)
    scale = max(top - start, 1e-12)

    def share(value: float) -> float:
        return (value - start) / scale

    return [
        Point(
            point["step"],
            share(point[name]),
            *(share(end) for end in point.get(f"{name}_ci95", ())),
            hint=f"step {point['step']}: {point[name]:.3f}",
        )
        for point in curve
    ]


def _between(points: Sequence[Point], x: float) -> float:
    """Linear interpolation; the ends go on as they are."""
    for one, other in itertools.pairwise(points):
        if one.x <= x <= other.x:
            return one.y + (other.y - one.y) * (x - one.x) / max(other.x - one.x, 1e-12)
    return points[-1].y if x > points[-1].x else points[0].y


# ---------------------------------------------------------------------- the command


def main() -> int:
    """Returns the exit code: 2 for what was asked wrongly, 130 after Ctrl-C."""
    size = Settings()
    parser = argparse.ArgumentParser(
        prog="python -m trimtab.world.over_optimise",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--demo", default="runs/demo", type=Path, help="folder of a finished demo")
    parser.add_argument(
        "--output-dir", default="runs/over-optimise", type=Path, help="of both runs"
    )
    about = {
        "rankings": "of four stories each, that the proxy learns from",
        "share": "of the policy's weights that the proxy has",
        "rollouts": f"of PPO, with {PASSES} passes over each",
        "prompts": "a rollout",
        "kl_coef": "strength of the KL penalty",
        "learning_rate": "of PPO",
        "requests": "held out, for evaluations",
        "evaluations": "during the run",
        "seed": "of rows, prompts and sampling",
    }
    for name, value in dataclasses.asdict(size).items():
        option = f"--{name.replace('_', '-')}"
        parser.add_argument(option, default=value, type=type(value), help=about[name])
    chosen = vars(parser.parse_args())
    demo, folder = chosen.pop("demo"), chosen.pop("output_dir")

    def work() -> None:
        require_positive(chosen, zero=["kl_coef", "seed"])
        found = over_optimise(demo, folder, Settings(**chosen))
        ends = f"{folder / 'curve.json'}, {folder / 'curve.svg'}"
        print("\n".join(["", *table(found), "", ends]))

    return exit_code(work)


if __name__ == "__main__":
    sys.exit(main())
