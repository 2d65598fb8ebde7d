"""Token rewards, GAE, rewards to go, whitening: golden values, identities, twins, neighbours."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from trimtab.losses import explained_variance, gae, reward_to_go, token_rewards, whiten
from trimtab.losses.packed import segment_sum

from .support import F64, close, leaf

R = [-0.02, 0.01, -0.03, 0.97]
V = [0.5, 0.4, 0.6, 0.3]
# (gamma, lambda): advantages
GOLDEN_GAE = {
    (1.0, 0.0): [-0.12, 0.21, -0.33, 0.67],
    (1.0, 0.95): [0.35611625, 0.501175, 0.3065, 0.67],
    (1.0, 1.0): [0.43, 0.55, 0.34, 0.67],
    (0.99, 0.95): [0.330689867, 0.483455467, 0.297135, 0.67],
}
WHITE = [-0.722961703, 0.301863076, -1.07349528, 1.49459391]
WHITE_DDOF1 = [-0.62610324, 0.261421109, -0.929674241, 1.29435637]


def packed(lengths: Sequence[int]) -> tuple[Tensor, Tensor]:
    """``sequence`` and ``lengths``."""
    sizes = torch.tensor(lengths)
    return torch.arange(len(lengths)).repeat_interleave(sizes), sizes


def drawn(seed: int, *sizes: int, dtype: torch.dtype = F64) -> Tensor:
    return torch.randn(*sizes, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def slow_gae(
    rewards: Tensor,
    values: Tensor,
    sequence: Tensor,
    lengths: Tensor,
    *,
    gamma: float,
    lam: float,
    bootstrap: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The slow twin: the recursion of the paper, one token after the other, in Python numbers."""
    advantages: list[float] = []
    for n in range(len(lengths)):
        own = [i for i, s in enumerate(sequence.tolist()) if s == n]
        following = 0.0 if bootstrap is None else bootstrap[n].item()
        carried, found = 0.0, []
        for i in reversed(own):
            delta = rewards[i].item() + gamma * following - values[i].item()
            carried = delta + gamma * lam * carried
            following = values[i].item()
            found.append(carried)
        advantages += reversed(found)
    result = torch.tensor(advantages, dtype=F64)
    return result, result + values


# ---------------------------------------------------------------------------- token rewards


def test_the_score_is_at_the_last_token() -> None:
    sequence, _ = packed([3, 1, 2])
    kl = torch.tensor([0.1, -0.2, 0.3, 0.4, 0.5, 0.6], dtype=F64)
    scores = torch.tensor([1.0, -2.0, 0.5], dtype=F64)
    rewards = token_rewards(scores, kl, sequence, 0.1)
    assert close(rewards, [-0.01, 0.02, 0.97, -2.04, -0.05, 0.44], 0, 1e-15)
    # A response's rewards are the objective: score - beta sum_t kl_t.
    sums = segment_sum(rewards, sequence, 3)
    assert close(sums, scores - 0.1 * segment_sum(kl, sequence, 3), 0, 1e-15)
    # One token late, as in a padded layout with room after the end: another response's reward.
    late = -0.1 * kl + torch.where(sequence.diff(prepend=sequence[:1] - 1) > 0, 1.0, 0.0)
    assert not close(late, rewards, 0, 0.1)


def test_a_late_score_changes_the_advantages() -> None:
    """The score one token after the end counts for nothing, or for the neighbour."""
    sequence, lengths = packed([2, 2])
    zeros = torch.zeros(4, dtype=F64)
    rewards = token_rewards(torch.tensor([1.0, 0.0], dtype=F64), zeros, sequence, 0.1)
    right = reward_to_go(rewards, sequence, lengths)
    assert right.tolist() == [1.0, 1.0, 0.0, 0.0]
    assert reward_to_go(rewards.roll(1), sequence, lengths).tolist() == [0.0, 0.0, 1.0, 0.0]


@pytest.mark.parametrize(
    ("sequence", "count"),
    [([0, 0, 2, 2], 3), ([0, 1, 0], 2), ([1, 1, 0], 2), ([0, 0], 2), ([0, 1, 2], 2)],
    ids=["empty response", "in two pieces", "out of order", "missing response", "one too many"],
)
def test_a_broken_layout_is_refused(sequence: list[int], count: int) -> None:
    owner = torch.tensor(sequence)
    with pytest.raises(ValueError, match="responses from 0"):
        token_rewards(torch.zeros(count), torch.zeros(len(owner)), owner, 0.1)
    with pytest.raises(ValueError, match="responses from 0"):
        reward_to_go(torch.zeros(len(owner)), owner, torch.ones(count, dtype=torch.int64))


