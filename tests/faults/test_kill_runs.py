"""A run that is killed anywhere and started again ends with the bits of the undisturbed one.

Weights, masters, optimizer, metrics.jsonl apart from timings, samples, results and model card: all
files of the run folder but those that record when and how often it was started.
"""

from __future__ import annotations

import importlib
import random
import shutil
import signal
import time
from collections import Counter
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

CONTINUED = ["pretrain", "sft", "dpo", "dpo_lora", "beta_dpo", "kto", "reward", "ppo", "grpo"]


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

    def events(self, stage: str) -> Counter[str]:
        """The events of the undisturbed run, by phase."""
        return self._calm(stage)[1].events

    def _calm(self, stage: str) -> tuple[dict, Ended]:
        if stage not in self.calm:
            if stage == "dpo_on_lora":
                runs.make_adapter(self.root)
            folder = self.root / f"calm-{stage}"
            ended = runs.run(folder, runs.STAGES[stage])
            assert ended.code == 0, runs.output(folder)
            self.calm[stage] = runs.outcome(folder), ended
        return self.calm[stage]

    def kill(
        self, stage: str, phase: str, share: float, how: int = signal.SIGKILL, times: int = 1
    ) -> Kill:
        """At that share of the phase's events in the undisturbed run."""
        return Kill(phase, max(1, round(share * self.events(stage)[phase])), how, times)

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
        for kill in [*kills, None]:
            ended = runs.run(folder, runs.STAGES[stage], kill, patch)
            if ended.code == 0:  # at last; or the moment never came: this start had less to do
                break
            assert kill and ended.code == -kill.signal, (kills, ended, runs.output(folder))
            made += 1
            if runs.state(folder) == "finished":  # killed when there was nothing left to do
                break
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


SLOW = pytest.mark.slow  # test-slow has all stages; these differ from the others in few lines


# One line a stage: where it is killed first, and where the run that goes on is killed again. The
# number is a share of the phase's events in the whole run; the second start sees fewer of them.
@pytest.mark.parametrize(
    ("stage", "kills"),
    [
        ("pretrain", [("evaluate", 0.5), ("save", 0.5)]),
        ("sft", [("train", 0.65), ("log", 0.3)]),
        pytest.param("classify", [("train", 0.5), ("save", 0.4)], marks=SLOW),
        ("dpo", [("save", 0.8), ("finish", 0.7)]),
        ("dpo_lora", [("train", 0.7), ("evaluate", 0.2)]),
        pytest.param("beta_dpo", [("train", 0.75), ("sample", 0.3)], marks=SLOW),
        pytest.param("kto", [("start", 0.9), ("train", 0.8)], marks=SLOW),
        pytest.param("sum", [("train", 0.6), ("save", 0.5)], marks=SLOW),
        ("reward", [("train", 0.7), ("finish", 0.3)]),
        ("ppo", [("train", 0.75), ("train", 0.6), ("finish", 0.4)]),
        ("grpo", [("save", 0.6), ("train", 0.5)]),
        ("online_dpo", [("train", 0.75), ("save", 0.5)]),
        pytest.param("raft", [("train", 0.7), ("evaluate", 0.2)], marks=SLOW),
    ],
)
def test_killed_and_run_again_ends_with_the_same_bits(
    world: World, stage: str, kills: list[tuple[str, float]]
) -> None:
    made, differing = world.trial(stage, [world.kill(stage, *kill) for kill in kills])
    assert made == len(kills), "the kills are meant to fall inside the run"
    assert differing == []


def test_a_run_goes_on_from_its_first_evaluation(world: World) -> None:
    """The best checkpoint so far is that of step 0: a self-check had sampled a rollout before it.

    What that rollout made of the KL controller must not be in the checkpoint.
    """
    made, differing = world.trial("ppo", [Kill("log", 4)])
    assert made == 1
    assert differing == []


def no_cut(*_: object) -> int:
    return 0


def nothing(*_: object) -> None:
    return None


def patched(path: str, replacement: Callable[..., object]) -> Callable[[], None]:
    """A patch for a child: ``module:Class.attribute`` is another function there."""

    def patch() -> None:
        module, _, names = path.partition(":")
        *owners, name = names.split(".")
        target = importlib.import_module(module)
        for owner in owners:
            target = getattr(target, owner)
        setattr(target, name, replacement)

    return patch


MODEL = "model.safetensors"


