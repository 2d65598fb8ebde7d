"""Losses of a chosen and a rejected response to the same prompt.

Symbols, here and in docs/losses.md: S the summed log-probability of a response under the policy,
a = S - S_reference its log-ratio, s = S / length, index w the chosen and l the rejected one.
Every loss is divided by the number of pairs; none reduces by itself.
"""

from __future__ import annotations

import torch.nn.functional as F

from trimtab.losses.stable import (
    at_least_fp32,
    log_odds,
    log_ratio,
    mean_logprob,
    require_non_negative,
    require_positive,
)
from trimtab.losses.types import Pair, PairValues, PreferenceTerms


def dpo_loss(policy: Pair, reference: Pair, *, beta: float = 0.1) -> PreferenceTerms:
    """DPO: -log sigmoid(beta (a_w - a_l)), from sums.

    Rafailov et al. 2023, arXiv:2305.18290, Eq. 7; no departure. ln 2 at the reference, where the
    gradient is largest and not zero. Rewards are beta * a.
    """
    require_positive("beta", beta)
    chosen = log_ratio(policy.chosen, reference.chosen)
    rejected = log_ratio(policy.rejected, reference.rejected)
    return PreferenceTerms(
        -F.logsigmoid(beta * (chosen - rejected)),
        (beta * chosen).detach(),
        (beta * rejected).detach(),
    )


def simpo_loss(policy: Pair, *, beta: float = 2.0, gamma: float = 1.0) -> PreferenceTerms:
    """SimPO: -log sigmoid(beta (s_w - s_l) - gamma), from means per token, without a reference.

    Meng et al. 2024, arXiv:2405.14734. ``gamma`` is the paper's margin itself; the authors' code
    asks for gamma / beta instead. The length counts every trained token, the stop token included.
    Rewards are beta * s.
    """
    require_positive("beta", beta)
    require_non_negative("gamma", gamma)
    chosen = mean_logprob(policy.chosen)
    rejected = mean_logprob(policy.rejected)
    return PreferenceTerms(
        -F.logsigmoid(beta * (chosen - rejected) - gamma),
        (beta * chosen).detach(),
        (beta * rejected).detach(),
    )


def orpo_loss(policy: Pair, *, beta: float = 0.1) -> PreferenceTerms:
    """ORPO's odds-ratio term: -beta log sigmoid(log odds_w - log odds_l), from means per token.

    Hong et al. 2024, arXiv:2403.07691, Eq. 4 and 7; ``beta`` is the paper's lambda and multiplies
    the loss. The likelihood term of the whole objective is a term of its own with another unit
    (tokens), added by the algorithm. A mean log-probability above -eps of fp32 counts as -eps
    (``log1mexp``), where the odds would be infinite. Rewards are beta * s.
    """
    require_non_negative("beta", beta)
    log_odds_ratio = log_odds(policy.chosen) - log_odds(policy.rejected)
    return PreferenceTerms(
        -beta * F.logsigmoid(log_odds_ratio),
        (beta * mean_logprob(policy.chosen)).detach(),
        (beta * mean_logprob(policy.rejected)).detach(),
    )


def tdpo2_loss(
    policy: Pair,
    reference: Pair,
    sequence_kl: PairValues,
    *,
    beta: float = 0.1,
    alpha: float = 0.5,
) -> PreferenceTerms:
    """TDPO2: -log sigmoid(beta (a_w - a_l) - alpha beta (K_l - stop_gradient(K_w))), from sums.

    Zeng et al. 2024, arXiv:2404.11999. K, ``sequence_kl``, is the sum over a response's tokens of
    the full-vocabulary KL(reference || policy). Rewards are beta * a as in DPO, so that methods
    compare; the authors log beta (a + K).
    """
    require_positive("beta", beta)
    require_non_negative("alpha", alpha)
    chosen = log_ratio(policy.chosen, reference.chosen)
    rejected = log_ratio(policy.rejected, reference.rejected)
    # Without the stop-gradient the policy could lower the loss by leaving the reference on y_w.
    kl_gap = at_least_fp32(sequence_kl.rejected) - at_least_fp32(sequence_kl.chosen).detach()
    return PreferenceTerms(
        -F.logsigmoid(beta * (chosen - rejected - alpha * kl_gap)),
        (beta * chosen).detach(),
        (beta * rejected).detach(),
    )
