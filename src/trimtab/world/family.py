"""``python -m trimtab.world.family``: every preference loss, each at the best of a small grid.

Every run is ``trimtab dpo --loss NAME`` from the demo's sft model on the demo's pairs; losses that
rank K responses have the demo's rankings of the same stories, and those that want scores have them
scored by its reward model. All take the same number of steps with the same number of prompts. The
grid of a loss is two learning rates times two settings of its own (``STRENGTHS``). The setting with
the highest mean gold reward on one set of held-out requests is examined on another, so that what is
reported was not chosen by the same stories.

``family.md`` has the table, ``family.json`` every number and the whole grid. A second call with
another ``--losses`` trains only what is not there; the same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from trimtab.config.loss_schema import loss_schemas
from trimtab.config.loss_sum import sum_schema
from trimtab.errors import RunError, UsageError
from trimtab.training.files import write_atomic
from trimtab.world.command import begin, exit_code, require_positive
from trimtab.world.corpus import held_out_requests
from trimtab.world.demo_stories import Storyteller
from trimtab.world.examiner import Examination, Examiner, Point
from trimtab.world.family_report import Found, report
from trimtab.world.gold import gold_reward

SUM = "dpo + 0.2 bco_pair"
RATES = (3e-4, 1e-3)
PROMPTS = 16  # of an optimizer step

_BETAS = ({"beta": 0.1}, {"beta": 0.3})
_SMALL_BETAS = ({"beta": 0.03}, {"beta": 0.1})  # whose papers' beta is 0.01
# A story has some 80 tokens and the demo's dpo goes 3 nats from sft: targets in nats, a sum or a
# mean per token, are set to about that and to several times as far. Scores spread by about 1.5.
_OWN: dict[str, Sequence[Mapping[str, float]]] = {
    **dict.fromkeys(["nca", "bco_pair", "bco", "wpo", "wpo_clamped"], _SMALL_BETAS),
    "ipo": ({"tau": 1.0}, {"tau": 5.0}),
    "ipo_sum": ({"tau": 0.05}, {"tau": 0.2}),
    "slic_hf": ({"delta": 1.0}, {"delta": 10.0}),
    "simpo": ({"beta": 2.0, "gamma": 1.0}, {"beta": 10.0, "gamma": 3.0}),
    "simpo_ratio": ({"beta": 2.0}, {"beta": 10.0, "gamma_beta_ratio": 0.3}),
    "alphapo": ({"beta": 2.5}, {"beta": 10.0}),
    "orpo": ({"beta": 0.1}, {"beta": 1.0}),
    "sppo": ({"eta": 10.0}, {"eta": 40.0}),
    "dpop": ({"beta": 0.1, "penalty": 5.0}, {"beta": 0.3, "penalty": 50.0}),
    "irpo": ({"beta": 0.1, "alpha": 0.1}, {"beta": 0.1, "alpha": 1.0}),
    "rpo": ({"beta": 0.1, "alpha": 0.005}, {"beta": 0.1, "alpha": 0.1}),
    "r_dpo": ({"beta": 0.1, "alpha": 0.01}, {"beta": 0.1, "alpha": 0.05}),
    "ln_dpo": ({"beta": 5.0}, {"beta": 15.0}),
    # With the paper's tau, 0.05, the slope at the reference is uphill; above 0.103 it is not.
    "discopop": ({"beta": 0.05}, {"beta": 0.1, "tau": 1.0}),
    "infonca": ({"alpha": 0.3}, {"alpha": 1.0}),
    "nca_rewards": ({"alpha": 0.3}, {"alpha": 1.0}),
    "exo_rewards": ({"reward_beta": 0.3}, {"reward_beta": 1.0}),
    SUM: ({"dpo.beta": 0.1, "bco_pair.beta": 0.1}, {"dpo.beta": 0.3, "bco_pair.beta": 0.1}),
}
STRENGTHS = {name: _OWN.get(name, _BETAS) for name in (*loss_schemas(), SUM)}


@dataclasses.dataclass(frozen=True)
class Settings:
    """How large the study is."""

    steps: int = 64  # of every run, 16 prompts each
    choosing: int = (
        64  # held-out requests that the settings of a grid are compared on, a story each
    )
    requests: int = 128  # others, on which the best setting is examined
    tellings: int = 2  # stories on each of the latter
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Cell:
    """One setting of one loss. ``gold`` is one mean a request; None where training failed."""

    rate: float
    keys: dict[str, float]
    gold: list[float] | None
    cpu_seconds: float
    failed: str | None = None

    @property
    def worth(self) -> float:
        """What cells of a grid are chosen by."""
        return mean(self.gold) if self.gold else float("-inf")


def grid(name: str) -> list[tuple[float, dict[str, float]]]:
    """Learning rate and the loss's own keys of every cell."""
    return [(rate, dict(keys)) for keys in STRENGTHS[name] for rate in RATES]


