"""The negative log-likelihood, in numbers."""

from __future__ import annotations

import torch

from trimtab.losses import nll


def test_nll_is_minus_log_p_and_fp32() -> None:
    logp = torch.tensor([-0.5, -2.0, 0.0])
    assert nll(logp).tolist() == [0.5, 2.0, 0.0]
    assert nll(logp.bfloat16()).dtype == torch.float32
    assert nll(logp.double()).dtype == torch.float64


def test_one_division_by_the_global_token_count() -> None:
    """Token losses 3 (10 tokens) and 1 (2 tokens): 2.6667, where a mean of means gives 2."""
    parts = [torch.full((10,), -3.0), torch.full((2,), -1.0)]
    total = sum(nll(part).sum() for part in parts) / 12
    assert abs(float(total) - 32 / 12) < 1e-6
    mean_of_means = sum(nll(part).mean() for part in parts) / 2
    assert abs(float(mean_of_means) - 32 / 12) > 0.5
