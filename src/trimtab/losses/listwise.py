"""Losses of K ranked responses to one prompt; the divisor is prompts, not pairs.

Rankings of any length share a batch: what ``mask`` hides is never read. K = 1 contributes nothing
that moves the policy's differences. Scores are the data's, best first.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from trimtab.losses.stable import at_least_fp32, require_positive
from trimtab.losses.types import Ranking, RankingTerms


def plackett_luce_loss(policy: Ranking, reference: Ranking, *, beta: float = 0.1) -> RankingTerms:
    """K-wise DPO: -sum_k [h_k - logsumexp(h_k .. h_K)], h_k = beta a of the k-th best, from sums.

    The Plackett-Luce form of DPO in the appendix of arXiv:2305.18290; the divisor is prompts, not
    pairs. Rankings of any length share a batch: what ``mask`` hides is never read. K = 2 is DPO,
    K = 1 contributes nothing. Ties are not representable: the data must break or drop them.
    Rewards are h, 0 in the padding.
    """
    require_positive("beta", beta)
    rewards = _rewards(policy, reference, beta)
    return RankingTerms(place_losses(rewards, policy.mask).sum(-1), rewards.detach())


def infonca_loss(
    policy: Ranking,
    reference: Ranking,
    scores: Tensor,
    *,
    beta: float = 0.1,
    alpha: float = 1e-3,
) -> RankingTerms:
    """InfoNCA: -sum_i w_i log softmax(R)_i, R = beta a, w = softmax(scores / alpha), from sums.

    Chen et al. 2024, arXiv:2402.05369; no departure. ``alpha`` of the authors' code: all weight on
    the best score. K = 2 and alpha -> 0 is DPO; over all responses at once the optimum is pi_ref
    exp(score / (alpha beta)) / Z. Rewards are R, 0 in the padding.
    """
    require_positive("beta", beta)
    require_positive("alpha", alpha)
    rewards, mask = _rewards(policy, reference, beta), policy.mask
    losses = -(_shares(scores, mask, alpha).exp() * _log_shares(rewards, mask)).sum(-1)
    return RankingTerms(losses, rewards.detach())


def nca_rewards_loss(
    policy: Ranking,
    reference: Ranking,
    scores: Tensor,
    *,
    beta: float = 0.1,
    alpha: float = 1e-3,
) -> RankingTerms:
    """NCA of K responses with scores: -sum_i [w_i log sigmoid(R_i) + log sigmoid(-R_i) / K].

    Chen et al. 2024, arXiv:2402.05369, from sums, R = beta a, w = softmax(scores / alpha); no
    departure. Every response by itself has its optimum at R_i = log(K w_i). ``nca_loss`` is K = 2
    with alpha -> 0. Rewards are R, 0 in the padding.
    """
    require_positive("beta", beta)
    require_positive("alpha", alpha)
    rewards, mask = _rewards(policy, reference, beta), policy.mask
    drawn = _shares(scores, mask, alpha).exp() * F.logsigmoid(rewards)
    noise = F.logsigmoid(-rewards) / mask.sum(-1, keepdim=True)
    losses = -torch.where(mask, drawn + noise, 0.0).sum(-1)
    return RankingTerms(losses, rewards.detach())


def exo_rewards_loss(
    policy: Ranking,
    reference: Ranking,
    scores: Tensor,
    *,
    beta: float = 0.1,
    reward_beta: float = 1.0,
) -> RankingTerms:
    """EXO of K responses with scores: KL(softmax(R) || softmax(scores / reward_beta)), from sums.

    Ji et al. 2024, arXiv:2402.00856 (EXO-rw), R = beta a; no departure. The reverse KL: over all
    responses at once the optimum is pi_ref exp(score / (reward_beta beta)) / Z. ``reward_beta``
    belongs to the scores' scale. Rewards are R, 0 in the padding.
    """
    require_positive("beta", beta)
    require_positive("reward_beta", reward_beta)
    rewards, mask = _rewards(policy, reference, beta), policy.mask
    shares = _log_shares(rewards, mask)
    gap = shares - torch.where(mask, _shares(scores, mask, reward_beta), 0.0)
    losses = torch.where(mask, shares.exp() * gap, 0.0).sum(-1)
    return RankingTerms(losses, rewards.detach())


def _rewards(policy: Ranking, reference: Ranking, beta: float) -> Tensor:
    """[R, K] beta a, 0 in the padding."""
    log_ratios = at_least_fp32(policy.sum) - at_least_fp32(reference.sum).detach()
    return beta * torch.where(policy.mask, log_ratios, 0.0)


def _shares(scores: Tensor, mask: Tensor, temperature: float) -> Tensor:
    """[R, K] log softmax(scores / temperature) over each ranking, without gradient."""
    scaled = at_least_fp32(scores).detach() / temperature
    return torch.log_softmax(scaled.masked_fill(~mask, -torch.inf), -1)


def _log_shares(rewards: Tensor, mask: Tensor) -> Tensor:
    """[R, K] log softmax of the rewards over each ranking, 0 in the padding."""
    found = torch.log_softmax(rewards.masked_fill(~mask, -torch.inf), -1)
    return torch.where(mask, found, 0.0)


def place_losses(rewards: Tensor, mask: Tensor) -> Tensor:
    """[R, K]: -[h_k - logsumexp(h_k .. h_K)] for the place of every response, best first.

    ``rewards`` h [R, K] are 0 where ``mask`` [R, K] is False; such places have a loss of 0.
    """
    # -[h_k - logsumexp_{j >= k} h_j] = logsumexp_{j >= k} (h_j - h_k): differences first, so that
    # large rewards do not cancel.
    differences = rewards[:, None, :] - rewards[:, :, None]
    contest = differences.masked_fill(~_rivals(mask), -torch.inf)
    return torch.logsumexp(contest, dim=-1)


def _rivals(mask: Tensor) -> Tensor:
    """[R, K, K]: whether response j was still there when place k was given away.

    A place of the padding has itself alone, and so a log-sum-exp of exactly 0.
    """
    size = mask.shape[-1]
    later = torch.ones(size, size, dtype=torch.bool, device=mask.device).triu(1)
    itself = torch.eye(size, dtype=torch.bool, device=mask.device)
    return (later & mask[:, None, :] & mask[:, :, None]) | itself
