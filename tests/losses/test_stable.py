"""log1mexp and the odds at their ends, against 1000-digit arithmetic."""

from __future__ import annotations

import pytest
import torch

from trimtab.losses import SequenceLogprobs, log1mexp, log_odds
from trimtab.losses.stable import at_least_fp32

from . import oracle
from .support import F64, close, gradients, leaf, responses

POINTS = [
    -1e4,
    -745.0,
    -50.0,
    -30.0,
    -15.0,
    -10.0,
    -1.0,
    -0.6932,
    -0.6931,
    -0.5,
    -1e-3,
    -1e-8,
    -1e-14,
]


def reference(x: float) -> tuple[float, list[float]]:
    return oracle.value_and_gradient(lambda u: oracle.log(1 - oracle.exp(u)), x)


def test_log1mexp_and_its_slope() -> None:
    x = leaf(POINTS)
    values = log1mexp(x)
    exact = [reference(p) for p in POINTS]
    assert close(values.detach(), [v for v, _ in exact], 1e-12, atol=1e-323)
    assert close(gradients(values, x)[0], [g[0] for _, g in exact], 1e-12, atol=1e-323)


@pytest.mark.parametrize(
    "naive", [lambda x: torch.log(1 - torch.exp(x)), lambda x: torch.log1p(-torch.exp(x))]
)
def test_log1mexp_beats_the_one_branch_forms(naive) -> None:
    x = torch.tensor(POINTS, dtype=F64)
    assert not close(naive(x), [reference(p)[0] for p in POINTS], 1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_certain_responses_stay_finite(dtype: torch.dtype) -> None:
    """A mean log-prob of 0, or above by rounding, is taken as -eps, with no slope above it."""
    x = leaf([0.0, 1e-7, -0.0], dtype)
    values = log1mexp(x)
    eps = torch.finfo(dtype).eps
    assert close(values.detach(), [torch.tensor(eps, dtype=F64).log().item()] * 3, 1e-6)
    assert gradients(values, x)[0].tolist() == [0.0, 0.0, 0.0]


def test_log_odds_of_a_half_is_zero() -> None:
    half = torch.tensor([0.5], dtype=F64).log() * 8
    assert close(log_odds(responses(half)), [0.0], 0.0, atol=1e-15)
    assert not close(log_odds(SequenceLogprobs(half, torch.tensor([7]))), [0.0], 0.0, atol=1e-2)


def test_at_least_fp32_leaves_wider_types_alone() -> None:
    for given, wanted in [(torch.bfloat16, torch.float32), (torch.float16, torch.float32)]:
        assert at_least_fp32(torch.zeros(1, dtype=given)).dtype == wanted
    for kept in (torch.float32, F64):
        assert at_least_fp32(torch.zeros(1, dtype=kept)).dtype == kept