def recipe_keys(
    name: str, rate: float, keys: Mapping[str, float], demo: Path, folder: Path, settings: Settings
) -> dict[str, Any]:
    """The keys of one run of ``trimtab dpo``, which is trained in ``folder``."""
    schema = sum_schema(name) if name == SUM else loss_schemas()[name]
    rows = demo / "data" / "pairs.jsonl"
    if schema.kind == "ranking":
        rows = demo / "data" / "rankings.jsonl"
        if "scores" in schema.needs:
            rows = scored_rankings(folder.parent.parent)
    return {
        "model_name_or_path": str(demo / "sft"),
        "dataset_name": str(rows),
        "loss": {"name": name, **keys},
        "learning_rate": rate,
        "max_steps": settings.steps,
        "per_device_train_batch_size": PROMPTS,
        "max_length": 256,
        "seed": settings.seed,
        "precision": "fp32",
        "eval_steps": None,
        "sample_prompts": 0,
        "save_steps": None,
        "logging_steps": max(1, settings.steps // 4),
        "threads": 1,
        "self_check": False,
        "quiet": True,
        "restart": True,
        "cache_dir": str(folder.parent.parent / "cache"),
        "output_dir": str(folder),
    }


def scored_rankings(folder: Path) -> Path:
    """The file that ``_score`` leaves in the study's folder."""
    return folder / "rankings_scored.jsonl"


def _score(demo: Path, folder: Path) -> None:
    """The demo's rankings with its reward model's scores in place of the annotator's order."""
    from trimtab.rewards.score_file import ScoreOptions, score
    from trimtab.training.progress import Progress

    path = scored_rankings(folder)
    if not path.exists():
        rows = str(demo / "data" / "rankings.jsonl")
        options = ScoreOptions(
            file=rows, output=str(path), reward_model=str(demo / "reward"), overwrite=True
        )
        with Progress(0, "score") as progress:
            score(options, progress)


class Study:
    """Trains and examines; every part is kept as a file and done once."""

    def __init__(self, demo: Path, folder: Path, settings: Settings) -> None:
        self.demo, self.folder, self.settings = demo, folder, settings
        size = Examination(
            requests=settings.requests, tellings=settings.tellings, seed=settings.seed
        )
        self.examiner = Examiner(demo, size)
        mine = set(self.examiner.requests)
        # Other requests than those of the examination, of the same kind.
        more = held_out_requests(settings.choosing + settings.requests, settings.seed + 3)
        self.choosing = [one for one in more if one not in mine][: settings.choosing]

    def cell(self, name: str, number: int) -> Cell:
        """Train one setting, and ask its model for stories."""
        import trimtab

        rate, keys = grid(name)[number]
        place = self._place(name) / f"{number}"
        path = place.with_suffix(".json")
        if path.exists():
            return Cell(**json.loads(path.read_text(encoding="utf-8")))
        began = time.process_time()
        try:
            recipe = recipe_keys(name, rate, keys, self.demo, place, self.settings)
            if trimtab.dpo(**recipe).interrupted:
                raise KeyboardInterrupt
        except RunError as error:  # a loss that runs away is a finding
            found = Cell(rate, keys, None, time.process_time() - began, str(error))
        else:
            seconds = time.process_time() - began
            told = Storyteller(place).tell(self.choosing, 1, self.settings.seed, "family grid")
            gold = [gold_reward(one.request, one.story).total for one in told]
            found = Cell(rate, keys, gold, seconds)
        write_atomic(path, json.dumps(dataclasses.asdict(found)).encode())
        return found

    def loss(self, name: str) -> Found:
        """The whole grid of a loss, and its best cell examined."""
        cells = [self.cell(name, number) for number in range(len(grid(name)))]
        best = max(range(len(cells)), key=lambda number: cells[number].worth)
        path = self._place(name) / "best.json"
        if cells[best].gold is None:
            point = None
        elif path.exists():
            point = Point(**json.loads(path.read_text(encoding="utf-8")))
        else:
            point = self.examiner.point(
                self._place(name) / f"{best}", self.settings.steps, cells[best].cpu_seconds
            )
            write_atomic(path, json.dumps(dataclasses.asdict(point)).encode())
        return Found(name, [dataclasses.asdict(cell) for cell in cells], best, point)

    def sft(self) -> Point:
        """What the runs start from, examined once."""
        path = self.folder / "sft.json"
        if not path.exists():
            point = self.examiner.point(None, 0, 0.0)
            write_atomic(path, json.dumps(dataclasses.asdict(point)).encode())
        return Point(**json.loads(path.read_text(encoding="utf-8")))

    def _place(self, name: str) -> Path:
        return self.folder / name.replace(" ", "")


def study(demo: Path, folder: Path, losses: Sequence[str], settings: Settings) -> None:
    """Run what is not done yet, one loss after the other; then write the table and the numbers."""
    unknown = [name for name in losses if name not in STRENGTHS]
    if unknown:
        raise UsageError(f"--losses {unknown[0]}: no loss of this study; {', '.join(STRENGTHS)}")
    begin("study", demo, folder, dataclasses.asdict(settings), models=("sft", "reward"))
    _score(demo, folder)
    work = Study(demo, folder, settings)
    sft = work.sft()
    found: list[Found] = []
    for number, name in enumerate(losses, 1):
        one = work.loss(name)
        found.append(one)
        gold = "failed" if one.point is None else f"gold {mean(one.point.gold):.3f}"
        print(f"[{number}/{len(losses)}] {name}: {gold} (sft {mean(sft.gold):.3f})", flush=True)
    text, record = report(sft, found)
    record = {"settings": dataclasses.asdict(settings), "rates": RATES, **record}
    write_atomic(folder / "family.json", (json.dumps(record, indent=1) + "\n").encode())
    write_atomic(folder / "family.md", text.encode())
    print(f"\n{text}\nThe grid is in {folder / 'family.json'}")


def main() -> int:
    """Returns the exit code: 2 for what was asked wrongly, 130 after Ctrl-C."""
    size = Settings()
    parser = argparse.ArgumentParser(
        prog="python -m trimtab.world.family",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--demo", default="runs/demo", type=Path, help="folder of a finished demo")
    parser.add_argument("--output-dir", default="runs/family", type=Path, help="of all runs")
    parser.add_argument("--losses", nargs="+", default=list(STRENGTHS), help="default: all")
    parser.add_argument("--steps", default=size.steps, type=int, help="of every run")
    parser.add_argument("--choosing", default=size.choosing, type=int, help="requests, for grids")
    parser.add_argument("--requests", default=size.requests, type=int, help="held out, for results")
    parser.add_argument("--tellings", default=size.tellings, type=int, help="stories on each")
    parser.add_argument("--seed", default=size.seed, type=int, help="of training and sampling")
    chosen = vars(parser.parse_args())
    demo, folder = chosen.pop("demo"), chosen.pop("output_dir")
    losses = chosen.pop("losses")

    def work() -> None:
        require_positive(chosen, zero=["seed"])
        study(demo, folder, losses, Settings(**chosen))

    return exit_code(work)


if __name__ == "__main__":
    sys.exit(main())
