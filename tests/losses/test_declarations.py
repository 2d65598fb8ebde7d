"""Signatures as declarations: what losses ask for, their recipe keys, and the errors about both."""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import trimtab.losses as package
from trimtab.losses import (
    PREFERENCE_LOSSES,
    LossSpec,
    Pair,
    PreferenceTerms,
    Ranking,
    SequenceLogprobs,
    bind,
    describe,
    dpo_loss,
)
from trimtab.losses.contract import INPUTS, example

from .support import F64, close, golden_case

NAMES = list(PREFERENCE_LOSSES)
SOURCE = Path(package.__file__).parent


def test_declarations() -> None:
    """The whole family's declarations, in numbers that recipes and docs rely on."""
    wanted = {
        "dpo": ("pair", {"reference"}, set(), {"beta": 0.1}),
        "simpo": ("pair", set(), set(), {"beta": 2.0, "gamma": 1.0}),
        "orpo": ("pair", set(), set(), {"beta": 0.1}),
        "tdpo2": ("pair", {"reference", "sequence_kl"}, set(), {"beta": 0.1, "alpha": 0.5}),
        "kto": (
            "unpaired",
            {"reference", "labels"},
            {"mismatched_policy", "mismatched_reference"},
            {"beta": 0.1, "desirable_weight": 1.0, "undesirable_weight": 1.0},
        ),
        "beta_dpo": (
            "pair",
            {"reference"},
            {"policy", "reference", "generator"},
            {"beta": 0.1, "scale": 0.6, "momentum": 0.9, "keep": 0.8},
        ),
        "plackett_luce": ("ranking", {"reference"}, set(), {"beta": 0.1}),
        "cdpo": ("pair", {"reference"}, set(), {"beta": 0.1, "epsilon": 0.1}),
        "ipo": ("pair", {"reference"}, set(), {"tau": 0.1}),
        "slic_hf": ("pair", set(), set(), {"delta": 1.0, "target_weight": 0.1}),
        "wpo": ("pair", {"reference", "log_square"}, set(), {"beta": 0.01}),
        "ld_dpo": (
            "pair",
            {"reference", "policy_tokens", "reference_tokens"},
            set(),
            {"beta": 0.1, "alpha": 0.5},
        ),
        "bco": (
            "unpaired",
            {"reference", "labels"},
            {"policy", "reference", "labels"},
            {"beta": 0.01, "momentum": 0.9},
        ),
        "infonca": ("ranking", {"reference", "scores"}, set(), {"beta": 0.1, "alpha": 1e-3}),
    }
    for name, (kind, needs, prepare_needs, hyperparameters) in wanted.items():
        spec = describe(name)
        assert (spec.name, spec.kind) == (name, kind)
        assert spec.needs == needs | {"policy"}
        assert spec.prepare_needs == prepare_needs
        assert spec.hyperparameters == hyperparameters
        assert list(spec.hyperparameters) == list(hyperparameters)
    assert describe(dpo_loss).name == "dpo_loss"


def test_one_function_and_one_entry_make_a_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    def margin_loss(
        policy: Pair, reference: Pair, margins: Tensor, *, beta: float = 0.5
    ) -> PreferenceTerms:
        shifted = reference.rejected._replace(sum=reference.rejected.sum - margins / beta)
        return dpo_loss(policy, Pair(reference.chosen, shifted), beta=beta)

    monkeypatch.setitem(PREFERENCE_LOSSES, "margin", margin_loss)
    spec = describe("margin")
    assert spec == LossSpec(
        "margin",
        "pair",
        frozenset({"policy", "reference", "margins"}),
        frozenset(),
        {"beta": 0.5},
        False,
    )
    policy, reference, _ = golden_case("A")
    margins = torch.tensor([0.1], dtype=F64)
    losses = bind("margin", {"beta": 0.25})(policy, reference, margins).losses
    # z = 0.25 * 2.5 - 0.1
    assert close(losses.detach(), [torch.log1p(torch.tensor(-0.525, dtype=F64).exp()).item()], 1e-9)


def test_declaration_errors_name_what_is_wrong() -> None:
    def unknown_input(policy: Pair, attention: Tensor) -> PreferenceTerms: ...  # type: ignore[empty-body]

    def no_kind(policy: Tensor) -> PreferenceTerms: ...  # type: ignore[empty-body]

    def no_policy(reference: Pair) -> PreferenceTerms: ...  # type: ignore[empty-body]

    with pytest.raises(
        ValueError, match=r"unknown_input: nobody computes attention; .*sequence_kl"
    ):
        describe(unknown_input)
    for function in (no_kind, no_policy):
        with pytest.raises(ValueError, match="policy with one of Pair, SequenceLogprobs, Ranking"):
            describe(function)
    with pytest.raises(ValueError, match="dopo: no such preference loss, only dpo, cdpo"):
        describe("dopo")


