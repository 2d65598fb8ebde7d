"""Log-probs of tokens from hidden states, chunk by chunk: [tokens, vocabulary] is never held.

The rows are cut into chunks whose fp32 logits fit ``chunk_bytes``. A chunk's matrix product is in
the working dtype (bf16 stays bf16), everything after it in at least fp32. A bf16 product of 40 is
rounded to steps of 0.25 nats, so in half precision the target's own logit, computed in fp32, is
subtracted *within* the product, before it is rounded: what is left is small where p is large, and
log-probs are then right to about 0.002 of themselves (softmax does not see the shift).

For the backward pass one of four ways is taken, and all of them give the same gradient:

    scale      head frozen, only ``logp`` differentiated: U = onehot - p is made in the place of the
               product, and U @ W in the forward pass, to be multiplied by the coefficient c of each
               token in the backward pass; 2 products
    residual   only ``logp`` differentiated, and U of all chunks fits ``keep_bytes``: it is kept.
               The gradients are c * (U @ W) and U^T @ (c * h), so that the backward pass makes no
               pass over [M, V] of its own; 3 products
    keep       the products of all chunks fit ``keep_bytes``: they are kept; 3 products (2 frozen)
    recompute  otherwise the products are made again; 4 products (3 frozen)

``logprob_function.py`` does the work. Shapes: M tokens, V vocabulary, d width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from trimtab.models.head import (
    HeadCheck,
    LogitHead,
    accumulation_dtype,
    check_head,
)
from trimtab.models.logprob_function import Job, TokenStatsFunction, Way

__all__ = [
    "HeadCheck",
    "LogitHead",
    "TokenStats",
    "check_head",
    "token_stats",
    "token_stats_reference",
]

CHUNK_BYTES = 64 * 2**20
KEEP_BYTES = 256 * 2**20


class TokenStats(NamedTuple):
    """What the model says about each target [M]; None for what was not asked.

    logp        log-probability of the target, with gradient
    entropy     entropy of the prediction in nats, with gradient
    correct     bool, whether the target is the likeliest token (of equals, the first)
    log_square  log of the sum of squared probabilities (WPO, arXiv:2406.11827), no gradient
    kl          KL(reference || policy) over the whole vocabulary in nats (TDPO, arXiv:2404.11999),
                with gradient into the policy
    """

    logp: Tensor
    entropy: Tensor | None = None
    correct: Tensor | None = None
    log_square: Tensor | None = None
    kl: Tensor | None = None


def token_stats(
    hidden: Tensor,
    head: LogitHead,
    targets: Tensor,
    *,
    temperature: float = 1.0,
    entropy: bool = False,
    entropy_gradient: bool = True,
    correct: bool = False,
    square: bool = False,
    reference: tuple[Tensor, LogitHead] | None = None,
    chunk_bytes: int = CHUNK_BYTES,
    keep_bytes: int = KEEP_BYTES,
) -> TokenStats:
    """Log-probs [M] of ``targets`` [M] given ``hidden`` [M, d] and, where asked, more about them.

    ``reference`` (its hidden states [M, d'] and head, neither differentiated) asks for ``kl``.
    ``temperature`` divides the final logits (after a soft-cap), of the reference too. Results are
    fp32, or fp64 for fp64 models. ``entropy_gradient`` False is for an entropy that is only logged:
    a frozen head then needs two products. ``chunk_bytes`` bounds one fp32 chunk of logits, of which
    a few exist at a time; ``keep_bytes`` bounds what is kept for the backward pass in place of
    computing it again. Neither changes a result beyond the rounding of a matrix product of another
    shape.
    """
    assert hidden.ndim == 2 and targets.shape == hidden.shape[:1], (hidden.shape, targets.shape)
    assert temperature > 0, temperature
    size = head.vocabulary
    if reference is not None:
        assert reference[1].vocabulary == size, "policy and reference differ in vocabulary"
        assert reference[0].shape[0] == hidden.shape[0], (reference[0].shape, hidden.shape)
        reference = (reference[0].to(reference[1].weight.dtype), reference[1])
    hidden = hidden.to(head.weight.dtype)  # some final norms give fp32 under a bf16 head
    rows = max(1, chunk_bytes // (size * accumulation_dtype(hidden.dtype).itemsize))
    kept = hidden.shape[0] * size * hidden.element_size() * (1 if reference is None else 2)
    only_logp = not (entropy and entropy_gradient) and reference is None
    way: Way = "none"
    if torch.is_grad_enabled() and (hidden.requires_grad or head.trains):
        if only_logp and not head.trains:
            way = "scale"
        elif kept <= keep_bytes:
            way = "residual" if only_logp else "keep"
        else:
            way = "recompute"
    job = Job(
        head.scale,
        head.softcap,
        temperature,
        rows,
        entropy,
        correct,
        square,
        reference,
        only_logp,
        way,
    )
    return TokenStats(*TokenStatsFunction.apply(hidden, head.weight, head.bias, targets, job))


def token_stats_reference(
    hidden: Tensor,
    head: LogitHead,
    targets: Tensor,
    *,
    temperature: float = 1.0,
    entropy: bool = False,
    correct: bool = False,
    square: bool = False,
    reference: tuple[Tensor, LogitHead] | None = None,
) -> TokenStats:
    """Slow twin of ``token_stats``: plain autograd over the full [M, V] logits, in fp32 or fp64."""
    logp = (_exact_logits(hidden, head) / temperature).log_softmax(-1)
    p = logp.exp()
    kl = None
    if reference is not None:
        with torch.no_grad():
            logq = (_exact_logits(*reference) / temperature).log_softmax(-1)
        kl = (logq.exp() * (logq - logp)).sum(-1)
    return TokenStats(
        logp=logp.gather(1, targets[:, None]).squeeze(1),
        entropy=-(p * logp).sum(-1) if entropy else None,
        correct=logp.argmax(-1) == targets if correct else None,
        log_square=(2 * logp.detach()).logsumexp(-1) if square else None,
        kl=kl,
    )


def _exact_logits(hidden: Tensor, head: LogitHead) -> Tensor:
    dtype = accumulation_dtype(head.weight.dtype)
    bias = None if head.bias is None else head.bias.to(dtype)
    wide = LogitHead(head.weight.to(dtype), bias, head.scale, head.softcap)
    return wide.logits(hidden.to(dtype))
