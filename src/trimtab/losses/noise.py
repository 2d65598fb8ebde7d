"""Losses for preferences that may be wrong: a share epsilon of the labels is taken to be flipped.

z = beta (a_w - a_l) from sums; the other symbols are those of ``preference.py``. All are divided by
the number of pairs.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from trimtab.losses.pairs import log_ratios, with_rewards
from trimtab.losses.stable import require_positive
from trimtab.losses.types import Pair, PreferenceTerms


def cdpo_loss(
    policy: Pair, reference: Pair, *, beta: float = 0.1, epsilon: float = 0.1
) -> PreferenceTerms:
    """cDPO: -(1 - epsilon) log sigmoid(z) - epsilon log sigmoid(-z), from sums.

    Mitchell 2023, "A note on DPO with noisy preferences", Eq. 3; no departure. The cross-entropy to
    a label of 1 - epsilon: lowest at z = log((1 - epsilon) / epsilon), where it is epsilon's binary
    entropy. It is what some libraries do with ``label_smoothing``. Rewards are beta * a.
    """
    require_positive("beta", beta)
    _require_share(epsilon)
    chosen, rejected = log_ratios(policy, reference)
    z = beta * (chosen - rejected)
    losses = -(1 - epsilon) * F.logsigmoid(z) - epsilon * F.logsigmoid(-z)
    return with_rewards(losses, beta, chosen, rejected)


def robust_loss(
    policy: Pair, reference: Pair, *, beta: float = 0.1, epsilon: float = 0.1
) -> PreferenceTerms:
    """rDPO: [-(1 - epsilon) log sigmoid(z) + epsilon log sigmoid(-z)] / (1 - 2 epsilon), from sums.

    Chowdhury et al. 2024, arXiv:2403.00409; no departure. Where a share epsilon of the labels is
    flipped its expectation is DPO's on the right ones. A pair's loss has no lower bound and may
    well be negative; its gradient never vanishes. Rewards are beta * a.
    """
    require_positive("beta", beta)
    _require_share(epsilon)
    chosen, rejected = log_ratios(policy, reference)
    z = beta * (chosen - rejected)
    mixed = -(1 - epsilon) * F.logsigmoid(z) + epsilon * F.logsigmoid(-z)
    return with_rewards(mixed / (1 - 2 * epsilon), beta, chosen, rejected)


def exo_loss(
    policy: Pair, reference: Pair, *, beta: float = 0.1, epsilon: float = 1e-3
) -> PreferenceTerms:
    """EXO: KL((sigmoid(z), sigmoid(-z)) || (1 - epsilon, epsilon)), the reverse KL, from sums.

    Ji et al. 2024, arXiv:2402.00856, Eq. 16, with a target that sums to 1 (TRL's form, and its
    epsilon); ``exo_authors_loss`` is that of the authors' code. 0 at z = log((1 - epsilon) /
    epsilon). Rewards are beta * a.
    """
    require_positive("beta", beta)
    _require_share(epsilon)
    if epsilon == 0:
        raise ValueError(f"epsilon={epsilon}: must be above 0: the target's logarithm is taken")
    return _exo(policy, reference, beta, math.log1p(-epsilon), math.log(epsilon))


def exo_authors_loss(
    policy: Pair, reference: Pair, *, beta: float = 0.1, log_epsilon: float = -10.0
) -> PreferenceTerms:
    """EXO (authors): sigmoid(z) log sigmoid(z) + sigmoid(-z) (log sigmoid(-z) - log_epsilon).

    Ji et al. 2024, arXiv:2402.00856, as in github.com/haozheji/exact-optimization, from sums:
    targets of log 1 and ``log_epsilon``, which do not sum to 1. Its gradient is that of
    ``exo_loss`` with epsilon = sigmoid(log_epsilon): the values differ by a constant, and this one
    can be negative. Rewards are beta * a.
    """
    require_positive("beta", beta)
    if not -math.inf < log_epsilon < 0:
        raise ValueError(f"log_epsilon={log_epsilon}: must be a negative number")
    return _exo(policy, reference, beta, 0.0, log_epsilon)


def _exo(
    policy: Pair, reference: Pair, beta: float, log_won: float, log_lost: float
) -> PreferenceTerms:
    chosen, rejected = log_ratios(policy, reference)
    z = beta * (chosen - rejected)
    won = torch.sigmoid(z) * (F.logsigmoid(z) - log_won)
    lost = torch.sigmoid(-z) * (F.logsigmoid(-z) - log_lost)
    return with_rewards(won + lost, beta, chosen, rejected)


def _require_share(epsilon: float) -> None:
    if not 0 <= epsilon < 0.5:
        raise ValueError(f"epsilon={epsilon}: must be at least 0 and below 0.5")
