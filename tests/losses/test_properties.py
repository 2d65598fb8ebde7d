"""Metamorphic properties (P2, P3, P4, P5, P9): what must and what must not change a loss."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from trimtab.losses import (
    BetaDPO,
    Pair,
    PairValues,
    Ranking,
    dpo_loss,
    kto_loss,
    orpo_loss,
    plackett_luce_loss,
    simpo_loss,
    tdpo2_loss,
)

from . import wrong
from .support import F64, close, gradients, leaf, pair, ranking, responses

quick = settings(max_examples=40, deadline=None, derandomize=True, database=None)
logp = st.floats(-300, -0.5)
shift = st.floats(-50, 50).filter(lambda c: abs(c) > 1e-3)
beta_values = st.floats(0.01, 2.0)
length = st.integers(1, 200)


def numbers(*values: float) -> list[Tensor]:
    return [torch.tensor([v], dtype=F64) for v in values]


def same(a: Any, b: Any, rtol: float = 1e-9) -> bool:
    return close(a, b, rtol, atol=1e-12)


@quick
@given(logp, logp, logp, logp, beta_values)
def test_swapping_the_pair_mirrors_dpo(sw: float, sl: float, rw: float, rl: float, b: float):
    """P2: DPO(d) - DPO(-d) = -beta d."""
    policy, reference = pair(*numbers(sw, sl)), pair(*numbers(rw, rl))
    swapped = (Pair(policy.rejected, policy.chosen), Pair(reference.rejected, reference.chosen))
    gap = (sw - rw) - (sl - rl)
    difference = dpo_loss(policy, reference, beta=b).losses - dpo_loss(*swapped, beta=b).losses
    assert close(difference, [-b * gap], 1e-9, atol=1e-9)


def test_mirror_rejects_beta_outside() -> None:
    policy, reference = pair(*numbers(-12.0, -15.5)), pair(*numbers(-13.0, -14.0))
    swapped = (Pair(policy.rejected, policy.chosen), Pair(reference.rejected, reference.chosen))
    for name in ("mean for sum", "no reference"):
        loss = wrong.DPO[name]
        difference = loss(policy, reference, 0.1).losses - loss(*swapped, 0.1).losses
        assert not close(difference, [-0.25], 1e-3)


@quick
@given(logp, logp, logp, logp, shift)
def test_a_shift_of_both_sides_changes_nothing_that_compares_sums(
    sw: float, sl: float, rw: float, rl: float, c: float
):
    """P3, for policy and reference; the per-response loss of KTO has to notice."""
    reference = pair(*numbers(rw, rl))
    plain, moved = pair(*numbers(sw, sl)), pair(*numbers(sw + c, sl + c))
    kl = PairValues(*numbers(0.3, 0.2))
    assert same(dpo_loss(plain, reference).losses, dpo_loss(moved, reference).losses)
    assert same(tdpo2_loss(plain, reference, kl).losses, tdpo2_loss(moved, reference, kl).losses)
    adaptive = BetaDPO()
    assert same(adaptive(plain, reference).losses, adaptive(moved, reference).losses)
    listed = [ranking(torch.tensor([x])) for x in ([sw, sl], [sw + c, sl + c], [rw, rl])]
    assert same(
        plackett_luce_loss(listed[0], listed[2]).losses,
        plackett_luce_loss(listed[1], listed[2]).losses,
        1e-4,
    )


@pytest.mark.parametrize("c", [-3.0, 0.5, 20.0])
def test_a_shift_of_both_sides_changes_what_is_absolute_or_normalised(c: float) -> None:
    """P3's other half: these would be wrong if the shift cancelled."""
    plain, moved = pair(*numbers(-32.0, -35.5)), pair(*numbers(-32.0 + c, -35.5 + c))
    labels, kl = torch.tensor([True]), torch.tensor(0.1)
    reference = responses([-33.0])
    assert not same(
        kto_loss(plain.chosen, reference, labels, kl).losses,
        kto_loss(moved.chosen, reference, labels, kl).losses,
        1e-4,
    )
    assert not same(simpo_loss(plain).losses, simpo_loss(moved).losses, 1e-4)
    assert not same(orpo_loss(plain).losses, orpo_loss(moved).losses, 1e-4)


@quick
@given(logp, logp, shift, length, length)
def test_simpo_sees_only_the_difference_of_means(sw: float, sl: float, c: float, nw: int, nl: int):
    plain = pair(*numbers(sw, sl), nw, nl)
    moved = pair(*numbers(sw + c * nw, sl + c * nl), nw, nl)
    assert same(simpo_loss(plain).losses, simpo_loss(moved).losses, 1e-6)


