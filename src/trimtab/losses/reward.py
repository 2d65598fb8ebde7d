"""Losses of reward models: functions of scores, one a comparison or one a ranking.

Shapes: P comparisons, R prompts, K responses of the longest ranking.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from trimtab.losses.listwise import place_losses
from trimtab.losses.stable import at_least_fp32


def ranking_loss(chosen: Tensor, rejected: Tensor, margins: Tensor | None = None) -> Tensor:
    """-log sigmoid(r_w - r_l - m) of every comparison: [P] from scores [P] and margins [P].

    The pair loss of arXiv:2203.02155, equation 1, before its mean over the C(K, 2) pairs of a
    prompt, which is the caller's: it knows which comparisons are of one prompt. A margin m (Llama
    2, arXiv:2307.09288, equation 2) is how far apart the two should be at least. Softplus, so that
    no difference overflows.
    """
    gaps = at_least_fp32(chosen) - at_least_fp32(rejected)
    if margins is not None:
        gaps = gaps - margins
    return F.softplus(-gaps)


def centring_loss(chosen: Tensor, rejected: Tensor) -> Tensor:
    """(r_w + r_l)^2 of every comparison: [P]; keeps scores near 0 (arXiv:2312.09244).

    Differences alone leave a constant free: without it scores drift together.
    """
    return (at_least_fp32(chosen) + at_least_fp32(rejected)).square()


def plackett_luce_ranking_loss(scores: Tensor, mask: Tensor) -> Tensor:
    """-sum_k [r_k - logsumexp(r_k .. r_K)] of every ranking: [R] from scores [R, K], best first.

    The likelihood of a whole order (Plackett 1975) in place of its pairs; what ``mask`` [R, K]
    hides is never read. K = 2 is ``ranking_loss``. A tie cannot be expressed.
    """
    return place_losses(torch.where(mask, at_least_fp32(scores), 0.0), mask).sum(-1)
