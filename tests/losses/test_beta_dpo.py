"""beta-DPO: running statistics, filter, the step's beta, and that a resumed run is the same."""

from __future__ import annotations

import json
import math

import pytest
import torch

from trimtab.losses import BetaDPO, dpo_loss

from .support import F64, close, pair


def step(loss: BetaDPO, gaps: list[float], seed: int = 0) -> torch.Tensor:
    """``prepare`` on pairs with the given gaps."""
    chosen, zero = torch.tensor(gaps, dtype=F64), torch.zeros(len(gaps), dtype=F64)
    generator = torch.Generator().manual_seed(seed)
    return loss.prepare(pair(chosen, zero), pair(zero, zero), generator=generator)


def random_gaps(seed: int, count: int = 64) -> list[float]:
    draws = torch.Generator().manual_seed(seed)
    return (1 + 2 * torch.randn(count, generator=draws, dtype=F64)).tolist()


def test_running_statistics_start_at_the_first_step() -> None:
    loss = BetaDPO(momentum=0.9)
    step(loss, [1.0, 3.0])
    assert loss.gap_mean == pytest.approx(2.0)
    assert loss.gap_std == pytest.approx(math.sqrt(2.0))
    step(loss, [4.0, 8.0])
    assert loss.gap_mean == pytest.approx(0.9 * 2.0 + 0.1 * 6.0)
    assert loss.gap_std == pytest.approx(0.9 * math.sqrt(2.0) + 0.1 * math.sqrt(8.0))
    from_zero = 0.1 * (0.9 * 2.0 + 6.0)
    assert loss.gap_mean != pytest.approx(from_zero)


def test_beta_follows_the_kept_gaps() -> None:
    """All kept: the mean of the kept is the step's, and beta moves by its distance from m."""
    loss = BetaDPO(beta=0.1, scale=0.6, keep=1.0)
    step(loss, [1.0, 3.0])
    assert loss.batch_beta == pytest.approx(0.1)
    step(loss, [4.0, 8.0])
    assert loss.batch_beta == pytest.approx(0.1 * (1 + 0.6 * (6.0 - 2.4)))
    step(loss, [-500.0, -500.0])
    assert loss.batch_beta == 1e-3, "never below"


def test_beta_uses_the_kept_pairs_only() -> None:
    loss = BetaDPO(beta=0.1, scale=0.6, keep=0.5)
    gaps = random_gaps(1)
    weights = step(loss, gaps)
    kept = [gap for gap, w in zip(gaps, weights.tolist(), strict=True) if w]
    assert len(kept) == 32
    mean = sum(gaps) / 64
    wanted = 0.1 * (1 + 0.6 * (sum(kept) / 32 - mean))
    assert loss.batch_beta == pytest.approx(wanted, rel=1e-12)
    assert wanted != pytest.approx(0.1, rel=1e-6), "the filter matters here"


@pytest.mark.parametrize(("count", "kept"), [(1, 1), (2, 1), (5, 4), (10, 8), (64, 51), (100, 80)])
def test_share_kept(count: int, kept: int) -> None:
    weights = step(BetaDPO(), random_gaps(count, count))
    assert sorted(set(weights.tolist())) in ([0.0, 1.0], [1.0])
    assert weights.sum().item() == kept


def test_share_kept_is_not_lost_to_rounding() -> None:
    """0.29 * 100 is 28.999999999999996 in binary."""
    assert int(0.29 * 100) == 28
    assert step(BetaDPO(keep=0.29), random_gaps(0, 100)).sum().item() == 29


def test_filter_follows_the_gaussian_weights() -> None:
    """One of three kept, 4000 times: frequencies are exp(-((M - m)/std)^2/2), normalised."""
    gaps, counts = [0.0, 1.0, 3.0], torch.zeros(3)
    for seed in range(4000):
        loss = BetaDPO(keep=0.34, momentum=1 - 1e-12)
        loss.gap_mean, loss.gap_std = 0.5, 1.5
        counts += step(loss, gaps, seed)
    weights = torch.tensor([math.exp(-0.5 * ((g - 0.5) / 1.5) ** 2) for g in gaps])
    wanted = weights / weights.sum()
    spread = (wanted * (1 - wanted) / 4000).sqrt()
    assert ((counts / 4000 - wanted).abs() < 4 * spread).all()
    # Its twins: uniform draws, and the weight without its square root of 2, are told apart.
    for broken in (torch.ones(3) / 3, weights**2 / (weights**2).sum()):
        assert ((counts / 4000 - broken).abs() > 4 * spread).any()


