"""Policy gradients and their value loss: one number a token or a response, to be minimised.

Shapes: M tokens of N responses laid end to end (``packed.py``). Notation, here and in
docs/algorithms.md: l the log-probability of a sampled token under the policy, with gradient; l' the
same under the policy that sampled, at the same temperature and as it was stored at sampling;
rho = exp(l - l'); A an advantage. l', A, returns and old values are constants here, whatever graph
they come with.

Nothing is averaged: ``token_weights`` and ``aggregation_count`` say what a loss is multiplied with
and what its sum over the whole optimizer step is divided by.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from trimtab.losses.packed import segment_sum
from trimtab.losses.stable import at_least_fp32, require_positive

LOG_RATIO_LIMIT = 20.0

Aggregation = Literal["token_mean", "sequence_mean", "sequence_sum", "constant"]
AGGREGATIONS: tuple[Aggregation, ...] = ("token_mean", "sequence_mean", "sequence_sum", "constant")


class ClippedTerms(NamedTuple):
    """``losses`` with gradient; the rest is detached and of the same shape.

    The masks (bool) say where a bound stopped the gradient, which takes a ratio beyond it and an
    advantage that would drive it further: rho < 1 - low with A < 0, rho > 1 + high with A > 0,
    rho > dual_clip with A < 0.
    """

    losses: Tensor
    ratio: Tensor
    clipped_low: Tensor
    clipped_high: Tensor
    clipped_dual: Tensor


class CorrectionWeights(NamedTuple):
    """Detached factors of token losses, and where (bool) they are not the ratio itself."""

    weights: Tensor
    changed: Tensor


def token_ratio(logp: Tensor, old: Tensor) -> Tensor:
    """[M]: rho = exp(l - l'); exactly 1 where the two are equal.

    The exponent is kept within +-20, beyond which the gradient is 0: fp32 overflows at 88, and an
    infinite ratio makes a NaN of the zero gradient of a clipped token.
    """
    return _bounded_exp(_log_ratio(logp, old))


def sequence_ratio(
    logp: Tensor, old: Tensor, sequence: Tensor, lengths: Tensor, *, kind: Literal["sum", "mean"]
) -> Tensor:
    """[N]: one ratio a response; the exponent is bounded as in ``token_ratio``.

    ``sum``: exp(sum_t (l - l')), the ratio of the probabilities of the whole response. ``mean``:
    exp(mean_t (l - l')), its geometric mean per token, the s_i of GSPO (arXiv:2507.18071).
    """
    total = segment_sum(_log_ratio(logp, old), sequence, len(lengths))
    if kind == "mean":
        total = total / lengths
    elif kind != "sum":
        raise ValueError(f"kind={kind!r}: must be 'sum' or 'mean'")
    return _bounded_exp(total)


def gspo_ratio(logp: Tensor, old: Tensor, sequence: Tensor, lengths: Tensor) -> Tensor:
    """[M]: the ratio of the token's response, stop_gradient(s_i) exp(l - stop_gradient(l)).

    GSPO-token of arXiv:2507.18071, s_i as in ``sequence_ratio(kind="mean")``. With one advantage a
    response and the weights of ``sequence_mean`` its loss has GSPO's value and gradient,
    s_i A_i / length for every token; it takes an advantage for each token, too.
    """
    logp = at_least_fp32(logp)
    ratio = sequence_ratio(logp, old, sequence, lengths, kind="mean").detach()
    return ratio[sequence] * (logp - logp.detach()).exp()


def reinforce_loss(logp: Tensor, advantages: Tensor) -> Tensor:
    """-A l (Williams 1992), for tokens [M] or for sums over responses [N].

    The gradient of line 1 of the derivation: on samples of the policy itself.
    """
    return -at_least_fp32(advantages).detach() * at_least_fp32(logp)


def importance_loss(ratio: Tensor, rewards: Tensor) -> Tensor:
    """-rho r, for tokens [M] or responses [N]: line 2 of the derivation.

    With one ratio a response (``sequence_ratio(kind="sum")``) its mean over samples of the older
    policy is -E[r] under the policy, with an unbiased gradient. With ratios of tokens the gradient
    is that only while the two policies are equal: the tokens before are the older policy's.
    """
    return -at_least_fp32(ratio) * at_least_fp32(rewards).detach()


def clipped_ratio_loss(
    ratio: Tensor,
    advantages: Tensor,
    *,
    low: float,
    high: float,
    dual_clip: float | None = None,
) -> ClippedTerms:
    """-min(rho A, clip(rho, 1 - low, 1 + high) A), for tokens [M] or responses [N].

    Schulman et al. 2017, arXiv:1707.06347, Eq. 7: line 4 of the derivation, and line 3 with rewards
    in the place of advantages. With ``sequence_ratio`` it is the clipped loss of whole responses
    (GSPO's with ``mean``). ``dual_clip`` c > 1 bounds what a token with A < 0 can cost:
    min(loss, -c A) (arXiv:1912.09729; c = 3 there). ValueError for impossible bounds.
    """
    if not 0 < low <= 1:
        raise ValueError(f"low={low}: must be above 0 and at most 1")
    require_positive("high", high)
    ratio, advantages = at_least_fp32(ratio), at_least_fp32(advantages).detach()
    # The larger loss, not the smaller: a bound may only take a gain away, never a cost.
    losses = torch.maximum(-ratio * advantages, -ratio.clamp(1 - low, 1 + high) * advantages)
    fixed = ratio.detach()
    dual = torch.zeros_like(fixed, dtype=torch.bool)
    if dual_clip is not None:
        if not 1 < dual_clip < math.inf:
            raise ValueError(f"dual_clip={dual_clip}: must be above 1")
        dual = (advantages < 0) & (fixed > dual_clip)
        losses = torch.where(dual, -dual_clip * advantages, losses)
    return ClippedTerms(
        losses,
        fixed,
        (advantages < 0) & (fixed < 1 - low),
        (advantages > 0) & (fixed > 1 + high),
        dual,
    )


def clipped_policy_loss(
    logp: Tensor,
    old: Tensor,
    advantages: Tensor,
    *,
    low: float,
    high: float,
    dual_clip: float | None = None,
) -> ClippedTerms:
    """``clipped_ratio_loss`` of every token [M]: PPO, GRPO, DAPO (``high`` above ``low``).

    Where l = l' its gradient is that of ``reinforce_loss``, to the bit.
    """
    return clipped_ratio_loss(
        token_ratio(logp, old), advantages, low=low, high=high, dual_clip=dual_clip
    )


def clipped_value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, clip: float | None
) -> Tensor:
    """[M]: max((V - G)^2, (clip(V, V_old - clip, V_old + clip) - G)^2) / 2.

    As in the code of arXiv:1909.08593; ``clip`` None is (V - G)^2 / 2. Where the clipped value is
    the worse one the gradient is 0.
    """
    values, returns = at_least_fp32(values), at_least_fp32(returns).detach()
    squares = (values - returns).square()
    if clip is not None:
        require_positive("clip", clip)
        old_values = at_least_fp32(old_values).detach()
        near = torch.clamp(values, old_values - clip, old_values + clip)
        squares = torch.maximum(squares, (near - returns).square())
    return 0.5 * squares


def token_weights(
    kind: Aggregation, lengths: Tensor, sequence: Tensor, *, valid: Tensor | None = None
) -> Tensor:
    """[M] fp32 weights: an objective is sum(losses * weights) / ``aggregation_count``.

    =============  ==============  ========================  =====================================
    kind           weight          count                     used by
    =============  ==============  ========================  =====================================
    token_mean     1               tokens                    PPO, DAPO (arXiv:2503.14476)
    sequence_mean  1 / length      responses                 GRPO (arXiv:2402.03300, Eq. 3), GSPO
    sequence_sum   1               responses                 RLOO (arXiv:2402.14740)
    constant       1               responses * ``l_max``     Dr. GRPO (arXiv:2503.20783)
    =============  ==============  ========================  =====================================

    Responses where ``valid`` [N] (bool) is False weigh 0 and leave the count, too.
    """
    _require_aggregation(kind)
    per_response = torch.ones(len(lengths), device=lengths.device)
    if kind == "sequence_mean":
        per_response = per_response / lengths
    if valid is not None:
        per_response = torch.where(valid, per_response, 0.0)
    return per_response[sequence]


def aggregation_count(
    kind: Aggregation, lengths: Tensor, *, l_max: int | None = None, valid: Tensor | None = None
) -> float:
    """The units of some responses, a table of which is at ``token_weights``.

    Counts of all micro-batches and ranks of the optimizer step are added up before anything is
    divided. ``l_max``, for ``constant`` alone, is the longest response that sampling allows, and
    never the longest one that came: that would change from step to step.
    """
    _require_aggregation(kind)
    if (kind == "constant") != (l_max is not None):
        raise ValueError(f"l_max={l_max}: belongs to 'constant', which needs it")
    kept = lengths if valid is None else lengths[valid]
    if kind == "token_mean":
        return float(kept.sum())
    if l_max is None:
        return float(len(kept))
    if len(kept) and int(kept.max()) > l_max:
        raise ValueError(f"l_max={l_max}: a response has {int(kept.max())} tokens")
    return float(len(kept) * l_max)


def truncated_weights(ratio: Tensor, *, cap: float = 2.0) -> CorrectionWeights:
    """min(w, cap): truncated importance sampling, where the sampler is not quite the trainer.

    ``ratio`` w = exp(l_trainer - l_sampler), both of the weights that sampled, of tokens [M]
    (``token_ratio``) or of responses (``sequence_ratio``, sum or mean). Multiply token losses.
    """
    require_positive("cap", cap)
    ratio = at_least_fp32(ratio).detach()
    return CorrectionWeights(ratio.clamp(max=cap), ratio > cap)


def masked_weights(ratio: Tensor, *, low: float, high: float) -> CorrectionWeights:
    """w within [low, high] and 0 outside: masked importance sampling (IcePop).

    ``ratio`` as in ``truncated_weights``. A token that the two disagree about is left out; it stays
    in the divisor.
    """
    if not 0 <= low < high < math.inf:
        raise ValueError(f"low={low}, high={high}: must be numbers with 0 <= low < high")
    ratio = at_least_fp32(ratio).detach()
    outside = (ratio < low) | (ratio > high)
    return CorrectionWeights(torch.where(outside, 0.0, ratio), outside)


def _log_ratio(logp: Tensor, old: Tensor) -> Tensor:
    return at_least_fp32(logp) - at_least_fp32(old).detach()


def _bounded_exp(log_ratio: Tensor) -> Tensor:
    return log_ratio.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()


def _require_aggregation(kind: str) -> None:
    if kind not in AGGREGATIONS:
        raise ValueError(f"{kind!r}: must be one of {', '.join(AGGREGATIONS)}")
