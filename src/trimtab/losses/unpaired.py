"""Losses of single responses labelled desirable or undesirable."""

from __future__ import annotations

import torch
from torch import Tensor

from trimtab.losses.stable import (
    at_least_fp32,
    log_ratio,
    require_non_negative,
    require_positive,
)
from trimtab.losses.types import SequenceLogprobs, UnpairedTerms


def kto_loss(
    policy: SequenceLogprobs,
    reference: SequenceLogprobs,
    labels: Tensor,
    kl: Tensor,
    *,
    beta: float = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> UnpairedTerms:
    """KTO: weight_D (1 - sigmoid(beta (a - z0))), weight_U (1 - sigmoid(beta (z0 - a))), from sums.

    Ethayarajh et al. 2024, arXiv:2402.01306. ``labels`` [N] bool, True = desirable. ``kl`` is the
    scalar z0 of the whole optimizer step, a constant here whatever graph it comes with; it lies
    inside the factor beta. The divisor is sequences, both labels together. Rewards are beta * a.
    """
    require_positive("beta", beta)
    require_non_negative("desirable_weight", desirable_weight)
    require_non_negative("undesirable_weight", undesirable_weight)
    log_ratios = log_ratio(policy, reference)
    advantage = beta * (log_ratios - at_least_fp32(kl).detach().to(log_ratios))
    # 1 - sigmoid(u) = sigmoid(-u), without the cancellation.
    losses = torch.where(
        labels,
        desirable_weight * torch.sigmoid(-advantage),
        undesirable_weight * torch.sigmoid(advantage),
    )
    return UnpairedTerms(losses, (beta * log_ratios).detach())


def apo_zero_unpaired_loss(
    policy: SequenceLogprobs, reference: SequenceLogprobs, labels: Tensor, *, beta: float = 0.1
) -> UnpairedTerms:
    """APO-zero of single responses: 1 - sigmoid(beta a) if desirable, sigmoid(beta a) if not.

    D'Oosterlinck et al. 2024, arXiv:2408.06266, for labelled responses: KTO with z0 = 0, from sums.
    ``labels`` [N] bool, True = desirable. The divisor is sequences. Rewards are beta * a.
    """
    return kto_loss(policy, reference, labels, policy.sum.new_zeros(()), beta=beta)


class KTO:
    """KTO: 1 - sigmoid(beta (a - z0)) if desirable, 1 - sigmoid(beta (z0 - a)) if not, weighted.

    Ethayarajh et al. 2024, arXiv:2402.01306, with its z0: call ``prepare`` once per optimizer step,
    then the loss on micro-batches (``kto_loss``). z0 estimates KL(policy || reference) from
    mismatched rows, the prompt of one row with the response of another. Until the first ``prepare``
    it is 0, its exact value at the reference. Evaluation that prepares nothing uses the last step's
    z0, which ``state_dict`` keeps.
    """

    def __init__(
        self,
        *,
        beta: float = 0.1,
        desirable_weight: float = 1.0,
        undesirable_weight: float = 1.0,
    ) -> None:
        self.beta = beta
        self.desirable_weight = desirable_weight
        self.undesirable_weight = undesirable_weight
        self.z0 = 0.0

    def prepare(
        self, mismatched_policy: SequenceLogprobs, mismatched_reference: SequenceLogprobs
    ) -> None:
        """Set z0 = max(0, mean log-ratio) over the mismatched rows of the whole step.

        A step too small to have a mismatched row (one row, say) gets z0 = 0.
        """
        log_ratios = log_ratio(mismatched_policy, mismatched_reference).detach()
        if log_ratios.numel() == 0:
            self.z0 = 0.0
        else:
            # clamp and not max(): a NaN has to reach the loss, where the run's finite check is.
            self.z0 = log_ratios.cpu().double().mean().clamp(min=0.0).item()

    def __call__(
        self, policy: SequenceLogprobs, reference: SequenceLogprobs, labels: Tensor
    ) -> UnpairedTerms:
        """See ``kto_loss``."""
        return kto_loss(
            policy,
            reference,
            labels,
            torch.tensor(self.z0, dtype=torch.float64),
            beta=self.beta,
            desirable_weight=self.desirable_weight,
            undesirable_weight=self.undesirable_weight,
        )

    def state_dict(self) -> dict[str, float]:
        """The last z0."""
        return {"z0": self.z0}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Take over what ``state_dict`` gave."""
        self.z0 = state["z0"]
