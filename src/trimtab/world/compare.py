"""``python -m trimtab.world.compare``: ppo, grpo, rloo and dpo from one sft model, at equal KL.

Every run starts as the demo's sft model. The on-policy ones are judged by its reward model, with
the ptx term (text of pretraining in every step) and without; dpo learns from its pairs, held near
sft by three strengths. Along the way every model tells stories on the same held-out requests:

    gold, learned   the reward that is computed from the text, and the reward model's
    KL              to sft, on the model's own stories (k1), in nats a story
    text loss       on held-out text of pretraining, in nats a token: what alignment costs

``compare.md`` has the tables, ``compare.json`` every curve, the two ``.svg`` draw them.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from trimtab.training.files import write_atomic
from trimtab.world.command import begin, exit_code, require_positive
from trimtab.world.compare_report import Point, Run, charts, report
from trimtab.world.corpus import held_out_requests, pretrain_documents
from trimtab.world.demo_stages import PAIR_RATE, PASSES, on_policy, ptx
from trimtab.world.demo_stories import Storyteller, story_trees
from trimtab.world.gold import gold_reward

DOCUMENTS = 128  # of held-out text
STORIES = 64  # of a rollout


@dataclasses.dataclass(frozen=True)
class Arm:
    """A way to align: its verb, keys beside the common ones, and how many steps a point.

    ``per_prompt`` stories are told on a request, ``mixed`` adds the ptx term.
    """

    verb: Literal["ppo", "grpo", "rloo", "dpo"]
    keys: Mapping[str, Any]
    steps: int
    per_prompt: int = 1
    mixed: bool = False


_PPO = Arm("ppo", {"num_ppo_epochs": PASSES, "kl_coef": 0.05}, PASSES * 4)
_GRPO = Arm("grpo", {"num_iterations": PASSES}, PASSES * 4, per_prompt=8)
# Its estimator has no ratio: a rollout is good for one step. As many take the time of ppo's passes.
_RLOO = Arm("rloo", {}, 12, per_prompt=4)
ARMS = {
    name: arm
    for plain, base in (("ppo", _PPO), ("grpo", _GRPO), ("rloo", _RLOO))
    for name, arm in (
        (plain, dataclasses.replace(base, mixed=True)),
        (f"{plain} without ptx", base),
    )
} | {f"dpo beta={beta:g}": Arm("dpo", {"beta": beta}, 16) for beta in (0.1, 0.03, 0.3)}


@dataclasses.dataclass(frozen=True)
class Settings:
    """How large the comparison is."""

    points: int = 4  # evaluations of a run, the last at its end
    requests: int = 128  # held out
    tellings: int = 2  # stories on each
    seed: int = 0


def recipe_keys(name: str, demo: Path, folder: Path, settings: Settings) -> dict[str, Any]:
    """The keys of one run, which is trained in ``folder``."""
    arm = ARMS[name]
    common: dict[str, Any] = {
        "seed": settings.seed,
        "precision": "fp32",
        "eval_steps": None,
        "sample_prompts": 0,
        "logging_steps": max(1, arm.steps // 4),
        "save_steps": arm.steps,
        "save_total_limit": None,  # every point is a checkpoint
        "max_steps": arm.steps * settings.points,
        "threads": 1,
        "self_check": False,
        "quiet": True,
        "restart": True,  # what was interrupted: a part of it has no time to compare
        "cache_dir": str(folder.parent / "cache"),
        "output_dir": str(folder),
    }
    if arm.verb == "dpo":
        return {
            **common,
            "model_name_or_path": str(demo / "sft"),
            "dataset_name": str(demo / "data" / "pairs.jsonl"),
            "max_length": 256,
            "per_device_train_batch_size": 16,
            "learning_rate": PAIR_RATE,
            **arm.keys,
        }
    if arm.mixed:
        common["mix"] = ptx(demo)
    return {
        **on_policy(demo, common, STORIES // arm.per_prompt),
        "num_generations": arm.per_prompt,
        **arm.keys,
    }


class Examiner:
    """Asks every model the same requests, and how likely the same text is to it."""

    def __init__(self, demo: Path, settings: Settings) -> None:
        from trimtab.rewards.reward_model import RewardModel

        self.settings = settings
        self.reference = Storyteller(demo / "sft")
        self.judge = RewardModel.load(demo / "reward")
        # Requests and text that neither the demo's stages nor its result have seen.
        self.requests = held_out_requests(settings.requests, settings.seed + 2)
        self.documents = pretrain_documents(DOCUMENTS, settings.seed + 2)

    def point(self, folder: Path | None, step: int, cpu_seconds: float) -> Point:
        """What the model in a folder (None: sft itself) is worth after ``step`` steps."""
        s = self.settings
        model = self.reference if folder is None else Storyteller(folder)
        told = model.tell(self.requests, s.tellings, s.seed, "compare")
        ours = [one.logprob for one in told]
        theirs = ours if folder is None else self.reference.logprobs(told)
        columns = {
            "gold": [gold_reward(one.request, one.story).total for one in told],
            "learned": [one for (one,) in self.judge.score_trees(story_trees(told))],
            "kl": [a - b for a, b in zip(ours, theirs, strict=True)],
            "length": [float(len(one.ids)) for one in told],
        }
        means = {
            name: [
                sum(values[i : i + s.tellings]) / s.tellings
                for i in range(0, len(values), s.tellings)
            ]
            for name, values in columns.items()
        }
        return Point(step, cpu_seconds, **means, text=model.text_loss(self.documents))


def run(name: str, demo: Path, folder: Path, settings: Settings, examiner: Examiner) -> Run:
    """Train one arm and examine its checkpoints; a second call reads what the first one found.

    ``cpu_seconds`` of a point is the share of the run's processor time (one thread, loading and
    sampling included, evaluations not) that its steps took.
    """
    import trimtab

    place = folder / name.replace(" ", "-").replace("=", "-")
    path = place / "points.json"
    if path.exists():
        return Run.read(path)
    keys = recipe_keys(name, demo, place, settings)
    began = time.process_time()
    done = getattr(trimtab, ARMS[name].verb)(**keys)
    seconds = time.process_time() - began
    if done.interrupted:
        raise KeyboardInterrupt
    steps = [ARMS[name].steps * (number + 1) for number in range(settings.points)]
    points = [
        examiner.point(place / f"checkpoint-{step}", step, seconds * step / steps[-1])
        for step in steps
    ]
    return _kept(path, Run(name, points))


def start(folder: Path, examiner: Examiner) -> Point:
    """What sft is worth, examined once."""
    path = folder / "sft" / "points.json"
    if path.exists():
        return Run.read(path).points[0]
    path.parent.mkdir(parents=True, exist_ok=True)
    return _kept(path, Run("sft", [examiner.point(None, 0, 0.0)])).points[0]


def _kept(path: Path, found: Run) -> Run:
    write_atomic(path, json.dumps(found.record()).encode())
    return found


def compare(demo: Path, folder: Path, settings: Settings) -> None:
    """Run what is not done yet, one run after the other; then write tables, curves and charts."""
    begin("comparison", demo, folder, dataclasses.asdict(settings), models=("sft", "reward"))
    examiner = Examiner(demo, settings)
    sft = start(folder, examiner)
    runs: list[Run] = []
    for number, name in enumerate(ARMS, 1):
        found = run(name, demo, folder, settings, examiner)
        runs.append(found)
        last = found.points[-1]
        print(
            f"[{number}/{len(ARMS)}] {name}: {last.cpu_seconds:.0f} s of CPU time, gold "
            f"{_mean(last.gold):.3f}, learned {_mean(last.learned):.2f}, KL {_mean(last.kl):.1f}, "
            f"text loss {last.text_loss():.3f}",
            flush=True,
        )
    text, record = report(sft, runs)
    record = {"settings": dataclasses.asdict(settings), **record}
    write_atomic(folder / "compare.json", json.dumps(record, indent=1).encode())
    write_atomic(folder / "compare.md", text.encode())
    for name, drawn in charts(sft, runs).items():
        write_atomic(folder / f"{name}.svg", drawn.encode())
    print(f"\n{text}\nThe curves are in {folder / 'compare.json'}, drawn in {folder}/*.svg")


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def main() -> int:
    """Returns the exit code: 2 for what was asked wrongly, 130 after Ctrl-C."""
    size = Settings()
    parser = argparse.ArgumentParser(
        prog="python -m trimtab.world.compare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--demo", default="runs/demo", type=Path, help="folder of a finished demo")
    parser.add_argument("--output-dir", default="runs/compare", type=Path, help="of all runs")
    parser.add_argument("--points", default=size.points, type=int, help="evaluations of a run")
    parser.add_argument("--requests", default=size.requests, type=int, help="held out")
    parser.add_argument("--tellings", default=size.tellings, type=int, help="stories on each")
    parser.add_argument("--seed", default=size.seed, type=int, help="of training and sampling")
    chosen = vars(parser.parse_args())
    demo, folder = chosen.pop("demo"), chosen.pop("output_dir")

    def work() -> None:
        require_positive(chosen, zero=["seed"])
        compare(demo, folder, Settings(**chosen))

    return exit_code(work)


if __name__ == "__main__":
    sys.exit(main())
