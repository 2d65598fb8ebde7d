"""Losses of pairs that hold on to absolute log-probs, not only to their difference.

Each one says where the chosen response itself has to go, so that it cannot lose probability
together with the rejected one. None is unchanged when both sums move, and a pair of equal
responses still moves the policy in all but ``apo_zero``. Symbols are those of ``preference.py``;
all are divided by the number of pairs.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from trimtab.losses.pairs import log_ratios, with_rewards
from trimtab.losses.stable import mean_logprob, require_non_negative, require_positive
from trimtab.losses.types import Pair, PreferenceTerms


def apo_zero_loss(policy: Pair, reference: Pair, *, beta: float = 0.1) -> PreferenceTerms:
    """APO-zero: 1 - sigmoid(beta a_w) + sigmoid(beta a_l), from sums.

    D'Oosterlinck et al. 2024, arXiv:2408.06266, Eq. 7, plus 1, so that it is never negative. For
    chosen responses that are better than the model's own: the one goes up, the other down. Rewards
    are beta * a.
    """
    require_positive("beta", beta)
    chosen, rejected = log_ratios(policy, reference)
    # 1 - sigmoid(u) = sigmoid(-u), without the cancellation.
    losses = torch.sigmoid(-beta * chosen) + torch.sigmoid(beta * rejected)
    return with_rewards(losses, beta, chosen, rejected)


def apo_down_loss(policy: Pair, reference: Pair, *, beta: float = 0.1) -> PreferenceTerms:
    """APO-down: sigmoid(beta a_w) + 1 - sigmoid(beta (a_w - a_l)), from sums.

    D'Oosterlinck et al. 2024, arXiv:2408.06266, Eq. 8, plus 1. For chosen responses that are worse
    than the model's own: both go down, the rejected one further. Rewards are beta * a.
    """
    require_positive("beta", beta)
    chosen, rejected = log_ratios(policy, reference)
    losses = torch.sigmoid(beta * chosen) + torch.sigmoid(-beta * (chosen - rejected))
    return with_rewards(losses, beta, chosen, rejected)


def nca_loss(policy: Pair, reference: Pair, *, beta: float = 0.01) -> PreferenceTerms:
    """NCA: -log sigmoid(R_w) - [log sigmoid(-R_w) + log sigmoid(-R_l)] / 2, R = beta a, from sums.

    Chen et al. 2024, arXiv:2402.05369, for pairs: its K = 2 with all weight on the better one
    (``nca_rewards_loss`` is the form for K responses with scores). The chosen response is held at
    R_w = ln 2. Rewards are beta * a.
    """
    require_positive("beta", beta)
    chosen, rejected = log_ratios(policy, reference)
    pushed = F.logsigmoid(-beta * chosen) + F.logsigmoid(-beta * rejected)
    losses = -F.logsigmoid(beta * chosen) - 0.5 * pushed
    return with_rewards(losses, beta, chosen, rejected)


def bco_pair_loss(policy: Pair, reference: Pair, *, beta: float = 0.01) -> PreferenceTerms:
    """BCO of pairs without its shift: -log sigmoid(beta a_w) - log sigmoid(-beta a_l), from sums.

    Jung et al. 2024, arXiv:2404.04656, as TRL shortens it; the paper's own loss has a shift delta
    (``BCO``, which takes pairs, too). Rewards are beta * a.
    """
    require_positive("beta", beta)
    chosen, rejected = log_ratios(policy, reference)
    losses = -F.logsigmoid(beta * chosen) - F.logsigmoid(-beta * rejected)
    return with_rewards(losses, beta, chosen, rejected)


def sppo_loss(policy: Pair, reference: Pair, *, eta: float = 1000.0) -> PreferenceTerms:
    """SPPO: (a_w - eta / 2)^2 + (a_l + eta / 2)^2, from sums.

    Wu et al. 2024, arXiv:2405.00675, Eq. 4.7, with the pair's label as its win probabilities, 1 and
    0: over many pairs their mean is the estimated probability, and the gradient the same. The
    reference has to be the policy that the responses were sampled from. eta^2 / 2 at the reference;
    eta is 1 / beta, and rewards are a / eta.
    """
    require_positive("eta", eta)
    chosen, rejected = log_ratios(policy, reference)
    losses = (chosen - eta / 2).square() + (rejected + eta / 2).square()
    return with_rewards(losses, 1 / eta, chosen, rejected)


def dpop_loss(
    policy: Pair, reference: Pair, *, beta: float = 0.3, penalty: float = 50.0
) -> PreferenceTerms:
    """DPO-positive: -log sigmoid(beta (a_w - a_l - penalty max(0, -a_w))), from sums.

    Pal et al. 2024, arXiv:2402.13228, Eq. 3; no departure. ``penalty`` is the paper's lambda: it
    acts where the chosen response has lost probability. Rewards are beta * a.
    """
    require_positive("beta", beta)
    require_non_negative("penalty", penalty)
    chosen, rejected = log_ratios(policy, reference)
    lost = torch.relu(-chosen)
    losses = -F.logsigmoid(beta * (chosen - rejected - penalty * lost))
    return with_rewards(losses, beta, chosen, rejected)


def irpo_loss(
    policy: Pair, reference: Pair, *, beta: float = 0.1, alpha: float = 1.0
) -> PreferenceTerms:
    """Iterative RPO: -log sigmoid(beta (a_w - a_l)) - alpha S_w / |w|, from sums and a mean.

    Pang et al. 2024, arXiv:2404.19733. The likelihood is divided by each response's own length; the
    recipe's ``nll_weight`` adds it per token of the whole step instead, as TRL does. Rewards are
    beta * a.
    """
    require_positive("beta", beta)
    require_non_negative("alpha", alpha)
    chosen, rejected = log_ratios(policy, reference)
    losses = -F.logsigmoid(beta * (chosen - rejected)) - alpha * mean_logprob(policy.chosen)
    return with_rewards(losses, beta, chosen, rejected)


def rpo_loss(
    policy: Pair, reference: Pair, *, beta: float = 0.01, alpha: float = 0.005
) -> PreferenceTerms:
    """RPO: -log sigmoid(beta (a_w - a_l)) - alpha S_w / |w|, from sums and a mean.

    Liu et al. 2024, arXiv:2405.16436, whose eta is ``alpha`` here: ``irpo_loss`` with the settings
    of the paper that derived its regulariser. Rewards are beta * a.
    """
    return irpo_loss(policy, reference, beta=beta, alpha=alpha)