def test_wrong_lengths_are_refused() -> None:
    sequence, _ = packed([3, 2])
    for lengths in ([2, 3], [3, 1], [4, 2]):
        with pytest.raises(ValueError, match="lengths"):
            reward_to_go(torch.zeros(5), sequence, torch.tensor(lengths))


# ---------------------------------------------------------------------------- GAE


@pytest.mark.parametrize("estimate", [gae, slow_gae], ids=["fast", "slow"])
@pytest.mark.parametrize(("gamma", "lam"), GOLDEN_GAE)
def test_golden_gae(
    estimate: Callable[..., tuple[Tensor, Tensor]], gamma: float, lam: float
) -> None:
    sequence, lengths = packed([4])
    rewards, values = torch.tensor(R, dtype=F64), torch.tensor(V, dtype=F64)
    advantages, returns = estimate(
        rewards, values, sequence, lengths, gamma=gamma, lam=lam, bootstrap=None
    )
    wanted = torch.tensor(GOLDEN_GAE[gamma, lam], dtype=F64)
    assert close(advantages, wanted, 0, 1e-9)
    assert close(returns, wanted + values, 0, 1e-9)
    if (gamma, lam) == (1.0, 0.95):
        assert close(returns, [0.85611625, 0.901175, 0.9065, 0.97], 0, 1e-12)


LENGTHS = [1, 2, 7, 64, 1, 33, 5, 100]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("gamma", "lam"), [(1.0, 0.95), (0.9, 0.5), (1.0, 1.0), (0.99, 0.0), (0.0, 1.0)]
)
def test_the_fast_recursion_is_the_slow_one(seed: int, gamma: float, lam: float) -> None:
    order = torch.randperm(len(LENGTHS), generator=torch.Generator().manual_seed(seed))
    sequence, lengths = packed([LENGTHS[i] for i in order])
    m, n = len(sequence), len(lengths)
    inputs = (drawn(seed, m), drawn(seed + 50, m), sequence, lengths)
    bootstrap = drawn(seed + 99, n) if seed % 2 else None
    fast = gae(*inputs, gamma=gamma, lam=lam, bootstrap=bootstrap)
    slow = slow_gae(*inputs, gamma=gamma, lam=lam, bootstrap=bootstrap)
    for a, b in zip(fast, slow, strict=True):
        assert close(a, b, 1e-12, 1e-12)
    single = gae(
        *(x.float() for x in inputs[:2]),
        sequence,
        lengths,
        gamma=gamma,
        lam=lam,
        bootstrap=bootstrap,
    )
    assert single[0].dtype == torch.float32
    assert close(single[0], slow[0], 2e-5, 2e-5)


def _wrong(name: str, *inputs: Tensor, gamma: float, lam: float, bootstrap: Tensor) -> Tensor:
    rewards, values, sequence, lengths = inputs
    keys = {"gamma": gamma, "lam": lam, "bootstrap": bootstrap}
    if name == "bootstrap forgotten":
        keys["bootstrap"] = None
    elif name == "bootstrap for everybody":
        keys["bootstrap"] = bootstrap + 0.3
    elif name == "lambda forgotten":
        keys["lam"] = 1.0
    elif name == "gamma forgotten":
        keys["gamma"] = 1.0
    elif name == "across responses":
        sequence, lengths = packed([len(sequence)])
        keys["bootstrap"] = bootstrap[-1:]
    elif name == "value of the same state":
        values = values.roll(1)
    return slow_gae(rewards, values, sequence, lengths, **keys)[0]


@pytest.mark.parametrize(
    "name",
    [
        "bootstrap forgotten",
        "bootstrap for everybody",
        "lambda forgotten",
        "gamma forgotten",
        "across responses",
        "value of the same state",
    ],
)
def test_wrong_recursions_differ(name: str) -> None:
    sequence, lengths = packed([4, 3])
    inputs = (drawn(1, 7), drawn(2, 7), sequence, lengths)
    keys = {"gamma": 0.9, "lam": 0.8, "bootstrap": torch.tensor([0.0, 0.8], dtype=F64)}
    right = gae(*inputs, **keys)[0]
    assert close(right, slow_gae(*inputs, **keys)[0], 0, 1e-14)
    assert (_wrong(name, *inputs, **keys) - right).abs().max() > 0.05


def test_a_response_cut_off_goes_on_with_its_value() -> None:
    """Bootstrap 0.8 after the cut: as if a token worth 0.8 came after it."""
    sequence, lengths = packed([2, 1])
    rewards, values = torch.zeros(3, dtype=F64), torch.zeros(3, dtype=F64)
    after = torch.tensor([0.8, 0.0], dtype=F64)
    advantages, returns = gae(
        rewards, values, sequence, lengths, gamma=0.5, lam=1.0, bootstrap=after
    )
    assert advantages.tolist() == [0.2, 0.4, 0.0]
    assert returns.tolist() == [0.2, 0.4, 0.0]


