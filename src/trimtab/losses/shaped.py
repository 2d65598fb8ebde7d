"""DPO with another shape: another divergence than the reverse KL, or another convex surrogate.

Symbols are those of ``preference.py``; all are divided by the number of pairs. f-DPO (Wang et al.
2023, arXiv:2309.16240) replaces a by g(a) = f'(pi / pi_ref) up to a constant; the reverse KL has
g(a) = a and is DPO. Exponents end at 40 nats (``capped_exp``), beyond which there is no gradient.
Rewards are beta * a, so that methods compare.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from trimtab.losses.pairs import log_ratios, with_rewards
from trimtab.losses.stable import (
    capped_exp,
    capped_expm1,
    mean_logprob,
    require_non_negative,
    require_positive,
)
from trimtab.losses.types import Pair, PreferenceTerms


def fdpo_forward_loss(policy: Pair, reference: Pair, *, beta: float = 0.1) -> PreferenceTerms:
    """f-DPO, forward KL: -log sigmoid(beta (g(a_w) - g(a_l))), g(a) = -exp(-a), from sums.

    Wang et al. 2023, arXiv:2309.16240; exponents end at 40 nats. Mass-covering: pi_ref is held
    where it is likely. Rewards are beta * a.
    """
    return _f_dpo(policy, reference, beta, lambda a: -capped_exp(-a))


def fdpo_js_loss(policy: Pair, reference: Pair, *, beta: float = 0.1) -> PreferenceTerms:
    """f-DPO, Jensen-Shannon: -log sigmoid(beta (g(a_w) - g(a_l))), g = log sigmoid, from sums.

    Wang et al. 2023, arXiv:2309.16240; no departure. Rewards are beta * a.
    """
    return _f_dpo(policy, reference, beta, F.logsigmoid)


def fdpo_alpha_loss(
    policy: Pair, reference: Pair, *, beta: float = 0.1, alpha: float = 0.5
) -> PreferenceTerms:
    """f-DPO, alpha: -log sigmoid(beta (g(a_w) - g(a_l))), g(a) = (1 - exp(-alpha a)) / alpha.

    Wang et al. 2023, arXiv:2309.16240, from sums, 0 < alpha < 1; exponents end at 40 nats. alpha ->
    0 is the reverse KL (DPO), alpha = 1 the forward KL. Elsewhere g is written exp((k - 1) a) / (k
    - 1): k = 1 - alpha. Rewards are beta * a.
    """
    if not 0 < alpha <= 1:
        raise ValueError(f"alpha={alpha}: must be above 0 and at most 1; alpha -> 0 is dpo")
    return _f_dpo(policy, reference, beta, lambda a: -capped_expm1(-alpha * a) / alpha)


def _f_dpo(
    policy: Pair, reference: Pair, beta: float, g: Callable[[Tensor], Tensor]
) -> PreferenceTerms:
    require_positive("beta", beta)
    chosen, rejected = log_ratios(policy, reference)
    losses = -F.logsigmoid(beta * (g(chosen) - g(rejected)))
    return with_rewards(losses, beta, chosen, rejected)


def discopop_loss(
    policy: Pair, reference: Pair, *, beta: float = 0.05, tau: float = 0.05
) -> PreferenceTerms:
    """DiscoPOP: (1 - m) (-log sigmoid(z)) + m exp(-z), m = sigmoid(z / tau), from sums.

    Lu et al. 2024, arXiv:2406.08414, Eq. 5 (log-ratio modulated loss), z = beta (a_w - a_l); the
    gradient flows through m, as in the authors' code. Not convex: for tau below (1 - ln 2) / 3, the
    default among them, a step from the reference lowers the margin. Rewards are beta * a.
    """
    require_positive("beta", beta)
    if not 0 < tau <= 1:
        raise ValueError(f"tau={tau}: must be above 0 and at most 1, or exp(-z) would win below 0")
    chosen, rejected = log_ratios(policy, reference)
    z = beta * (chosen - rejected)
    # m exp(-z) in one exponent, which is never above 0: apart, exp(-z) overflows where m is 0.
    losses = torch.sigmoid(-z / tau) * -F.logsigmoid(z) + torch.exp(F.logsigmoid(z / tau) - z)
    return with_rewards(losses, beta, chosen, rejected)


def alphapo_loss(
    policy: Pair, *, beta: float = 2.5, gamma: float = 0.1, alpha: float = 0.25
) -> PreferenceTerms:
    """AlphaPO: -log sigmoid(beta (f(w) - f(l)) - gamma), f(y) = (1 - P(y)^-alpha) / alpha.

    Gupta et al. 2025, arXiv:2501.03884, P(y) = exp(s(y)), without a reference; the exponent ends at
    40 nats. ``alpha`` = 0 is SimPO. Rewards are beta * f.
    """
    require_positive("beta", beta)
    require_non_negative("gamma", gamma)
    if not -1 <= alpha <= 1:
        raise ValueError(f"alpha={alpha}: must be between -1 and 1")

    def shape(mean: Tensor) -> Tensor:
        return mean if alpha == 0 else -capped_expm1(-alpha * mean) / alpha

    chosen, rejected = shape(mean_logprob(policy.chosen)), shape(mean_logprob(policy.rejected))
    losses = -F.logsigmoid(beta * (chosen - rejected) - gamma)
    return with_rewards(losses, beta, chosen, rejected)
