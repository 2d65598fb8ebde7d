"""From scores to advantages: what every sampled token is worth. Constants, without gradient.

Shapes: M tokens of N responses laid end to end (``packed.py``: ``sequence`` [M], ``lengths`` [N]).
``groups`` [N] int64 numbers the prompt of every response, in any order. ``valid`` [N] (bool) is
False for a response that no reward could judge, whatever stands in its place (NaN, say): it enters
no statistic and its advantage is 0.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from trimtab.losses.packed import last_tokens, require_lengths, segment_sum, suffix_sums
from trimtab.losses.stable import at_least_fp32, require_non_negative

LEAST_TO_WHITEN = 8
_VARIANCE_EPSILON = 1e-8

Scale = Literal["group", "batch", "none"]


def token_rewards(scores: Tensor, kl: Tensor, sequence: Tensor, beta: float) -> Tensor:
    """[M]: -beta kl_t, plus the response's score at its last token.

    arXiv:1909.08593, and arXiv:2203.02155, Eq. 2: ``scores`` [N], ``kl`` [M] an estimate of each
    token's KL at the policy that sampled (k1 there). The last token is the stop token, or the last
    one sampled where the response was cut off.
    """
    last = last_tokens(sequence, len(scores))
    rewards = -beta * at_least_fp32(kl).detach()
    return rewards + torch.where(last, at_least_fp32(scores).detach()[sequence], 0.0)


def gae(
    rewards: Tensor,
    values: Tensor,
    sequence: Tensor,
    lengths: Tensor,
    *,
    gamma: float,
    lam: float,
    bootstrap: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Advantages A and value targets G, both [M] (arXiv:1506.02438, Eq. 16).

    delta_t = R_t + gamma V_(t+1) - V_t,  A_t = delta_t + gamma lam A_(t+1),  G_t = A_t + V_t

    within each response, from ``rewards`` and ``values`` [M]. After a response's last token A is 0
    and V is ``bootstrap`` [N]: 0 where the response really ended, the value of the state after it
    where it was cut off. None is 0 for all. Only sampled tokens are steps; text of tools or users
    between them is not.
    """
    _require_share("gamma", gamma)
    _require_share("lam", lam)
    require_lengths(sequence, lengths)
    rewards, values = at_least_fp32(rewards).detach(), at_least_fp32(values).detach()
    after = torch.zeros(len(lengths), dtype=values.dtype, device=values.device)
    if bootstrap is not None:
        after = bootstrap.detach().to(values)
    following = values.roll(-1)
    following[lengths.cumsum(0) - 1] = after
    deltas = rewards + gamma * following - values
    advantages = suffix_sums(deltas, sequence, gamma * lam, int(lengths.max()))
    return advantages, advantages + values


def reward_to_go(
    rewards: Tensor, sequence: Tensor, lengths: Tensor, *, gamma: float = 1.0
) -> Tensor:
    """[M]: sum over k >= t of gamma^(k-t) R_k within each response."""
    _require_share("gamma", gamma)
    require_lengths(sequence, lengths)
    return suffix_sums(at_least_fp32(rewards).detach(), sequence, gamma, int(lengths.max()))


def whiten(values: Tensor, *, shift_mean: bool = True, weights: Tensor | None = None) -> Tensor:
    """(x - mean) / sqrt(variance + 1e-8), shaped like ``values``: those of the whole global batch.

    The variance is the population's (divisor n), as in the code of arXiv:1909.08593; TRL's is the
    sample's (n - 1). ``shift_mean`` False leaves the mean where it was, as is done with rewards.
    ``weights``, shaped like ``values``, are 0 for what is neither read nor whitened: it becomes 0.
    ValueError for fewer than 8 values, whose spread says next to nothing.
    """
    values = at_least_fp32(values).detach()
    weights = torch.ones_like(values) if weights is None else weights.to(values)
    used = weights > 0
    count = int(used.sum())
    if count < LEAST_TO_WHITEN:
        raise ValueError(f"{count} values to whiten: at least {LEAST_TO_WHITEN} are needed")
    centred = _centred(values, weights)
    variance = (weights * centred.square()).sum() / weights.sum()
    scaled = (centred if shift_mean else values) * (variance + _VARIANCE_EPSILON).rsqrt()
    return torch.where(used, scaled, 0.0)


def explained_variance(values: Tensor, returns: Tensor, weights: Tensor | None = None) -> Tensor:
    """Scalar: 1 - var(G - V) / var(G), the share of the returns' variance that the values predict.

    1 for perfect values, 0 for a constant, negative for worse than a constant. Returns without
    variance: 1 if the values differ from them by a constant, else 0. ``weights`` as in ``whiten``.
    """
    returns = at_least_fp32(returns).detach()
    weights = torch.ones_like(returns) if weights is None else weights.to(returns)
    errors = returns - at_least_fp32(values).detach()
    total, left = ((weights * _centred(x, weights).square()).sum() for x in (returns, errors))
    if total == 0:
        return (left == 0).to(returns)
    return 1 - left / total


