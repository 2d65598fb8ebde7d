"""The declarations of the losses, read from their source, are those of the live objects."""

from __future__ import annotations

from pathlib import Path

import pytest

from trimtab.config.loss_schema import loss_schema, loss_schemas, read_parameter
from trimtab.config.recipes import LossChoice
from trimtab.config.verbs import LOSS_DEFAULTS, VERBS


def test_the_source_says_what_the_objects_say() -> None:
    losses = pytest.importorskip("trimtab.losses")
    read = loss_schemas()
    assert list(read) == list(losses.PREFERENCE_LOSSES)
    for name, schema in read.items():
        live = losses.describe(name)
        assert {k: p.default for k, p in schema.parameters.items()} == live.hyperparameters
        assert schema.needs == live.needs | live.prepare_needs
        assert schema.kind == live.kind


def test_what_verbs_stand_for_exists() -> None:
    assert {v.loss for v in VERBS.values() if v.loss} <= loss_schemas().keys()
    assert LOSS_DEFAULTS.keys() <= loss_schemas().keys()
    assert loss_schema("nothing") is None and loss_schema(3) is None


def test_known_losses() -> None:
    dpo, simpo, kto = (loss_schemas()[name] for name in ("dpo", "simpo", "kto"))
    assert (dpo.kind, dpo.needs_reference, dpo.parameters["beta"].default) == ("pair", True, 0.1)
    assert not simpo.needs_reference and list(simpo.parameters) == ["beta", "gamma"]
    assert kto.kind == "unpaired" and "mismatched_policy" in kto.needs
    assert loss_schemas()["plackett_luce"].kind == "ranking"
    assert loss_schemas()["ld_dpo"].needs >= {"policy_tokens", "reference_tokens"}
    assert loss_schemas()["infonca"].needs == {"policy", "reference", "scores"}


MODULE = '''
"""Losses."""
from .pair import mine as alias
from trimtab.losses.state import State
PREFERENCE_LOSSES = {"mine": alias, "state": State, "own": own}

def own(policy: SequenceLogprobs, *, mode: Literal["a", "b"] = "a"):
    """Own."""
'''
PAIR = '''
def mine(
    policy: Pair, reference: Pair, *, steps: int = 3, on: bool = False, cap: float | None = None
):
    """Mine: a loss.

    More.
    """
'''
STATE = '''
class State:
    """With state."""
    def __init__(self, *, beta: float = -1.5): ...
    def __call__(self, policy: types.Ranking): ...
    def prepare(self, policy: Ranking, reference: Ranking, *, generator: Generator): ...
'''


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in (("__init__", MODULE), ("pair", PAIR), ("state", STATE)):
        (tmp_path / f"{name}.py").write_text(text)
    return tmp_path


def test_reading_without_importing(folder: Path) -> None:
    found = loss_schemas(folder)
    mine, state, own = found["mine"], found["state"], found["own"]
    assert mine.summary == "Mine: a loss."
    assert {k: p.default for k, p in mine.parameters.items()} == {
        "steps": 3,
        "on": False,
        "cap": None,
    }
    assert mine.needs == {"policy", "reference"} and mine.kind == "pair"
    assert state.parameters["beta"].default == -1.5
    assert state.needs == {"policy", "reference", "generator"} and state.kind == "ranking"
    assert own.kind == "unpaired"
    assert read_parameter("loss.steps", mine.parameters["steps"], "1e2") == 100
    assert read_parameter("loss.on", mine.parameters["on"], "yes") is True
    assert read_parameter("loss.cap", mine.parameters["cap"], None) is None
    assert read_parameter("loss.mode", own.parameters["mode"], "b") == "b"


def test_a_type_that_a_recipe_cannot_hold_is_our_bug(folder: Path) -> None:
    (folder / "pair.py").write_text("def mine(policy: Pair, *, f: Callable = None): ...")
    loss_schemas.cache_clear()
    with pytest.raises(AssertionError, match="Callable"):
        loss_schemas(folder)


def test_choices_fill_in_defaults() -> None:
    assert LossChoice.model_validate("simpo").parameters == {"beta": 2.0, "gamma": 1.0}
    choice = LossChoice.model_validate({"name": "simpo", "gamma": "0.5"})
    assert choice.model_dump() == {"name": "simpo", "beta": 2.0, "gamma": 0.5}
    assert LossChoice.model_validate(choice.model_dump()) == choice