def test_identities_of_lambda() -> None:
    sequence, lengths = packed([5, 1, 9])
    rewards, values = drawn(3, 15), drawn(4, 15)
    inputs = (rewards, values, sequence, lengths)
    whole, _ = gae(*inputs, gamma=0.9, lam=1.0, bootstrap=None)
    assert close(whole, reward_to_go(rewards, sequence, lengths, gamma=0.9) - values, 0, 1e-13)
    deltas, _ = gae(*inputs, gamma=0.9, lam=0.0, bootstrap=None)
    following = torch.where(sequence.diff(append=sequence[-1:] + 1) > 0, 0.0, values.roll(-1))
    assert torch.equal(deltas, rewards + 0.9 * following - values)
    plain, _ = gae(rewards, 0 * values, sequence, lengths, gamma=1.0, lam=1.0, bootstrap=None)
    assert close(plain, reward_to_go(rewards, sequence, lengths), 0, 1e-13)


def test_a_constant_added_to_all_values_leaves_the_targets() -> None:
    sequence, lengths = packed([5, 1, 9])
    rewards, values = drawn(3, 15), drawn(4, 15)
    for lam, same in ((1.0, True), (0.9, False)):
        targets = [
            gae(rewards, v, sequence, lengths, gamma=1.0, lam=lam, bootstrap=None)[1]
            for v in (values, values + 7.0)
        ]
        assert close(*targets, 0, 1e-12) == same


def test_neighbours_do_not_touch_a_response() -> None:
    """A million added to everything of the other responses: not one bit of this one changes."""
    sequence, lengths = packed([6, 11, 4])
    own = sequence == 1
    rewards, values, after = (
        drawn(s, k, dtype=torch.float32) for s, k in ((5, 21), (6, 21), (7, 3))
    )
    poison = torch.where(own, 0.0, 1e6)
    poisoned_after = after + torch.tensor([1e6, 0.0, 1e6])
    keys = {"gamma": 1.0, "lam": 0.95}
    clean = gae(rewards, values, sequence, lengths, bootstrap=after, **keys)
    dirty = gae(
        rewards + poison, values - poison, sequence, lengths, bootstrap=poisoned_after, **keys
    )
    alone = gae(rewards[own], values[own], *packed([11]), bootstrap=after[1:2], **keys)
    unread = torch.where(own, rewards, float("nan"))
    nan = gae(unread, values, sequence, lengths, bootstrap=after, **keys)
    for a, b, c, d in zip(clean, dirty, alone, nan, strict=True):
        assert torch.equal(a[own], b[own])
        assert torch.equal(a[own], c)
        assert torch.equal(a[own], d[own])
        assert not torch.equal(a[~own], b[~own])

    def running(x: Tensor) -> Tensor:
        """Wrong: differences of one running sum over the whole row."""
        total = x.flip(0).cumsum(0).flip(0)
        ends = lengths.cumsum(0)
        return total - torch.cat([total, total.new_zeros(1)])[ends][sequence]

    assert close(running(rewards), reward_to_go(rewards, sequence, lengths), 1e-4, 1e-5)
    assert not torch.equal(running(rewards)[own], running(rewards + poison)[own])


def test_advantages_are_constants() -> None:
    sequence, lengths = packed([2, 3])
    rewards, values = leaf([1.0, 2.0, 3.0, 4.0, 5.0]), leaf([0.1, 0.2, 0.3, 0.4, 0.5])
    found = gae(rewards, values, sequence, lengths, gamma=1.0, lam=0.9, bootstrap=values[:2])
    rest = (
        token_rewards(rewards[:2], values, sequence, 0.1),
        reward_to_go(rewards, sequence, lengths),
        whiten(rewards.repeat(2)),
        explained_variance(values, rewards),
    )
    assert not any(x.requires_grad for x in (*found, *rest))


@pytest.mark.parametrize("keys", [{"gamma": 1.1}, {"lam": -0.1}, {"gamma": float("nan")}])
def test_impossible_discounts_are_refused(keys: dict[str, float]) -> None:
    sequence, lengths = packed([2])
    with pytest.raises(ValueError, match="within 0 and 1"):
        gae(
            torch.zeros(2),
            torch.zeros(2),
            sequence,
            lengths,
            **{"gamma": 1.0, "lam": 1.0, **keys},
            bootstrap=None,
        )


# ---------------------------------------------------------------------------- whitening


