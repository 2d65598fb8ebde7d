"""What a comparison shows beside its margin: where the probability went, and whether length rules.

All are columns with one entry a comparison, of numbers that the loss has computed anyway.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trimtab.losses.types import SequenceLogprobs


def displacement(
    policy: tuple[SequenceLogprobs, SequenceLogprobs],
    reference: tuple[Tensor, Tensor],
    *,
    paired: bool,
) -> dict[str, Tensor]:
    """How far the log-probs of (chosen, rejected) have gone from the reference's, in nats.

    Sums over a response [P], and the same by its tokens. Of pairs also the share in which both
    fell, and what went ``elsewhere``, to responses that are neither of the two:

        elsewhere = log (pi_0(y_w) + pi_0(y_l)) - log (pi(y_w) + pi(y_l))

    So chosen = log(s / s_0) - elsewhere, with s = pi(y_w) / (pi(y_w) + pi(y_l)) the chosen one's
    share of the two (Razin et al. 2024, arXiv:2410.08847, on what it means that chosen falls).
    """
    found: dict[str, Tensor] = {}
    moved: list[Tensor] = []
    for name, sums, before in zip(("chosen", "rejected"), policy, reference, strict=True):
        moved.append(sums.sum - before)
        found[f"displacement/{name}"] = moved[-1]
        found[f"displacement/{name}_per_token"] = moved[-1] / sums.length
    if paired:
        chosen, rejected = moved
        found["displacement/both_fell"] = ((chosen < 0) & (rejected < 0)).float()
        now = torch.logaddexp(policy[0].sum, policy[1].sum)
        found["displacement/elsewhere"] = torch.logaddexp(*reference) - now
    return found


def by_length(
    chosen: Tensor, rejected: Tensor, chosen_length: Tensor, rejected_length: Tensor
) -> dict[str, Tensor]:
    """Of pairs of unequal rewards and lengths: is the longer one chosen, is it rewarded more?

    And, of all pairs, which are such: ``compared`` [P].

    The first is the data's share, the second the model's: one that goes by length has more of it
    than the data (Park et al. 2024, arXiv:2403.19159). Rewards and lengths are [P]; 0 or 1 each.
    """
    told = (chosen_length != rejected_length) & (chosen != rejected)
    longer = (chosen_length > rejected_length)[told]
    above = (chosen > rejected)[told]
    return {
        "lengths/compared": told.float(),
        "lengths/chosen_longer": longer.float(),
        "lengths/longer_rewarded": (longer == above).float(),
    }
