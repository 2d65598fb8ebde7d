"""Ratios of tokens and of whole responses: GSPO, corrections of the sampler's log-probs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from trimtab.losses import (
    clipped_ratio_loss,
    gspo_ratio,
    masked_weights,
    sequence_ratio,
    token_ratio,
    truncated_weights,
)

from .bandit import same
from .support import F64, close
from .test_advantages import drawn, packed


def test_golden_gspo() -> None:
    """Log-ratios 0.2, -0.1, 0.05."""
    sequence, lengths = packed([3])
    logp, old = torch.tensor([0.2, -0.1, 0.05], dtype=F64), torch.zeros(3, dtype=F64)
    inputs = (logp, old, sequence, lengths)
    assert sequence_ratio(*inputs, kind="mean").item() == pytest.approx(1.051271096, abs=5e-10)
    assert sequence_ratio(*inputs, kind="sum").item() == pytest.approx(1.161834243, abs=5e-10)
    assert close(gspo_ratio(*inputs), [1.051271096] * 3, 0, 5e-10)
    with pytest.raises(ValueError, match="kind='max'"):
        sequence_ratio(*inputs, kind="max")


def test_ratios_of_responses_are_their_slow_twins() -> None:
    sizes = [1, 4, 2, 30]
    sequence, lengths = packed(sizes)
    logp, old = drawn(1, 37), drawn(2, 37)
    differences = (logp - old).split(sizes)
    for kind, reduce in (("sum", Tensor.sum), ("mean", Tensor.mean)):
        found = sequence_ratio(logp, old, sequence, lengths, kind=kind)
        assert close(found, torch.stack([reduce(d) for d in differences]).exp(), 1e-12)


def gspo(
    ratio: Callable[..., Tensor], advantages: Tensor, logp: Tensor, old: Tensor, sizes: list[int]
) -> Tensor:
    """d/d logp of the sum over responses of GSPO's loss."""
    sequence, lengths = packed(sizes)
    logp = logp.clone().requires_grad_()
    found = ratio(logp, old, sequence, lengths)
    if len(found) == len(sizes):  # one loss a response
        losses = clipped_ratio_loss(found, advantages, low=3e-2, high=4e-2).losses
    else:  # one a token, and a mean over the response
        losses = clipped_ratio_loss(found, advantages[sequence], low=3e-2, high=4e-2).losses
        losses = losses / lengths[sequence]
    return torch.autograd.grad(losses.sum(), logp)[0]


def test_both_forms_of_gspo_have_one_gradient() -> None:
    """s_i A_i / length for every token of a response that is not clipped, 0 for the others."""
    sizes, advantages = [3, 1, 5, 2], torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=F64)
    old = -drawn(1, 11).abs()
    logp = old + 0.01 * drawn(2, 11)
    logp[9:] += 0.2  # the last response: clipped
    sequence, lengths = packed(sizes)

    def whole(*inputs: Any) -> Tensor:
        return sequence_ratio(*inputs, kind="mean")

    by_token = gspo(gspo_ratio, advantages, logp, old, sizes)
    assert same(by_token, gspo(whole, advantages, logp, old, sizes), 1e-15)
    s = whole(logp, old, sequence, lengths)
    wanted = -(s * advantages / lengths)[sequence] * (sequence < 3)
    assert same(by_token, wanted, 1e-14)
    # Wrong variants: the sum in the exponent, GRPO's own ratio of each token.
    summed = gspo(lambda *i: sequence_ratio(*i, kind="sum"), advantages, logp, old, sizes)
    assert not same(summed, wanted, 0.1)
    assert not same(
        gspo(lambda x, o, *_: token_ratio(x, o), advantages, logp, old, sizes), wanted, 1e-3
    )


def test_gspo_is_grpo_at_length_one() -> None:
    sizes, advantages = [1] * 9, drawn(3, 9)
    old, logp = drawn(1, 9), drawn(1, 9) + 0.03 * drawn(2, 9)
    grpo = gspo(lambda x, o, *_: token_ratio(x, o), advantages, logp, old, sizes)
    assert torch.equal(gspo(gspo_ratio, advantages, logp, old, sizes), grpo)


def test_other_responses_do_not_touch_a_response() -> None:
    sequence, lengths = packed([5, 7, 3])
    own = sequence == 1
    logp, old = drawn(1, 15, dtype=torch.float32), drawn(2, 15, dtype=torch.float32)
    for filler in (1e6, -1e6, float("nan")):
        dirty = torch.where(own, logp, filler)
        for kind in ("sum", "mean"):
            clean, poisoned = (
                sequence_ratio(x, old, sequence, lengths, kind=kind) for x in (logp, dirty)
            )
            assert torch.equal(clean[1], poisoned[1])
        clean, poisoned = (gspo_ratio(x, old, sequence, lengths) for x in (logp, dirty))
        assert torch.equal(clean[own], poisoned[own])
    alone = sequence_ratio(logp[own], old[own], *packed([7]), kind="mean")
    assert torch.equal(alone[0], sequence_ratio(logp, old, sequence, lengths, kind="mean")[1])


# ---------------------------------------------------------------------------- corrections


def test_truncated_and_masked_weights() -> None:
    trainer, sampler = (
        torch.tensor([-1.0, -1.0, -3.0, -1.0]),
        torch.tensor([-1.0, -3.0, -1.0, -1.5]),
    )
    ratio = token_ratio(trainer.requires_grad_(), sampler)
    found = truncated_weights(ratio)
    assert close(found.weights, [1.0, 2.0, 0.1353352832, 1.6487212707], 1e-6)
    assert found.changed.tolist() == [False, True, False, False]
    assert truncated_weights(ratio, cap=1.5).changed.tolist() == [False, True, False, True]
    masked = masked_weights(ratio, low=0.5, high=5.0)
    assert close(masked.weights, [1.0, 0.0, 0.0, 1.6487212707], 1e-6)
    assert masked.changed.tolist() == [False, True, True, False]
    assert not (found.weights.requires_grad or masked.weights.requires_grad)
    edges = masked_weights(torch.tensor([0.5, 5.0]), low=0.5, high=5.0)
    assert edges.weights.tolist() == [0.5, 5.0]
    for keys in ({"low": 2.0, "high": 1.0}, {"low": -1.0, "high": 1.0}):
        with pytest.raises(ValueError, match="low="):
            masked_weights(ratio, **keys)
    with pytest.raises(ValueError, match="cap=0"):
        truncated_weights(ratio, cap=0.0)


def test_corrections_of_tokens_and_of_responses() -> None:
    """Log-ratios 0.5, 0.5, 0.5: 1.65 a token and on average, 4.48 for all three."""
    sequence, lengths = packed([3])
    logp, old = torch.full((3,), 0.5), torch.zeros(3)
    kinds = {k: sequence_ratio(logp, old, sequence, lengths, kind=k) for k in ("sum", "mean")}
    assert truncated_weights(kinds["sum"], cap=3.0).weights.item() == 3.0
    assert truncated_weights(kinds["mean"], cap=3.0).weights.item() == pytest.approx(1.6487213)
    assert not truncated_weights(token_ratio(logp, old)).changed.any()
