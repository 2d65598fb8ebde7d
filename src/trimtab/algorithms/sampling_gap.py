"""The sampler's log-probs against the trainer's own, of the same tokens at the same weights.

A rollout's first step is computed at the weights that sampled it. Its log-probs are what the
sampler ought to have recorded, so the gap is known without another forward pass. Later steps have
other weights: there the two differ by training, and nothing is measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from trimtab.algorithms.rollout_log import greatest, least, mean
from trimtab.training.algorithm import Micro
from trimtab.training.terms import Metric

RECORDED = "recorded"  # column of a step at the sampler's weights: what the sampler recorded


def keep_recorded(micros: Sequence[Micro]) -> None:
    """Give the micro-batches of a rollout's first step what ``gap_metrics`` measures against.

    That is the column ``sampled`` where ``old`` is the trainer's, else ``old``.
    """
    for micro in micros:
        tokens = micro.tokens
        if "old" in tokens:  # mixed-in text was sampled by nobody
            micro.tokens = {**tokens, RECORDED: tokens.get("sampled", tokens["old"])}


def old_logprobs(logp: Tensor, tokens: Mapping[str, Tensor]) -> Tensor:
    """[M] log-probs of the policy that sampled, without gradient; ``logp`` [M] are the policy's.

    With ``old_logprobs=trainer`` those of a rollout's first step are the policy's own, to the bit:
    its ratios are exactly 1. ``old`` was read in batches of another composition, which round
    otherwise, and is what later steps compare with.
    """
    if RECORDED in tokens and "sampled" in tokens:
        return logp.detach()
    return tokens["old"]


def gap_metrics(logp: Tensor, tokens: Mapping[str, Tensor]) -> dict[str, Metric]:
    """The gap over tokens [M], under TRL's names; nothing on steps that ``keep_recorded`` left out.

    The ratio is that of a token, trainer to sampler, and is not cut off.
    """
    if RECORDED not in tokens:
        return {}
    gap = logp.detach().double() - tokens[RECORDED].double()
    ratio = gap.exp()
    return {
        "sampling/sampling_logp_difference/mean": mean(gap.abs()),
        "sampling/sampling_logp_difference/max": greatest(gap.abs()),
        "sampling/importance_sampling_ratio/min": least(ratio),
        "sampling/importance_sampling_ratio/mean": mean(ratio),
        "sampling/importance_sampling_ratio/max": greatest(ratio),
    }
