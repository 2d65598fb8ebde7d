"""``python -m trimtab.world.reward_study``: how large a reward model, and rankings or pairs.

Every run starts as the demo's pretrained model and learns by ``trimtab reward`` in one thread. All
of a seed's runs see the same requests in steps of as many comparisons, but where their line says
otherwise:

    full, half, quarter   rankings of K = 4 stories; at most this share of the policy's weights
    joined                the six pairs of each ranking, of one request one tree; half size
    pairs                 the same six pairs, each a row on its own; half size
    one pair              one pair of each ranking: equal requests and steps, a sixth of the
                          comparisons; half size
    other requests        as many pairs as ``pairs``, each on a request of its own; half size

Accuracy is on held-out requests that no row combines, stories of the teller that wrote the rows and
of the demo's sft model; a pair is right where the annotator's choice has the higher reward. Below
stands how often the gold reward itself has the annotator's order, and some of its parts alone.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from trimtab.evaluation.statistics import cluster_bootstrap, clustered_share
from trimtab.rewards.reward_model import RewardModel
from trimtab.training.files import write_atomic
from trimtab.world.annotators import rank_stories
from trimtab.world.calibrate import Tally, own_stories, rewards, tally, train
from trimtab.world.command import begin, exit_code, require_positive
from trimtab.world.corpus import (
    PreferenceRow,
    RankedRow,
    held_out_requests,
    kwise_rows,
    preference_rows,
)
from trimtab.world.draws import Draw
from trimtab.world.gold import WEIGHTS, gold_reward

K = 4
COMPARISONS = K * (K - 1) // 2  # of a ranking
BATCH = 4  # rankings a step
# Parts of the gold reward that single sentences show, without the request and the course of events.
SURFACE = ("kind", "ends", "unpadded")
Rows = Literal["rankings", "pairs", "one pair", "other requests"]


@dataclasses.dataclass(frozen=True)
class Arm:
    """A way to train: which rows, how many a step, of what size."""

    rows: Rows = "rankings"
    batch: int = BATCH
    joined: bool = False
    share: float = 0.5


ARMS = {
    "full": Arm(share=1.0),
    "half": Arm(),
    "quarter": Arm(share=0.25),
    "joined": Arm("pairs", joined=True),
    "pairs": Arm("pairs", BATCH * COMPARISONS),
    "one pair": Arm("one pair"),
    "other requests": Arm("other requests", BATCH * COMPARISONS),
}
# The tables: what is compared with the first of each.
SIZES = ("full", "half", "quarter")
LAYOUTS = ("half", "joined", "pairs", "one pair", "other requests")


@dataclasses.dataclass(frozen=True)
class Settings:
    """How large the study is."""

    rankings: int = 750
    epochs: int = 2
    seeds: int = 3
    requests: int = 500  # held out


# ---------------------------------------------------------------------- rows


def rows_of(kind: Rows, rankings: int, seed: int) -> list[RankedRow] | list[PreferenceRow]:
    """The training rows of one kind: rankings, or pairs that they hold, or as many other pairs."""
    if kind == "other requests":
        return preference_rows(rankings * COMPARISONS, seed)
    ranked = kwise_rows(rankings, seed, k=K)
    if kind == "rankings":
        return ranked
    # The stories of a row are in no order: its first two are any two.
    pairs = [(0, 1)] if kind == "one pair" else list(itertools.combinations(range(K), 2))
    return [_pair(row, *pair) for row in ranked for pair in pairs]


def _pair(row: RankedRow, one: int, other: int) -> PreferenceRow:
    best, worst = (one, other) if row["ranks"][one] < row["ranks"][other] else (other, one)
    stories = row["responses"]
    return {"prompt": row["prompt"], "chosen": stories[best], "rejected": stories[worst]}


def held_out(demo: Path, folder: Path, requests: int) -> dict[str, list[RankedRow]]:
    """Rankings to judge reward models by, the same for all: of the teller, and of the sft model."""
    path = folder / "held-out.json"
    if path.exists():
        return json.loads(path.read_text(encoding="utf-8"))
    asked = held_out_requests(requests, 1)
    own: list[RankedRow] = []
    for number, every in enumerate(own_stories(demo / "sft", asked, K, 0)):
        stories = list(dict.fromkeys(every))
        if len(stories) > 1:
            ranks = rank_stories(asked[number], stories, Draw("reward study", number))
            own.append({"prompt": asked[number], "responses": stories, "ranks": ranks})
    found = {"the teller": kwise_rows(requests, k=K, split="held_out"), "the sft model": own}
    write_atomic(path, json.dumps(found, ensure_ascii=False).encode())
    return found


# ---------------------------------------------------------------------- runs


def run(
    name: str,
    seed: int,
    settings: Settings,
    demo: Path,
    folder: Path,
    judged_by: Mapping[str, Sequence[RankedRow]],
) -> dict[str, Any]:
    """Train and judge one reward model; its record, which a second call reads.

    ``cpu_seconds`` is the processor time of the run (one thread) from the loading of the model to
    its saving, with the rows tokenised before and without the self-check.
    """
    arm, place = ARMS[name], folder / name.replace(" ", "-") / f"seed-{seed}"
    path = place / "result.json"
    if path.exists():
        return json.loads(path.read_text())
    rows = rows_of(arm.rows, settings.rankings, seed)
    keys: dict[str, Any] = {
        "seed": seed,
        "num_train_epochs": settings.epochs,
        "per_device_train_batch_size": arm.batch,
        "backbone": {"share": arm.share},
        "group_by_prompt": arm.joined,
        "threads": 1,
        "self_check": False,
        "save_steps": None,
        "quiet": True,
        "restart": True,  # what was interrupted: a part of it has no time to compare
    }
    train(demo / "pretrain", rows, place, **keys, dry_run=True)  # tokenises, imports
    start = time.process_time()
    results = train(demo / "pretrain", rows, place, **keys)
    seconds = time.process_time() - start
    model = RewardModel.load(place / "model")
    record = {
        "name": name,
        "seed": seed,
        "weights": model.parameters,
        "requests": len({row["prompt"] for row in rows}),
        "comparisons": len(rows) * (COMPARISONS if arm.rows == "rankings" else 1),
        "steps": results["steps"],
        "tokens": results["num_tokens"],
        "cpu_seconds": seconds,
        "held_out": {
            of: tally(told, rewards(model, *_asked(told)))._asdict()
            for of, told in judged_by.items()
        },
    }
    write_atomic(path, json.dumps(record).encode())
    return record


def _asked(rows: Sequence[RankedRow]) -> tuple[list[str], list[list[str]]]:
    return [row["prompt"] for row in rows], [row["responses"] for row in rows]


# ---------------------------------------------------------------------- summary


def summarise(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The runs of one way to train, over its seeds.

    Counts are of one run (means over seeds). ``accuracy`` is over all runs, with a 95 % interval
    over requests: what another set of requests would give, not another set of seeds, whose
    accuracies are in ``by_seed``.
    """
    first = records[0]
    seconds = [record["cpu_seconds"] for record in records]

    def average(key: str) -> float:
        return sum(record[key] for record in records) / len(records)

    return {
        **{key: first[key] for key in ("weights", "comparisons", "steps")},
        "requests": round(average("requests")),
        "tokens": round(average("tokens")),
        "cpu_seconds": {"mean": average("cpu_seconds"), "low": min(seconds), "high": max(seconds)},
        "accuracy": {
            of: {
                **clustered_share(*pooled(records, of))._asdict(),
                "by_seed": [sum(t["right"]) / sum(t["pairs"]) for t in _tallies(records, of)],
            }
            for of in first["held_out"]
        },
    }


