"""``trimtab demo``: the ladder on a laptop, in one process.

tokenizer → pretrain → sft → rankings of the sft model's own stories → a reward model and ppo with
it; dpo, simpo, orpo on pairs of them, and orpo straight from the pretrained model → every model
asked the same held-out requests.

Text, demonstrations and preferences come from the world in this package, so that the gold reward
of every model's stories can be computed exactly, on requests that no training row combines. Every
stage leaves files, and an interrupted demo goes on from them.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import mean
from typing import Any

from trimtab.errors import UsageError
from trimtab.report.demo_charts import frontier_chart
from trimtab.report.demo_file import Summary
from trimtab.report.page import report_line
from trimtab.training.files import write_atomic
from trimtab.world.corpus import (
    held_out_requests,
    pretrain_documents,
    sft_rows,
    train_requests,
    write_jsonl,
)
from trimtab.world.demo_frontier import SHARE, frontier, on_the_way, place_of, waypoint
from trimtab.world.demo_report import (
    KL_ESTIMATOR,
    REFERENCE,
    before_and_after,
    measure,
    summarise,
    table,
)
from trimtab.world.demo_stages import ALIGNED, FAST, FULL, RANKED_SAY, SAMPLES, Size, Stage, stages
from trimtab.world.demo_stories import (
    Storyteller,
    best_and_worst,
    ranked,
    read_stories,
    story_trees,
    write_stories,
)
from trimtab.world.gold import gold_reward


def run_demo(*, output_dir: str, seed: int = 0, seeds: int = 1, fast: bool = False) -> int:
    """Run the demo into ``output_dir``; returns the exit code, 130 after Ctrl-C.

    ``seeds`` above 1 climbs the whole ladder so many times, in folders seed-0, seed-1 and so on.
    A finished demo is refused, and so is a folder with a demo of other settings.
    """
    if seeds < 1:
        raise UsageError(f"--seeds {seeds}: must be at least 1")
    folder = Path(output_dir)
    if (folder / "summary.json").exists():
        raise UsageError(
            f"output_dir={folder}: holds a finished demo; remove it, or give another --output-dir"
        )
    start = time.perf_counter()
    size = FAST if fast else FULL
    _same_settings(folder, {"seed": seed, "seeds": seeds, "fast": fast})
    _say(
        f"trimtab demo: from no model at all to aligned ones, into {folder}, seed {seed}"
        + (f" to {seed + seeds - 1}" if seeds > 1 else "")
    )
    command = ["trimtab", "demo", "--output-dir", str(folder), "--seed", str(seed)]
    command += ["--seeds", str(seeds)] * (seeds > 1) + ["--fast"] * fast
    # The same requests for all seeds: their difficulty then is not taken for a seed's.
    requests = held_out_requests(size.requests, seed)
    ladders: list[dict[str, list[dict[str, Any]]]] = []
    for one in range(seed, seed + seeds):
        place = folder if seeds == 1 else folder / f"seed-{one}"
        if seeds > 1:
            _say(f"\n======== seed {one}")
        try:
            told = _ladder(place, size, one, requests, command)
        except KeyboardInterrupt:  # while stories were sampled, say
            told = None
        if told is None:
            _say("stopped; the same command goes on from there")
            return 130
        ladders.append(told)
    summary = _summary(ladders, size, {"seed": seed, "seeds": seeds, "fast": fast})
    summary["seconds"] = round(time.perf_counter() - start, 1)
    _report(summary, ladders[0], folder)
    drawn = frontier_chart(Summary.model_validate(summary))
    if drawn is not None:
        write_atomic(folder / "frontier.svg", drawn.encode())
    # Last: this file says that the demo is finished.
    write_atomic(folder / "summary.json", (json.dumps(summary, indent=1) + "\n").encode())
    _say(report_line(folder))
    _say(_next_steps(folder, folder if seeds == 1 else folder / f"seed-{seed}", summary["seconds"]))
    return 0


def _ladder(
    folder: Path, size: Size, seed: int, requests: Sequence[str], command: list[str]
) -> dict[str, list[dict[str, Any]]] | None:
    """Every rung of one seed; the stories of every model, or None where Ctrl-C ended it."""
    _write_rows(folder / "data", size, seed)
    runs = stages(folder, size, seed)
    total = len(runs) + 2
    for number, stage in enumerate(runs[:2], 1):
        _say(f"\n[{number}/{total}] {stage.name}: {stage.says}")
        if not _trained(stage, folder, command):
            return None
    _say(f"\n[3/{total}] rankings: {RANKED_SAY.format(samples=SAMPLES, asked=size.asked)}")
    _write_rankings(folder, size, seed)
    for number, stage in enumerate(runs[2:], 4):
        _say(f"\n[{number}/{total}] {stage.name}: {stage.says}")
        if not _trained(stage, folder, command):
            return None
    _say(
        f"\n[{total}/{total}] result: every model tells {size.tellings} "
        f"{'stories' if size.tellings > 1 else 'story'} on each of {size.requests} requests that "
        "no training row combines"
    )
    tellers = [stage.name for stage in runs if stage.verb != "reward"]
    told = _ask_all(folder, {name: folder / name for name in tellers}, size, seed, requests)
    few = requests[: max(1, len(requests) // SHARE)]
    told |= _ask_all(folder, _waypoints(folder), size, seed, few)
    return told


def _waypoints(folder: Path) -> dict[str, Path]:
    """The checkpoints of aligned models on their way."""
    return {
        waypoint(name, step): path
        for name in ALIGNED
        for step, path in on_the_way(folder, name).items()
    }


def _trained(stage: Stage, folder: Path, command: list[str]) -> bool:
    """Train a stage, unless that is done; False where Ctrl-C ended it."""
    record = folder / stage.name / "run.json"
    if record.exists() and json.loads(record.read_text())["state"] == "finished":
        _say("done in an earlier start")
        return True
    # Not at the top: they import torch, and the first line should be there before that.
    from trimtab.algorithms.run import train
    from trimtab.config.resolve import recipe_from_kwargs

    return not train(recipe_from_kwargs(stage.verb, **stage.keys), command=command).interrupted


def _same_settings(folder: Path, settings: dict[str, Any]) -> None:
    """A folder holds one demo: refuse to go on with another seed or size."""
    path = folder / "demo.json"
    if path.exists() and json.loads(path.read_text()) != settings:
        raise UsageError(
            f"output_dir={folder}: holds an unfinished demo with {path.read_text().strip()}; "
            "remove it, give the same options, or another --output-dir"
        )
    if not path.exists() and folder.exists() and any(folder.iterdir()):
        raise UsageError(
            f"output_dir={folder}: holds something else than a demo; give another --output-dir"
        )
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(path, (json.dumps(settings) + "\n").encode())


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


# ---------------------------------------------------------------------- data


def _write_rows(folder: Path, size: Size, seed: int) -> None:
    """The world's rows as files, as a user would bring them."""
    rows: dict[str, Sequence[Any]] = {
        "text": [{"text": text} for text in pretrain_documents(size.documents, seed)],
        "answers": sft_rows(size.demonstrations, seed),
        "text_eval": [{"text": text} for text in pretrain_documents(64, seed + 1)],
        "answers_eval": sft_rows(64, seed, split="held_out"),
        # Behind those that stories are ranked on: ppo's are requests that no ranking answers.
        "prompts": [
            {"prompt": request}
            for request in train_requests(size.asked + size.ppo_prompts, seed)[size.asked :]
        ],
    }
    for name, part in rows.items():
        write_jsonl(folder / f"{name}.jsonl", part)


