"""Estimators of KL(policy || reference) from sampled tokens, and what their gradients are.

Schulman, "Approximating KL Divergence". With l the log-probability of a sampled token under the
policy and d = l_reference - l:

    k1 = -d                 k2 = d^2 / 2                 k3 = exp(d) - 1 - d

Values, over tokens that the policy sampled: k1 and k3 have the mean KL(policy || reference), k2 is
close to it where the two are close; k2 and k3 are never negative, k1 varies most.

Gradients are another matter. Where an estimator is a term of the loss and the samples are taken as
given, the mean of its gradient is

    k1    0: the reference has no influence
    k2    that of KL(policy || reference)
    k3    that of KL(reference || policy), the other direction, with another optimum

and where it is weighted by the ratio to the policy that sampled, with the gradient through the
ratio as well (``weighted_kl``), on samples of any older policy

    k1    that of KL(policy || reference)
    k2    that of the mean of k2, which is no KL
    k3    that of KL(policy || reference)

Each KL here is that of one token given those before it, which are taken as they came. As a penalty
inside the reward, where no gradient passes through the estimator itself and earlier tokens answer
for later ones, k1 gives the policy gradient of KL(policy || reference) of whole responses.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from trimtab.losses.policy_gradient import LOG_RATIO_LIMIT, token_ratio
from trimtab.losses.stable import at_least_fp32


def kl_k1(logp: Tensor, ref: Tensor) -> Tensor:
    """[M]: l - l_reference, in nats; can be negative. For the reward: no loss term (see above)."""
    return -_difference(logp, ref)


def kl_k2(logp: Tensor, ref: Tensor) -> Tensor:
    """[M]: (l_reference - l)^2 / 2, in nats."""
    return 0.5 * _difference(logp, ref).square()


def kl_k3(logp: Tensor, ref: Tensor) -> Tensor:
    """[M]: exp(d) - 1 - d with d = l_reference - l, in nats; GRPO's, arXiv:2402.03300, Eq. 4.

    d is kept within +-20, beyond which the gradient is 0: exp(d) overflows fp32 at 88.
    """
    bounded = _difference(logp, ref).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    return bounded.expm1() - bounded  # near the reference exp(d) - 1 - d would be all rounding


KL_ESTIMATORS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "k1": kl_k1,
    "k2": kl_k2,
    "k3": kl_k3,
}


def weighted_kl(name: str, logp: Tensor, ref: Tensor, old: Tensor) -> Tensor:
    """[M]: the estimator times rho = exp(l - l_old), for tokens that an older policy sampled.

    DeepSeek-V3.2, arXiv:2512.02556, with k3. The gradient passes through rho, and that makes it
    another one even where rho is 1 (see above): k3 alone pulls along KL(reference || policy), k3
    times rho along KL(policy || reference). rho is of a token; the tokens before it are still
    distributed as the older policy's.
    """
    return token_ratio(logp, old) * KL_ESTIMATORS[name](logp, ref)


def _difference(logp: Tensor, ref: Tensor) -> Tensor:
    return at_least_fp32(ref).detach() - at_least_fp32(logp)
