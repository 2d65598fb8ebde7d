"""The golden numbers of tests/golden/losses.json: values and gradients, and who fails them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from trimtab.losses import (
    PREFERENCE_LOSSES,
    BetaDPO,
    PairValues,
    bind,
    describe,
    kto_loss,
    nll,
    orpo_loss,
    plackett_luce_loss,
    tdpo2_loss,
)

from . import wrong, wrong_family
from .support import F64, GOLDEN, close, golden_case, gradients, leaf, pair, ranking, responses

PAIRS = {entry["loss"]: entry for entry in GOLDEN["pairs"]}
WRONG_PAIRS = {"dpo": wrong.DPO, "simpo": wrong.SIMPO, "orpo": wrong.ORPO, **wrong_family.PAIRS}
# Values are shown with 9 digits, gradients with 8, and the last one is rounded.
RTOL = 6e-9
RTOL_GRADIENT = 6e-8


def agrees_with_golden(
    loss: Callable[..., Any], name: str, rtol: float = RTOL, dtype: torch.dtype = F64
) -> bool:
    """Whether a paired loss gives the golden values and gradients of cases A, B and C."""
    entry, good = PAIRS[name], True
    for case in "ABC":
        policy, reference, leaves = golden_case(case, dtype)
        named = {"policy": policy, "reference": reference}
        needs = describe(name).needs
        losses = loss(**{k: v for k, v in named.items() if k in needs}).losses
        wanted = entry[case]
        good &= close(losses.detach(), [wanted["value"]], rtol)
        found = gradients(losses, *leaves)
        if "chosen" in wanted:
            slopes = [[wanted["chosen"]], [wanted["rejected"]]]
            good &= close(torch.stack(found), slopes, max(rtol, RTOL_GRADIENT))
    return good


@pytest.mark.parametrize("name", PAIRS)
def test_pairs(name: str) -> None:
    assert agrees_with_golden(bind(name, PAIRS[name]["hyperparameters"]), name)


@pytest.mark.parametrize("name", PAIRS)
def test_pairs_in_fp32(name: str) -> None:
    loss = bind(name, PAIRS[name]["hyperparameters"])
    # APO-down's slope by the chosen response is a difference of two that are 80 times larger.
    rtol = 1e-4 if name == "apo_down" else 2e-6
    assert agrees_with_golden(loss, name, rtol=rtol, dtype=torch.float32)


@pytest.mark.parametrize(
    ("name", "variant"), [(name, variant) for name, all_ in WRONG_PAIRS.items() for variant in all_]
)
def test_pairs_reject(name: str, variant: str) -> None:
    hyperparameters = PAIRS[name]["hyperparameters"]

    def broken(**inputs: Any) -> Any:
        return WRONG_PAIRS[name][variant](**inputs, **hyperparameters)

    assert not agrees_with_golden(broken, name, rtol=1e-3)


@pytest.mark.parametrize("name", PAIRS)
def test_pairs_reject_what_is_wrong_for_any_loss(name: str) -> None:
    """Sides exchanged, means for sums or sums for means, no reference, a missing gradient."""
    bound = bind(name, PAIRS[name]["hyperparameters"])
    for what, broken in wrong_family.general(name, bound).items():
        assert not agrees_with_golden(broken, name, rtol=1e-4), what


def test_every_loss_of_the_registry_has_a_golden_value() -> None:
    assert set(PREFERENCE_LOSSES) <= set(PAIRS) | set(GOLDEN)


def orpo_total(loss: Callable[..., Any], nll_units: int, case: str) -> tuple[Any, list[Any]]:
    """Odds term plus the mean NLL of the chosen response's tokens."""
    policy, _, leaves = golden_case(case)
    total = loss(policy, beta=GOLDEN["orpo_total"]["beta"]).losses
    total = total + nll(policy.chosen.sum) / nll_units
    return total.detach(), gradients(total, *leaves)


@pytest.mark.parametrize("case", "ABC")
def test_orpo_with_its_likelihood(case: str) -> None:
    wanted = GOLDEN["orpo_total"][case]
    total, (chosen, rejected) = orpo_total(orpo_loss, 8, case)
    assert close(total, [wanted["value"]], RTOL)
    if "chosen" in wanted:
        assert close(chosen, [wanted["chosen"]], RTOL_GRADIENT)
        assert close(rejected, [wanted["rejected"]], RTOL_GRADIENT)


def test_orpo_with_its_likelihood_rejects_sum_for_mean_and_wrong_sign() -> None:
    wanted = [GOLDEN["orpo_total"]["A"]["value"]]
    assert not close(orpo_total(orpo_loss, 1, "A")[0], wanted, 1e-2)
    assert not close(orpo_total(wrong.ORPO["subtracted"], 8, "A")[0], wanted, 1e-2)


