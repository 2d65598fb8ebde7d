"""Log-probs of tokens from hidden states, chunk by chunk: [tokens, vocabulary] is never held.

The rows are cut into chunks whose fp32 logits fit ``chunk_bytes``. A chunk's matrix product is in
the working dtype (bf16 stays bf16), everything after it in at least fp32. A bf16 product of 40 is
rounded to steps of 0.25 nats, so in half precision the target's own logit, computed in fp32, is
subtracted *within* the product, before it is rounded: what is left is small where p is large, and
log-probs are then right to about 0.002 of themselves (softmax does not see the shift).

For the backward pass one of three ways is taken, and all of them give the same gradient:

    scale      head frozen, only ``logp`` asked: (onehot - p) @ W is made in the forward pass and
               multiplied by the coefficient of each token in the backward pass; 2 products
    keep       the products of all chunks fit ``keep_bytes``: they are kept; 3 products (2 frozen)
    recompute  otherwise they are made again; 4 products (3 frozen)

Notation, for one token with target y: raw = h W^T + b; z = softcap(scale * raw) / temperature;
p = softmax(z); logp = log p_y; H = -sum_j p_j log p_j; q the reference's p. With respect to z_j:

    d logp     = [j = y] - p_j
    d H        = -p_j (log p_j + H)
    d KL(q||p) = p_j - q_j

Shapes: M tokens, V vocabulary, d width, C tokens of a chunk.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from trimtab.models.head import (
    HeadCheck,
    LogitHead,
    accumulation_dtype,
    check_head,
)

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
    correct     bool, whether the target is the likeliest token
    log_square  log of the sum of squared probabilities (WPO, arXiv:2406.11827), no gradient
    kl          KL(reference || policy) over the whole vocabulary in nats (TDPO, arXiv:2404.11999),
                with gradient into the policy
    """

    logp: Tensor
    entropy: Tensor | None = None
    correct: Tensor | None = None
    log_square: Tensor | None = None
    kl: Tensor | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class _Job:
    """All that is not differentiated: what to compute and how."""

    scale: float
    softcap: float | None
    temperature: float
    rows: int
    entropy: bool
    correct: bool
    square: bool
    reference: tuple[Tensor, LogitHead] | None
    way: Literal["none", "scale", "keep", "recompute"]

    def chunks(self, count: int) -> Iterator[slice]:
        """Cut ``count`` rows into chunks of nearly equal size, none over ``rows``."""
        pieces = math.ceil(count / self.rows)
        for i in range(pieces):
            yield slice(count * i // pieces, count * (i + 1) // pieces)


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
    way = "none"
    if torch.is_grad_enabled() and (hidden.requires_grad or head.trains):
        if not head.trains and not (entropy and entropy_gradient) and reference is None:
            way = "scale"
        else:
            way = "keep" if kept <= keep_bytes else "recompute"
    job = _Job(
        head.scale, head.softcap, temperature, rows, entropy, correct, square, reference, way
    )
    return TokenStats(*_TokenStats.apply(hidden, head.weight, head.bias, targets, job))


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


class _Side:
    """Policy or reference: makes the products of a chunk and turns them into final logits.

    ``exact`` [M] holds, for half precision, the targets' own products in fp32.
    """

    def __init__(
        self, hidden: Tensor, head: LogitHead, targets: Tensor, exact: Tensor | None = None
    ) -> None:
        self.hidden, self.head, self.targets = hidden, head, targets
        self.dtype = accumulation_dtype(head.weight.dtype)
        if exact is None and head.weight.dtype.itemsize < self.dtype.itemsize:
            exact = hidden.new_empty(hidden.shape[0], dtype=self.dtype)
        self.exact = exact

    def measure(self, chunk: slice) -> None:
        """Fill in ``exact`` for a chunk, where it is wanted."""
        if self.exact is not None:
            rows = self.head.weight[self.targets[chunk]].to(self.dtype)
            self.exact[chunk] = (self.hidden[chunk].to(self.dtype) * rows).sum(-1)

    def product(self, chunk: slice) -> Tensor:
        """[C, V] in the working dtype: logits, or, with ``exact``, less that and without bias."""
        if self.exact is None:
            return self.head.raw(self.hidden[chunk])
        # Subtracted in the fp32 accumulators of the product, before the result is rounded.
        shift = self.exact[chunk, None].to(self.head.weight.dtype)
        return torch.addmm(-shift, self.hidden[chunk], self.head.weight.T)

    def final_logits(self, product: Tensor, chunk: slice, temperature: float) -> Tensor:
        """[C, V] final logits over ``temperature``, up to a constant by row; a fresh tensor."""
        z = product.to(self.dtype, copy=True)
        softcap, scale = self.head.softcap, self.head.scale
        if self.exact is not None:
            exact = self.exact[chunk, None]
            shift = exact.to(product.dtype).to(self.dtype)  # as it was when it was subtracted
            z.scatter_(1, self.targets[chunk, None], exact - shift)
            if self.head.bias is not None:
                z += self.head.bias
            if softcap is not None:  # the cap does see a shift
                z += shift
        if softcap is None:
            return z if scale == temperature else z.mul_(scale / temperature)
        return z.mul_(scale / softcap).tanh_().mul_(softcap / temperature)


class _TokenStats(torch.autograd.Function):
    """Outputs (logp, entropy, correct, log_square, kl), None where not asked."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, job: _Job
    ) -> tuple[Tensor | None, ...]:
        policy = _Side(hidden, LogitHead(weight, bias, job.scale, job.softcap), targets)
        other = None if job.reference is None else _Side(*job.reference, targets)
        count = hidden.shape[0]
        logp, lse = hidden.new_empty(2, count, dtype=policy.dtype).unbind()
        entropy = torch.empty_like(logp) if job.entropy else None
        correct = torch.empty_like(targets, dtype=torch.bool) if job.correct else None
        square = torch.empty_like(logp) if job.square else None
        kl = torch.empty_like(logp) if other is not None else None
        unit_gradient = torch.empty_like(hidden) if job.way == "scale" else None
        kept: list[Tensor] = []
        for chunk in job.chunks(count):
            target = targets[chunk, None]
            z = _logits_of(policy, chunk, job, kept)
            slope = _slope(z, job) if job.way == "scale" else 1.0  # before z is shifted
            peak = z.amax(-1, keepdim=True)
            z.sub_(peak)
            if correct is not None:
                correct[chunk] = z.argmax(-1) == targets[chunk]
            p = z.exp()  # not yet divided by its sum
            total = p.sum(-1, keepdim=True)
            log_total = total.log()
            logp[chunk] = (z.gather(1, target) - log_total).squeeze(1)
            lse[chunk] = (peak + log_total).squeeze(1)
            if entropy is not None:
                entropy[chunk] = (log_total - (p * z).sum(-1, keepdim=True) / total).squeeze(1)
            if kl is not None and other is not None:
                logq = _logits_of(other, chunk, job, kept).log_softmax(-1)
                kl[chunk] = (logq.exp() * logq.sub_(z).add_(log_total)).sum(-1)
            if square is not None:
                square[chunk] = (p * p).sum(-1).log() - 2 * log_total.squeeze(1)
            if unit_gradient is not None:
                unit = p.div_(-total)
                unit.scatter_add_(1, target, torch.ones_like(peak))
                unit = _times(unit, slope)
                torch.mm(unit.to(weight.dtype), weight, out=unit_gradient[chunk])
        ctx.job = job
        ctx.set_materialize_grads(False)
        plain = (correct, square, entropy if job.way == "scale" else None)
        ctx.mark_non_differentiable(*(x for x in plain if x is not None))
        if job.way == "scale":
            ctx.save_for_backward(unit_gradient)
        elif job.way != "none":
            exact = (policy.exact, None if other is None else other.exact)
            ctx.save_for_backward(hidden, weight, bias, targets, *exact, lse, entropy, *kept)
        return logp, entropy, correct, square, kl

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        of_logp, of_entropy, _, _, of_kl = gradients
        job: _Job = ctx.job
        if of_logp is None and of_entropy is None and of_kl is None:
            return None, None, None, None, None
        if job.way == "scale":
            (unit_gradient,) = ctx.saved_tensors
            assert of_logp is not None
            scaled = (unit_gradient * of_logp[:, None]).to(unit_gradient.dtype)
            return scaled, None, None, None, None
        assert job.way != "none"
        hidden, weight, bias, targets, exact, other_exact, lse, entropy, *kept = ctx.saved_tensors
        policy = _Side(hidden, LogitHead(weight, bias, job.scale, job.softcap), targets, exact)
        other = None if job.reference is None else _Side(*job.reference, targets, other_exact)
        gradient = _Gradient(ctx.needs_input_grad[:3], policy)
        chunks = list(job.chunks(targets.shape[0]))
        for chunk in chunks:
            z = _logits_again(policy, chunk, job, kept)
            slope = _slope(z, job)
            of_z = _gradient_of_logits(
                z.sub_(lse[chunk, None]),
                targets[chunk, None],
                _column(of_logp, chunk),
                _column(of_entropy, chunk),
                _column(entropy, chunk),
            )
            if other is not None:
                logq = _logits_again(other, chunk, job, kept).log_softmax(-1)
                if of_kl is not None:  # d KL = p - q; z holds log p
                    of_z += of_kl[chunk, None] * (z.exp_() - logq.exp_())
            gradient.add(chunk, _times(of_z, slope), only=len(chunks) == 1)
        return *gradient.finish(), None, None


def _logits_of(side: _Side, chunk: slice, job: _Job, kept: list[Tensor]) -> Tensor:
    """Final logits of a chunk, its product added to ``kept`` where the job keeps it."""
    side.measure(chunk)
    product = side.product(chunk)
    if job.way == "keep":
        kept.append(product)
    return side.final_logits(product, chunk, job.temperature)


def _logits_again(side: _Side, chunk: slice, job: _Job, kept: list[Tensor]) -> Tensor:
    """Those of ``_logits_of`` once more, in the same order: from ``kept``, or made again."""
    product = kept.pop(0) if job.way == "keep" else side.product(chunk)
    return side.final_logits(product, chunk, job.temperature)


def _column(vector: Tensor | None, chunk: slice) -> Tensor | None:
    return None if vector is None else vector[chunk, None]


def _slope(z: Tensor, job: _Job) -> Tensor | float:
    """Derivative of the final logits over temperature, ``z`` [C, V], by the head's product."""
    factor = job.scale / job.temperature
    if job.softcap is None:
        return factor
    return z.mul(job.temperature / job.softcap).square_().neg_().add_(1).mul_(factor)


def _times(of_z: Tensor, slope: Tensor | float) -> Tensor:
    """Multiply in place, and not at all by 1: a pass over [C, V] less."""
    return of_z if isinstance(slope, float) and slope == 1.0 else of_z.mul_(slope)


def _gradient_of_logits(
    logprobs: Tensor,
    target: Tensor,
    of_logp: Tensor | None,
    of_entropy: Tensor | None,
    entropy: Tensor | None,
) -> Tensor:
    """Gradient [C, V] by the final logits of logp and entropy; ``target`` and ``of_*`` [C, 1]."""
    of_z = logprobs.exp()
    if of_entropy is None:
        of_z.mul_(0.0 if of_logp is None else -of_logp)
    else:
        assert entropy is not None
        coefficient = (logprobs + entropy).mul_(-of_entropy)
        of_z.mul_(coefficient if of_logp is None else coefficient.sub_(of_logp))
    if of_logp is not None:
        of_z.scatter_add_(1, target, of_logp)
    return of_z


class _Gradient:
    """Gradients of hidden, weight and bias, added up over chunks, in fp32 where they are sums."""

    def __init__(self, needed: tuple[bool, bool, bool], policy: _Side) -> None:
        self.hidden, self.weight, self.bias = policy.hidden, policy.head.weight, policy.head.bias
        self.dtype = policy.dtype
        self.wants_weight, self.wants_bias = needed[1], needed[2] and self.bias is not None
        self.of_hidden = torch.zeros_like(self.hidden) if needed[0] else None
        self.of_weight: Tensor | None = None
        self.of_bias = torch.zeros_like(self.weight[:, 0], dtype=self.dtype)

    def add(self, chunk: slice, of_raw: Tensor, *, only: bool) -> None:
        """Add what one chunk contributes; ``only`` chunk: its product needs no fp32 sum."""
        if self.wants_bias:
            self.of_bias += of_raw.sum(0)
        of_raw = of_raw.to(self.weight.dtype)
        if self.of_hidden is not None:
            torch.mm(of_raw, self.weight, out=self.of_hidden[chunk])
        if not self.wants_weight:
            return
        if only:
            self.of_weight = of_raw.T @ self.hidden[chunk]
            return
        if self.of_weight is None:
            self.of_weight = torch.zeros_like(self.weight, dtype=self.dtype)
        if self.dtype == self.weight.dtype:
            self.of_weight.addmm_(of_raw.T, self.hidden[chunk])
        else:
            self.of_weight += of_raw.T @ self.hidden[chunk]

    def finish(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Cast the sums to their parameters' dtypes, once."""
        of_weight = self.of_weight
        if self.wants_weight and of_weight is None:  # no tokens at all
            of_weight = torch.zeros_like(self.weight)
        return (
            self.of_hidden,
            None if of_weight is None else of_weight.to(self.weight.dtype),
            self.of_bias.to(self.weight.dtype) if self.wants_bias else None,
        )
