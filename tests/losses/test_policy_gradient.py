"""Clipped losses, ratios, divisors: golden values, gradients by enumeration, wrong variants."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from trimtab.losses import (
    clipped_policy_loss,
    clipped_ratio_loss,
    clipped_value_loss,
    gspo_ratio,
    importance_loss,
    reinforce_loss,
    sequence_ratio,
    token_ratio,
)

from .bandit import REFERENCE, REWARDS, gradient, mean_gradient, same
from .support import F64, close, gradients, leaf, slopes_agree
from .test_advantages import drawn, packed

LOGP = [-1.0, -0.7, -2.0, -0.4]
OLD = torch.tensor([-1.0, -1.1, -1.6, -0.45], dtype=F64)
A = torch.tensor([0.5, 1.0, -0.8, -0.3], dtype=F64)
EPS = {"low": 0.2, "high": 0.2}
LOSSES = [-0.5, -1.2, 0.64, 0.31538133]
GRADIENTS = [-0.5, 0.0, 0.0, 0.31538133]


def agrees(loss: Callable[[Tensor, Tensor, Tensor], Tensor]) -> bool:
    """Whether a clipped loss has the golden values and gradients, and those beyond them.

    The golden tokens have no advantage against a ratio that went the other way: three more do, for
    which nothing may be clipped.
    """
    logp = leaf([*LOGP, -0.5, -2.0, -1.0])
    old = torch.cat([OLD, torch.tensor([-1.0, -1.0, -1.0], dtype=F64)])
    advantages = torch.cat([A, torch.tensor([-1.0, 1.0, 0.0], dtype=F64)])
    losses = loss(logp, old, advantages)
    values = [*LOSSES, 1.6487212707, -0.36787944117, 0.0]
    slopes = [*GRADIENTS, 1.6487212707, -0.36787944117, 0.0]
    return close(losses.detach(), values, 0, 6e-9) and close(
        gradients(losses, logp)[0], slopes, 0, 6e-9
    )


def test_golden_ppo() -> None:
    found = clipped_policy_loss(leaf(LOGP), OLD, A, **EPS)
    assert close(found.ratio, [1.0, 1.4918247, 0.67032005, 1.0512711], 0, 6e-8)
    assert found.ratio[0].item() == 1.0
    assert found.losses.mean().item() == pytest.approx(-0.1861546678, abs=1e-10)
    assert found.clipped_low.tolist() == [False, False, True, False]
    assert found.clipped_high.tolist() == [False, True, False, False]
    assert not found.clipped_dual.any()
    assert (found.clipped_low | found.clipped_high).double().mean().item() == 0.5
    assert agrees(lambda *inputs: clipped_policy_loss(*inputs, **EPS).losses)


def clipped(ratio: Tensor) -> Tensor:
    return ratio.clamp(0.8, 1.2)


WRONG_PPO: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "smaller loss": lambda x, old, a: (
        -torch.maximum((x - old).exp() * a, clipped((x - old).exp()) * a)
    ),
    "clipped whatever the sign": lambda x, old, a: -clipped((x - old).exp()) * a,
    "signs of A swapped": lambda x, old, a: torch.where(
        a > 0,
        -(x - old).exp() * a,
        torch.maximum(-(x - old).exp() * a, -clipped((x - old).exp()) * a),
    ),
    "not clipped": lambda x, old, a: -(x - old).exp() * a,
    "sign": lambda x, old, a: -clipped_policy_loss(x, old, a, **EPS).losses,
    "log-ratio clipped": lambda x, old, a: (
        clipped_policy_loss(x, old, a, low=0.1813, high=0.2214).losses
    ),
    "log-ratio for ratio": lambda x, old, a: -(x - old) * a,
    "old with gradient": lambda x, old, a: -(x - (x - (x - old).detach())).exp() * a,
}


@pytest.mark.parametrize("name", WRONG_PPO)
def test_wrong_ppo_misses_the_golden_values(name: str) -> None:
    assert not agrees(WRONG_PPO[name])


def test_bounds_of_their_own() -> None:
    """DAPO's 0.2 and 0.28: between 1.2 and 1.28 a rising ratio still counts."""
    logp = leaf([1.25, 1.3, 0.79]).log()
    found = clipped_policy_loss(
        logp,
        torch.zeros(3, dtype=F64),
        torch.tensor([1.0, 1.0, -1.0], dtype=F64),
        low=0.2,
        high=0.28,
    )
    assert close(found.losses.detach(), [-1.25, -1.28, 0.8], 0, 1e-14)
    assert found.clipped_high.tolist() == [False, True, False]
    assert found.clipped_low.tolist() == [False, False, True]


