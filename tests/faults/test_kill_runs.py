"""A run that is killed anywhere and started again ends with the bits of the undisturbed one.

Weights, masters, optimizer, metrics.jsonl apart from timings, samples, results and model card: all
files of the run folder but those that record when and how often it was started.
"""

from __future__ import annotations

import random
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

# Before the children are forked, so that none of them imports anything heavy.
import trimtab.algorithms.run  # noqa: F401
from trimtab.training import environment

from . import runs
from .crash import quiet_fork
from .runs import Ended, Kill

pytest.importorskip("peft")
pytestmark = [runs.needs_fork, quiet_fork]

CONTINUED = ["pretrain", "sft", "dpo", "dpo_lora", "beta_dpo", "kto"]


class World:
    """The inputs of all runs, and the undisturbed run of each stage, made when first asked for."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.calm: dict[str, tuple[dict, Ended]] = {}
        self.trials = 0
        runs.make_inputs(root)

    def undisturbed(self, stage: str) -> dict:
        """What the stage gives when nobody kills it."""
        return self._calm(stage)[0]

    def events(self, stage: str) -> Ended:
        """The events of the undisturbed run."""
        return self._calm(stage)[1]

    def _calm(self, stage: str) -> tuple[dict, Ended]:
        if stage not in self.calm:
            folder = self.root / f"calm-{stage}"
            ended = runs.run(folder, runs.STAGES[stage])
            assert ended.code == 0, runs.output(folder)
            self.calm[stage] = runs.outcome(folder), ended
        return self.calm[stage]

    def folder(self) -> Path:
        """A fresh folder for a trial."""
        self.trials += 1
        return self.root / f"trial-{self.trials}"

    def trial(
        self, stage: str, kills: list[Kill], patch: Callable[[], object] = lambda: None
    ) -> tuple[int, list[str]]:
        """Run, killed at each of ``kills`` in turn, then to the end: kills made, files that differ.

        The cache folder is the trial's own: a kill may fall into the writing of a cache.
        """
        folder, made = self.folder(), 0
        for kill in kills:
            ended = runs.run(folder, runs.STAGES[stage], kill, patch)
            if ended.code == 0:  # the event never came: this start had less to do
                break
            assert ended.code == -kill.signal, (ended, runs.output(folder))
            made += 1
        else:
            ended = runs.run(folder, runs.STAGES[stage], patch=patch)
            assert ended.code == 0, (kills, runs.output(folder))
        found = runs.differences(self.undisturbed(stage), runs.outcome(folder))
        shutil.rmtree(folder)
        return made, found


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    from .conftest import SHARED_MEMORY

    patch = pytest.MonkeyPatch()
    patch.setattr(environment, "_git_commit", lambda: None)  # two processes a start, for nothing
    root = tmp_path_factory.mktemp("kills")
    try:
        if SHARED_MEMORY.is_dir():
            import tempfile

            with tempfile.TemporaryDirectory(prefix="trimtab-", dir=SHARED_MEMORY) as ram:
                yield World(Path(ram))
        else:
            yield World(root)
    finally:
        patch.undo()


# One line a stage: where it is killed first, and where the run that goes on is killed again.
@pytest.mark.parametrize(
    ("stage", "kills"),
    [
        ("pretrain", [Kill("evaluate", 6), Kill("save", 200)]),
        ("sft", [Kill("train", 61), Kill("log", 3)]),
        ("dpo", [Kill("save", 330), Kill("finish", 40)]),
        ("dpo_lora", [Kill("train", 47), Kill("evaluate", 5)]),
        ("beta_dpo", [Kill("train", 75), Kill("sample", 2)]),
        ("kto", [Kill("start", 80), Kill("train", 100)]),
    ],
)
def test_killed_and_run_again_ends_with_the_same_bits(
    world: World, stage: str, kills: list[Kill]
) -> None:
    made, differing = world.trial(stage, kills)
    assert made == len(kills), "the kills are meant to fall inside the run"
    assert differing == []


@pytest.mark.slow
@pytest.mark.parametrize("stage", list(runs.STAGES))
def test_fifty_kills(world: World, stage: str) -> None:
    """Random moments: a phase, then an event of it; up to three kills a run."""
    rng = random.Random(stage)
    events = world.events(stage).events
    total = 0
    while total < 50:
        kills = []
        for _ in range(rng.choice([1, 1, 1, 2, 3])):
            phase = rng.choice(runs.PHASES)
            kills.append(Kill(phase, rng.randint(1, events[phase])))
        made, differing = world.trial(stage, kills)
        assert differing == [], kills
        total += made
