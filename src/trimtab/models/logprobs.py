"""Log-probs of tokens from hidden states, chunk by chunk: [tokens, vocabulary] is never held.

The rows are cut into chunks whose fp32 logits fit ``chunk_bytes``. A chunk's matrix product is in
the working dtype (bf16 stays bf16), everything after it in at least fp32. For the backward pass
one of three ways is taken, and all of them give the same gradient:

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
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from trimtab.models.head import (
    HeadCheck,
    LogitHead,
    accumulation_dtype,
    check_head,
    model_logprobs,
)

__all__ = [
    "HeadCheck",
    "LogitHead",
    "TokenStats",
    "check_head",
    "model_logprobs",
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
    correct: bool = False,
    square: bool = False,
    reference: tuple[Tensor, LogitHead] | None = None,
    chunk_bytes: int = CHUNK_BYTES,
    keep_bytes: int = KEEP_BYTES,
) -> TokenStats:
    """Log-probs [M] of ``targets`` [M] given ``hidden`` [M, d] and, where asked, more about them.

    ``reference`` (its hidden states [M, d'] and head, neither differentiated) asks for ``kl``.
    ``temperature`` divides the final logits (after a soft-cap), of the reference too. Results are
    fp32, or fp64 for fp64 models. ``chunk_bytes`` bounds one fp32 chunk of logits, of which a few
    exist at a time; ``keep_bytes`` bounds what is kept for the backward pass in place of computing
    it again. Neither changes a result beyond the rounding of a matrix product of another shape.
    """
    assert hidden.ndim == 2 and targets.shape == hidden.shape[:1], (hidden.shape, targets.shape)
    assert temperature > 0, temperature
    size = head.vocabulary
    if reference is not None:
        assert reference[1].vocabulary == size, "policy and reference differ in vocabulary"
        assert reference[0].shape[0] == hidden.shape[0], (reference[0].shape, hidden.shape)
    hidden = hidden.to(head.weight.dtype)  # some final norms give fp32 under a bf16 head
    rows = max(1, chunk_bytes // (size * accumulation_dtype(hidden.dtype).itemsize))
    kept = hidden.shape[0] * size * hidden.element_size() * (1 if reference is None else 2)
    way = "none"
    if torch.is_grad_enabled() and (hidden.requires_grad or head.trains):
        if not head.trains and not entropy and reference is None:
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
    """Slow twin of ``token_stats``: plain autograd over the full [M, V] logits."""
    logp = (head.logits(hidden.to(head.weight.dtype)) / temperature).log_softmax(-1)
    p = logp.exp()
    kl = None
    if reference is not None:
        with torch.no_grad():
            logq = (reference[1].logits(reference[0]) / temperature).log_softmax(-1)
        kl = (logq.exp() * (logq - logp)).sum(-1)
    return TokenStats(
        logp=logp.gather(1, targets[:, None]).squeeze(1),
        entropy=-(p * logp).sum(-1) if entropy else None,
        correct=logp.argmax(-1) == targets if correct else None,
        log_square=(2 * logp.detach()).logsumexp(-1) if square else None,
        kl=kl,
    )


def _final_logits(raw: Tensor, scale: float, softcap: float | None, temperature: float) -> Tensor:
    """Turn a head's product [C, V] into its final logits over ``temperature``, a fresh tensor."""
    z = raw.to(accumulation_dtype(raw.dtype), copy=True)
    if softcap is None:
        return z if scale == temperature else z.mul_(scale / temperature)
    return z.mul_(scale / softcap).tanh_().mul_(softcap / temperature)


def _reference_logprobs(job: _Job, raw: Tensor) -> Tensor:
    """Log-probs [C, V] of the reference from its head's product."""
    assert job.reference is not None
    head = job.reference[1]
    return _final_logits(raw, head.scale, head.softcap, job.temperature).log_softmax(-1)


def _raw_of_reference(job: _Job, chunk: slice) -> Tensor:
    assert job.reference is not None
    states, head = job.reference
    return head.raw(states[chunk].to(head.weight.dtype))


class _TokenStats(torch.autograd.Function):
    """Outputs (logp, entropy, correct, log_square, kl), None where not asked."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, job: _Job
    ) -> tuple[Tensor | None, ...]:
        count, dtype = hidden.shape[0], accumulation_dtype(hidden.dtype)
        logp, lse = hidden.new_empty(2, count, dtype=dtype).unbind()
        entropy = hidden.new_empty(count, dtype=dtype) if job.entropy else None
        correct = torch.empty_like(targets, dtype=torch.bool) if job.correct else None
        square = hidden.new_empty(count, dtype=dtype) if job.square else None
        kl = hidden.new_empty(count, dtype=dtype) if job.reference is not None else None
        unit_gradient = torch.empty_like(hidden) if job.way == "scale" else None
        kept: list[Tensor] = []
        for chunk in job.chunks(count):
            target = targets[chunk, None]
            raw = torch.nn.functional.linear(hidden[chunk], weight, bias)
            z = _final_logits(raw, job.scale, job.softcap, job.temperature)
            slope = _slope(z, job) if job.way == "scale" else None  # before z is shifted
            if job.way == "keep":
                kept.append(raw)
            del raw
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
            if kl is not None:
                raw = _raw_of_reference(job, chunk)
                logq = _reference_logprobs(job, raw)
                if job.way == "keep":
                    kept.append(raw)
                del raw
                kl[chunk] = (logq.exp() * logq.sub_(z).add_(log_total)).sum(-1)
            if square is not None:
                square[chunk] = (p * p).sum(-1).log() - 2 * log_total.squeeze(1)
            if unit_gradient is not None:
                unit = p.div_(-total)
                unit.scatter_add_(1, target, torch.ones_like(peak))
                unit.mul_(cast(Any, slope))
                torch.mm(unit.to(weight.dtype), weight, out=unit_gradient[chunk])
        ctx.job = job
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*(x for x in (correct, square) if x is not None))
        if job.way == "scale":
            ctx.save_for_backward(unit_gradient)
        elif job.way != "none":
            ctx.save_for_backward(hidden, weight, bias, targets, lse, entropy, *kept)
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
        gradient = _Gradient(ctx.needs_input_grad[:3], *ctx.saved_tensors[:3])
        targets, lse, entropy, *kept = ctx.saved_tensors[3:]
        step = 1 if job.reference is None else 2
        chunks = list(job.chunks(targets.shape[0]))
        for i, chunk in enumerate(chunks):
            raw = kept[i * step] if kept else gradient.product(chunk)
            z = _final_logits(raw, job.scale, job.softcap, job.temperature)
            slope = _slope(z, job)
            of_z = _gradient_of_logits(
                z.sub_(lse[chunk, None]),
                targets[chunk, None],
                _column(of_logp, chunk),
                _column(of_entropy, chunk),
                None if entropy is None else entropy[chunk, None],
            )
            if of_kl is not None:
                raw = kept[i * step + 1] if kept else _raw_of_reference(job, chunk)
                # d KL = p - q: p is in z, which holds log-probs
                of_z += of_kl[chunk, None] * (z.exp_() - _reference_logprobs(job, raw).exp_())
            of_raw = of_z if isinstance(slope, float) and slope == 1.0 else of_z.mul_(slope)
            gradient.add(chunk, of_raw, only=len(chunks) == 1)
        return *gradient.finish(), None, None


def _column(vector: Tensor | None, chunk: slice) -> Tensor | None:
    return None if vector is None else vector[chunk, None]


def _slope(z: Tensor, job: _Job) -> Tensor | float:
    """Derivative of the final logits over temperature, ``z`` [C, V], by the head's product."""
    factor = job.scale / job.temperature
    if job.softcap is None:
        return factor
    return z.mul(job.temperature / job.softcap).square_().neg_().add_(1).mul_(factor)


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

    def __init__(
        self, needed: tuple[bool, bool, bool], hidden: Tensor, weight: Tensor, bias: Tensor | None
    ) -> None:
        self.hidden, self.weight, self.bias = hidden, weight, bias
        dtype = accumulation_dtype(weight.dtype)
        self.of_hidden = torch.zeros_like(hidden) if needed[0] else None
        self.of_weight: Tensor | None = None
        self.of_bias = torch.zeros_like(bias, dtype=dtype) if bias is not None else None
        self.wants_weight, self.wants_bias = needed[1], needed[2] and bias is not None
        self.dtype = dtype

    def product(self, chunk: slice) -> Tensor:
        """Make a chunk's product [C, V] again."""
        return torch.nn.functional.linear(self.hidden[chunk], self.weight, self.bias)

    def add(self, chunk: slice, of_raw: Tensor, *, only: bool) -> None:
        """Add what one chunk contributes; ``only`` chunk: its product needs no fp32 sum."""
        if self.wants_bias and self.of_bias is not None:
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
        of_weight, of_bias = self.of_weight, self.of_bias if self.wants_bias else None
        if self.wants_weight and of_weight is None:  # no tokens at all
            of_weight = torch.zeros_like(self.weight)
        return (
            self.of_hidden,
            None if of_weight is None else of_weight.to(self.weight.dtype),
            None if of_bias is None or self.bias is None else of_bias.to(self.bias.dtype),
        )
