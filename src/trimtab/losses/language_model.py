"""The likelihood of text: pretraining, supervised fine-tuning, and every mixed-in text term."""

from __future__ import annotations

from torch import Tensor

from trimtab.losses.stable import at_least_fp32


def nll(logp: Tensor) -> Tensor:
    """Negative log-likelihood -log p, shaped like ``logp`` (tokens or whole sequences), in nats.

    Given per-token values the unit of its divisor is the token, given sums of sequences it is the
    sequence (L_GPT as a sum over the tokens of a text).
    """
    return -at_least_fp32(logp)
