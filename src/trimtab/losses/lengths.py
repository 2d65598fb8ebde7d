"""DPO against length: lengths in the margin, means for sums, or a discount behind a common prefix.

Symbols are those of ``preference.py``; |y| counts trained tokens, the stop token included. All are
divided by the number of pairs.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from trimtab.losses.pairs import log_ratios, mean_log_ratios, with_rewards
from trimtab.losses.stable import at_least_fp32, require_non_negative, require_positive
from trimtab.losses.types import Pair, PairTokens, PreferenceTerms, TokenLogprobs


def r_dpo_loss(
    policy: Pair, reference: Pair, *, beta: float = 0.1, alpha: float = 0.05
) -> PreferenceTerms:
    """R-DPO: -log sigmoid(beta (a_w - a_l) + alpha (|w| - |l|)), from sums.

    Park et al. 2024, arXiv:2403.19159. The optimum of a reward less ``alpha`` per token: a chosen
    response that is longer has part of its margin already, and a smaller gradient. Rewards are
    beta * a.
    """
    require_positive("beta", beta)
    require_non_negative("alpha", alpha)
    chosen, rejected = log_ratios(policy, reference)
    longer = at_least_fp32(policy.chosen.length) - at_least_fp32(policy.rejected.length)
    losses = -F.logsigmoid(beta * (chosen - rejected) + alpha * longer)
    return with_rewards(losses, beta, chosen, rejected)


def ln_dpo_loss(policy: Pair, reference: Pair, *, beta: float = 5.0) -> PreferenceTerms:
    """Length-normalised DPO: -log sigmoid(beta (a_w / |w| - a_l / |l|)), from means per token.

    Meng et al. 2024, arXiv:2405.14734 (an ablation of SimPO); Lambert et al. 2024 (Tulu 3),
    arXiv:2411.15124. beta is some 50 times DPO's. Rewards are beta * a / |y|.
    """
    require_positive("beta", beta)
    chosen, rejected = mean_log_ratios(policy, reference)
    return with_rewards(-F.logsigmoid(beta * (chosen - rejected)), beta, chosen, rejected)


def ld_dpo_loss(
    policy: Pair,
    reference: Pair,
    policy_tokens: PairTokens,
    reference_tokens: PairTokens,
    *,
    beta: float = 0.1,
    alpha: float = 0.5,
) -> PreferenceTerms:
    """LD-DPO: DPO with S = sum_(t <= m) l_t + alpha sum_(t > m) l_t, m = min(|w|, |l|).

    Liu et al. 2024, arXiv:2409.06411; no departure. Tokens beyond the shorter response's length
    count ``alpha``. ``alpha`` = 1 is DPO, 0 compares the common
    length alone; it is the same for policy and reference. Rewards are beta * a, of whole responses.
    """
    require_positive("beta", beta)
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha={alpha}: must be at least 0 and at most 1")
    chosen, rejected = log_ratios(policy, reference)
    shorter = policy.chosen.length.minimum(policy.rejected.length)
    excess = _beyond(policy_tokens.chosen, reference_tokens.chosen, shorter) - _beyond(
        policy_tokens.rejected, reference_tokens.rejected, shorter
    )
    z = beta * (chosen - rejected - (1 - alpha) * excess)
    return with_rewards(-F.logsigmoid(z), beta, chosen, rejected)


def _beyond(policy: TokenLogprobs, reference: TokenLogprobs, length: Tensor) -> Tensor:
    """[P] log-ratio of a response's tokens behind the first ``length`` [P] of them."""
    late = policy.mask & (policy.mask.cumsum(-1) > length[:, None])
    gaps = at_least_fp32(policy.logp) - at_least_fp32(reference.logp).detach()
    return gaps.masked_fill(~late, 0.0).sum(-1)
