"""A user's loss as a live object: what runs of its file, and what its answers have to be."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from trimtab.losses import (
    KTO,
    BetaDPO,
    Pair,
    PreferenceTerms,
    Ranking,
    RankingTerms,
    SequenceLogprobs,
    UnpairedTerms,
    bind,
    describe,
    dpo_loss,
    kto_loss,
)
from trimtab.losses.contract import example
from trimtab.losses.from_file import failure, load_loss

MINE = """
from __future__ import annotations
import dataclasses
from trimtab import losses

@dataclasses.dataclass
class Settings:
    scale: float = 2.0

def mine(policy: losses.Pair, reference: losses.Pair, *, beta: float = 0.1):
    return losses.dpo_loss(policy, reference, beta=Settings().scale * beta)

class Broken:
    def __call__(self, policy: losses.Pair):
        return 1 / 0
"""


def test_a_file_is_run_from_its_text(tmp_path: Path) -> None:
    """Not from a cached bytecode, which could be that of an older text with the same size."""
    path = tmp_path / "mine.py"
    path.write_text(MINE)
    first = load_loss(path, "mine")
    spec = describe(first.loss)
    assert (spec.name, spec.kind, spec.hyperparameters) == ("mine", "pair", {"beta": 0.1})
    inputs = example(spec)
    twice = dpo_loss(inputs["policy"], inputs["reference"], beta=0.2)
    assert torch.equal(bind(first.loss, {})(**inputs).losses, twice.losses)
    path.write_text(MINE.replace("2.0", "3.0"))
    again = load_loss(path, "mine")
    thrice = dpo_loss(inputs["policy"], inputs["reference"], beta=0.1 * 3.0)
    assert torch.equal(bind(again.loss, {})(**inputs).losses, thrice.losses)
    assert first.sha256 != again.sha256 and len(again.sha256) == 64
    assert not (tmp_path / "__pycache__").exists()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, r"mine.py: cannot be read \(No such file or directory\)"),
        ("x = (", r"mine.py:1: SyntaxError: '\(' was never closed"),
        ("\nimport nothing_of_the_kind\n", r"mine.py:2: ModuleNotFoundError: No module named"),
        ("def f():\n    return 1 / 0\nx = f()\n", r"mine.py:2: ZeroDivisionError: division"),
        ("mine = 3\n", r"mine.py: no function or class 'mine'"),
    ],
)
def test_files_that_do_not_run(tmp_path: Path, text: str | None, expected: str) -> None:
    path = tmp_path / "mine.py"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError, match=expected) as error:
        load_loss(path, "mine")
    assert "\n" not in str(error.value)


def test_a_failure_is_named_by_its_own_line(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(MINE)
    with pytest.raises(ZeroDivisionError) as error:
        bind(load_loss(path, "Broken").loss, {})
    line = MINE.splitlines().index("        return 1 / 0") + 1
    assert failure(path, error.value) == f"{path}:{line}: ZeroDivisionError: division by zero"
    assert failure("other.py", error.value) == "other.py: ZeroDivisionError: division by zero"


# ---------------------------------------------------------------------- declarations


def test_what_a_kind_can_ask_for() -> None:
    def labels_of_pairs(policy: Pair, labels: Tensor) -> PreferenceTerms: ...  # type: ignore[empty-body]

    def margins_of_rankings(policy: Ranking, margins: Tensor) -> RankingTerms: ...  # type: ignore[empty-body]

    def positional(policy: Pair, beta: float = 0.1) -> PreferenceTerms: ...  # type: ignore[empty-body]

    def required(policy: Pair, *, beta: float) -> PreferenceTerms: ...  # type: ignore[empty-body]

    def anything(policy: Pair, **more: Any) -> PreferenceTerms: ...  # type: ignore[empty-body]

    for function, unknown in (
        (labels_of_pairs, "labels"),
        (margins_of_rankings, "margins"),
        (positional, "beta"),
        (required, "beta"),
        (anything, "more"),
    ):
        with pytest.raises(ValueError, match=f"nobody computes {unknown}; a loss of this kind"):
            describe(function)

    class LatePrepare:
        def __call__(self, policy: Pair, sequence_kl: Any) -> PreferenceTerms: ...  # type: ignore[empty-body]

        def prepare(self, sequence_kl: Any) -> None: ...

    with pytest.raises(ValueError, match=r"LatePrepare\.prepare: nobody computes sequence_kl"):
        describe(LatePrepare)

    class Positional:
        def __init__(self, beta: float = 0.1) -> None: ...

        def __call__(self, policy: Pair) -> PreferenceTerms: ...  # type: ignore[empty-body]

    with pytest.raises(ValueError, match=r"Positional\.__init__: beta is no hyper-parameter"):
        describe(Positional)


def test_a_class_needs_no_constructor() -> None:
    class Plain:
        def __call__(self, policy: Pair, reference: Pair) -> PreferenceTerms:
            return dpo_loss(policy, reference)

    assert describe(Plain).hyperparameters == {}
    assert callable(bind(Plain, {}))
    with pytest.raises(ValueError, match="beta: Plain has no such hyper-parameter, only none at"):
        bind(Plain, {"beta": 1.0})


# ---------------------------------------------------------------------- answers


def reduced(policy: Pair, reference: Pair) -> PreferenceTerms:
    terms = dpo_loss(policy, reference)
    return terms._replace(losses=terms.losses.mean())


def tokens(policy: Pair, reference: Pair) -> PreferenceTerms:
    terms = dpo_loss(policy, reference)
    return terms._replace(losses=terms.losses[:, None].expand(-1, 3))


def a_tensor(policy: Pair, reference: Pair) -> Any:
    return dpo_loss(policy, reference).losses


def of_another_kind(policy: Pair, reference: Pair) -> Any:
    terms = dpo_loss(policy, reference)
    return UnpairedTerms(terms.losses, terms.chosen_rewards)


def detached(policy: Pair, reference: Pair) -> PreferenceTerms:
    terms = dpo_loss(policy, reference)
    return terms._replace(losses=terms.losses.detach())


def not_finite(policy: Pair, reference: Pair) -> PreferenceTerms:
    terms = dpo_loss(policy, reference)
    return terms._replace(losses=terms.losses * (terms.losses - terms.losses).log())


def numbers(policy: Pair, reference: Pair) -> Any:
    return dpo_loss(policy, reference)._replace(chosen_rewards=0.0)  # type: ignore[arg-type]


def only_two(policy: Pair, reference: Pair) -> PreferenceTerms:
    """Right for the two pairs of a first trial, and for no other number."""
    two = torch.zeros(2)
    return PreferenceTerms(policy.chosen.sum[0] + two, two, two)


def flat_rewards(policy: Ranking, reference: Ranking) -> RankingTerms:
    gaps = policy.sum - reference.sum
    return RankingTerms(gaps.sum(-1), gaps.detach().sum(-1))


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (
            reduced,
            r"reduced: gave losses of shape \(\) for 2 pairs; give one loss for each",
        ),
        (tokens, r"tokens: gave losses of shape \(2, 3\) for 2 pairs"),
        (a_tensor, r"a_tensor: has to return PreferenceTerms, not shape \(2,\)"),
        (of_another_kind, r"of_another_kind: has to return PreferenceTerms, not UnpairedTerms"),
        (detached, r"detached: its losses have no gradient: they do not depend on policy"),
        (not_finite, r"not_finite: gave losses that are not finite: tensor\(\[-inf, -inf\]"),
        (numbers, r"numbers: gave chosen_rewards of float, not of shape \(2,\)"),
        (only_two, r"only_two: gave losses of shape \(2,\) for 1 pairs"),
        (flat_rewards, r"flat_rewards: gave rewards of shape \(2,\), not of shape \(2, 4\)"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_wrong_answers_are_refused_before_training(loss: Callable[..., Any], expected: str) -> None:
    bind(dpo_loss, {})
    with pytest.raises(ValueError, match=expected):
        bind(loss, {})


def test_prepare_and_state_are_tried_too() -> None:
    bind(KTO, {}), bind(BetaDPO, {})

    class TooManyWeights(BetaDPO):
        def __call__(self, policy: Pair, reference: Pair) -> PreferenceTerms:
            return dpo_loss(policy, reference)

        def prepare(self, policy: Pair, reference: Pair, *, generator: Any) -> Tensor:
            return torch.ones(3)

    with pytest.raises(ValueError, match=r"TooManyWeights\.prepare: gives None, or a weight for"):
        bind(TooManyWeights, {})

    class WeightsOfResponses(KTO):
        def __call__(
            self, policy: SequenceLogprobs, reference: SequenceLogprobs, labels: Tensor
        ) -> UnpairedTerms:
            return kto_loss(policy, reference, labels, torch.zeros(()))

        def prepare(self, mismatched_policy: Any, mismatched_reference: Any) -> Any:
            return torch.ones(2)

    with pytest.raises(ValueError, match=r"WeightsOfResponses\.prepare: gives None, or a weight"):
        bind(WeightsOfResponses, {})

    class TensorState(KTO):
        def state_dict(self) -> dict[str, Any]:
            return {"z0": torch.zeros(())}

    with pytest.raises(ValueError, match=r"TensorState\.state_dict: holds plain floats, by name"):
        bind(TensorState, {})


def test_what_is_given_back_has_prepared_nothing() -> None:
    assert bind(KTO, {}).z0 == 0.0 and bind(BetaDPO, {}).gap_mean is None  # type: ignore[attr-defined]