def test_dual_clip_bounds_the_cost() -> None:
    """A < 0 and a ratio of 5 with c = 3: loss 3 |A| without gradient; A > 0 never."""
    logp = leaf([5.0, 2.0, 5.0, 0.5])
    advantages = torch.tensor([-2.0, -2.0, 2.0, -2.0], dtype=F64)
    for dual, losses, slopes in (
        (None, [10.0, 4.0, -2.4, 1.6], [2.0, 2.0, 0.0, 0.0]),
        (3.0, [6.0, 4.0, -2.4, 1.6], [0.0, 2.0, 0.0, 0.0]),
    ):
        found = clipped_ratio_loss(logp, advantages, **EPS, dual_clip=dual)
        assert close(found.losses.detach(), losses, 0, 1e-14)
        assert close(gradients(found.losses, logp)[0], slopes, 0, 1e-14)
        assert found.clipped_dual.tolist() == [dual is not None, False, False, False]


def test_impossible_bounds_are_refused() -> None:
    one = torch.ones(1)
    for keys, name in (
        ({"low": 0.0, "high": 0.2}, "low=0.0"),
        ({"low": 1.5, "high": 0.2}, "low=1.5"),
        ({"low": 0.2, "high": 0.0}, "high=0.0"),
        ({"low": float("nan"), "high": 0.2}, "low=nan"),
        ({**EPS, "dual_clip": 1.0}, "dual_clip=1.0"),
    ):
        with pytest.raises(ValueError, match=name):
            clipped_ratio_loss(one, one, **keys)
    with pytest.raises(ValueError, match="clip=0"):
        clipped_value_loss(one, one, one, 0.0)


# ---------------------------------------------------------------------------- where they agree


def test_the_first_pass_is_reinforce_to_the_bit() -> None:
    """l = l': ratios are exactly 1, nothing is clipped, the gradient is REINFORCE's; in fp32."""
    old, advantages = (
        -3 * drawn(1, 60, dtype=torch.float32).abs(),
        drawn(2, 60, dtype=torch.float32),
    )
    logp = old.clone().requires_grad_()
    wanted = gradients(reinforce_loss(logp, advantages), logp)[0]
    assert torch.equal(wanted, -advantages)
    for kept in (old, logp):  # the same tensor, too: old log-probs are constants
        found = clipped_policy_loss(logp, kept, advantages, **EPS, dual_clip=3.0)
        assert torch.equal(found.ratio, torch.ones(60))
        assert not (found.clipped_low | found.clipped_high | found.clipped_dual).any()
        assert torch.equal(found.losses.detach(), -advantages)
        assert torch.equal(gradients(found.losses, logp)[0], wanted)
    # old = the current policy at every pass: no ratio ever leaves 1, nothing is ever clipped
    moved = (old + 1.0).requires_grad_()
    assert clipped_policy_loss(moved, moved, advantages, **EPS).ratio.unique().tolist() == [1.0]
    assert clipped_policy_loss(moved, old, advantages, **EPS).ratio.min() > 2.7


def test_only_the_policy_gets_a_gradient() -> None:
    logp, old, a = leaf(LOGP), leaf(OLD.tolist()), leaf(A.tolist())
    found = clipped_policy_loss(logp, old, a, **EPS)
    statistics = (found.ratio, found.clipped_low, found.clipped_high, found.clipped_dual)
    assert not any(x.requires_grad for x in statistics)
    total = found.losses + importance_loss(token_ratio(logp, old), a) + reinforce_loss(logp, a)
    total = total + clipped_value_loss(logp, old, a, 0.2)
    grads = torch.autograd.grad(total.sum(), (logp, old, a), allow_unused=True)
    assert grads[0] is not None
    assert grads[1:] == (None, None)


OTHER = torch.log_softmax(REFERENCE + torch.tensor([0.4, -0.3, 0.0, 0.5, -0.6, 0.1]), 0)
LINES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "on_policy": lambda logp, old: reinforce_loss(logp, REWARDS),
    "importance": lambda logp, old: importance_loss(token_ratio(logp, old), REWARDS),
    "clip_reward": lambda logp, old: clipped_policy_loss(logp, old, REWARDS, **EPS).losses,
    "clip_advantage": lambda logp, old: (
        clipped_policy_loss(logp, old, REWARDS - (old.exp() * REWARDS).sum(), **EPS).losses
    ),
}


def line(name: str, policy: Tensor, sampler: Tensor) -> Tensor:
    """The mean gradient of a line of the derivation, as an ascent."""
    return -mean_gradient(lambda logp: LINES[name](logp, sampler), policy, sampler)


