"""A user's own loss in whole runs: the numbers of the built-in one, and its file's identity."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.algorithms.stage_world import Run, World
from tests.algorithms.test_run_going_on import broken_run

import trimtab
import trimtab.losses as package
from trimtab.errors import DataError, RecipeError, RunError

SOURCE = Path(package.__file__).parent


def copied(world: World, module: str, name: str, own: str) -> str:
    """A built-in loss as a user's file: its module's text under another name."""
    path = world.root / f"{own}.py"
    path.write_text((SOURCE / f"{module}.py").read_text().replace(name, own))
    return f"{path}:{own}"


# What the recipe of a named loss changes has to be the same for the copy.
EQUAL = {"max_grad_norm": 1.0, "max_steps": 4, "per_device_train_batch_size": 5}


@pytest.mark.parametrize(
    ("loss", "module", "name", "data"),
    [
        ("dpo", "preference", "dpo_loss", "pairs"),
        pytest.param("simpo", "preference", "simpo_loss", "pairs", marks=pytest.mark.slow),
        pytest.param("tdpo2", "preference", "tdpo2_loss", "pairs", marks=pytest.mark.slow),
        ("kto", "unpaired", "KTO", "labelled"),
        ("beta_dpo", "beta_dpo", "BetaDPO", "pairs"),
        ("plackett_luce", "listwise", "plackett_luce_loss", "rankings"),
    ],
)
def test_a_copy_trains_to_the_same_bits(
    world: World, loss: str, module: str, name: str, data: str
) -> None:
    """Functions and classes, with reference, full-vocabulary KL, mismatched rows, filter, ranks."""
    same = {**EQUAL, "lr_scheduler_type": "constant"}
    built_in = world.run("dpo", data, **same, loss={"name": loss, "beta": 0.3})
    file = copied(world, module, name, f"My{loss}")
    own = world.run("dpo", data, **same, loss={"file": file, "beta": 0.3})
    assert own.trained == built_in.trained and own.evaluated == built_in.evaluated
    other = world.run("dpo", data, **same, loss={"file": file, "beta": 0.6})
    assert other.trained != own.trained


def test_what_a_run_says_of_it(world: World) -> None:
    file = copied(world, "preference", "dpo_loss", "said_loss")
    run = world.run("dpo", "pairs", loss={"file": file, "beta": 0.3}, self_check=True)
    resolved = (run.folder / "config.resolved.yaml").read_text()
    assert f'  file: "{file}"  # argument\n  beta: 0.3  # argument\n' in resolved
    assert "name:" not in resolved.partition("loss:")[2].partition("ref_model")[0]
    card = (run.folder / "README.md").read_text()
    assert "said_loss.py:said_loss (SHA-256 " in card and "| loss.beta | 0.3 |" in card
    (check,) = [
        check
        for check in json.loads((run.folder / "selfcheck.json").read_text())["checks"]
        if check["name"] == "loss at the reference"
    ]
    assert check["passed"] and check["detail"].startswith("0.6931")


NAMED = """
import torch
from trimtab.losses import Pair, PreferenceTerms, Ranking, RankingTerms
from trimtab.losses import SequenceLogprobs, UnpairedTerms

def margin(policy: Pair, margins: torch.Tensor, *, beta: float = 0.1) -> PreferenceTerms:
    gap = policy.chosen.sum - policy.rejected.sum - margins
    return PreferenceTerms(-torch.nn.functional.logsigmoid(beta * gap), margins, -margins)

def likelihood(policy: SequenceLogprobs, *, beta: float = 0.1) -> UnpairedTerms:
    return UnpairedTerms(-beta * policy.sum, policy.sum.detach())

class Shifted:
    '''BCO's shift: the mean of both labels' mean rewards, over the whole step.'''
    def __init__(self, *, beta: float = 0.1) -> None:
        self.beta, self.shift = beta, 0.0

    def prepare(self, policy: SequenceLogprobs, reference: SequenceLogprobs,
                labels: torch.Tensor) -> None:
        rewards = self.beta * (policy.sum - reference.sum)
        self.shift = 0.5 * float(rewards[labels].mean() + rewards[~labels].mean())

    def __call__(self, policy: SequenceLogprobs, reference: SequenceLogprobs,
                 labels: torch.Tensor) -> UnpairedTerms:
        rewards = self.beta * (policy.sum - reference.sum)
        signed = torch.where(labels, 1.0, -1.0) * (rewards - self.shift)
        return UnpairedTerms(-torch.nn.functional.logsigmoid(signed), rewards.detach())

    def state_dict(self): return {"shift": self.shift}
    def load_state_dict(self, state): self.shift = state["shift"]

class Widest:
    '''A prepare over rankings, of unequal lengths.'''
    def __init__(self, *, beta: float = 0.1) -> None:
        self.beta, self.widest = beta, 0.0

    def prepare(self, policy: Ranking) -> None:
        assert policy.sum.shape == policy.mask.shape and policy.mask.sum() > len(policy.mask)
        self.widest = float(policy.mask.sum(1).max())

    def __call__(self, policy: Ranking) -> RankingTerms:
        first = policy.sum[:, 0] / policy.length[:, 0]
        return RankingTerms(-self.beta * first + self.widest, policy.sum.detach())

