"""BCO: a classifier of wanted and unwanted responses whose logit is the implicit reward."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from trimtab.losses.stable import at_least_fp32, log_ratio, require_positive
from trimtab.losses.types import SequenceLogprobs, UnpairedTerms


def bco_loss(
    policy: SequenceLogprobs,
    reference: SequenceLogprobs,
    labels: Tensor,
    delta: Tensor,
    *,
    beta: float = 0.01,
) -> UnpairedTerms:
    """BCO: -log sigmoid(R - delta) for desirable, -log sigmoid(delta - R) for others, R = beta a.

    Jung et al. 2024, arXiv:2404.04656, from sums. ``labels`` [N] bool, True = desirable; ``delta``
    is a scalar, a constant here whatever graph it comes with. The divisor is sequences, both labels
    together. Rewards are R.
    """
    require_positive("beta", beta)
    rewards = beta * log_ratio(policy, reference)
    shifted = rewards - at_least_fp32(delta).detach().to(rewards)
    losses = -F.logsigmoid(torch.where(labels, shifted, -shifted))
    return UnpairedTerms(losses, rewards.detach())


class BCO:
    """BCO: -log sigmoid(R - delta) if desirable, -log sigmoid(delta - R) if not, R = beta a.

    Jung et al. 2024, arXiv:2404.04656, with its delta, half way between the labels' rewards: delta
    = (E_desirable[R] + E_undesirable[R]) / 2, as a moving average. ``prepare`` moves the two means
    apart, m <- momentum m + (1 - momentum) mean, each from its own first step on, so that delta
    does not follow the labels' shares (TRL's does: it averages all rewards together). A step
    without a label leaves that label's mean alone. Departure: the density-ratio weights of
    undesirable rows are left out; a row's ``weight`` takes any.
    """

    def __init__(self, *, beta: float = 0.01, momentum: float = 0.9) -> None:
        require_positive("beta", beta)
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum={momentum}: must be at least 0 and below 1")
        self.beta = beta
        self.momentum = momentum
        self.means: dict[str, float] = {}

    @property
    def delta(self) -> float:
        """The shift; a label not seen yet counts with 0, its exact value at the reference."""
        return sum(self.means.values()) / 2

    def prepare(
        self, policy: SequenceLogprobs, reference: SequenceLogprobs, labels: Tensor
    ) -> None:
        """Move the means by the responses of the whole step, of all micro-batches.

        A reward that is not finite leaves them alone; the loss, and the run's check, will meet it.
        """
        rewards = self.beta * log_ratio(policy, reference).detach().cpu().double()
        if not bool(rewards.isfinite().all()):
            return
        for name, own in (("desirable", labels.cpu()), ("undesirable", ~labels.cpu())):
            if bool(own.any()):
                mean = rewards[own].mean().item()
                before = self.means.get(name, mean)
                self.means[name] = self.momentum * before + (1 - self.momentum) * mean

    def __call__(
        self, policy: SequenceLogprobs, reference: SequenceLogprobs, labels: Tensor
    ) -> UnpairedTerms:
        """See ``bco_loss``."""
        delta = torch.tensor(self.delta, dtype=torch.float64)
        return bco_loss(policy, reference, labels, delta, beta=self.beta)

    def state_dict(self) -> dict[str, float]:
        """The means of those labels that have been seen."""
        return dict(self.means)

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Take over what ``state_dict`` gave."""
        self.means = dict(state)
