"""What every loss is made of, written so that no input overflows: fp32 at least, no bare exp."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from trimtab.losses.types import SequenceLogprobs


def at_least_fp32(values: Tensor) -> Tensor:
    """``values`` in fp32, or in fp64 where they are already; integers become fp32."""
    return values if values.dtype in (torch.float32, torch.float64) else values.float()


def log_ratio(policy: SequenceLogprobs, reference: SequenceLogprobs) -> Tensor:
    """a = S_policy - S_reference, shaped like the sums; the reference is a constant."""
    return at_least_fp32(policy.sum) - at_least_fp32(reference.sum).detach()


def mean_logprob(policy: SequenceLogprobs) -> Tensor:
    """Log-probability per token, shaped like the sums, in at least fp32."""
    return at_least_fp32(policy.sum) / policy.length


def log1mexp(x: Tensor) -> Tensor:
    """log(1 - e^x) for x < 0, exact at both ends.

    Where e^x is close to 1 the difference is taken by expm1, elsewhere by log1p; the switch is at
    -ln 2 (Maechler, "Accurately computing log(1 - exp(-|a|))"). x at or above -eps of its dtype is
    taken as -eps, with no gradient above it: the true value there is -inf.
    """
    x = at_least_fp32(x)
    # The clamp also keeps the branch not taken finite, so that no 0 * inf enters the gradient.
    x = x.clamp(max=-torch.finfo(x.dtype).eps)
    close = x > -math.log(2.0)
    return torch.where(close, torch.log(-torch.expm1(x)), torch.log1p(-torch.exp(x)))


EXPONENT_LIMIT = 40.0  # nats; exp(40)^2 is within fp32, exp(50)^2 and its gradient are beyond


def capped_exp(x: Tensor) -> Tensor:
    """exp(x) up to x = 40, and exp(40), without gradient, beyond."""
    return at_least_fp32(x).clamp(max=EXPONENT_LIMIT).exp()


def capped_expm1(x: Tensor) -> Tensor:
    """exp(x) - 1 up to x = 40, exact near 0; exp(40) - 1, without gradient, beyond."""
    return torch.expm1(at_least_fp32(x).clamp(max=EXPONENT_LIMIT))


def log_odds(policy: SequenceLogprobs) -> Tensor:
    """log(P / (1 - P)) with P = exp(log-probability per token): the odds of ORPO."""
    mean = mean_logprob(policy)
    return mean - log1mexp(mean)


def require_positive(name: str, value: float) -> None:
    """ValueError unless 0 < value < inf."""
    if not 0 < value < math.inf:
        raise ValueError(f"{name}={value}: must be a positive number")


def require_non_negative(name: str, value: float) -> None:
    """ValueError unless 0 <= value < inf."""
    if not 0 <= value < math.inf:
        raise ValueError(f"{name}={value}: must be 0 or a positive number")