@pytest.mark.parametrize("name", NAMES)
def test_impossible_hyperparameters_are_refused_before_any_model_is_there(name: str) -> None:
    first = next(iter(describe(name).hyperparameters))
    assert first == {"slic_hf": "delta", "sppo": "eta", "ipo": "tau", "ipo_sum": "tau"}.get(
        name, "beta"
    )
    for value in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"{first}={value}: must be"):
            bind(name, {first: value})
    only = f"gama: {name} has no such hyper-parameter, only {first}"
    with pytest.raises(ValueError, match=only):
        bind(name, {"gama": 1.0})


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("dpo", "beta", 0.0),
        ("simpo", "gamma", -0.1),
        ("tdpo2", "alpha", -0.1),
        ("kto", "desirable_weight", -1.0),
        ("kto", "undesirable_weight", -1.0),
        ("beta_dpo", "scale", -0.1),
        ("beta_dpo", "momentum", 1.0),
        ("beta_dpo", "momentum", -0.1),
        ("beta_dpo", "keep", 0.0),
        ("beta_dpo", "keep", 1.1),
        ("plackett_luce", "beta", 0.0),
        ("cdpo", "epsilon", 0.5),
        ("robust", "epsilon", 0.5),
        ("robust", "epsilon", -0.1),
        ("exo", "epsilon", 0.0),
        ("exo_authors", "log_epsilon", 0.0),
        ("slic_hf", "target_weight", -0.1),
        ("simpo_ratio", "gamma_beta_ratio", -0.1),
        ("alphapo", "alpha", 1.5),
        ("alphapo", "gamma", -0.1),
        ("dpop", "penalty", -1.0),
        ("irpo", "alpha", -1.0),
        ("r_dpo", "alpha", -0.1),
        ("ld_dpo", "alpha", 1.1),
        ("discopop", "tau", 1.1),
        ("discopop", "tau", 0.0),
        ("fdpo_alpha", "alpha", 0.0),
        ("infonca", "alpha", 0.0),
        ("nca_rewards", "alpha", 0.0),
        ("exo_rewards", "reward_beta", 0.0),
        ("bco", "momentum", 1.0),
    ],
)
def test_impossible_values_are_refused(name: str, key: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"^{key}={value}: must be"):
        bind(name, {key: value})


def schema_from_source() -> dict[str, dict[str, Any]]:
    """Hyper-parameters of every loss by parsing alone, as the configuration reads them."""
    trees = {path.stem: ast.parse(path.read_text("utf-8")) for path in SOURCE.glob("*.py")}
    init = trees["__init__"]
    home = {
        alias.name: (node.module or "").rpartition(".")[2]
        for node in init.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    registry = next(
        node.value
        for node in init.body
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "PREFERENCE_LOSSES"
    )
    assert isinstance(registry, ast.Dict)
    found: dict[str, dict[str, Any]] = {}
    for key, value in zip(registry.keys, registry.values, strict=True):
        assert isinstance(key, ast.Constant)
        assert isinstance(value, ast.Name)
        definition: Any = next(
            node
            for node in trees[home[value.id]].body
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == value.id
        )
        if isinstance(definition, ast.ClassDef):
            definition = next(
                node for node in definition.body if getattr(node, "name", "") == "__init__"
            )
        assert all(isinstance(a.annotation, ast.Name) for a in definition.args.kwonlyargs)
        found[key.value] = {
            argument.arg: ast.literal_eval(default)
            for argument, default in zip(
                definition.args.kwonlyargs, definition.args.kw_defaults, strict=True
            )
        }
    return found


def test_hyperparameters_can_be_read_without_importing_torch() -> None:
    assert schema_from_source() == {name: describe(name).hyperparameters for name in NAMES}


def test_the_package_imports_torch_and_nothing_else_of_ours() -> None:
    for path in SOURCE.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            for name in names:
                root = name.partition(".")[0]
                assert (
                    root in sys.stdlib_module_names
                    or root == "torch"
                    or name.startswith("trimtab.losses")
                ), f"{path.name}: {name}"


def test_public_names_are_sorted_and_exist() -> None:
    order = sorted(package.__all__, key=lambda n: (not n.isupper(), not n[0].isupper(), n))
    assert package.__all__ == order
    assert len(set(package.__all__)) == len(package.__all__)
    assert all(hasattr(package, name) for name in package.__all__)


def test_made_up_inputs_cover_the_whole_vocabulary() -> None:
    of_pairs = {"policy_tokens", "reference_tokens", "log_square"}
    paired = example(LossSpec("all", "pair", INPUTS - {"scores"}, frozenset(), {}, False), size=5)
    assert set(paired) == INPUTS - {"scores"}
    for side in ("policy", "reference"):
        for whole, tokens in zip(paired[side], paired[f"{side}_tokens"], strict=True):
            assert close(tokens.logp.sum(-1), whole.sum, 1e-5)
            assert torch.equal(tokens.mask.sum(-1), whole.length)
            assert not tokens.logp[~tokens.mask].any()
    spec = LossSpec("all", "ranking", INPUTS - of_pairs, frozenset(), {}, False)
    made = example(spec, size=5)
    assert set(made) == INPUTS - of_pairs
    assert bool((made["scores"].diff() <= 0).all())
    assert isinstance(made["policy"], Ranking)
    assert made["policy"].mask.sum(1).tolist() == [2, 3, 4, 2, 3]
    assert isinstance(made["mismatched_policy"], SequenceLogprobs)
    again = example(spec, size=5)
    assert torch.equal(made["policy"].sum, again["policy"].sum)
    assert not torch.equal(made["policy"].sum, example(spec, size=5, seed=1)["policy"].sum)
