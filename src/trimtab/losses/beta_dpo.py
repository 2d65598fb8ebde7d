"""DPO whose beta follows the data: a statistic and a filter over each optimizer step."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from trimtab.losses.preference import dpo_loss
from trimtab.losses.stable import log_ratio, require_non_negative, require_positive
from trimtab.losses.types import Pair, PreferenceTerms

_SMALLEST_BETA = 1e-3


class BetaDPO:
    """beta-DPO: -log sigmoid(beta_b (a_w - a_l)) on the kept pairs, beta_b that of the step.

    Wu et al. 2024, arXiv:2407.08639, as in the authors' code: one beta per optimizer step, on the
    pairs whose gap is no outlier. With the gaps M = a_w - a_l of all pairs of a step (raw, without
    beta), ``prepare``


    1. moves the running mean and standard deviation: m <- momentum m + (1 - momentum) mean(M);
    2. keeps a share ``keep`` of the pairs, drawn without replacement with probability
       proportional to exp(-((M - m) / std)^2 / 2);
    3. sets the step's beta to max(0.001, beta (1 + scale (mean of the kept M - m))).

    Departures, each for a failure of the original: the running values start at the first step's
    own instead of at 0 (the standard deviation at the first step that has one: at the reference
    all gaps are 0); at least one pair is kept; the divisor is the kept pairs of the whole step,
    not of each rank; weights cannot underflow to "no candidates". Standard deviations are the
    sample's (n - 1). Rewards are logged with the constant ``beta``, so that they compare over
    steps and with DPO.
    """

    def __init__(
        self,
        *,
        beta: float = 0.1,
        scale: float = 0.6,
        momentum: float = 0.9,
        keep: float = 0.8,
    ) -> None:
        require_positive("beta", beta)
        require_non_negative("scale", scale)
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum={momentum}: must be at least 0 and below 1")
        if not 0 < keep <= 1:
            raise ValueError(f"keep={keep}: must be above 0 and at most 1")
        self.beta = beta
        self.scale = scale
        self.momentum = momentum
        self.keep = keep
        self.batch_beta = beta
        self.gap_mean: float | None = None
        self.gap_std: float | None = None

    def prepare(self, policy: Pair, reference: Pair, *, generator: torch.Generator) -> Tensor:
        """Set the step's beta and give the weights [P] of its pairs: 1 kept, 0 filtered out.

        P is every pair of the optimizer step, over all micro-batches. One random number is drawn
        per pair. A gap that is not finite leaves the state alone and keeps all pairs, so that the
        run's finite check meets it.
        """
        chosen = log_ratio(policy.chosen, reference.chosen)
        rejected = log_ratio(policy.rejected, reference.rejected)
        device = chosen.device
        gaps = (chosen - rejected).detach().cpu().double()  # MPS has no fp64
        noise = torch.empty(gaps.shape, dtype=torch.float64, device=generator.device)
        noise = noise.exponential_(generator=generator).to(gaps.device)
        if gaps.numel() == 0 or not bool(torch.isfinite(gaps).all()):
            return torch.ones_like(gaps, dtype=torch.float32, device=device)
        gap_mean = self._track(gaps)
        kept = self._draw(gaps - gap_mean, noise)
        excess = gaps[kept].mean().item() - gap_mean
        self.batch_beta = max(_SMALLEST_BETA, self.beta * (1 + self.scale * excess))
        weights = torch.zeros_like(gaps, dtype=torch.float32).index_fill_(0, kept, 1.0)
        return weights.to(device)

    def _track(self, gaps: Tensor) -> float:
        """Move the running mean and standard deviation of the gaps; gives the mean."""
        mean = gaps.mean().item()
        self.gap_mean = mean if self.gap_mean is None else self._moved(self.gap_mean, mean)
        if gaps.numel() > 1:
            std = gaps.std().item()
            if self.gap_std is not None:
                self.gap_std = self._moved(self.gap_std, std)
            elif std > 0:
                self.gap_std = std
        return self.gap_mean

    def _moved(self, running: float, new: float) -> float:
        return self.momentum * running + (1 - self.momentum) * new

    def _draw(self, distance: Tensor, noise: Tensor) -> Tensor:
        """Indices of the kept pairs, in order: weighted sampling without replacement.

        The n smallest of Exp(1) / weight are such a sample (Efraimidis and Spirakis 2006); in logs
        no weight underflows, where ``torch.multinomial`` refuses more than n - 1 zero weights.
        """
        count = max(1, math.floor(self.keep * distance.numel() + 1e-9))
        spread = torch.zeros_like(distance) if self.gap_std is None else distance / self.gap_std
        keys = -0.5 * spread.square() - noise.log()
        return torch.topk(keys, count).indices.sort().values

    def __call__(self, policy: Pair, reference: Pair) -> PreferenceTerms:
        """DPO with the step's beta, on all pairs given; the weights of ``prepare`` filter them."""
        return PreferenceTerms(
            dpo_loss(policy, reference, beta=self.batch_beta).losses,
            (self.beta * log_ratio(policy.chosen, reference.chosen)).detach(),
            (self.beta * log_ratio(policy.rejected, reference.rejected)).detach(),
        )

    def state_dict(self) -> dict[str, float]:
        """The step's beta and those running values that have started."""
        state = {"batch_beta": self.batch_beta}
        if self.gap_mean is not None:
            state["gap_mean"] = self.gap_mean
        if self.gap_std is not None:
            state["gap_std"] = self.gap_std
        return state

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Take over what ``state_dict`` gave."""
        self.batch_beta = state["batch_beta"]
        self.gap_mean = state.get("gap_mean")
        self.gap_std = state.get("gap_std")