def _write_rankings(folder: Path, size: Size, seed: int) -> None:
    """Rankings of the sft model's own stories by a simulated annotator, and pairs of them."""
    data = folder / "data"
    if (data / "pairs_eval.jsonl").exists():  # written last
        _say("done in an earlier start")
        return
    model = Storyteller(folder / "sft")
    for end, requests in (
        ("", train_requests(size.asked, seed)),
        ("_eval", held_out_requests(size.pairs_eval, seed + 1)),
    ):
        with _progress("stories", len(requests) * SAMPLES) as done:
            told = model.tell(requests, SAMPLES, seed, f"demo rankings{end}", done)
        samples = [
            [one.story for one in told[first : first + SAMPLES]]
            for first in range(0, len(told), SAMPLES)
        ]
        rows = ranked(requests, samples, seed)
        write_jsonl(data / f"rankings{end}.jsonl", rows)
        write_jsonl(data / f"pairs{end}.jsonl", best_and_worst(rows))


@contextmanager
def _progress(title: str, total: int) -> Iterator[Callable[[int], None]]:
    from trimtab.training.progress import Progress

    with Progress(0, "demo") as progress:
        progress.stage(title, total)
        yield progress.update


# ---------------------------------------------------------------------- result


def _ask_all(
    folder: Path, models: Mapping[str, Path], size: Size, seed: int, requests: Sequence[str]
) -> dict[str, list[dict[str, Any]]]:
    """The stories of every model on the same requests, ``tellings`` of each, kept as files.

    ``models`` has their folders by name.
    """
    paths = {name: folder / "stories" / f"{name}.jsonl" for name in models}
    todo = [name for name in models if not paths[name].exists()]
    if todo:
        from trimtab.rewards.reward_model import RewardModel

        reference = Storyteller(folder / REFERENCE)
        judge = RewardModel.load(folder / "reward")
    for name in todo:
        model = reference if name == REFERENCE else Storyteller(models[name])
        with _progress(name, len(requests) * size.tellings) as done:
            # The same purpose for all: models that agree then tell the same story.
            told = model.tell(requests, size.tellings, seed, "demo result", done)
        ours = [one.logprob for one in told]
        theirs = ours if name == REFERENCE else reference.logprobs(told)
        ratios = [a - b for a, b in zip(ours, theirs, strict=True)]
        learned = [reward for (reward,) in judge.score_trees(story_trees(told))]
        write_stories(paths[name], told, ratios, learned)
    return {name: read_stories(path) for name, path in paths.items()}


