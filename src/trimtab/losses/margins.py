"""Losses that ask for a margin and no more: a squared distance to it, or a hinge.

Symbols are those of ``preference.py``; all are divided by the number of pairs.
"""

from __future__ import annotations

import torch

from trimtab.losses.pairs import log_ratios, mean_log_ratios, sums, with_rewards
from trimtab.losses.stable import require_non_negative, require_positive
from trimtab.losses.types import Pair, PreferenceTerms


def ipo_loss(policy: Pair, reference: Pair, *, tau: float = 0.1) -> PreferenceTerms:
    """IPO: (a_w / |w| - a_l / |l| - 1 / (2 tau))^2, from means per token.

    Azar et al. 2023, arXiv:2310.12036, Eq. 17, whose text has sums (``ipo_sum_loss``); its authors
    later told implementers to take means, as TRL does. The two are different losses with different
    useful tau. 1 / (4 tau^2) at the reference. Rewards are tau * a / |y|.
    """
    require_positive("tau", tau)
    chosen, rejected = mean_log_ratios(policy, reference)
    losses = (chosen - rejected - 1 / (2 * tau)).square()
    return with_rewards(losses, tau, chosen, rejected)


def ipo_sum_loss(policy: Pair, reference: Pair, *, tau: float = 0.1) -> PreferenceTerms:
    """IPO as its paper writes it: (a_w - a_l - 1 / (2 tau))^2, from sums.

    Azar et al. 2023, arXiv:2310.12036, Eq. 17; no departure. Over pairs of two responses drawn from
    one distribution its optimum is log pi / pi_ref (y) = E[p(y > y')] / tau + c. Rewards are
    tau * a.
    """
    require_positive("tau", tau)
    chosen, rejected = log_ratios(policy, reference)
    losses = (chosen - rejected - 1 / (2 * tau)).square()
    return with_rewards(losses, tau, chosen, rejected)


def hinge_loss(policy: Pair, reference: Pair, *, beta: float = 0.1) -> PreferenceTerms:
    """Hinge: max(0, 1 - beta (a_w - a_l)), from sums: SLiC with log-ratios.

    Liu et al. 2023 (RSO), arXiv:2309.06657; no departure. What TRL calls hinge. Pairs beyond the
    margin have no gradient. Rewards are beta * a.
    """
    require_positive("beta", beta)
    chosen, rejected = log_ratios(policy, reference)
    losses = torch.relu(1 - beta * (chosen - rejected))
    return with_rewards(losses, beta, chosen, rejected)


def slic_hf_loss(
    policy: Pair, *, delta: float = 1.0, target_weight: float = 0.1
) -> PreferenceTerms:
    """SLiC-HF: max(0, delta - S_w + S_l) - target_weight S_w, from sums, without a reference.

    Zhao et al. 2023, arXiv:2305.10425. The regulariser's target is the chosen response, and it is
    its sum, as in the paper, where much code takes a mean per token. ``target_weight`` is the
    paper's lambda; its default is that of HALOs. Rewards are S.
    """
    require_non_negative("delta", delta)
    require_non_negative("target_weight", target_weight)
    chosen, rejected = sums(policy)
    losses = torch.relu(delta - chosen + rejected) - target_weight * chosen
    return with_rewards(losses, 1.0, chosen, rejected)
