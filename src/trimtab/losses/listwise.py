"""Losses of K ranked responses to one prompt."""

from __future__ import annotations

import torch
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
    mask = policy.mask
    log_ratios = at_least_fp32(policy.sum) - at_least_fp32(reference.sum).detach()
    rewards = beta * torch.where(mask, log_ratios, 0.0)
    return RankingTerms(place_losses(rewards, mask).sum(-1), rewards.detach())


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