def difference(
    records: Sequence[Mapping[str, Any]], others: Sequence[Mapping[str, Any]], of: str
) -> dict[str, float]:
    """Accuracy of ``records`` less that of ``others`` on the same pairs, over requests."""
    ours, theirs = pooled(records, of), pooled(others, of)
    assert ours.pairs == theirs.pairs, "the same held-out pairs, and as many seeds"
    columns = list(zip(ours.right, theirs.right, ours.pairs, strict=True))
    found = cluster_bootstrap(lambda t: (t[:, 0] - t[:, 1]) / t[:, 2], columns, range(len(columns)))
    return {"mean": found.mean, "low": found.low, "high": found.high}


def pooled(records: Sequence[Mapping[str, Any]], of: str) -> Tally:
    """The tallies of all seeds, added up request by request."""
    told = _tallies(records, of)
    right = [float(sum(column)) for column in zip(*(t["right"] for t in told), strict=True)]
    return Tally(right, [sum(column) for column in zip(*(t["pairs"] for t in told), strict=True)])


def _tallies(records: Sequence[Mapping[str, Any]], of: str) -> list[dict[str, Any]]:
    return [record["held_out"][of] for record in records]


def table(
    names: Sequence[str], runs: Mapping[str, Sequence[Mapping[str, Any]]], sets: Sequence[str]
) -> list[str]:
    """A Markdown table: each way to train, its cost and its accuracy, and against the first one."""
    head = ["", "weights", "requests", "comparisons", "steps", "tokens", "CPU s"]
    for of in sets:
        head += [f"accuracy on {of}", f"against {names[0]}"]
    lines = [f"| {' | '.join(head)} |".replace("|  |", "| |"), "|---" * len(head) + "|"]
    for name in names:
        found = summarise(runs[name])
        counts = [f"{found[key]:,}" for key in ("weights", "requests", "comparisons", "steps")]
        cells = [name, *counts, f"{found['tokens']:,}", f"{found['cpu_seconds']['mean']:.1f}"]
        for of in sets:
            cells.append("{mean:.3f} [{low:.3f}, {high:.3f}]".format(**found["accuracy"][of]))
            apart = difference(runs[name], runs[names[0]], of)
            same = name == names[0]
            cells.append("-" if same else "{mean:+.3f} [{low:+.3f}, {high:+.3f}]".format(**apart))
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _sums(rows: Sequence[RankedRow], parts: Sequence[str]) -> list[list[float]]:
    """Some parts of every story's gold reward, added up."""
    return [
        [
            sum(WEIGHTS[part] * score.parts[part] for part in parts)
            for score in (gold_reward(row["prompt"], story) for story in row["responses"])
        ]
        for row in rows
    ]


