"""The autograd function behind ``token_stats``: products of chunks, softmax in blocks of rows.

A chunk's product is as large as memory allows, for the matrix product's sake; what follows it runs
over blocks of a few rows that stay in a core's cache from one pass to the next, in the product's
own memory where nothing else reads it.

Notation, for one token with target y: raw = h W^T + b; z = softcap(scale * raw) / temperature;
p = softmax(z); logp = log p_y; H = -sum_j p_j log p_j; q the reference's p. With respect to z_j:

    d logp     = [j = y] - p_j
    d H        = -p_j (log p_j + H)
    d KL(q||p) = p_j - q_j

Shapes: M tokens, V vocabulary, d width, C tokens of a chunk, R rows of a block.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from trimtab.models.head import LogitHead, accumulation_dtype

Way = Literal["none", "scale", "residual", "keep", "recompute"]
"""What the backward pass of ``token_stats`` finds: see ``logprobs.py``."""

BLOCK_BYTES = 2**20
"""fp32 logits that go through the softmax together: about what a core's cache holds."""


@dataclasses.dataclass(frozen=True, eq=False)
class Job:
    """All that is not differentiated: what to compute and how."""

    scale: float
    softcap: float | None
    temperature: float
    rows: int
    entropy: bool
    correct: bool
    square: bool
    reference: tuple[Tensor, LogitHead] | None
    only_logp: bool  # nothing else is differentiated
    way: Way

    def chunks(self, count: int) -> Iterator[slice]:
        """Cut ``count`` rows into chunks of nearly equal size, none over ``rows``."""
        pieces = math.ceil(count / self.rows)
        for i in range(pieces):
            yield slice(count * i // pieces, count * (i + 1) // pieces)

    def blocks(
        self, chunk: slice, products: list[Tensor], dtype: torch.dtype
    ) -> Iterator[tuple[Any, ...]]:
        """Cut a chunk into blocks: where each lies among all rows, and its rows of ``products``."""
        step = max(1, BLOCK_BYTES // (products[0].shape[1] * dtype.itemsize))
        if products[0].device.type != "cpu":  # there a block is launches, and no cache to stay in
            step = max(1, chunk.stop - chunk.start)
        for start in range(chunk.start, chunk.stop, step):
            stop = min(start + step, chunk.stop)
            within = slice(start - chunk.start, stop - chunk.start)
            yield slice(start, stop), *(product[within] for product in products)


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

    def make(self, chunk: slice) -> Tensor:
        """Measure a chunk and give its product."""
        self.measure(chunk)
        return self.product(chunk)

    def product(self, chunk: slice) -> Tensor:
        """[C, V] in the working dtype: logits, or, with ``exact``, less that and without bias."""
        if self.exact is None:
            return self.head.raw(self.hidden[chunk])
        # Subtracted in the fp32 accumulators of the product, before the result is rounded.
        shift = self.exact[chunk, None].to(self.head.weight.dtype)
        return torch.addmm(-shift, self.hidden[chunk], self.head.weight.T)

    def final_logits(
        self, product: Tensor, chunk: slice, temperature: float, *, scratch: bool
    ) -> Tensor:
        """[C, V] final logits over ``temperature``, up to a constant by row.

        A fresh tensor, or, where ``scratch`` allows it, ``product`` itself.
        """
        z = product.to(self.dtype, copy=not scratch)
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


class TokenStatsFunction(torch.autograd.Function):
    """Outputs (logp, entropy, correct, log_square, kl), None where not asked."""

    @staticmethod
    def forward(  # noqa: D102
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, job: Job
    ) -> tuple[Tensor | None, ...]:
        policy = _Side(hidden, LogitHead(weight, bias, job.scale, job.softcap), targets)
        other = None if job.reference is None else _Side(*job.reference, targets)
        logp, lse = hidden.new_empty(2, hidden.shape[0], dtype=policy.dtype).unbind()
        found = _Found(
            logp,
            lse,
            entropy=torch.empty_like(logp) if job.entropy else None,
            correct=torch.empty_like(targets, dtype=torch.bool) if job.correct else None,
            square=torch.empty_like(logp) if job.square else None,
            kl=torch.empty_like(logp) if other is not None else None,
        )
        unit_gradient = torch.empty_like(hidden) if job.way == "scale" else None
        leaves = job.way in ("scale", "residual")
        kept: list[Tensor] = []
        for chunk in job.chunks(hidden.shape[0]):
            products = [side.make(chunk) for side in (policy, other) if side is not None]
            if job.way in ("residual", "keep"):
                kept += products
            for block, *rows in job.blocks(chunk, products, policy.dtype):
                _read(policy, rows[0], block, job, found, other, *rows[1:], residual=leaves)
            if unit_gradient is not None:
                torch.mm(products[0], weight, out=unit_gradient[chunk])
        ctx.job = job
        ctx.set_materialize_grads(False)
        entropy, correct = found.entropy, found.correct
        plain = (correct, found.square, entropy if job.only_logp else None)
        ctx.mark_non_differentiable(*(x for x in plain if x is not None))
        if job.way == "scale":
            ctx.save_for_backward(unit_gradient)
        elif job.only_logp:
            ctx.save_for_backward(hidden, weight, bias, targets, policy.exact, *kept)
        elif job.way != "none":
            exact = (policy.exact, None if other is None else other.exact)
            ctx.save_for_backward(hidden, weight, bias, targets, *exact, lse, entropy, *kept)
        return logp, entropy, correct, found.square, found.kl

    @staticmethod
    @once_differentiable
    def backward(  # noqa: D102
        ctx: Any, *gradients: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        of_logp, of_entropy, _, _, of_kl = gradients
        job: Job = ctx.job
        if of_logp is None and of_entropy is None and of_kl is None:
            return None, None, None, None, None
        if job.way == "scale":
            (unit_gradient,) = ctx.saved_tensors
            assert of_logp is not None
            scaled = (unit_gradient * of_logp[:, None]).to(unit_gradient.dtype)
            return scaled, None, None, None, None
        if job.only_logp:
            return *_differentiate_logp(ctx, job, of_logp), None, None
        return *_differentiate_again(ctx, job, of_logp, of_entropy, of_kl), None, None


@dataclasses.dataclass(frozen=True, eq=False)
class _Found:
    """Results [M], filled in block by block; None for what was not asked."""

    logp: Tensor
    lse: Tensor
    entropy: Tensor | None = None
    correct: Tensor | None = None
    square: Tensor | None = None
    kl: Tensor | None = None


def _read(
    side: _Side,
    rows: Tensor,
    block: slice,
    job: Job,
    found: _Found,
    other: _Side | None = None,
    other_rows: Tensor | None = None,
    *,
    residual: bool,
) -> None:
    """Turn a block's products ``rows`` [R, V] into results, and into U where that is asked for."""
    target = side.targets[block, None]
    z = side.final_logits(rows, block, job.temperature, scratch=job.way != "keep")
    slope = _slope(z, job) if residual else 1.0  # before z is shifted
    peak = z.amax(-1, keepdim=True)
    at_target = z.gather(1, target) - peak
    z.sub_(peak)
    if found.correct is not None:
        found.correct[block] = z.argmax(-1) == target.squeeze(1)
    # Once z is not read any more, its memory takes the exponentials.
    p = z.exp() if found.entropy is not None or found.kl is not None else z.exp_()
    total = p.sum(-1, keepdim=True)
    log_total = total.log()
    found.logp[block] = (at_target - log_total).squeeze(1)
    found.lse[block] = (peak + log_total).squeeze(1)
    if found.entropy is not None:
        found.entropy[block] = (log_total - (p * z).sum(-1, keepdim=True) / total).squeeze(1)
    if found.square is not None:
        found.square[block] = (p * p).sum(-1).log() - 2 * log_total.squeeze(1)
    if found.kl is not None:
        assert other is not None and other_rows is not None
        logq = other.final_logits(other_rows, block, job.temperature, scratch=job.way != "keep")
        logq = logq.log_softmax(-1)
        found.kl[block] = (logq.exp() * logq.sub_(z).add_(log_total)).sum(-1)
    if residual:
        p.mul_(-1 / total).scatter_add_(1, target, torch.ones_like(peak))
        u = _times(p, slope)
        if u.data_ptr() != rows.data_ptr():
            rows.copy_(u)


def _differentiate_logp(
    ctx: Any, job: Job, of_logp: Tensor | None
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Backward pass where only ``logp`` is differentiated: from U, kept or made again."""
    hidden, weight, bias, targets, exact, *kept = ctx.saved_tensors
    assert of_logp is not None
    policy = _Side(hidden, LogitHead(weight, bias, job.scale, job.softcap), targets, exact)
    gradient = _Gradient(ctx.needs_input_grad[:3], hidden, weight, bias)
    unread = _Found(torch.empty_like(of_logp), torch.empty_like(of_logp))
    chunks = list(job.chunks(targets.shape[0]))
    for number, chunk in enumerate(chunks):
        if kept:
            residual = kept[number]
        else:
            residual = policy.product(chunk)
            for block, rows in job.blocks(chunk, [residual], policy.dtype):
                _read(policy, rows, block, job, unread, residual=True)
        gradient.add(chunk, residual, of_logp[chunk, None], only=len(chunks) == 1)
    return gradient.finish()


def _differentiate_again(
    ctx: Any,
    job: Job,
    of_logp: Tensor | None,
    of_entropy: Tensor | None,
    of_kl: Tensor | None,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Backward pass of the ways ``keep`` and ``recompute``: from the products, by hand."""
    hidden, weight, bias, targets, exact, other_exact, lse, entropy, *kept = ctx.saved_tensors
    policy = _Side(hidden, LogitHead(weight, bias, job.scale, job.softcap), targets, exact)
    other = None if job.reference is None else _Side(*job.reference, targets, other_exact)
    gradient = _Gradient(ctx.needs_input_grad[:3], hidden, weight, bias)
    chunks = list(job.chunks(targets.shape[0]))
    scratch = job.way == "recompute"
    for chunk in chunks:
        sides = [side for side in (policy, other) if side is not None]
        products = [side.product(chunk) if scratch else kept.pop(0) for side in sides]
        of_raw = products[0] if scratch else torch.empty_like(products[0])
        for block, out, *rows in job.blocks(chunk, [of_raw, *products], policy.dtype):
            z = policy.final_logits(rows[0], block, job.temperature, scratch=scratch)
            slope = _slope(z, job)
            of_z = _gradient_of_logits(
                z.sub_(lse[block, None]),
                targets[block, None],
                _column(of_logp, block),
                _column(of_entropy, block),
                _column(entropy, block),
            )
            if other is not None and of_kl is not None:  # d KL = p - q; z holds log p
                logq = other.final_logits(rows[1], block, job.temperature, scratch=scratch)
                q = logq.softmax(-1)
                of_z += of_kl[block, None] * (z.exp_() - q)
            out.copy_(_times(of_z, slope))
        gradient.add(chunk, of_raw, None, only=len(chunks) == 1)
    return gradient.finish()


def _column(vector: Tensor | None, chunk: slice) -> Tensor | None:
    return None if vector is None else vector[chunk, None]


def _slope(z: Tensor, job: Job) -> Tensor | float:
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

    def __init__(
        self, needed: tuple[bool, bool, bool], hidden: Tensor, weight: Tensor, bias: Tensor | None
    ) -> None:
        self.hidden, self.weight = hidden, weight
        self.dtype = accumulation_dtype(weight.dtype)
        self.wants_weight, self.wants_bias = needed[1], needed[2] and bias is not None
        self.of_hidden = torch.zeros_like(hidden) if needed[0] else None
        self.of_weight: Tensor | None = None
        self.of_bias = torch.zeros_like(weight[:, 0], dtype=self.dtype)

    def add(self, chunk: slice, of_raw: Tensor, coefficient: Tensor | None, *, only: bool) -> None:
        """Add a chunk whose products have the gradient ``coefficient`` [C, 1] * ``of_raw`` [C, V].

        The coefficient goes to the small side of each product; None is 1. With one chunk
        (``only``) the product needs no fp32 sum.
        """
        hidden = self.hidden[chunk]
        if coefficient is not None:
            hidden = (hidden * coefficient).to(hidden.dtype)
        if self.wants_bias:
            wide = of_raw.to(self.dtype)
            self.of_bias += wide.sum(0) if coefficient is None else wide.T @ coefficient[:, 0]
        if self.of_hidden is not None:
            torch.mm(of_raw, self.weight, out=self.of_hidden[chunk])
            if coefficient is not None:
                self.of_hidden[chunk] *= coefficient
        if not self.wants_weight:
            return
        if only:
            self.of_weight = of_raw.T @ hidden
            return
        if self.of_weight is None:
            self.of_weight = torch.zeros_like(self.weight, dtype=self.dtype)
        if self.dtype == self.weight.dtype:
            self.of_weight.addmm_(of_raw.T, hidden)
        else:
            self.of_weight += of_raw.T @ hidden

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
