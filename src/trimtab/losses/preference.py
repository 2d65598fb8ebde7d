"""Losses of a chosen and a rejected response to the same prompt.

Symbols, here and in docs/losses.md: S the summed log-probability of a response under the policy,
a = S - S_reference its log-ratio, s = S / length, index w the chosen and l the rejected one.
Every loss is divided by the number of pairs; none reduces by itself.
"""

from __future__ import annotations

import torch.nn.functional as F

from trimtab.losses.pairs import log_ratios, sums, with_rewards
from trimtab.losses.stable import (
    at_least_fp32,
    log_odds,
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
    chosen, rejected = log_ratios(policy, reference)
    return with_rewards(-F.logsigmoid(beta * (chosen - rejected)), beta, chosen, rejected)


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
    losses = -F.logsigmoid(beta * (chosen - rejected) - gamma)
    return with_rewards(losses, beta, chosen, rejected)


def simpo_ratio_loss(
    policy: Pair, *, beta: float = 2.0, gamma_beta_ratio: float = 0.5
) -> PreferenceTerms:
    """SimPO as its authors' code asks for it: -log sigmoid(beta (s_w - s_l - gamma_beta_ratio)).

    Meng et al. 2024, arXiv:2405.14734, github.com/princeton-nlp/SimPO: ``simpo_loss`` with gamma =
    beta * gamma_beta_ratio. Rewards are beta * s.
    """
    require_non_negative("gamma_beta_ratio", gamma_beta_ratio)
    return simpo_loss(policy, beta=beta, gamma=beta * gamma_beta_ratio)


def cpo_loss(policy: Pair, *, beta: float = 0.1) -> PreferenceTerms:
    """CPO's preference term: -log sigmoid(beta (S_w - S_l)), from sums, without a reference.

    Xu et al. 2024, arXiv:2401.08417, Eq. 3. Its likelihood of the chosen response is a term of its
    own with another unit (tokens), added by the algorithm, as in the authors' code; the paper
    writes a sum. Rewards are beta * S.
    """
    require_positive("beta", beta)
    chosen, rejected = sums(policy)
    return with_rewards(-F.logsigmoid(beta * (chosen - rejected)), beta, chosen, rejected)


def orpo_loss(policy: Pair, *, beta: float = 0.1) -> PreferenceTerms:
    """ORPO's odds-ratio term: -beta log sigmoid(log odds_w - log odds_l), from means per token.

    Hong et al. 2024, arXiv:2403.07691, Eq. 4 and 7; ``beta`` is the paper's lambda and multiplies
    the loss. The likelihood term of the whole objective is a term of its own with another unit
    (tokens), added by the algorithm. A mean log-probability above -eps of fp32 counts as -eps
    (``log1mexp``), where the odds would be infinite. Rewards are beta * s.
    """
    require_non_negative("beta", beta)
    log_odds_ratio = log_odds(policy.chosen) - log_odds(policy.rejected)
    chosen, rejected = mean_logprob(policy.chosen), mean_logprob(policy.rejected)
    return with_rewards(-beta * F.logsigmoid(log_odds_ratio), beta, chosen, rejected)


def tdpo1_loss(
    policy: Pair, reference: Pair, sequence_kl: PairValues, *, beta: float = 0.1
) -> PreferenceTerms:
    """TDPO1: -log sigmoid(beta (a_w - a_l) - beta (K_l - K_w)), from sums.

    Zeng et al. 2024, arXiv:2404.11999: TDPO2's sum with alpha = 1 and with the gradient through
    both KLs. Rewards are beta * a as in DPO; the authors log beta (a + K).
    """
    require_positive("beta", beta)
    chosen, rejected = log_ratios(policy, reference)
    kl_gap = at_least_fp32(sequence_kl.rejected) - at_least_fp32(sequence_kl.chosen)
    losses = -F.logsigmoid(beta * (chosen - rejected - kl_gap))
    return with_rewards(losses, beta, chosen, rejected)


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
    chosen, rejected = log_ratios(policy, reference)
    # Without the stop-gradient the policy could lower the loss by leaving the reference on y_w.
    kl_gap = at_least_fp32(sequence_kl.rejected) - at_least_fp32(sequence_kl.chosen).detach()
    losses = -F.logsigmoid(beta * (chosen - rejected - alpha * kl_gap))
    return with_rewards(losses, beta, chosen, rejected)
