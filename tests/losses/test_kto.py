"""KTO's z0: where it comes from, what it survives, and that it carries no gradient."""

from __future__ import annotations

import math

import pytest
import torch

from trimtab.losses import KTO, kto_loss

from .support import F64, close, gradients, leaf, responses


def prepared(log_ratios: list[float]) -> KTO:
    loss = KTO()
    reference = responses([-20.0] * len(log_ratios))
    loss.prepare(responses([-20.0 + a for a in log_ratios]), reference)
    return loss


def test_z0_is_the_mean_log_ratio_of_the_mismatched_rows() -> None:
    assert prepared([1.0, -0.5, 0.4]).z0 == pytest.approx(0.3, rel=1e-12)


def test_z0_is_clamped_after_the_mean_and_not_before() -> None:
    assert prepared([1.0, -3.0]).z0 == 0.0
    clamped_first = (1.0 + 0.0) / 2
    assert prepared([1.0, -3.0]).z0 != clamped_first
    assert prepared([2.0, -1.0]).z0 == pytest.approx(0.5) != pytest.approx(1.0)


@pytest.mark.parametrize("size", range(1, 10))
@pytest.mark.parametrize("labels", ["mixed", "desirable", "undesirable"])
def test_batch_sizes(size: int, labels: str) -> None:
    """1 to 9 rows of any mixture, prepared from the rotation by one: finite, and per row."""
    flags = {
        "mixed": torch.arange(size) % 2 == 0,
        "desirable": torch.ones(size, dtype=torch.bool),
        "undesirable": torch.zeros(size, dtype=torch.bool),
    }[labels]
    draws = torch.Generator().manual_seed(size)
    policy = -20 + torch.rand(size, generator=draws, dtype=F64)
    reference = torch.full((size,), -20.0, dtype=F64)
    partners = [(i + 1) % size for i in range(size)] if size > 1 else []
    loss = KTO()
    loss.prepare(responses(policy[partners]), responses(reference[partners]))
    z0 = (policy[partners] - reference[partners]).mean().item() if partners else 0.0
    assert loss.z0 == pytest.approx(z0, rel=1e-9)
    terms = loss(responses(policy), responses(reference), flags)
    wanted = [
        1 / (1 + math.exp((1 if good else -1) * 0.1 * (a.item() + 20.0 - z0)))
        for a, good in zip(policy, flags, strict=True)
    ]
    assert close(terms.losses, wanted, 1e-9)


def test_a_step_without_mismatched_rows_forgets_the_last_steps_z0() -> None:
    loss = prepared([3.0])
    loss.prepare(responses(torch.zeros(0)), responses(torch.zeros(0)))
    assert loss.z0 == 0.0


def test_z0_carries_no_gradient_and_is_the_functions_kl() -> None:
    sums = leaf([-19.0, -21.0])
    mismatched = leaf([-18.5])
    reference, labels = responses([-20.0, -20.0]), torch.tensor([True, False])
    loss = KTO(beta=0.3, desirable_weight=2.0, undesirable_weight=0.7)
    loss.prepare(responses(mismatched), responses([-20.0]))
    terms = loss(responses(sums), reference, labels)
    assert gradients(terms.losses, mismatched)[0].item() == 0.0
    plain = kto_loss(
        responses(sums),
        reference,
        labels,
        torch.tensor(1.5),
        beta=0.3,
        desirable_weight=2.0,
        undesirable_weight=0.7,
    )
    assert torch.equal(terms.losses, plain.losses)
    assert close(terms.rewards, [0.3, -0.3], 1e-12)


def test_a_nan_reaches_the_loss_instead_of_becoming_zero() -> None:
    """max(0, nan) is 0 in Python; the run's finite check has to see it."""
    loss = prepared([float("nan")])
    assert math.isnan(loss.z0)
    losses = loss(responses([-19.0]), responses([-20.0]), torch.tensor([True])).losses
    assert not losses.isfinite().any()
    assert max(0.0, float("nan")) == 0.0