def report(
    runs: Mapping[str, Sequence[Mapping[str, Any]]],
    judged_by: Mapping[str, Sequence[RankedRow]],
    settings: Settings,
) -> tuple[str, dict[str, Any]]:
    """The tables as Markdown, and everything as JSON types."""
    sets = list(judged_by)
    ceiling = {
        name: {
            of: clustered_share(*tally(rows, _sums(rows, parts)))._asdict()
            for of, rows in judged_by.items()
        }
        for name, parts in (("gold reward", list(WEIGHTS)), (" + ".join(SURFACE), SURFACE))
    }
    lines = [*table(SIZES, runs, sets), "", *table(LAYOUTS, runs, sets), ""]
    lines += [f"| the order by | {' | '.join(sets)} |", "|---" * (len(sets) + 1) + "|"]
    for name, found in ceiling.items():
        cells = ["{mean:.3f} [{low:.3f}, {high:.3f}]".format(**found[of]) for of in sets]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    record = {
        "settings": dataclasses.asdict(settings),
        "intervals": "95 %, over requests, seeds pooled",
        "order_by": ceiling,
        "runs": {name: summarise(records) for name, records in runs.items()},
        "against": {
            f"{names[0]}: {name}": {of: difference(runs[name], runs[names[0]], of) for of in sets}
            for names in (SIZES, LAYOUTS)
            for name in names[1:]
        },
    }
    return "\n".join(lines) + "\n", record


# ---------------------------------------------------------------------- the command


def study(demo: Path, folder: Path, settings: Settings) -> None:
    """Run what is not done yet, one seed after the other; then write study.md and study.json."""
    begin("study", demo, folder, dataclasses.asdict(settings), models=("pretrain", "sft"))
    judged_by = held_out(demo, folder, settings.requests)
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in ARMS}
    for seed, name in itertools.product(range(settings.seeds), ARMS):
        found = run(name, seed, settings, demo, folder, judged_by)
        runs[name].append(found)
        shares = ", ".join(
            f"{sum(t['right']) / sum(t['pairs']):.3f} {of}" for of, t in found["held_out"].items()
        )
        print(f"seed {seed}, {name}: {found['cpu_seconds']:.1f} s, {shares}", flush=True)
    text, record = report(runs, judged_by, settings)
    write_atomic(folder / "study.json", json.dumps(record, indent=1).encode())
    write_atomic(folder / "study.md", text.encode())
    print("\n" + text)


def main() -> int:
    """Returns the exit code: 2 for what was asked wrongly, 130 after Ctrl-C."""
    size = Settings()
    parser = argparse.ArgumentParser(
        prog="python -m trimtab.world.reward_study",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--demo", default="runs/demo", type=Path, help="folder of a finished demo")
    parser.add_argument("--output-dir", default="runs/reward-study", type=Path, help="of all runs")
    parser.add_argument("--rankings", default=size.rankings, type=int, help="rows of a seed")
    parser.add_argument("--epochs", default=size.epochs, type=int, help="passes over them")
    parser.add_argument("--seeds", default=size.seeds, type=int, help="of rows, head and order")
    parser.add_argument("--requests", default=size.requests, type=int, help="held out")
    chosen = vars(parser.parse_args())
    demo, folder = chosen.pop("demo"), chosen.pop("output_dir")

    def work() -> None:
        require_positive(chosen)
        study(demo, folder, Settings(**chosen))

    return exit_code(work)


if __name__ == "__main__":
    sys.exit(main())