@quick
@given(logp, logp, st.integers(2, 9), length, length)
def test_repeating_every_token_changes_no_mean(sw: float, sl: float, k: int, nw: int, nl: int):
    """k copies of a response have the same log-prob per token: SimPO and ORPO cannot tell."""
    plain, longer = pair(*numbers(sw, sl), nw, nl), pair(*numbers(k * sw, k * sl), k * nw, k * nl)
    for loss in (simpo_loss, orpo_loss):
        assert same(loss(plain).losses, loss(longer).losses)
        assert same(loss(plain).chosen_rewards, loss(longer).chosen_rewards)


@pytest.mark.parametrize("variant", ["sum for mean", "length without the stop token"])
def test_repeating_rejects_sums_and_a_missing_stop_token(variant: str) -> None:
    plain, longer = pair(*numbers(-5.0, -9.0)), pair(*numbers(-15.0, -27.0), 24, 30)
    for family, settings_ in (
        (wrong.SIMPO, {"beta": 2.0, "gamma": 1.0}),
        (wrong.ORPO, {"beta": 1}),
    ):
        loss = family[variant]
        assert not same(loss(plain, **settings_).losses, loss(longer, **settings_).losses, 1e-3)


@quick
@given(logp, logp, logp, logp, beta_values)
def test_reductions_to_dpo(sw: float, sl: float, rw: float, rl: float, b: float):
    """P4: the special cases that must be DPO, in value, gradient and rewards."""
    leaves = [leaf([sw]), leaf([sl])]
    policy, reference = pair(*leaves), pair(*numbers(rw, rl))
    wanted = dpo_loss(policy, reference, beta=b)
    slopes = gradients(wanted.losses, *leaves)
    kl = PairValues(*numbers(0.4, 0.9))
    fixed = BetaDPO(beta=b, scale=0.0, keep=1.0)
    kept = fixed.prepare(policy, reference, generator=torch.Generator().manual_seed(0))
    assert kept.tolist() == [1.0]
    scaled = [
        pair(*(b * x for x in (*leaves,))),
        pair(*(b * x for x in numbers(rw, rl))),
    ]
    for terms in (
        dpo_loss(*scaled, beta=1.0),
        tdpo2_loss(policy, reference, kl, beta=b, alpha=0.0),
        fixed(policy, reference),
    ):
        assert same(terms.losses, wanted.losses)
        assert same(gradients(terms.losses, *leaves), slopes)
        assert same(terms.chosen_rewards, wanted.chosen_rewards)
        assert same(terms.rejected_rewards, wanted.rejected_rewards)


@quick
@given(logp, logp, logp, logp, beta_values)
def test_two_ranked_responses_are_a_dpo_pair(sw: float, sl: float, rw: float, rl: float, b: float):
    """P4: K = 2."""
    sums = leaf([[sw, sl]])
    listed = plackett_luce_loss(ranking(sums), ranking(torch.tensor([[rw, rl]], dtype=F64)), beta=b)
    leaves = [leaf([sw]), leaf([sl])]
    paired = dpo_loss(pair(*leaves), pair(*numbers(rw, rl)), beta=b)
    assert same(listed.losses, paired.losses)
    assert close(
        gradients(listed.losses, sums)[0][0],
        torch.cat(gradients(paired.losses, *leaves)),
        1e-9,
        1e-14,
    )
    assert same(listed.rewards[0], torch.cat([paired.chosen_rewards, paired.rejected_rewards]))


def test_two_ranked_responses_reject_the_wrong_order() -> None:
    listed = wrong.PLACKETT_LUCE["worst first"](
        ranking(torch.tensor([[-12.0, -15.5]])), ranking(torch.tensor([[-13.0, -14.0]])), 0.1
    )
    paired = dpo_loss(pair(*numbers(-12.0, -15.5)), pair(*numbers(-13.0, -14.0)))
    assert not same(listed.losses, paired.losses, 1e-3)


@quick
@given(st.integers(0, 17), st.integers(2, 5))
def test_padding_of_rankings_is_never_read(extra: int, size: int):
    """P5: more columns, filled with NaN, inf and the like, change neither loss nor gradient."""
    draws = torch.Generator().manual_seed(size)
    policy, reference = (-10 * torch.rand(3, size, generator=draws).double() for _ in range(2))
    mask = torch.arange(size) < torch.tensor([[size], [2], [1]])
    sums = policy.clone().requires_grad_()
    plain = plackett_luce_loss(ranking(sums, mask), ranking(reference, mask))
    junk = torch.tensor([float("nan"), float("inf"), -1e30], dtype=F64)[:, None].expand(3, extra)
    wide_mask = torch.cat([mask, torch.zeros(3, extra, dtype=torch.bool)], 1)
    wide = torch.cat([policy.masked_fill(~mask, float("nan")), junk], 1).requires_grad_()
    padded = plackett_luce_loss(
        ranking(wide, wide_mask), ranking(torch.cat([reference, junk], 1), wide_mask)
    )
    assert torch.equal(padded.losses, plain.losses)
    slopes = gradients(padded.losses, wide)[0]
    assert torch.equal(slopes[:, :size], gradients(plain.losses, sums)[0])
    assert torch.equal(slopes[:, size:], torch.zeros_like(slopes[:, size:]))
    assert torch.equal(padded.rewards[:, :size], plain.rewards)
    assert plain.losses[2] == 0, "a single response is not a preference"


