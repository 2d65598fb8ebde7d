"""From hidden states to tokens: logits, one draw by inverting the distribution, log-probs.

A token is drawn by one uniform u: it is the first at which the cumulative probability exceeds u.
The sums are taken in two levels, over blocks of ``BLOCK`` tokens and within the block that is hit,
so that nothing sequential runs over the vocabulary; sums of sums are in fp64.

Shapes: M hidden states, R draws (several may come from one hidden state), V vocabulary, d width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from trimtab.errors import NumericError
from trimtab.models.head import LogitHead, accumulation_dtype
from trimtab.rollout.packed import MULTIPLE, PackedProduct, packs
from trimtab.rollout.params import SamplingParams

BLOCK = MULTIPLE
_PACK_AFTER = 4  # steps: a packed head saves in three what packing it costs
_BELOW_ONE = 1 - 2.0**-50  # a product with it is below its other factor, whatever the rounding


class Choice(NamedTuple):
    """Tokens [R] and their log-probs [R]: over the whole vocabulary, at the temperature."""

    tokens: Tensor
    logprobs: Tensor


class Chooser:
    """Chooses tokens under one way of sampling; one per call of the sampler.

    Logits are [M, V'] in fp32 (fp64 for fp64 models), V' being V rounded up to whole blocks, in a
    buffer that is kept: to allocate it in every step would cost as much as a pass over it. The
    weight of a head that is used for more than a few steps is packed (``packed.py``).
    """

    def __init__(self, params: SamplingParams) -> None:
        self.params = params
        self._temperature = 1.0 if params.greedy else params.temperature
        self._buffer: Tensor | None = None
        self._steps = 0
        self._packed: PackedProduct | None = None

    def from_hidden(
        self, hidden: Tensor, head: LogitHead, source: Tensor | None, uniforms: Tensor
    ) -> Choice:
        """Draw R tokens: one for each of ``uniforms`` [R] (fp64), from row ``source`` [R] of M.

        ``hidden`` is [M, d]; ``source`` None stands for 0 ... M - 1. The head is the same in all
        calls. Raises NumericError for logits that are no numbers.
        """
        hidden = hidden.to(head.weight.dtype)
        # Where nothing comes between the product and the temperature, it is cheaper on [M, d].
        early = 1.0 if head.softcap is not None else head.scale / self._temperature
        bias = head.bias
        if early != 1.0:
            hidden = hidden * early
            bias = None if bias is None else bias * early
        padded = self._product(hidden, head.weight, bias)
        if head.softcap is not None:
            logits = padded[:, : head.vocabulary].mul_(head.scale / head.softcap)
            logits.tanh_().mul_(head.softcap / self._temperature)
        return self._draw(padded, head.vocabulary, source, uniforms)

    def from_logits(self, logits: Tensor, uniforms: Tensor) -> Choice:
        """Draw a token from each row of ``logits`` [R, V], as a model gives them."""
        rows, size = logits.shape
        padded = self._room(logits, rows, size)
        padded[:, :size].copy_(logits).div_(self._temperature)
        return self._draw(padded, size, None, uniforms)

    def _product(self, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """[M, V'] in the buffer's dtype; what is behind V is not defined."""
        rows, size = hidden.shape[0], weight.shape[0]
        self._steps += 1
        if self._steps == _PACK_AFTER and packs(weight):
            self._packed = PackedProduct(weight, rows)
        if self._packed is not None:
            return self._packed(hidden, bias)
        padded = self._room(hidden, rows, size)
        logits = padded[:, :size]
        if logits.dtype != hidden.dtype:
            logits.copy_(F.linear(hidden, weight, bias))
        elif bias is None:
            torch.mm(hidden, weight.t(), out=logits)
        else:
            torch.addmm(bias, hidden, weight.t(), out=logits)
        return padded

    def _room(self, like: Tensor, rows: int, size: int) -> Tensor:
        if self._buffer is None or self._buffer.shape[0] < rows:
            self._buffer = like.new_zeros(
                rows, -(-size // BLOCK) * BLOCK, dtype=accumulation_dtype(like.dtype)
            )
        return self._buffer[:rows]

    def _draw(self, padded: Tensor, size: int, source: Tensor | None, uniforms: Tensor) -> Choice:
        """Choose from logits over the temperature [M, V'], which are written over."""
        logits = padded[:, :size]
        count = logits.shape[0]
        peak = logits.amax(-1, keepdim=True)
        if not bool(peak.isfinite().all()):
            raise NumericError(
                "sampling: the model's logits are not finite; its weights are damaged, or the "
                "precision is too low for it"
            )
        rows = torch.arange(count, device=logits.device) if source is None else source
        best = logits.argmax(-1)[rows] if self.params.greedy else None
        weights = logits.sub_(peak).exp_()
        padded[:, size:] = 0.0
        blocks = padded.view(count, -1, BLOCK)
        sums = blocks.sum(-1).double()
        cumulative = sums.cumsum(-1)
        if best is not None:
            tokens = best
        elif self.params.top_k or self.params.top_p < 1:
            kept = _restricted(weights[rows], self.params).double().cumsum(-1)
            tokens = _first_above(kept, uniforms * kept[:, -1])
        else:
            tokens = _invert(blocks, sums, cumulative, rows, uniforms)
        logprobs = weights[rows, tokens].log() - cumulative[rows, -1].log()
        return Choice(tokens, logprobs)


def _invert(
    blocks: Tensor, sums: Tensor, cumulative: Tensor, rows: Tensor, uniforms: Tensor
) -> Tensor:
    """First token of each row at which the cumulative weight exceeds u times the whole."""
    levels = cumulative[rows]
    target = uniforms * levels[:, -1]
    block = _first_above(levels, target)
    of_block = sums[rows, block]
    before = levels.gather(1, block[:, None]).squeeze(1) - of_block
    inside = blocks[rows, block].double().cumsum(-1)
    # As a share of the block, since its sum was rounded in another order.
    share = ((target - before) / of_block).clamp(0.0, _BELOW_ONE)
    return block * BLOCK + _first_above(inside, share * inside[:, -1])


def _first_above(levels: Tensor, target: Tensor) -> Tensor:
    """First index [R] at which ``levels`` [R, N], never falling, exceeds ``target`` [R]."""
    target = torch.minimum(target, levels[:, -1] * _BELOW_ONE)
    return torch.searchsorted(levels, target[:, None], right=True).squeeze(1)


def _restricted(weights: Tensor, params: SamplingParams) -> Tensor:
    """Weights [R, V] with those that top-k and top-p leave out set to 0.

    As transformers: of equal tokens at the k-th place all stay; the token with which the sum
    reaches p stays.
    """
    size = weights.shape[-1]
    ordered, order = weights.sort(dim=-1, descending=True, stable=True)
    if 0 < params.top_k < size:
        last = ordered[:, params.top_k - 1 : params.top_k]
        ordered = ordered.masked_fill(ordered < last, 0.0)
    if params.top_p < 1:
        wide = ordered.double()
        before = wide.cumsum(-1) - wide
        beyond = before >= params.top_p * wide.sum(-1, keepdim=True)
        beyond[:, 0] = False
        ordered = ordered.masked_fill(beyond, 0.0)
    return torch.zeros_like(weights).scatter_(-1, order, ordered)
