"""What the losses of pairs have in common: both log-ratios, and the rewards that are logged."""

from __future__ import annotations

from torch import Tensor

from trimtab.losses.stable import at_least_fp32, log_ratio
from trimtab.losses.types import Pair, PreferenceTerms


def log_ratios(policy: Pair, reference: Pair) -> tuple[Tensor, Tensor]:
    """a_w and a_l, each [P], from sums; the reference is a constant."""
    return log_ratio(policy.chosen, reference.chosen), log_ratio(
        policy.rejected, reference.rejected
    )


def mean_log_ratios(policy: Pair, reference: Pair) -> tuple[Tensor, Tensor]:
    """a_w / |w| and a_l / |l|, each [P]: log-ratios per token."""
    chosen, rejected = log_ratios(policy, reference)
    return chosen / policy.chosen.length, rejected / policy.rejected.length


def sums(policy: Pair) -> tuple[Tensor, Tensor]:
    """S_w and S_l, each [P], in at least fp32."""
    return at_least_fp32(policy.chosen.sum), at_least_fp32(policy.rejected.sum)


def with_rewards(losses: Tensor, scale: float, chosen: Tensor, rejected: Tensor) -> PreferenceTerms:
    """The losses with ``scale`` times the two quantities as detached rewards."""
    return PreferenceTerms(losses, (scale * chosen).detach(), (scale * rejected).detach())