def _summary(
    ladders: Sequence[Mapping[str, list[dict[str, Any]]]], size: Size, settings: dict[str, Any]
) -> dict[str, Any]:
    rows = sft_rows(500, settings["seed"], split="held_out")
    models = [
        {name: stories for name, stories in told.items() if place_of(name) is None}
        for told in ladders
    ]
    return {
        **settings,
        "requests": size.requests,
        "tellings": size.tellings,
        "intervals": f"95 %, bootstrap over {_over(settings['seeds'])}",
        "kl": KL_ESTIMATOR,
        "stages": {stage.name: stage.says for stage in stages(Path(), size, settings["seed"])},
        "demonstrations_gold_reward": mean(
            gold_reward(row["prompt"], row["completion"]).total for row in rows
        ),
        "models": summarise([measure(told, size.tellings) for told in models]),
        "frontier": frontier(ladders, size.tellings),
    }


def _over(seeds: int) -> str:
    return "requests and seeds" if seeds > 1 else "requests"


def _report(
    summary: dict[str, Any], told: Mapping[str, list[dict[str, Any]]], folder: Path
) -> None:
    _say(
        f"\nMeans with 95 % intervals over {_over(summary['seeds'])}; "
        "gold reward is 0 to 1, computed from the text:\n"
    )
    for line in table(summary["models"], summary["demonstrations_gold_reward"]):
        _say(line)
    _say(
        "\nThe first three requests, before alignment (sft) and after it (dpo, ppo), with the gold "
        "reward of each story:"
    )
    for line in before_and_after(told, ("sft", "dpo", "ppo"), summary["tellings"]):
        _say(line)


def _next_steps(folder: Path, ladder: Path, seconds: float) -> str:
    return f"""
{seconds:.0f} s. The numbers are in {folder / "summary.json"}, every story in {ladder / "stories"};
{folder / "frontier.svg"} draws the reward that each method gained for the distance it went.
What to run next:
  trimtab data inspect {ladder / "data" / "pairs.jsonl"} --model {ladder / "sft"}
      what the preference stages saw, token by token
  trimtab dpo --model-name-or-path {ladder / "sft"} --dataset-name my_pairs.jsonl
      the same on your own pairs: rows with prompt, chosen and rejected
  trimtab compare recipes/compare/tiny.yaml --jobs 2
      ppo, dpo and the best of n from runs/demo/sft, compared (two minutes); docs/comparison.md
  trimtab dpo --help
      every key; recipes/tiny has small recipes, docs/smollm2.md aligns a real model"""
