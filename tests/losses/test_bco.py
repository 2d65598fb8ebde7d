"""BCO's shift: what it is half way between, how it moves, and what it survives."""

from __future__ import annotations

import pytest
import torch

from trimtab.losses import BCO, bco_loss

from .support import F64, close, gradients, leaf, responses


def step(loss: BCO, desirable: list[float], undesirable: list[float]) -> BCO:
    """One prepared step of responses with these log-ratios."""
    ratios = torch.tensor([*desirable, *undesirable], dtype=F64)
    labels = torch.arange(len(ratios)) < len(desirable)
    loss.prepare(responses(ratios - 20.0), responses([-20.0] * len(ratios)), labels)
    return loss


def test_delta_is_half_way_between_the_labels_and_not_the_mean_of_all() -> None:
    found = step(BCO(beta=0.1), [3.0], [-1.0, -2.0, -3.0]).delta
    assert found == pytest.approx(0.1 * (3.0 - 2.0) / 2)
    mean_of_all = 0.1 * (3.0 - 6.0) / 4
    assert abs(found - mean_of_all) > 0.1


def test_means_move_from_their_own_first_step() -> None:
    loss = step(BCO(beta=1.0, momentum=0.9), [2.0], [])
    assert loss.delta == 1.0, "half way to 0, where the other label starts"
    step(loss, [4.0], [-1.0])
    desirable = 0.9 * 2.0 + 0.1 * 4.0
    assert loss.delta == pytest.approx((desirable - 1.0) / 2)
    step(loss, [], [-3.0])
    assert loss.means["desirable"] == pytest.approx(desirable)
    assert loss.means["undesirable"] == pytest.approx(0.9 * -1.0 + 0.1 * -3.0)


def test_the_order_and_split_of_a_step_do_not_matter() -> None:
    one = step(BCO(), [1.0, 3.0, -0.5], [0.2, -4.0]).means
    other = step(BCO(), [-0.5, 1.0, 3.0], [-4.0, 0.2]).means
    assert one == pytest.approx(other, rel=1e-12)


def test_a_reward_that_is_not_finite_leaves_the_means_alone() -> None:
    loss = step(BCO(), [1.0], [-1.0])
    before = dict(loss.means)
    assert step(loss, [float("nan")], [0.0]).means == before


def test_delta_is_a_constant_and_0_at_the_start() -> None:
    sums = leaf([-19.0, -21.0])
    labels = torch.tensor([True, False])
    reference = responses([-20.0, -20.0])
    fresh = BCO(beta=0.1)(responses(sums), reference, labels).losses
    plain = bco_loss(responses(sums), reference, labels, torch.zeros(()), beta=0.1).losses
    assert torch.equal(fresh, plain)
    moved = step(BCO(beta=0.1), [5.0], [1.0])(responses(sums), reference, labels).losses
    # u = 0.1 - 0.3 for the desirable one
    assert close(gradients(moved, sums)[0][0], -0.1 * torch.sigmoid(torch.tensor(0.2)).item(), 1e-6)


@pytest.mark.parametrize("value", [1.0, -0.1])
def test_impossible_momentum(value: float) -> None:
    with pytest.raises(ValueError, match="momentum="):
        BCO(momentum=value)