def picky(policy: Pair) -> PreferenceTerms:
    if len(policy.chosen.sum) > 2:
        raise KeyError("more than two")
    z = policy.chosen.sum - policy.rejected.sum
    return PreferenceTerms(-z, z.detach(), z.detach())
"""


@pytest.fixture
def named(world: World) -> Path:
    path = world.root / "named.py"
    path.write_text(NAMED)
    return path


def test_what_a_loss_names_is_what_it_gets(world: World, named: Path) -> None:
    """Margins of the rows; a response alone, without label or reference; a step's own inputs."""
    rows = [json.loads(line) for line in (world.root / "pairs.jsonl").read_text().splitlines()]
    data = world.root / "margins.jsonl"
    data.write_text("".join(json.dumps({**r, "margin": i / 2}) + "\n" for i, r in enumerate(rows)))
    keys = {"dataset_name": str(data), "eval_dataset_name": ..., "max_steps": 1}
    keys["per_device_train_batch_size"] = 12
    run = world.run("dpo", "pairs", **keys, loss={"file": f"{named}:margin"})
    assert run.trained[0]["rewards/chosen"] == pytest.approx(11 / 4)

    run = world.run("dpo", "labelled", max_steps=2, loss={"file": f"{named}:likelihood"})
    assert run.trained[0]["loss"] > run.trained[1]["loss"] > 0

    run = world.run("dpo", "labelled", max_steps=3, loss={"file": f"{named}:Shifted", "beta": 0.5})
    assert run.trained[0]["loss"] == pytest.approx(0.693147, abs=1e-3)
    assert run.trained[2]["loss"] < run.trained[0]["loss"]

    one, many = (
        world.run("dpo", "rankings", token_budget=budget, loss={"file": f"{named}:Widest"})
        for budget in (10_000, 60)
    )
    assert 3 < one.trained[0]["loss"] == pytest.approx(many.trained[0]["loss"], abs=1e-4)


def test_state_is_kept_over_a_failure(
    world: World, named: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss = {"file": f"{named}:Shifted", "beta": 0.5}
    rows = world.rows("labelled")
    keys = broken_run(world, monkeypatch, loss=loss, **rows)
    state = json.loads((Path(keys["output_dir"]) / "checkpoint-2" / "state.json").read_text())
    assert state["algorithm"]["loss"]["shift"] != 0
    run, calm = Run(trimtab.dpo(**keys)), world.run("dpo", "labelled", max_steps=4, loss=loss)
    assert run.trained == calm.trained and run.evaluated == calm.evaluated


def test_a_changed_file_is_refused_on_resume(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    file = copied(world, "preference", "dpo_loss", "moving_loss")
    path = world.root / "moving_loss.py"
    text = path.read_text()
    keys = broken_run(world, monkeypatch, loss={"file": file})
    path.write_text(text + "\n# another\n")
    message = r"checkpoint-2: the contents of loss\.file have changed since .*; put them back, or s"
    with pytest.raises(DataError, match=message) as error:
        trimtab.dpo(**keys)
    assert "\n" not in str(error.value)
    path.write_text(text.replace("beta: float = 0.1", "temperature: float = 0.1"))
    with pytest.raises(RecipeError, match=r"its loss \(loss\.beta: moving_loss takes temperature"):
        trimtab.dpo(**keys)
    path.write_text(text)
    run, calm = Run(trimtab.dpo(**keys)), world.run("dpo", "pairs", max_steps=4)
    assert run.trained == calm.trained


def test_what_it_raises_in_a_run_is_no_bug_of_ours(world: World, named: Path) -> None:
    line = NAMED.splitlines().index('        raise KeyError("more than two")') + 1
    message = rf"^loss\.file: .*named\.py:{line}: KeyError: 'more than two'$"
    with pytest.raises(RunError, match=message):
        world.run("dpo", "pairs", loss={"file": f"{named}:picky"})


def test_a_signature_that_only_running_shows_is_refused(world: World) -> None:
    path = world.root / "decorated.py"
    path.write_text(
        "import functools\nfrom trimtab.losses import Pair, Ranking, dpo_loss\n"
        "def change(f):\n    return lambda policy, reference: 0\n"
        "def other(f):\n    f.__signature__ = None\n    return dpo_loss\n"
        "@change\ndef lost(policy: Pair, reference: Pair, *, beta: float = 0.2): ...\n"
        "@other\ndef swapped(policy: Pair, reference: Pair, *, beta: float = 0.2): ...\n"
    )
    for name, message in (
        ("lost", r"^loss\.file: .*decorated\.py: <lambda>: annotate its parameter policy"),
        (
            "swapped",
            r"^loss\.file: .*: its parameters are others when it runs than in the f",
        ),
    ):
        with pytest.raises(RecipeError, match=message):
            world.run("dpo", "pairs", loss={"file": f"{path}:{name}"})
