"""What a sum over tokens is divided by: golden values, gradients of a token, micro-batches."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from trimtab.losses import (
    aggregation_count,
    group_relative,
    reinforce_loss,
    token_weights,
)
from trimtab.losses.policy_gradient import AGGREGATIONS, Aggregation

from .support import F64, close, gradients
from .test_advantages import drawn, packed

SIZES = [2, 3, 4, 6, 5]
L_MAX = 8


def count(kind: Aggregation, lengths: Tensor, valid: Tensor | None = None) -> float:
    return aggregation_count(
        kind, lengths, l_max=L_MAX if kind == "constant" else None, valid=valid
    )


@pytest.mark.parametrize(
    ("kind", "loss", "slopes"),
    [
        ("sequence_mean", 0.0, [1 / 10, 1 / 15, 1 / 20, 1 / 30, 1 / 25]),
        ("token_mean", -0.05, [1 / 20] * 5),
        ("constant", -0.025, [1 / 40] * 5),
        ("sequence_sum", -0.2, [1 / 5] * 5),
    ],
)
def test_golden_divisors(kind: Aggregation, loss: float, slopes: list[float]) -> None:
    """Advantages of Dr. GRPO for rewards 1, 0, 0, 1, 1, ratios of 1."""
    sequence, lengths = packed(SIZES)
    rewards = torch.tensor([1.0, 0.0, 0.0, 1.0, 1.0], dtype=F64)
    advantages = group_relative(rewards, torch.zeros(5, dtype=torch.int64), scale="none")
    weights, divisor = token_weights(kind, lengths, sequence), count(kind, lengths)
    total = (-advantages[sequence] * weights).sum() / divisor
    assert total.item() == pytest.approx(loss, abs=2e-8)
    assert close(weights / divisor, torch.tensor(slopes)[sequence], 1e-6)


def test_every_kind_is_another_gradient() -> None:
    sequence, lengths = packed(SIZES)
    logp, advantages = drawn(1, 20).requires_grad_(), drawn(2, 20)
    found: list[Tensor] = []
    for kind in AGGREGATIONS:
        losses = reinforce_loss(logp, advantages) * token_weights(kind, lengths, sequence)
        found.append(gradients(losses / count(kind, lengths), logp)[0])
    for i, a in enumerate(found):
        for b in found[:i]:
            assert (a - b).abs().max() > 0.01


@pytest.mark.parametrize("kind", AGGREGATIONS)
@pytest.mark.parametrize("splits", [[5], [1, 4], [2, 2, 1], [1] * 5])
def test_micro_batches_do_not_matter(kind: Aggregation, splits: list[int]) -> None:
    """Sums and counts of any split add up to the whole; a mean of means does not."""
    sequence, lengths = packed(SIZES)
    losses = drawn(3, 20) + lengths[sequence]
    whole = (losses * token_weights(kind, lengths, sequence)).sum() / count(kind, lengths)
    total, units, means, start = 0.0, 0.0, [], 0
    for part in lengths.split(splits):
        own = losses[start : start + int(part.sum())]
        start += int(part.sum())
        mine = (own * token_weights(kind, part, packed(part.tolist())[0])).sum().item()
        total, units = total + mine, units + count(kind, part)
        means.append(mine / count(kind, part))
    assert total / units == pytest.approx(whole.item(), abs=1e-6)
    if splits == [1, 4]:
        assert abs(sum(means) / len(means) - whole.item()) > 0.1


@pytest.mark.parametrize("kind", AGGREGATIONS)
def test_responses_left_out_leave_the_divisor(kind: Aggregation) -> None:
    """Cut-off responses that are masked: as if they had not been sampled."""
    sequence, lengths = packed(SIZES)
    valid = torch.tensor([True, False, True, False, True])
    kept = valid[sequence]
    weights = token_weights(kind, lengths, sequence, valid=valid)
    assert not weights[~kept].any()
    alone, own = packed([2, 4, 5])
    assert torch.equal(weights[kept], token_weights(kind, own, alone))
    assert count(kind, lengths, valid) == count(kind, own) < count(kind, lengths)
    assert count(kind, lengths, torch.zeros(5, dtype=torch.bool)) == 0.0


def test_the_constant_is_not_the_longest_response() -> None:
    """Divided by the longest of the batch, a response's gradient depends on its neighbours."""
    for sizes in ([2, 3], [2, 8]):
        assert aggregation_count("constant", torch.tensor(sizes), l_max=8) == 16.0
    with pytest.raises(ValueError, match="l_max=8: a response has 9 tokens"):
        aggregation_count("constant", torch.tensor([9]), l_max=8)
    with pytest.raises(ValueError, match="l_max=None"):
        aggregation_count("constant", torch.tensor([9]))
    with pytest.raises(ValueError, match="l_max=8: belongs to"):
        aggregation_count("token_mean", torch.tensor([9]), l_max=8)


def test_unknown_kinds_are_refused() -> None:
    sequence, lengths = packed(SIZES)
    with pytest.raises(ValueError, match="'mean': must be one of token_mean, sequence_mean"):
        token_weights("mean", lengths, sequence)
    with pytest.raises(ValueError, match="'mean': must be one of"):
        aggregation_count("mean", lengths)