def test_lines_of_the_derivation_by_enumeration() -> None:
    """One gradient where the policy is the one that sampled; beyond, the second line alone."""
    exact = gradient(lambda p: (p.exp() * REWARDS).sum(), REFERENCE)
    for name in LINES:
        assert same(line(name, REFERENCE, REFERENCE), exact, 1e-15)
    away = gradient(lambda p: (p.exp() * REWARDS).sum(), OTHER)
    assert same(line("importance", OTHER, REFERENCE), away, 1e-15)
    for name in ("on_policy", "clip_reward", "clip_advantage"):
        assert not same(line(name, OTHER, REFERENCE), away, 1e-2)
    # A baseline changes what is clipped, and so the gradient.
    clip = [line(n, OTHER, REFERENCE) for n in ("clip_reward", "clip_advantage")]
    assert not same(*clip, 1e-2)


def test_a_clipped_reward_stops_where_the_ratio_has_gone_far() -> None:
    ratio = leaf([1.5, 1.5, 0.5, 0.5])
    rewards = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=F64)
    clip, _, low, high, _ = clipped_ratio_loss(ratio, rewards, **EPS)
    assert high.tolist() == [True, False, False, False]  # a ratio of 1.5 with r < 0 is not clipped
    assert low.tolist() == [False, False, False, True]
    assert close(clip.detach(), [-1.2, 1.5, -0.5, 0.8], 0, 1e-15)
    assert gradients(clip, ratio)[0].tolist() == [0.0, 1.0, -1.0, 0.0]
    plain = importance_loss(ratio, rewards)
    assert plain.tolist() == [-1.5, 1.5, -0.5, 0.5]
    assert gradients(plain, ratio)[0].tolist() == [-1.0, 1.0, -1.0, 1.0]


# Two tokens of two symbols: a first distribution and one after each first symbol.


def pairs(logits: Tensor) -> Tensor:
    """[8]: token log-probs of the four responses 00, 01, 10, 11, packed; logits [3, 2]."""
    first, *second = torch.log_softmax(logits, -1)
    return torch.stack([x for i in (0, 1) for j in (0, 1) for x in (first[i], second[i][j])])


def test_importance_of_whole_responses_is_unbiased() -> None:
    """Ratios of tokens are that only where the policy is the one that sampled."""
    sequence, lengths = packed([2] * 4)
    rewards = torch.tensor([1.0, -0.5, 2.0, 0.3], dtype=F64)
    start = drawn(1, 3, 2)

    def whole(logp: Tensor) -> Tensor:
        return logp.view(4, 2).sum(1)

    def ascent(logits: Tensor, kind: str) -> Tensor:
        logits = logits.clone().requires_grad_()
        logp, old = pairs(logits), pairs(start)
        if kind == "token":
            losses = importance_loss(token_ratio(logp, old), rewards[sequence]).view(4, 2).sum(1)
        else:
            ratio = sequence_ratio(logp, old, sequence, lengths, kind=kind)
            losses = importance_loss(ratio, rewards)
        return -torch.autograd.grad((whole(old).exp() * losses).sum(), logits)[0]

    def exact(logits: Tensor) -> Tensor:
        logits = logits.clone().requires_grad_()
        return torch.autograd.grad((whole(pairs(logits)).exp() * rewards).sum(), logits)[0]

    moved = start + drawn(2, 3, 2)
    assert same(ascent(start, "sum"), exact(start), 1e-15)
    assert same(ascent(start, "token"), exact(start), 1e-15)
    assert same(ascent(moved, "sum"), exact(moved), 1e-15)
    assert not same(ascent(moved, "token"), exact(moved), 1e-2)
    assert not same(ascent(start, "mean"), exact(start), 1e-2)  # half of it: a mean in the exponent


# ---------------------------------------------------------------------------- the value loss


VALUES, OLD_VALUES = [0.9, 0.1, 0.55, 0.3], torch.tensor([0.5, 0.4, 0.6, 0.3], dtype=F64)
RETURNS = torch.tensor([0.8, 0.95, 0.2, 0.97], dtype=F64)


def test_golden_value_loss() -> None:
    values = leaf(VALUES)
    losses = clipped_value_loss(values, OLD_VALUES, RETURNS, 0.2)
    assert losses.mean().item() == pytest.approx(0.1629875, abs=1e-12)
    # The first one's two squares are equal, to rounding: its gradient is either's.
    assert close(gradients(losses, values)[0][1:], [-0.85, 0.35, -0.67], 0, 1e-14)
    none = clipped_value_loss(values, OLD_VALUES, RETURNS, None)
    assert close(none.detach(), 0.5 * (values.detach() - RETURNS).square(), 1e-15)


