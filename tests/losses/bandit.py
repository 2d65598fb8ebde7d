"""One prompt, six responses of one token: everything about it can be enumerated.

The closed forms are those of maximising E[r] - beta KL(policy || reference).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .support import F64

REFERENCE = torch.log_softmax(torch.tensor([0.3, -0.2, 0.5, 0.0, -0.7, 0.1], dtype=F64), 0)
REWARDS = torch.tensor([1.0, 0.0, -0.5, 2.0, 0.3, -1.0], dtype=F64)
BETA = 0.5
OPTIMUM = torch.log_softmax(REFERENCE + REWARDS / BETA, 0)


def kl(first: Tensor, second: Tensor) -> Tensor:
    """KL(first || second) of log-probabilities."""
    return (first.exp() * (first - second)).sum()


def gradient(function: Callable[[Tensor], Tensor], log_policy: Tensor) -> Tensor:
    """d function(log pi) / d logits at a policy, by autograd."""
    logits = log_policy.clone().requires_grad_()
    return torch.autograd.grad(function(torch.log_softmax(logits, 0)), logits)[0]


def mean_gradient(
    loss: Callable[[Tensor], Tensor], log_policy: Tensor, sampler: Tensor | None = None
) -> Tensor:
    """Mean over samples, taken as given, of the gradient of their losses [6] by the logits.

    The samples come from ``sampler`` (log-probabilities), or from the policy itself.
    """
    shares = (log_policy if sampler is None else sampler).detach().exp()
    return gradient(lambda logp: (shares * loss(logp)).sum(), log_policy)


def same(a: Tensor, b: Tensor, tolerance: float = 1e-12) -> bool:
    """Whether two gradients agree."""
    return bool((a - b).abs().max() < tolerance)
