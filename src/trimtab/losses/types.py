"""What losses take and give: per-sequence log-probs in, per-pair losses out, nothing reduced.

Shapes: N sequences, P pairs, R prompts with at most K ranked responses.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class SequenceLogprobs(NamedTuple):
    """Log-probability of whole responses: ``sum`` [N] over ``length`` [N] trained tokens, fp32."""

    sum: Tensor
    length: Tensor

    @property
    def mean(self) -> Tensor:
        """Log-probability per token [N]; an empty response is an error at data time."""
        return self.sum / self.length


class Pair(NamedTuple):
    """The chosen and the rejected responses of P comparisons, aligned."""

    chosen: SequenceLogprobs
    rejected: SequenceLogprobs


class Ranking(NamedTuple):
    """R rankings, best to worst, padded to the longest: ``sum``, ``length``, ``mask`` [R, K]."""

    sum: Tensor
    length: Tensor
    mask: Tensor


class PairValues(NamedTuple):
    """Any per-sequence quantity of P comparisons (a KL, a weight): each [P]."""

    chosen: Tensor
    rejected: Tensor


class TokenLogprobs(NamedTuple):
    """Log-probs of the trained tokens of P responses, in order: ``logp``, ``mask`` [P, T].

    Padded behind the last token to the longest response: 0 where ``mask`` is False.
    """

    logp: Tensor
    mask: Tensor


class PairTokens(NamedTuple):
    """Token log-probs of the chosen and the rejected responses of P comparisons, aligned."""

    chosen: TokenLogprobs
    rejected: TokenLogprobs


class PreferenceTerms(NamedTuple):
    """Per-pair ``losses`` [P] and the detached implicit rewards [P] that are logged."""

    losses: Tensor
    chosen_rewards: Tensor
    rejected_rewards: Tensor


class UnpairedTerms(NamedTuple):
    """Per-response ``losses`` [N] and detached implicit ``rewards`` [N]."""

    losses: Tensor
    rewards: Tensor


class RankingTerms(NamedTuple):
    """Per-prompt ``losses`` [R] and detached implicit ``rewards`` [R, K], best to worst."""

    losses: Tensor
    rewards: Tensor