def group_relative(
    rewards: Tensor,
    groups: Tensor,
    valid: Tensor | None = None,
    *,
    scale: Scale = "group",
    epsilon: float = 1e-4,
    floor: float = 1e-3,
) -> Tensor:
    """[N]: (r - mean of the group) / (s + ``epsilon``).

    ``scale`` names s: ``group``, the group's standard deviation (GRPO, arXiv:2402.03300);
    ``batch``, that of all rewards; ``none``, r - mean as it is (Dr. GRPO, arXiv:2503.20783).
    Standard deviations are the sample's (n - 1); the papers do not say, and TRL, verl and OpenRLHF
    agree. Where s is below ``floor`` nothing is divided: it is rounding, not signal. Equal rewards
    give exactly 0, and so does a group with one valid response.
    """
    require_non_negative("epsilon", epsilon)
    require_non_negative("floor", floor)
    centred, count = _group_centred(rewards, groups, valid)
    if scale == "none":
        return centred
    if scale == "group":
        squares = segment_sum(centred.square(), groups, _size(groups))[groups]
        spread = (squares / (count - 1).clamp(min=1)).sqrt()
    elif scale == "batch":
        everything, total = _group_centred(rewards, torch.zeros_like(groups), valid)
        spread = (everything.square().sum() / (total - 1).clamp(min=1)).sqrt()
    else:
        raise ValueError(f"scale={scale!r}: must be 'group', 'batch' or 'none'")
    return torch.where(spread < floor, centred, centred / (spread + epsilon))


def leave_one_out(rewards: Tensor, groups: Tensor, valid: Tensor | None = None) -> Tensor:
    """[N]: r minus the mean of the *other* rewards of its group (RLOO, arXiv:2402.14740).

    With ``rewards`` that contain the KL already (score - beta sum_t k1_t): a baseline taken before
    the KL leaves the KL without one. Unbiased, where the mean of the whole group shrinks the
    gradient by (K - 1) / K. 0 for a response without another valid one.
    """
    centred, count = _group_centred(rewards, groups, valid)
    return centred * count / (count - 1).clamp(min=1)


def reinforce_pp(
    scores: Tensor,
    kl: Tensor,
    sequence: Tensor,
    lengths: Tensor,
    *,
    beta: float,
    valid: Tensor | None = None,
) -> Tensor:
    """[M]: A_t = score - beta sum over k >= t of kl_k, whitened over all tokens.

    REINFORCE++, arXiv:2501.03262: one mean and one standard deviation (``whiten``) for the global
    batch, not one a prompt. ``scores`` [N], ``kl`` [M] (k1). ValueError as ``whiten``.
    """
    valid = _all_valid(scores) if valid is None else valid
    judged = torch.where(valid, at_least_fp32(scores), 0.0)
    rewards = token_rewards(judged, kl, sequence, beta)
    return whiten(reward_to_go(rewards, sequence, lengths), weights=valid[sequence])


def reinforce_pp_baseline(
    scores: Tensor,
    kl: Tensor,
    sequence: Tensor,
    lengths: Tensor,
    *,
    groups: Tensor,
    beta: float = 0.0,
    valid: Tensor | None = None,
) -> Tensor:
    """[M]: ``reinforce_pp`` of the scores less the mean score of their group.

    The paper's form has its KL in the loss (k2), and ``beta`` 0 here.
    """
    centred, _ = _group_centred(scores, groups, valid)
    return reinforce_pp(centred, kl, sequence, lengths, beta=beta, valid=valid)


def overlong_penalty(lengths: Tensor, budget: int, cache: int) -> Tensor:
    """[N], to be added to the scores: from 0 at ``budget - cache`` tokens down to -1 at ``budget``.

    DAPO's soft overlong punishment, arXiv:2503.14476 (20480 and 4096 there).
    """
    if not 0 < cache <= budget:
        raise ValueError(f"cache={cache}: must be above 0 and at most the budget, {budget}")
    return ((budget - cache - lengths) / cache).clamp(-1.0, 0.0)


def _centred(values: Tensor, weights: Tensor) -> Tensor:
    """``values`` less their weighted mean; 0 for equal ones; nothing is read where a weight is 0.

    From heights above the least value, whose mean has no rounding of the values' own size in it:
    the mean of seven 0.35 is not 0.35 in fp32.
    """
    used = weights > 0
    above = torch.where(used, values - torch.where(used, values, torch.inf).amin(), 0.0)
    return above - (weights * above).sum() / weights.sum()


def _group_centred(rewards: Tensor, groups: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor]:
    """[N]: r less the mean of the group (as ``_centred``, 0 where not valid); the group's valid."""
    valid = _all_valid(rewards) if valid is None else valid
    size = _size(groups)
    rewards = torch.where(valid, at_least_fp32(rewards).detach(), torch.inf)
    least = rewards.new_full((size,), torch.inf)
    least = least.scatter_reduce(0, groups, rewards, "amin")
    above = torch.where(valid, rewards - least[groups], 0.0)
    count = segment_sum(valid.to(above), groups, size)
    mean = segment_sum(above, groups, size) / count  # of a group without any it is not read
    return torch.where(valid, above - mean[groups], 0.0), count[groups]


def _all_valid(rewards: Tensor) -> Tensor:
    return torch.ones_like(rewards, dtype=torch.bool)


def _size(groups: Tensor) -> int:
    return int(groups.max()) + 1 if groups.numel() else 0


def _require_share(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name}={value}: must be within 0 and 1")