def test_without_replacement_matches_torch_multinomial() -> None:
    """Two of three kept: the same probabilities as sequential draws."""
    gaps, counts, trials = [0.0, 1.0, 3.0], torch.zeros(3), 4000
    for seed in range(trials):
        loss = BetaDPO(keep=0.67, momentum=1 - 1e-12)
        loss.gap_mean, loss.gap_std = 0.5, 1.5
        counts += step(loss, gaps, seed)
    weights = torch.tensor([math.exp(-0.5 * ((g - 0.5) / 1.5) ** 2) for g in gaps])
    p = weights / weights.sum()
    # A pair is left out when the two others are drawn, in either order.
    left_out = torch.stack(
        [p[i] * p[j] * (1 / (1 - p[i]) + 1 / (1 - p[j])) for i, j in ((1, 2), (0, 2), (0, 1))]
    )
    spread = (left_out * (1 - left_out) / trials).sqrt()
    assert ((counts / trials - (1 - left_out)).abs() < 4 * spread).all()


def test_same_generator_same_filter_and_its_twin() -> None:
    gaps = random_gaps(3)
    assert torch.equal(step(BetaDPO(), gaps, seed=5), step(BetaDPO(), gaps, seed=5))
    assert not torch.equal(step(BetaDPO(), gaps, seed=5), step(BetaDPO(), gaps, seed=6))


def test_at_the_reference_all_gaps_are_zero() -> None:
    """Step 0 has no spread: nothing divides by it, and the spread starts when there is one."""
    loss = BetaDPO()
    weights = step(loss, [0.0] * 10)
    assert (loss.gap_mean, loss.gap_std, loss.batch_beta) == (0.0, None, 0.1)
    assert weights.sum().item() == 8
    step(loss, random_gaps(4))
    assert loss.gap_std == pytest.approx(torch.tensor(random_gaps(4)).double().std().item())


def test_zero_or_tiny_spread_keeps_the_nearest_pairs() -> None:
    """Weights underflow here: torch.multinomial refuses to draw 4 of 5 candidates."""
    loss = BetaDPO(momentum=1 - 1e-12)
    loss.gap_mean, loss.gap_std = 0.0, 1e-200
    assert step(loss, [5.0, -1.0, 0.5, -3.0, 2.0]).tolist() == [0.0, 1.0, 1.0, 1.0, 1.0]
    assert math.isfinite(loss.batch_beta)
    underflown = torch.exp(-0.5 * (torch.tensor([5.0, -1.0, 0.5, -3.0, 2.0]) / 1e-3) ** 2)
    with pytest.raises(RuntimeError):
        torch.multinomial(underflown, 4, replacement=False)


def test_one_pair_steps_are_kept_and_move_the_mean() -> None:
    loss = BetaDPO()
    assert step(loss, [2.0]).tolist() == [1.0]
    assert step(loss, [4.0]).tolist() == [1.0]
    assert (loss.gap_mean, loss.gap_std) == (pytest.approx(2.2), None)
    assert loss.batch_beta == pytest.approx(0.1 * (1 + 0.6 * 1.8))


def test_a_non_finite_gap_leaves_the_state_alone_and_filters_nothing() -> None:
    loss = BetaDPO()
    step(loss, random_gaps(5))
    before = loss.state_dict()
    assert step(loss, [1.0, float("nan"), 2.0]).tolist() == [1.0, 1.0, 1.0]
    assert loss.state_dict() == before


def test_no_pairs() -> None:
    loss = BetaDPO()
    assert step(loss, []).shape == (0,)
    assert loss.gap_mean is None


@pytest.mark.parametrize("cut", [0, 1, 3])
def test_resumed_statistics_are_bit_identical(cut: int) -> None:
    steps = [[0.0] * 8, *(random_gaps(seed, 8) for seed in range(6))]
    straight, first, resumed = BetaDPO(), BetaDPO(), BetaDPO()
    wanted = [(step(straight, gaps, i), straight.state_dict()) for i, gaps in enumerate(steps)]
    for i, gaps in enumerate(steps[:cut]):
        step(first, gaps, i)
    resumed.load_state_dict(json.loads(json.dumps(first.state_dict(), allow_nan=False)))
    for i, gaps in list(enumerate(steps))[cut:]:
        weights, state = wanted[i]
        assert torch.equal(step(resumed, gaps, i), weights)
        assert resumed.state_dict() == state
    if cut == 3:
        forgetful = BetaDPO()
        step(forgetful, steps[cut], cut)
        assert forgetful.state_dict() != wanted[cut][1], "a lost state shows"


def test_loss_uses_the_steps_beta_and_rewards_the_constant_one() -> None:
    loss = BetaDPO(beta=0.1)
    loss.batch_beta = 0.4
    policy = pair(*(torch.tensor([x], dtype=F64) for x in (-12.0, -15.5)))
    reference = pair(*(torch.tensor([x], dtype=F64) for x in (-13.0, -14.0)))
    terms = loss(policy, reference)
    assert torch.equal(terms.losses, dpo_loss(policy, reference, beta=0.4).losses)
    assert close(terms.chosen_rewards, [0.1], 1e-12)
    assert close(terms.rejected_rewards, [-0.15], 1e-12)
    assert not close(terms.losses, dpo_loss(policy, reference, beta=0.1).losses, 1e-3)
