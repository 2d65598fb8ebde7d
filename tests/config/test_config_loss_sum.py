"""Weighted sums of losses: the ways to write one, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from trimtab.config import PreferenceRecipe, Resolved, load_text, resolve, to_yaml
from trimtab.config.loss_schema import loss_schemas
from trimtab.config.loss_sum import LossSumError, is_sum, parse_sum, sum_schema, write_sum
from trimtab.errors import RecipeError


def run(*tokens: str, verb: str = "dpo") -> Resolved:
    return resolve(verb, ["--model", "m", "--dataset", "d", *tokens], env={})


def loss_of(*tokens: str) -> tuple[dict[str, Any], float]:
    """The loss as a recipe has it, and the weight of the likelihood."""
    found = run(*tokens)
    assert isinstance(found.recipe, PreferenceRecipe)
    again = load_text(to_yaml(found)).recipe
    assert again == found.recipe, "the resolved recipe says the same"
    return found.recipe.loss.model_dump(), found.recipe.nll_weight


def refused(*tokens: str, verb: str = "dpo") -> str:
    with pytest.raises(RecipeError) as error:
        run(*tokens, verb=verb)
    assert "\n" not in str(error.value)
    return str(error.value)


MIXED = {"name": "0.8*dpo + 0.2*bco_pair", "dpo": {"beta": 0.1}, "bco_pair": {"beta": 0.01}}


@pytest.mark.parametrize(
    "text",
    [
        "0.8 dpo + 0.2 bco_pair + sft",
        "0.8*dpo+0.2*bco_pair+1*sft",
        "dpo=0.8,bco_pair=2e-1,sft=1",
        "8e-1 dpo + .2 bco_pair + sft",
        "{dpo: 0.8, bco_pair: 0.2, sft: 1}",
        "{dpo: {weight: 0.8}, bco_pair: {weight: 0.2, beta: 0.01}, sft: 1.0}",
    ],
)
def test_ways_to_write_one(text: str) -> None:
    assert loss_of("--loss", text) == (MIXED, 1.0)


def test_member_by_member_on_the_command_line() -> None:
    found = loss_of("--loss.dpo", "0.8", "--loss.bco-pair.weight", "0.2", "--loss.dpo.beta", "0.3")
    assert found == ({**MIXED, "dpo": {"beta": 0.3}}, 0.0)


def test_a_recipe_file_and_what_the_line_changes(tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text("loss: {dpo: 0.8, bco_pair: {weight: 0.2, beta: 0.5}, sft: 1}\n")
    mixed = {**MIXED, "bco_pair": {"beta": 0.5}}
    assert loss_of(str(file)) == (mixed, 1.0)
    assert loss_of(str(file), "--loss.sft", "0.5") == (mixed, 0.5)
    assert loss_of(str(file), "--loss.dpo.beta", "0.7")[0]["dpo"] == {"beta": 0.7}
    assert refused(str(file), "--loss", "ipo").startswith("loss.bco_pair.beta: 0.5 was meant for ")
    file.write_text("loss: {dpo: 0.8, ipo: 0.2}\nbeta: 0.2\n")
    assert loss_of(str(file))[0]["dpo"] == {"beta": 0.2}, "the only one with a beta"
    assert "loss.beta: 0.2 was meant for 0.8*dpo + 0.2*ipo" in refused(str(file), "--loss", "simpo")
    file.write_text("loss: {dpo: 0.8, hinj: 0.2}\n")
    assert "Did you mean hinge?" in refused(str(file))


def test_a_loss_alone_is_itself(tmp_path: Path) -> None:
    assert loss_of("--loss", "dpo + 0.1 sft", "--beta", "0.3") == (
        {"name": "dpo", "beta": 0.3},
        0.1,
    )
    assert loss_of("--loss", "{dpo: {weight: 1, beta: 0.3}}")[0] == {"name": "dpo", "beta": 0.3}
    file = tmp_path / "r.yaml"
    file.write_text("beta: 0.3\n")
    assert loss_of(str(file), "--loss", "dpo + 0.1 sft")[0] == {"name": "dpo", "beta": 0.3}
    assert loss_of("--loss", "0.5 dpo")[0] == {"name": "0.5*dpo", "dpo": {"beta": 0.1}}


@pytest.mark.parametrize(
    ("tokens", "weight", "span"),
    [
        (["orpo"], 1.0, "prompt_and_completion"),
        (["0.5 orpo"], 0.5, "prompt_and_completion"),
        (["cpo + 0.1 hinge"], 1.0, "completion"),
        (["0.5 orpo + 0.25 cpo"], 0.75, "prompt_and_completion"),
        (["orpo + 0.2 dpo", "--nll-weight", "0"], 0.0, "prompt_and_completion"),
        (["cpo + hinge + 0.3 sft"], 0.3, "completion"),
        (["dpo + hinge"], 0.0, "completion"),
    ],
)
def test_members_bring_their_likelihood(tokens: list[str], weight: float, span: str) -> None:
    recipe = run("--loss", *tokens).recipe
    assert isinstance(recipe, PreferenceRecipe)
    assert (recipe.nll_weight, recipe.nll_span) == (weight, span)


def test_folders_and_names() -> None:
    assert run("--loss", "dpo + hinge").recipe.output_dir == "runs/dpo-dpo+hinge-m-d"
    recipe = run("--loss", "dpo + hinge").recipe
    assert isinstance(recipe, PreferenceRecipe)
    assert recipe.loss.weights == {"dpo": 1.0, "hinge": 1.0}
    assert recipe.loss.schema_.needs == {"policy", "reference"}


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (["--loss", "dpo + kto"], "a sum is of losses of one kind, and not dpo (pair), kto"),
        (["--loss", "dpo + simp"], "'simp' in 'dpo + simp' is no loss here. Did you mean simpo?"),
        (["--loss", "dpo + -1 sft"], "'-1 sft' in 'dpo + -1 sft' is no term of a sum of losses"),
        (["--loss", "dpo + dpo"], "dpo stands twice"),
        (["--loss", "dpo=0,ipo=1"], "'0' as the weight of dpo is not a positive number"),
        (["--loss.dpo", "big"], "'big' as the weight of dpo is not a positive number"),
        (["--loss", "2 sft"], "is trimtab sft; use that verb"),
        (["--loss", "dpo + 0.1 sft", "--nll-weight", "1"], "they are one term, give one of the"),
        (["--loss", "dpo + hinge", "--beta", "0.3"], "give loss.dpo.beta, loss.hinge.beta"),
        (["--loss", "dpo + hinge", "--loss.ipo.tau", "1"], "dpo+hinge takes dpo.beta, hinge.beta"),
        (["--loss", "dpo + ipo", "--loss.hinge", "1"], "write the whole sum in one way"),
        (["--loss.dpo", "1", "--loss.file", "a.py:f"], "give one of the two"),
        (["--loss-type", "[sigmoid, sft]"], "loss_type"),
    ],
)
def test_refusals(tokens: list[str], message: str) -> None:
    assert message in refused(*tokens)


def test_a_verb_of_one_loss_takes_no_sum() -> None:
    assert 'use trimtab dpo --loss "dpo + simpo"' in refused("--loss", "dpo + simpo", verb="simpo")


def test_reading_and_writing() -> None:
    for weights in ({"dpo": 1.0, "ipo": 0.25}, {"dpo": 0.5}, {"dpo": 1e-07, "cpo": 12345678.5}):
        assert parse_sum(write_sum(weights)) == weights
    for name in loss_schemas():
        assert not is_sum(name)
    assert not is_sum("my losses/a+b.py:f") and not is_sum(None)
    with pytest.raises(LossSumError, match="nll_weight"):
        sum_schema("dpo + sft")


def test_no_hyper_parameter_has_the_name_of_a_loss() -> None:
    """``loss.hinge: 0.2`` is the weight of a member."""
    names = {key for schema in loss_schemas().values() for key in schema.parameters}
    assert not names & {*loss_schemas(), "sft", "weight"}
