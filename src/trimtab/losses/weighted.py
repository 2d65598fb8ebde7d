"""WPO: DPO whose pairs count by how likely the policy itself would have been to write them."""

from __future__ import annotations

from torch import Tensor

from trimtab.losses.preference import dpo_loss
from trimtab.losses.stable import at_least_fp32
from trimtab.losses.types import Pair, PairValues, PreferenceTerms, SequenceLogprobs


def wpo_loss(
    policy: Pair, reference: Pair, log_square: PairValues, *, beta: float = 0.01
) -> PreferenceTerms:
    """WPO: -w(y_w) w(y_l) log sigmoid(beta (a_w - a_l)), from sums, with constant weights.

    Zhou et al. 2024, arXiv:2406.11827, Eq. 2, with sampled alignment: log w(y) is the mean over
    tokens of log pi(token) - log sum_v pi(v)^2, the second half of which is ``log_square`` / |y|. A
    weight can exceed 1. Rewards are beta * a.
    """
    terms = dpo_loss(policy, reference, beta=beta)
    return terms._replace(losses=_weights(policy, log_square) * terms.losses)


def wpo_clamped_loss(
    policy: Pair, reference: Pair, log_square: PairValues, *, beta: float = 0.01
) -> PreferenceTerms:
    """WPO, clamped: -min(1, w(y_w) w(y_l)) log sigmoid(beta (a_w - a_l)), from sums.

    Zhou et al. 2024, arXiv:2406.11827, Eq. 2, with the limit that TRL had before 0.29; the weights
    are those of ``wpo_loss``. Rewards are beta * a.
    """
    terms = dpo_loss(policy, reference, beta=beta)
    return terms._replace(losses=_weights(policy, log_square).clamp(max=1.0) * terms.losses)


def _weights(policy: Pair, log_square: PairValues) -> Tensor:
    """w(y_w) w(y_l) [P], without gradient."""
    chosen = _log_weight(policy.chosen, log_square.chosen)
    return (chosen + _log_weight(policy.rejected, log_square.rejected)).exp()


def _log_weight(policy: SequenceLogprobs, log_square: Tensor) -> Tensor:
    return (at_least_fp32(policy.sum) - at_least_fp32(log_square)).detach() / policy.length