def test_a_hole_in_a_ranking_is_padding_too() -> None:
    sums = -torch.tensor([[1.0, 0.0, 3.0, 0.5]], dtype=F64)
    mask = torch.tensor([[True, False, True, True]])
    zero = torch.zeros_like(sums)
    holed = plackett_luce_loss(ranking(sums, mask), ranking(zero, mask), beta=1.0)
    dense = plackett_luce_loss(ranking(sums[:, [0, 2, 3]]), ranking(zero[:, :3]), beta=1.0)
    assert same(holed.losses, dense.losses)
    assert not same(holed.losses, plackett_luce_loss(ranking(sums), ranking(zero)).losses, 1e-3)


def test_padding_rejects_a_loss_that_reads_it() -> None:
    listed = ranking(torch.tensor([[-1.0, -2.0, -0.5]]).double())
    shorter = Ranking(listed.sum, listed.length, torch.tensor([[True, True, False]]))
    zero = ranking(torch.zeros(1, 3).double())
    broken = wrong.PLACKETT_LUCE["placed responses stay rivals"]
    plain = plackett_luce_loss(ranking(listed.sum[:, :2]), ranking(zero.sum[:, :2]), beta=1.0)
    assert same(plackett_luce_loss(shorter, zero, beta=1.0).losses, plain.losses)
    assert not same(broken(shorter, zero, 1.0).losses, plain.losses, 1e-3)


@quick
@given(st.integers(2, 6))
def test_equal_rewards_are_pushed_by_their_place_alone(size: int):
    """All rankings equally likely: the loss is log K!, and the slopes of each place are known."""
    sums = torch.full((1, size), -20.0, dtype=F64).requires_grad_()
    losses = plackett_luce_loss(ranking(sums), ranking(sums.detach()), beta=1.0).losses
    assert same(losses.detach(), [torch.lgamma(torch.tensor(size + 1.0, dtype=F64)).item()])
    # -1 for winning its own place (the last has none), + 1/(K - k) for every place it stood for.
    wanted = [
        sum(1 / (size - k) for k in range(min(i, size - 2) + 1)) - (1 if i < size - 1 else 0)
        for i in range(size)
    ]
    assert same(gradients(losses, sums)[0][0], wanted)


@quick
@given(logp, logp, st.floats(0.0, 5.0), beta_values)
def test_kto_labels_mirror_each_other(s: float, r: float, z0: float, b: float):
    """The two labels' losses add up to 1, and their slopes to 0, whatever z0 is."""
    sums = leaf([s, s])
    losses = kto_loss(
        responses(sums), responses([r, r]), torch.tensor([True, False]), torch.tensor(z0), beta=b
    ).losses
    assert same(losses.sum(), 1.0)
    assert close(gradients(losses, sums)[0].sum(), 0.0, 0.0, atol=1e-15)


@quick
@given(st.floats(0.0, 5.0), beta_values)
def test_kto_is_steepest_at_z0(z0: float, b: float):
    sums = leaf([z0 - 21.0, z0 - 20.0, z0 - 19.0])
    losses = kto_loss(
        responses(sums),
        responses([-20.0] * 3),
        torch.tensor([True] * 3),
        torch.tensor(z0, dtype=F64),
        beta=b,
    ).losses
    low, top, high = gradients(losses, sums)[0].tolist()
    assert top == pytest.approx(-b / 4, rel=1e-9)
    assert low > top and high > top


def test_kto_weights_multiply_their_own_label() -> None:
    inputs = (responses([-9.0, -9.0]), responses([-10.0, -10.0]), torch.tensor([True, False]))
    z0 = torch.tensor(0.0, dtype=F64)
    plain = kto_loss(*inputs, z0).losses
    weighted = kto_loss(*inputs, z0, desirable_weight=3.0, undesirable_weight=0.5).losses
    assert same(weighted, plain * torch.tensor([3.0, 0.5]))


def test_tdpo2_chosen_kl_moves_the_value_but_not_the_gradient() -> None:
    policy, reference = pair(*numbers(-12.0, -15.5)), pair(*numbers(-13.0, -14.0))
    values = [
        tdpo2_loss(policy, reference, PairValues(*numbers(kw, 0.2))).losses for kw in (0.0, 5.0)
    ]
    assert values[1] < values[0]
    kl = PairValues(leaf([5.0]), leaf([0.2]))
    by_chosen, by_rejected = gradients(tdpo2_loss(policy, reference, kl).losses, *kl)
    assert by_chosen.item() == 0.0
    assert by_rejected.item() > 0.0
    broken = wrong.TDPO2["missing stop-gradient"](policy, reference, kl, 0.1, 0.5).losses
    assert gradients(broken, *kl)[0].item() != 0.0