@pytest.mark.parametrize(
    ("stage", "broken", "same", "differs"),
    [
        ("dpo", ("trimtab.training.metrics:MetricsLog.truncate_to_lines", no_cut), MODEL, None),
        ("dpo", ("trimtab.training.metrics:Means.load_state_dict", nothing), MODEL, None),
        ("dpo", ("trimtab.training.loop:load_optimizer_tensors", nothing), None, MODEL),
        ("dpo", ("trimtab.training.precision:MasterWeights.load", nothing), None, MODEL),
        (
            "beta_dpo",
            ("trimtab.algorithms.preference:PreferenceOptimisation.load_state_dict", nothing),
            None,
            MODEL,
        ),
    ],
    ids=["log_not_cut", "window_lost", "optimizer_lost", "masters_lost", "loss_state_lost"],
)
def test_a_run_that_forgets_something_is_found_out(
    world: World,
    stage: str,
    broken: tuple[str, Callable[..., object]],
    same: str | None,
    differs: str | None,
) -> None:
    # Step 5: after the checkpoint of step 3, which holds half a logging window, and the log of 4.
    kill = world.kill(stage, "train", 4.5 / runs.STEPS)
    made, differing = world.trial(stage, [kill], patched(*broken))
    assert made == 1
    assert "metrics.jsonl" in differing
    assert same not in differing
    assert differs is None or differs in differing


def test_a_forgotten_kl_controller_is_found_out(world: World) -> None:
    """At the checkpoint of step 6 a rollout begins: within one, its own file would tell."""
    kill = world.kill("ppo", "train", 6.5 / runs.STEPS)
    forgets = patched("trimtab.algorithms.ppo:PPO.load_state_dict", nothing)
    made, differing = world.trial("ppo", [kill], forgets)
    assert made == 1
    # The model itself may be the same: the stage's result is its best checkpoint's.
    assert "metrics.jsonl" in differing
    assert any(name.endswith(".safetensors") for name in differing)


def test_a_forgotten_reference_is_found_out(world: World) -> None:
    """The checkpoint of step 6 has the reference that the policy was at step 4."""
    kill = world.kill("online_dpo", "train", 6.5 / runs.STEPS)
    forgets = patched("trimtab.algorithms.online:OnlinePreference.load_tensors", nothing)
    made, differing = world.trial("online_dpo", [kill], forgets)
    assert made == 1
    assert {MODEL, "metrics.jsonl"} <= set(differing)


# Ctrl-C: in a step, an evaluation, a save; while rows are read; while the model is written; twice.
@pytest.mark.parametrize(
    ("stage", "kill", "saved"),
    [
        pytest.param("dpo_lora", ("train", 3.5 / runs.STEPS), 4, marks=SLOW),
        pytest.param("beta_dpo", ("evaluate", 0.5), 4, marks=SLOW),
        ("sft", ("save", 0.1), 3),
        pytest.param("classify", ("train", 4.5 / runs.STEPS), 5, marks=SLOW),
        ("dpo", ("start", 0.6), None),
        ("dpo", ("finish", 0.5), 7),
        ("dpo", ("train", 5.5 / runs.STEPS, signal.SIGINT, 2), 3),
    ],
)
def test_ctrl_c_saves_and_the_same_command_goes_on(
    world: World, stage: str, kill: tuple, saved: int | None
) -> None:
    folder = world.folder()
    where, how = kill[:2], kill[2:] or (signal.SIGINT,)
    ended = runs.run(folder, runs.STAGES[stage], world.kill(stage, *where, *how))
    printed = runs.output(folder)
    assert ended.code == 130, printed
    assert "Traceback" not in printed
    assert runs.state(folder) == "interrupted"
    found = sorted(path.name for path in (folder / "run").glob("checkpoint-*"))
    assert (found[-1] if found else None) == (saved and f"checkpoint-{saved}")
    assert runs.run(folder, runs.STAGES[stage]).code == 0, runs.output(folder)
    assert runs.differences(world.undisturbed(stage), runs.outcome(folder)) == []


@pytest.mark.slow
@pytest.mark.parametrize("stage", list(runs.STAGES))
def test_fifty_kills(world: World, stage: str) -> None:
    """Random moments: an event of a random phase, or just any; up to three kills a run."""
    rng = random.Random(stage)
    events = world.events(stage)
    started = time.perf_counter()
    runs.run(world.folder(), runs.STAGES[stage])
    longest = round(1000 * (time.perf_counter() - started))
    total = 0
    while total < 50:
        kills = []
        for _ in range(rng.choice([1, 1, 1, 2, 3])):
            phase = rng.choice([*(p for p in runs.PHASES if events[p]), "delay"])
            if phase == "delay":
                kills.append(runs.after(rng.randint(1, longest)))
            else:
                kills.append(Kill(phase, rng.randint(1, events[phase])))
        made, differing = world.trial(stage, kills)
        assert differing == [], kills
        total += made