def tdpo2_agrees(loss: Callable[..., Any]) -> bool:
    """The golden value, the gradient by the rejected KL, and none by the chosen one's."""
    golden = GOLDEN["tdpo2"]
    policy, reference, leaves = golden_case(golden["case"])
    kl = PairValues(leaf([golden["chosen_kl"]]), leaf([golden["rejected_kl"]]))
    losses = loss(policy, reference, kl, **golden["hyperparameters"]).losses
    by_chosen, by_kl_chosen, by_kl_rejected = gradients(losses, leaves[0], *kl)
    # z = 0.1 * 2.5 - 0.5 * 0.1 * 0.12 = 0.244
    slope = 1 / (1 + math.exp(0.244))
    return (
        close(losses.detach(), [golden["value"]], RTOL)
        and close(by_chosen, [-0.1 * slope], RTOL)
        and close(by_kl_rejected, [0.05 * slope], RTOL)
        and close(by_kl_chosen, [0.0], 0.0)
    )


def test_tdpo2() -> None:
    assert tdpo2_agrees(tdpo2_loss)


@pytest.mark.parametrize("variant", wrong.TDPO2)
def test_tdpo2_rejects(variant: str) -> None:
    assert not tdpo2_agrees(wrong.TDPO2[variant])


def test_tdpo2_at_alpha_1_has_tdpo1s_value() -> None:
    golden = GOLDEN["tdpo2"]
    policy, reference, _ = golden_case("A")
    kl = PairValues(
        torch.tensor([golden["chosen_kl"]]).double(), torch.tensor([golden["rejected_kl"]]).double()
    )
    losses = tdpo2_loss(policy, reference, kl, beta=0.1, alpha=1.0).losses
    assert close(losses.detach(), [golden["tdpo1_value"]], RTOL)


def test_sequence_kl_is_of_the_reference_against_the_policy() -> None:
    """What ``sequence_kl`` means, in numbers; the opposite direction gives another one."""
    golden = GOLDEN["sequence_kl"]
    reference, policy = (torch.tensor(golden[k], dtype=F64).log() for k in ("reference", "policy"))
    forward = (reference.exp() * (reference - policy)).sum()
    backward = (policy.exp() * (policy - reference)).sum()
    assert close(forward, golden["value"], RTOL)
    assert not close(backward, golden["value"], 1e-2)


def kto_agrees(loss: Callable[..., Any]) -> bool:
    """Golden values and gradients of both labels, and no gradient through z0."""
    golden = GOLDEN["kto"]
    sides = [golden["desirable"], golden["undesirable"]]
    sums = leaf([side["log_ratio"] - 20.0 for side in sides])
    z0 = leaf(golden["z0"])
    labels = torch.tensor([True, False])
    losses = loss(
        responses(sums), responses([-20.0, -20.0]), labels, z0, **golden["hyperparameters"]
    ).losses
    by_sums, by_z0 = gradients(losses, sums, z0)
    return (
        close(losses.detach(), [side["value"] for side in sides], RTOL)
        and close(by_sums, [side["gradient"] for side in sides], RTOL)
        and close(by_z0, 0.0, 0.0)
    )


def test_kto() -> None:
    assert kto_agrees(kto_loss)


@pytest.mark.parametrize("variant", wrong.KTO)
def test_kto_rejects(variant: str) -> None:
    assert not kto_agrees(wrong.KTO[variant])


def plackett_luce_agrees(loss: Callable[..., Any]) -> bool:
    """The golden value of four ranked responses, and the gradient of the best one."""
    golden = GOLDEN["plackett_luce"]
    beta = 0.1
    sums = leaf([[h / beta - 30.0 for h in golden["rewards"]]])
    losses = loss(ranking(sums), ranking(torch.full((1, 4), -30.0).double()), beta=beta).losses
    by_best = gradients(losses, sums)[0][0, 0]
    first = math.exp(golden["rewards"][0]) / sum(math.exp(h) for h in golden["rewards"])
    return close(losses.detach(), [golden["value"]], RTOL) and close(
        by_best, -beta * (1 - first), RTOL
    )


def test_plackett_luce() -> None:
    assert plackett_luce_agrees(plackett_luce_loss)


@pytest.mark.parametrize("variant", wrong.PLACKETT_LUCE)
def test_plackett_luce_rejects(variant: str) -> None:
    assert not plackett_luce_agrees(wrong.PLACKETT_LUCE[variant])


def batch_beta(gap_factor: float = 1.0, start_at_zero: bool = False) -> float:
    """The beta of a step whose pairs have the golden gaps, all kept, against the golden mean."""
    golden = GOLDEN["beta_dpo"]
    gaps = torch.tensor(golden["kept_gaps"], dtype=F64) * gap_factor
    # With a momentum this close to 1 the step itself does not move the running mean.
    loss = BetaDPO(**golden["hyperparameters"], keep=1.0, momentum=1 - 1e-12)
    loss.gap_mean, loss.gap_std = 0.0 if start_at_zero else golden["running_mean"], 1.0
    zero = torch.zeros(3, dtype=F64)
    loss.prepare(pair(gaps, zero), pair(zero, zero), generator=torch.Generator())
    return loss.batch_beta


def test_beta_dpo_batch_beta() -> None:
    assert batch_beta() == pytest.approx(GOLDEN["beta_dpo"]["batch_beta"], rel=1e-9)


def test_beta_dpo_batch_beta_rejects_scaled_gaps_and_a_mean_of_zero() -> None:
    golden = GOLDEN["beta_dpo"]["batch_beta"]
    assert batch_beta(gap_factor=0.1) != pytest.approx(golden, rel=1e-2)
    assert batch_beta(start_at_zero=True) != pytest.approx(golden, rel=1e-2)
