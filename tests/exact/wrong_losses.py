"""Wrong versions of DPO, IPO and Plackett-Luce's loss as a user's file would hold them.

Each one is a mistake that some library shipped; every claim of this folder has to refuse them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from trimtab.losses import Pair, PreferenceTerms, Ranking, RankingTerms, plackett_luce_loss


def _gap(policy: Pair, reference: Pair) -> Tensor:
    return (policy.chosen.sum - reference.chosen.sum) - (
        policy.rejected.sum - reference.rejected.sum
    )


def _terms(losses: Tensor) -> PreferenceTerms:
    return PreferenceTerms(losses, losses.detach(), losses.detach())


def mean_for_sum(policy: Pair, reference: Pair, *, beta: float = 0.5) -> PreferenceTerms:
    """Log-ratios per token."""
    chosen = (policy.chosen.sum - reference.chosen.sum) / policy.chosen.length
    rejected = (policy.rejected.sum - reference.rejected.sum) / policy.rejected.length
    return _terms(-F.logsigmoid(beta * (chosen - rejected)))


def reference_left_out(policy: Pair, *, beta: float = 0.5) -> PreferenceTerms:
    """Log-probs where log-ratios belong."""
    return _terms(-F.logsigmoid(beta * (policy.chosen.sum - policy.rejected.sum)))


def beta_outside(policy: Pair, reference: Pair, *, beta: float = 0.5) -> PreferenceTerms:
    """beta before the logarithm, where it changes the rate and not the optimum."""
    return _terms(-beta * F.logsigmoid(_gap(policy, reference)))


def own_ipo(policy: Pair, reference: Pair, *, tau: float = 0.5) -> PreferenceTerms:
    """IPO from sums: right."""
    return _terms((_gap(policy, reference) - 1 / (2 * tau)).square())


def ipo_of_means(policy: Pair, reference: Pair, *, tau: float = 0.5) -> PreferenceTerms:
    """IPO from means per token: another loss."""
    chosen = (policy.chosen.sum - reference.chosen.sum) / policy.chosen.length
    rejected = (policy.rejected.sum - reference.rejected.sum) / policy.rejected.length
    return _terms((chosen - rejected - 1 / (2 * tau)).square())


def ipo_without_the_half(policy: Pair, reference: Pair, *, tau: float = 0.5) -> PreferenceTerms:
    """The target 1 / tau."""
    return _terms((_gap(policy, reference) - 1 / tau).square())


def _listwise(h: Tensor, rivals_stay: bool = False) -> RankingTerms:
    left = torch.logsumexp(h, -1, keepdim=True).expand_as(h)
    if not rivals_stay:
        left = h.flip(-1).logcumsumexp(-1).flip(-1)
    losses = (left - h)[:, :-1].sum(-1)
    return RankingTerms(losses, h.detach())


def worst_first(policy: Ranking, reference: Ranking, *, beta: float = 0.5) -> RankingTerms:
    """The order read backwards."""
    return _listwise((beta * (policy.sum - reference.sum)).flip(-1))


def rivals_stay(policy: Ranking, reference: Ranking, *, beta: float = 0.5) -> RankingTerms:
    """Placed responses stay in the contest."""
    return _listwise(beta * (policy.sum - reference.sum), rivals_stay=True)


def ranking_of_means(policy: Ranking, reference: Ranking, *, beta: float = 0.5) -> RankingTerms:
    """Log-ratios per token."""
    return _listwise(beta * (policy.sum - reference.sum) / policy.length)


def ranking_without_reference(policy: Ranking, *, beta: float = 0.5) -> RankingTerms:
    """Log-probs where log-ratios belong."""
    nothing = policy._replace(sum=torch.zeros_like(policy.sum))
    return plackett_luce_loss(policy, nothing, beta=beta)


DPO = (mean_for_sum, reference_left_out, beta_outside)
IPO = (ipo_of_means, ipo_without_the_half)
PLACKETT_LUCE = (worst_first, rivals_stay, ranking_of_means, ranking_without_reference)
