"""Advantages by comparison within groups: golden values, unbiasedness, missing rewards."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from trimtab.losses import (
    group_relative,
    leave_one_out,
    overlong_penalty,
    reinforce_pp,
    reinforce_pp_baseline,
    reward_to_go,
    token_rewards,
    whiten,
)
from trimtab.losses.packed import segment_sum

from .bandit import BETA, OPTIMUM, REFERENCE, REWARDS, gradient, kl, same
from .support import F64, close, leaf
from .test_advantages import drawn, packed

FIVE = torch.tensor([1.0, 0.0, 0.0, 1.0, 1.0], dtype=F64)
ONE = torch.zeros(5, dtype=torch.int64)
NAN = float("nan")

Estimate = Callable[..., Tensor]
ESTIMATES: dict[str, Estimate] = {
    "grpo": group_relative,
    "batch": lambda *inputs: group_relative(*inputs, scale="batch"),
    "dr_grpo": lambda *inputs: group_relative(*inputs, scale="none"),
    "rloo": leave_one_out,
}


def slow(name: str, rewards: Tensor, groups: Tensor, valid: Tensor | None = None) -> Tensor:
    """The slow twin: one response after the other."""
    n = len(rewards)
    usable = [i for i in range(n) if valid is None or valid[i]]
    found = torch.zeros(n, dtype=F64)
    for i in usable:
        own = rewards[[j for j in usable if groups[j] == groups[i]]].double()
        others = rewards[[j for j in usable if groups[j] == groups[i] and j != i]].double()
        if len(others) == 0:
            continue
        if name == "rloo":
            found[i] = rewards[i] - others.mean()
            continue
        spread = own.std() if name == "grpo" else rewards[usable].double().std()
        divisor = 1.0 if name == "dr_grpo" or spread < 1e-3 else spread + 1e-4
        found[i] = (rewards[i] - own.mean()) / divisor
    return found


def test_golden_values() -> None:
    """Rewards 1, 0, 0, 1, 1; standard deviations by n - 1."""
    grpo = group_relative(FIVE, ONE, epsilon=0.0)
    assert close(grpo[:2], [0.730296743, -1.09544512], 0, 6e-9)
    assert torch.equal(grpo[FIVE == 1], grpo[:1].expand(3))
    assert not close(grpo[:2], [0.816496581, -1.22474487], 0, 0.05)  # by n
    assert close(group_relative(FIVE, ONE, scale="none")[:2], [0.4, -0.6], 0, 1e-15)
    assert close(leave_one_out(FIVE, ONE)[:2], [0.5, -0.75], 0, 1e-15)
    # TRL's epsilon is outside the root
    assert group_relative(FIVE, ONE)[0].item() == pytest.approx(0.4 / (0.3**0.5 + 1e-4), abs=1e-12)


@pytest.mark.parametrize("name", ESTIMATES)
@pytest.mark.parametrize("seed", range(4))
def test_the_fast_form_is_the_slow_one(name: str, seed: int) -> None:
    """Groups of 1 to 6 in any order, a third of the rewards missing."""
    generator = torch.Generator().manual_seed(seed)
    groups = torch.arange(6).repeat_interleave(torch.arange(1, 7))
    groups = groups[torch.randperm(21, generator=generator)]
    rewards = drawn(seed, 21) * 2 + groups
    valid = torch.rand(21, generator=generator) > 1 / 3
    estimate = ESTIMATES[name]
    assert close(estimate(rewards, groups), slow(name, rewards, groups), 1e-12, 1e-12)
    missing = torch.where(valid, rewards, NAN)
    found = estimate(missing, groups, valid)
    assert close(found, slow(name, rewards, groups, valid), 1e-12, 1e-12)
    assert not found[~valid].any()
    single = estimate(missing.float(), groups, valid)
    assert single.dtype == torch.float32
    assert close(single, found, 2e-5, 2e-5)


def test_the_three_scales_are_three() -> None:
    """Two groups of unlike spread: swapped names would show."""
    rewards = torch.tensor([0.0, 1.0, 0.0, 10.0], dtype=F64)
    groups = torch.tensor([0, 0, 1, 1])
    half = 0.5**0.5
    exact = {"floor": 0.0, "epsilon": 0.0}
    assert close(group_relative(rewards, groups, **exact), [-half, half, -half, half], 0, 1e-15)
    none = group_relative(rewards, groups, scale="none", **exact)
    assert none.tolist() == [-0.5, 0.5, -5.0, 5.0]
    batch = group_relative(rewards, groups, scale="batch", **exact)
    assert close(batch, none / rewards.std(), 0, 1e-15)
    # the batch's standard deviation is of the rewards, not of their distances to their group
    assert not close(batch, none / none.std(), 0, 0.01)
    with pytest.raises(ValueError, match="scale='std': must be"):
        group_relative(rewards, groups, scale="std")
    for keys in ({"epsilon": -1.0}, {"floor": -1.0}):
        with pytest.raises(ValueError, match="must be 0 or a positive number"):
            group_relative(rewards, groups, **keys)


@pytest.mark.parametrize("name", ESTIMATES)
@pytest.mark.parametrize("value", [0.35, 0.0, -1e6 - 0.1, 1e-7])
def test_equal_rewards_are_exactly_zero(name: str, value: float) -> None:
    """Seven equal numbers have a mean that is not one of them in fp32."""
    rewards = torch.cat([torch.full((7,), value), torch.tensor([1.0, 2.0])])
    groups = torch.tensor([0] * 7 + [1] * 2)
    found = ESTIMATES[name](rewards, groups)
    assert not found[:7].any()
    assert found[7:].abs().min() > 1e-7
    if value == 0.35:
        centred = rewards[:7] - rewards[:7].sum() / 7
        assert (centred / (centred.std() + 1e-9)).abs().max() > 0.5  # wrong: rounding as signal


def test_rounding_is_not_divided_by_itself() -> None:
    """Rewards that differ in their last bits only stay that small."""
    rewards = 0.35 + torch.tensor([0.0, 3e-8, 0.0, 6e-8, 0.0, 0.0, 0.0, 0.0])
    groups = torch.zeros(8, dtype=torch.int64)
    assert rewards.std() > 0
    assert group_relative(rewards, groups).abs().max() < 1e-7
    assert group_relative(rewards, groups, scale="batch").abs().max() < 1e-7
    assert group_relative(rewards, groups, floor=0.0, epsilon=1e-9).abs().max() > 0.5


@pytest.mark.parametrize("name", ESTIMATES)
def test_one_response_alone_has_no_advantage(name: str) -> None:
    for rewards, valid in ([3.0], [True]), ([3.0, NAN, 7.0], [True, False, False]):
        found = ESTIMATES[name](
            torch.tensor(rewards), torch.zeros(len(rewards), dtype=torch.int64), torch.tensor(valid)
        )
        assert not found.any()
        assert torch.isfinite(found).all()


@pytest.mark.parametrize("name", ESTIMATES)
def test_missing_rewards_are_not_zeros(name: str) -> None:
    """0.0 is a reward; None and NaN are none, and whatever stands in their place is not read."""
    rewards = torch.tensor([1.0, 0.0, 0.5, 0.0])
    groups = torch.zeros(4, dtype=torch.int64)
    valid = torch.tensor([True, True, True, False])
    wanted = ESTIMATES[name](rewards[:3], groups[:3])
    assert wanted.abs().sum() > 0
    for filler in (NAN, float("inf"), -float("inf"), 0.0, 1e6):
        filled = torch.where(valid, rewards, filler)
        found = ESTIMATES[name](filled, groups, valid)
        assert torch.equal(found, torch.cat([wanted, torch.zeros(1)]))
    as_zero = ESTIMATES[name](rewards, groups)
    assert not close(as_zero[:3], wanted, 0, 0.01)  # wrong: missing counts as 0
    everything = ESTIMATES[name](torch.full((4,), NAN), groups, torch.zeros(4, dtype=torch.bool))
    assert not everything.any()


def test_a_nan_that_is_not_declared_stays_in_its_group() -> None:
    rewards = torch.tensor([1.0, NAN, 3.0, 5.0])
    groups = torch.tensor([0, 0, 1, 1])
    for name in ("grpo", "dr_grpo", "rloo"):
        found = ESTIMATES[name](rewards, groups)
        assert found[:2].isnan().all()
        assert found[2].item() == -found[3].item() != 0


@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "rloo"])
def test_other_groups_do_not_touch_a_group(name: str) -> None:
    rewards, groups = drawn(1, 12, dtype=torch.float32), torch.arange(12) % 3
    own = groups == 1
    poisoned = rewards + torch.where(own, 0.0, 1e6)
    clean, dirty = (ESTIMATES[name](x, groups) for x in (rewards, poisoned))
    assert torch.equal(clean[own], dirty[own])
    assert torch.equal(clean[own], ESTIMATES[name](rewards[own], 0 * groups[own]))
    batch = ESTIMATES["batch"]
    assert not torch.equal(batch(rewards, groups)[own], batch(poisoned, groups)[own])


@pytest.mark.parametrize("name", ESTIMATES)
def test_order_of_prompts_does_not_matter(name: str) -> None:
    """[p1 p1 p2 p2] and [p1 p2 p1 p2]: reshapes would mix them up."""
    rewards, groups = drawn(2, 12), torch.arange(3).repeat_interleave(4)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(5))
    found = ESTIMATES[name](rewards[order], groups[order])
    assert close(found, ESTIMATES[name](rewards, groups)[order], 0, 1e-14)
    assert not close(ESTIMATES[name](rewards[order], groups), found, 0, 0.1)


def test_leave_one_out_is_the_group_mean_scaled() -> None:
    for size in (2, 3, 8):
        rewards, groups = drawn(size, 3 * size), torch.arange(3 * size) % 3
        whole = group_relative(rewards, groups, scale="none")
        assert close(leave_one_out(rewards, groups), whole * size / (size - 1), 1e-12, 1e-13)


@pytest.mark.parametrize("size", [2, 3])
def test_leave_one_out_is_unbiased(size: int) -> None:
    """Every tuple of ``size`` samples of six, with its probability: the gradient of E[R].

    R = r - beta log(pi / pi_ref); the mean over a group as the baseline shrinks it by (K - 1) / K.
    """
    policy = torch.log_softmax(drawn(4, 6), 0)
    tuples = torch.tensor(list(itertools.product(range(6), repeat=size)))
    groups = torch.arange(len(tuples)).repeat_interleave(size)
    rewards = (REWARDS - BETA * (policy - REFERENCE))[tuples.flatten()]
    weights = policy[tuples].sum(1).exp()

    def surrogate(estimate: Estimate, r: Tensor) -> Tensor:
        advantages = estimate(r, groups).view(tuples.shape)
        return gradient(lambda logp: (weights * (advantages * logp[tuples]).mean(1)).sum(), policy)

    objective = gradient(lambda p: (p.exp() * REWARDS).sum() - BETA * kl(p, REFERENCE), policy)
    assert same(surrogate(leave_one_out, rewards), objective, 1e-14)
    shrunk = surrogate(ESTIMATES["dr_grpo"], rewards)
    assert same(shrunk, objective * (size - 1) / size, 1e-14)
    assert not same(shrunk, objective, 1e-2)
    # By the group's standard deviation it is another objective's, not a multiple of this one.
    scaled = surrogate(ESTIMATES["grpo"], rewards)
    assert torch.cosine_similarity(scaled, objective, 0) < 0.99
    at_optimum = (REWARDS - BETA * (OPTIMUM - REFERENCE))[tuples.flatten()]
    assert leave_one_out(at_optimum, groups).abs().max() < 1e-14  # R is the same for all


def test_the_baseline_is_taken_after_the_kl() -> None:
    """Scores 1, 0, 0.5; beta times the KL 0.3, 0, 0.6: R = 0.7, 0, -0.1."""
    scores = torch.tensor([1.0, 0.0, 0.5], dtype=F64)
    penalty = torch.tensor([0.3, 0.0, 0.6], dtype=F64)
    groups = torch.zeros(3, dtype=torch.int64)
    right = leave_one_out(scores - penalty, groups)
    assert close(right, [0.75, -0.3, -0.45], 0, 1e-15)
    before = leave_one_out(scores, groups) - penalty
    assert close(before, [0.45, -0.75, -0.6], 0, 1e-15)
    assert right.sum().abs() < 1e-14 < before.sum().abs()  # the KL has lost its baseline


# ---------------------------------------------------------------------------- REINFORCE++

SIZES = [3, 1, 5, 2, 4, 6]


def problem(dtype: torch.dtype = F64) -> dict[str, Any]:
    """Six responses to three prompts."""
    sequence, lengths = packed(SIZES)
    return {
        "scores": drawn(6, 6, dtype=dtype)
        + torch.tensor([0.0, 0.0, 3.0, 3.0, -2.0, -2.0]).to(dtype),
        "kl": drawn(7, 21, dtype=dtype).abs(),
        "sequence": sequence,
        "lengths": lengths,
    }


GROUPS = torch.tensor([0, 0, 1, 1, 2, 2])


def slow_reinforce_pp(scores: Tensor, kl: Tensor, lengths: Tensor, beta: float) -> Tensor:
    """The slow twin, token by token."""
    found, start = [], 0
    for score, length in zip(scores.tolist(), lengths.tolist(), strict=True):
        own = kl[start : start + length].tolist()
        found += [score - beta * sum(own[t:]) for t in range(length)]
        start += length
    values = torch.tensor(found, dtype=F64)
    return (values - values.mean()) / (values.var(correction=0) + 1e-8).sqrt()


def test_reinforce_pp_is_its_slow_twin() -> None:
    given = problem()
    right = reinforce_pp(**given, beta=0.1)
    own = (given["scores"], given["kl"], given["lengths"])
    assert close(right, slow_reinforce_pp(*own, 0.1), 0, 1e-13)
    # Wrong variants: no KL, the KL of the token alone, the KL up to the token, normalised a prompt.
    assert (reinforce_pp(**given, beta=0.0) - right).abs().max() > 0.05
    sequence, lengths = given["sequence"], given["lengths"]
    alone = given["scores"][sequence] - 0.1 * given["kl"]
    assert (whiten(alone) - right).abs().max() > 0.05
    rewards = token_rewards(given["scores"], given["kl"], sequence, 0.1)
    up_to = (
        alone - 0.1 * torch.cat([x.cumsum(0) for x in given["kl"].split(SIZES)]) + 0.1 * given["kl"]
    )
    assert (whiten(up_to) - right).abs().max() > 0.05
    to_go = reward_to_go(rewards, sequence, lengths)
    prompts = [whiten(part.repeat(8))[: len(part)] for part in to_go.split([4, 7, 10])]
    assert (torch.cat(prompts) - right).abs().max() > 0.5


def test_reinforce_pp_baseline_takes_the_mean_of_the_group_first() -> None:
    given = problem()
    centred = given["scores"] - given["scores"].view(3, 2).mean(1).repeat_interleave(2)
    for beta in (0.0, 0.1):
        found = reinforce_pp_baseline(**given, groups=GROUPS, beta=beta)
        wanted = slow_reinforce_pp(centred, given["kl"], given["lengths"], beta)
        assert close(found, wanted, 0, 1e-13)
        assert (found - reinforce_pp(**given, beta=beta)).abs().max() > 0.3
    assert torch.equal(
        reinforce_pp_baseline(**given, groups=GROUPS),
        reinforce_pp_baseline(**given, groups=GROUPS, beta=0.0),
    )


@pytest.mark.parametrize(
    "estimate",
    [reinforce_pp, lambda **keys: reinforce_pp_baseline(**keys, groups=GROUPS)],
    ids=["plain", "baseline"],
)
def test_reinforce_pp_leaves_out_what_was_not_judged(estimate: Estimate) -> None:
    given = problem(torch.float32)
    valid = torch.tensor([True, True, True, False, True, False])
    kept = valid[given["sequence"]]
    clean = estimate(**given, beta=0.1, valid=valid)
    assert not clean[~kept].any()
    assert clean[kept].double().mean().abs() < 1e-6
    assert clean[kept].double().var(correction=0).item() == pytest.approx(1.0, abs=1e-5)
    dirty = {
        **given,
        "scores": torch.where(valid, given["scores"], NAN),
        "kl": given["kl"] + torch.where(kept, 0.0, 1e6),
    }
    assert torch.equal(estimate(**dirty, beta=0.1, valid=valid), clean)


def test_flat_groups_leave_nothing_to_whiten() -> None:
    given = problem(torch.float32)
    given["scores"] = torch.tensor([0.35, 0.35, 7.1, 7.1, -2.3, -2.3])
    assert not reinforce_pp_baseline(**given, groups=GROUPS).any()


# ---------------------------------------------------------------------------- length


def test_golden_overlong_penalty() -> None:
    lengths = torch.tensor([1, 16384, 17408, 18432, 20480, 20481])
    found = overlong_penalty(lengths, 20480, 4096)
    assert found.tolist() == [0.0, 0.0, -0.25, -0.5, -1.0, -1.0]
    assert overlong_penalty(lengths, 20480, 20480)[0].item() == pytest.approx(-1 / 20480)
    for cache in (0, -1, 20481):
        with pytest.raises(ValueError, match=f"cache={cache}"):
            overlong_penalty(lengths, 20480, cache)


def test_advantages_are_constants() -> None:
    rewards, kl_leaf = leaf([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]), leaf([0.1] * 21)
    given = problem() | {"scores": rewards, "kl": kl_leaf}
    found = [estimate(rewards, GROUPS) for estimate in ESTIMATES.values()]
    found += [reinforce_pp(**given, beta=0.1), reinforce_pp_baseline(**given, groups=GROUPS)]
    assert not any(x.requires_grad for x in found)


def test_sums_of_a_segment_are_its_own() -> None:
    values, sequence = torch.tensor([1.0, 2.0, 1e8, 3.0]), torch.tensor([0, 0, 1, 2])
    assert segment_sum(values, sequence, 4).tolist() == [3.0, 1e8, 3.0, 0.0]
