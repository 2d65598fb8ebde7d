"""``python -m trimtab.world.compare_data``: the rows that recipes/compare/ compares methods on.

Held-out requests and text that no stage of the demo has seen; and, for three experiments on when
DPO and PPO part ways, preferences of other kinds, each with a reward model trained on the same
ones (by the demo's recipe):

    pairs-others, reward-others     stories of the pretrained model, which the sft model would
                                    not tell: the offline data does not cover the policy
    pairs-narrow, reward-narrow     the sft model's own, on requests with two of the heroes alone
    pairs-32, -128                  the first rankings of the demo, and pairs of them
    pairs-noise-X                   the demo's stories by an annotator who errs more (or never)

Every kind has ``rankings-KIND.jsonl``, ``pairs-KIND.jsonl`` (the first and the last of each) and
``reward-KIND/``. What is there already is not made again.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from trimtab.errors import UsageError
from trimtab.training.files import remove_tree
from trimtab.training.run_folder import finished_recipe
from trimtab.world.annotators import rank_stories
from trimtab.world.command import begin, exit_code, require_positive
from trimtab.world.corpus import (
    RankedRow,
    held_out_requests,
    pretrain_documents,
    train_requests,
    write_jsonl,
)
from trimtab.world.demo_stages import FULL, SAMPLES, reward_keys
from trimtab.world.demo_stories import Storyteller, best_and_worst, ranked
from trimtab.world.draws import Draw
from trimtab.world.grammar import parse_request
from trimtab.world.lexicon import NAMES

HEROES = 2  # of 16, that the narrow requests are about
COUNTS = (32, 128)
NOISES = (0.0, 0.2, 0.8)  # the demo's annotator has 0.05


@dataclasses.dataclass(frozen=True)
class Settings:
    """How many rows there are of what is held out."""

    requests: int = 160
    documents: int = 64
    seed: int = 0


def kinds(demo: Path, seed: int) -> dict[str, Callable[[], list[RankedRow]]]:
    """What makes the rankings of every kind."""
    own = _read(demo / "data" / "rankings.jsonl")
    return {
        "others": lambda: _told(demo / "pretrain", train_requests(len(own), seed), seed),
        "narrow": lambda: _told(demo / "sft", _narrow(len(own), seed), seed),
        **{f"{count}": lambda count=count: own[:count] for count in COUNTS},
        **{f"noise-{noise:g}": lambda noise=noise: _again(own, noise, seed) for noise in NOISES},
    }


def _told(model: Path, requests: Sequence[str], seed: int) -> list[RankedRow]:
    """Rankings of a model's own stories by the demo's annotator."""
    told = Storyteller(model).tell(requests, SAMPLES, seed, "compare data")
    samples = [
        [one.story for one in told[first : first + SAMPLES]]
        for first in range(0, len(told), SAMPLES)
    ]
    return ranked(requests, samples, seed)


def _narrow(count: int, seed: int) -> list[str]:
    """Training requests about the first heroes alone."""
    found: list[str] = []
    many = 4 * count
    while len(found) < count:
        every = train_requests(many, seed)
        found = [one for one in every if parse_request(one).hero in NAMES[:HEROES]]
        many *= 2
    return found[:count]


def _again(rows: Sequence[RankedRow], noise: float, seed: int) -> list[RankedRow]:
    """The same stories, in the eyes of an annotator with this noise."""
    found: list[RankedRow] = []
    for index, row in enumerate(rows):
        draw = Draw("compare noise", seed, index)
        ranks = rank_stories(row["prompt"], row["responses"], draw, noise)
        found.append({**row, "ranks": ranks})
    return found


def _read(path: Path) -> list[RankedRow]:
    if not path.is_file():
        raise UsageError(f"demo={path.parent.parent}: has no {path.name}; run trimtab demo")
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def make(demo: Path, folder: Path, settings: Settings, wanted: Sequence[str] | None) -> None:
    """Write what is not there yet; ``wanted`` kinds, or all (None)."""
    begin("data", demo, folder, dataclasses.asdict(settings), models=("pretrain", "sft"))
    seed = settings.seed
    held_out: dict[str, list[dict[str, Any]]] = {
        "prompts_eval": [{"prompt": p} for p in held_out_requests(settings.requests, seed + 2)],
        "text_eval": [{"text": t} for t in pretrain_documents(settings.documents, seed + 2)],
    }
    for name, rows in held_out.items():
        write_jsonl(folder / f"{name}.jsonl", rows)
    every = kinds(demo, seed)
    unknown = [name for name in wanted or () if name not in every]
    if unknown:
        raise UsageError(f"--kinds {unknown[0]}: no kind of rows here; {', '.join(every)}")
    for name in every if wanted is None else wanted:
        _kind(name, every[name], demo, folder, seed)


def _kind(
    name: str, rankings: Callable[[], list[RankedRow]], demo: Path, folder: Path, seed: int
) -> None:
    import trimtab

    path, place = folder / f"rankings-{name}.jsonl", folder / f"reward-{name}"
    if not path.exists():
        write_jsonl(path, rankings())
    write_jsonl(folder / f"pairs-{name}.jsonl", best_and_worst(_read(path)))
    if finished_recipe(place) is None:
        keys = reward_keys(demo, FULL, {"seed": seed, "precision": "fp32", "threads": 1})
        # Few rankings are read more often, so that each reward model takes its steps.
        epochs = max(FULL.reward_epochs, round(FULL.reward_epochs * 256 / len(_read(path))))
        run = trimtab.reward(
            **keys
            | {
                "dataset_name": str(path),
                "num_train_epochs": min(epochs, 8),
                "output_dir": str(place),
                "cache_dir": str(folder / "cache"),
                "eval_steps": None,
                "sample_prompts": 0,
                "save_total_limit": 1,
                "quiet": True,
            }
        )
        if run.interrupted:
            raise KeyboardInterrupt
        for checkpoint in place.glob("checkpoint-*"):  # nobody goes on from there
            remove_tree(checkpoint)
    print(f"{name}: {path}, {folder}/pairs-{name}.jsonl, {place}", flush=True)


def main() -> int:
    """Returns the exit code: 2 for what was asked wrongly, 130 after Ctrl-C."""
    size = Settings()
    parser = argparse.ArgumentParser(
        prog="python -m trimtab.world.compare_data",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--demo", default="runs/demo", type=Path, help="folder of a finished demo")
    parser.add_argument("--output-dir", default="runs/compare-data", type=Path, help="of all rows")
    parser.add_argument("--kinds", nargs="*", help="of preferences; default: all; none: held out")
    parser.add_argument("--requests", default=size.requests, type=int, help="held out")
    parser.add_argument("--documents", default=size.documents, type=int, help="held out")
    parser.add_argument("--seed", default=size.seed, type=int, help="of rows and training")
    chosen = vars(parser.parse_args())
    demo, folder, wanted = (chosen.pop(name) for name in ("demo", "output_dir", "kinds"))

    def work() -> None:
        require_positive(chosen, zero=["seed"])
        make(demo, folder, Settings(**chosen), wanted)

    return exit_code(work)


if __name__ == "__main__":
    sys.exit(main())