def test_golden_whitening() -> None:
    """The golden four, twice: neither their mean nor their population variance changes by that."""
    values = torch.tensor(GOLDEN_GAE[1.0, 0.95] * 2, dtype=F64)
    assert close(whiten(values), WHITE * 2, 0, 6e-9)
    four = values[:4]
    ddof1 = (four - four.mean()) / (four.var() + 1e-8).sqrt()
    assert close(ddof1, WHITE_DDOF1, 0, 6e-9)
    assert not close(whiten(values), WHITE_DDOF1 * 2, 0, 0.01)


def test_whitening_is_global() -> None:
    """Wrong variants: per response, per rank, per micro-batch."""
    values = drawn(8, 40) + torch.linspace(-3, 3, 40, dtype=F64)
    right = whiten(values)
    assert right.mean().abs() < 1e-14
    assert right.var(correction=0).item() == pytest.approx(1.0, abs=1e-7)
    parts = torch.cat([whiten(part) for part in values.chunk(2)])
    assert (parts - right).abs().max() > 0.5
    rectangle = whiten(values.view(5, 8))
    assert torch.equal(rectangle.flatten(), right)
    rows = torch.stack([whiten(row) for row in values.view(5, 8)])
    assert (rows - rectangle).abs().max() > 0.5


def test_rewards_keep_their_mean() -> None:
    values = drawn(9, 50) + 4.0
    scaled = whiten(values, shift_mean=False)
    assert close(scaled, values / (values.var(correction=0) + 1e-8).sqrt(), 1e-13)
    assert scaled.mean() > 3.0


def test_what_weighs_nothing_is_not_read() -> None:
    values = drawn(10, 30, dtype=torch.float32)
    weights = (torch.arange(30) % 3 > 0).float()
    kept = weights.bool()
    for shift in (True, False):
        wanted = whiten(values[kept], shift_mean=shift)
        for filler in (1e6, float("nan"), float("inf")):
            filled = torch.where(kept, values, filler)
            found = whiten(filled, shift_mean=shift, weights=weights)
            assert close(found[kept], wanted, 1e-5, 1e-6)
            assert found[~kept].tolist() == [0.0] * 10
            assert torch.equal(found, whiten(values, shift_mean=shift, weights=weights))


def test_equal_values_are_exactly_zero() -> None:
    for value in (0.35, 1e6 + 0.3, -7.7e-5):
        for count in (8, 9, 1001):
            assert not whiten(torch.full((count,), value)).any()
    naive = torch.full((7,), 0.35)
    assert (naive - naive.sum() / 7).any()  # why heights are taken first


def test_too_few_values_are_refused() -> None:
    with pytest.raises(ValueError, match="7 values to whiten: at least 8"):
        whiten(torch.arange(7.0))
    with pytest.raises(ValueError, match="7 values"):
        whiten(torch.arange(20.0), weights=(torch.arange(20) < 7).float())


def test_a_nan_is_not_hidden() -> None:
    values = torch.arange(9.0)
    values[3] = float("nan")
    assert whiten(values).isnan().all()


# ---------------------------------------------------------------------------- explained variance


def test_explained_variance() -> None:
    returns = torch.tensor([1.0, 2.0, 3.0, 6.0], dtype=F64)
    assert explained_variance(returns, returns).item() == 1.0
    assert explained_variance(returns + 5.0, returns).item() == 1.0
    assert explained_variance(torch.full((4,), 3.0, dtype=F64), returns).item() == 0.0
    assert explained_variance(-returns, returns).item() == pytest.approx(-3.0, abs=1e-12)
    # errors 1, 0, 0, -1: 2 of 14
    off = returns - torch.tensor([1.0, 0.0, 0.0, -1.0], dtype=F64)
    assert explained_variance(off, returns).item() == pytest.approx(1 - 2 / 14, abs=1e-12)
    # 1 - error / variance by squares of the returns themselves, without their mean, is another
    assert abs((1 - 2 / returns.square().sum().item()) - (1 - 2 / 14)) > 0.05


def test_explained_variance_without_variance_or_weight() -> None:
    flat = torch.full((5,), 0.97)
    assert explained_variance(flat - 1.0, flat).item() == 1.0
    assert explained_variance(torch.arange(5.0), flat).item() == 0.0
    returns, values = (
        torch.tensor([1.0, 2.0, 4.0, 9e6]),
        torch.tensor([1.0, 2.5, 3.5, float("nan")]),
    )
    weights = torch.tensor([1.0, 1.0, 1.0, 0.0])
    alone = explained_variance(values[:3], returns[:3])
    assert explained_variance(values, returns, weights).item() == pytest.approx(alone.item())