def test_a_value_that_moved_too_far_gets_no_gradient() -> None:
    """From 0 to 0.5 towards a return of 1: what is counted is 0.2, a constant."""
    values = leaf([0.5, -0.5])
    losses = clipped_value_loss(values, torch.zeros(2, dtype=F64), torch.ones(2, dtype=F64), 0.2)
    assert close(losses.detach(), [0.32, 1.125], 0, 1e-15)
    assert gradients(losses, values)[0].tolist() == [0.0, -1.5]


@pytest.mark.parametrize(
    "wrong",
    [
        lambda v, old, g: (
            0.5 * torch.minimum((v - g) ** 2, (v.clamp(old - 0.2, old + 0.2) - g) ** 2)
        ),
        lambda v, old, g: 0.5 * (v.clamp(old - 0.2, old + 0.2) - g) ** 2,
        lambda v, old, g: torch.maximum((v - g) ** 2, (v.clamp(old - 0.2, old + 0.2) - g) ** 2),
        lambda v, old, g: 0.5 * torch.maximum((v - g) ** 2, (v.clamp(g - 0.2, g + 0.2) - g) ** 2),
    ],
    ids=["smaller", "clipped alone", "without half", "around the return"],
)
def test_wrong_value_losses_differ(wrong: Callable[..., Tensor]) -> None:
    values = torch.tensor([*VALUES, 0.5], dtype=F64)
    old, returns = (
        torch.cat([x, torch.tensor([y], dtype=F64)]) for x, y in ((OLD_VALUES, 0.0), (RETURNS, 1.0))
    )
    right = clipped_value_loss(values, old, returns, 0.2)
    assert (wrong(values, old, returns) - right).abs().max() > 0.01


# ---------------------------------------------------------------------------- numbers


def test_gradients_by_finite_differences() -> None:
    sequence, lengths = packed([4, 1, 7])
    old, advantages = -drawn(1, 12).abs(), drawn(3, 12)
    logp = old + 0.3 * drawn(2, 12)
    check = slopes_agree
    assert check(lambda x: clipped_policy_loss(x, old, advantages, **EPS).losses, logp)
    assert check(
        lambda x: clipped_policy_loss(x, old, advantages, **EPS, dual_clip=1.3).losses, logp
    )
    assert check(lambda x: importance_loss(token_ratio(x, old), advantages), logp)
    assert check(lambda x: reinforce_loss(x, advantages), logp)
    assert check(lambda x: clipped_value_loss(x, old, advantages, 0.2), logp)
    for kind in ("sum", "mean"):
        assert check(lambda x, k=kind: sequence_ratio(x, old, sequence, lengths, kind=k), logp)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_extremes_are_finite(dtype: torch.dtype) -> None:
    """+-1e4 nats: a ratio of infinity times the zero gradient of a clipped token is a NaN."""
    logp = leaf([0.0, 0.0, -1e4, -1e4, -88.8], dtype)
    old = torch.tensor([-1e4, -1e4, 0.0, 0.0, 0.0], dtype=dtype)
    advantages = torch.tensor([1.0, -1.0, 1.0, -1.0, 0.0], dtype=dtype)
    sequence, lengths = packed([1, 2, 2])
    found = [
        clipped_policy_loss(logp, old, advantages, **EPS, dual_clip=dual).losses
        for dual in (None, 3.0)
    ]
    found.append(importance_loss(token_ratio(logp, old), advantages))
    found += [sequence_ratio(logp, old, sequence, lengths, kind=k) for k in ("sum", "mean")]
    found.append(gspo_ratio(logp, old, sequence, lengths))
    for losses in found:
        assert torch.isfinite(losses).all()
        assert torch.isfinite(torch.autograd.grad(losses.sum(), logp)[0]).all()
    literal = -torch.minimum(
        (logp - old).exp() * advantages, (logp - old).exp().clamp(0.8, 1.2) * advantages
    )
    assert not torch.isfinite(torch.autograd.grad(literal.sum(), logp)[0]).all()


def test_half_precision_is_compared_in_fp32() -> None:
    half = torch.tensor([-250.7, -3.0]).bfloat16()
    found = clipped_policy_loss(half, half, half, **EPS)
    assert found.losses.dtype == found.ratio.dtype == torch.float32
    assert found.ratio.tolist() == [1.0, 1.0]
    assert clipped_value_loss(half, half, half, 0.2).dtype == torch.float32
    assert reinforce_loss(half, half).dtype == torch.float32
