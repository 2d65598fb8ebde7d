"""Three ways to compute tree attention: dense masks on any device, rectangles, blocks on a CPU.

``masked_attention`` is the slow twin: whole runs of trees at once under a dense mask, every
device and dtype, soft-caps and sinks included. ``batched_attention`` has all runs as the rows of
one batch, for devices on which a call costs more than its arithmetic. ``block_attention`` runs a
``Program`` of ``attention_plan.py`` with PyTorch's own flash attention for CPUs, merging what a row
gets from two blocks by their log-sum-exps. All compute in at least fp32 where that costs nothing.

Shapes: query [1, H, T, D]; key and value [1, H_kv, T, D] with H a multiple of H_kv; results are
[1, T, H, D], as transformers' attention interface wants them.
"""

from __future__ import annotations

import functools
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.attention import SDPBackend, sdpa_kernel

from trimtab.data.batch import Span, TreeSpans
from trimtab.models.attention_plan import Block, Program, TreePlan

RUN_TOKENS = 512
"""Neighbouring trees share a row of a rectangle up to this many tokens."""


def dense_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    visible: Tensor | None,
    *,
    scale: float,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Attention under a mask: [B, H, Q, D] from [B, H, Q, D] and [B, H_kv, K, D].

    ``visible`` is bool or additive and broadcasts to [B, H, Q, K]; None means all. ``softcap``
    bounds the scores by ``softcap * tanh(scores / softcap)`` (Gemma 2, arXiv 2408.00118);
    ``sinks`` [H] are logits that take part in each row's softmax and give no value (gpt-oss).
    """
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    if softcap is None and sinks is None:
        with _kernels(query.device):
            return torch.nn.functional.scaled_dot_product_attention(
                query, key, value, attn_mask=visible, scale=scale
            )
    scores = (query @ key.transpose(-1, -2)) * scale
    if scores.dtype in (torch.bfloat16, torch.float16):
        scores = scores.float()
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if visible is not None and visible.dtype == torch.bool:
        # Not -inf: a row of padding that sees nothing must not become NaN.
        scores = scores.masked_fill(~visible, torch.finfo(scores.dtype).min)
    elif visible is not None:
        scores = scores + visible
    if sinks is not None:
        column = sinks.to(scores.dtype).view(1, -1, 1, 1).expand(*scores.shape[:-1], 1)
        scores = torch.cat((scores, column), dim=-1)
    weights = torch.softmax(scores, dim=-1)[..., : key.shape[-2]]
    return weights.to(value.dtype) @ value


def _kernels(device: torch.device) -> AbstractContextManager[Any]:
    """On CUDA all kernels but cuDNN's, which plans for milliseconds for every new shape."""
    if device.type != "cuda":
        return nullcontext()
    kernels = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    return sdpa_kernel(kernels)


def masked_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    plan: TreePlan,
    *,
    window: int | None,
    scale: float,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Tree attention, tree by tree under dense masks: the slow twin of the two others."""
    runs = plan.runs(0)
    lengths = [run.length for run in runs]
    queries, keys, values = (x.split(lengths, dim=2) for x in (query, key, value))
    outputs = [
        dense_attention(
            q, k, v, plan.visible(run, window), scale=scale, softcap=softcap, sinks=sinks
        ).transpose(1, 2)
        for run, q, k, v in zip(runs, queries, keys, values, strict=True)
        if run.length
    ]
    return torch.cat(outputs, dim=1)


def batched_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    plan: TreePlan,
    *,
    window: int | None,
    scale: float,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    run_tokens: int = RUN_TOKENS,
) -> Tensor:
    """Tree attention, all runs of trees at once, each a row of a batch under its mask."""
    grids, place = plan.grids(run_tokens, window)
    outputs = []
    for index, visible in grids:
        q, k, v = (
            x[0].index_select(1, index.flatten()).unflatten(1, index.shape).transpose(0, 1)
            for x in (query, key, value)
        )
        out = dense_attention(q, k, v, visible, scale=scale, softcap=softcap, sinks=sinks)
        outputs.append(out.transpose(1, 2).flatten(0, 1))
    return torch.cat(outputs).index_select(0, place)[None]


def block_attention(
    query: Tensor, key: Tensor, value: Tensor, program: Program, scale: float
) -> Tensor:
    """Tree attention by the blocks of ``program``, for CPU tensors with equal head sizes.

    Half precision is computed in fp32: the CPU kernel's bf16 backward takes 2 to 4 times as long
    for segments below some 500 tokens, is no faster above, and sums gradients in bf16.
    """
    result: Any = _BlockAttention.apply(query, key, value, program, scale)
    return result


class _BlockAttention(torch.autograd.Function):
    """All blocks in one node of the graph, with one set of buffers.

    A block's backward pass needs only the *merged* output O and log-sum-exp L of its rows: with
    P = exp(S - L), the gradient of the scores is P * (dO V^T - sum(dO * O)), which sums over the
    blocks of a row (FlashAttention, arXiv 2205.14135, algorithm 4).
    """

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, program: Program, scale: float
    ) -> Tensor:
        dtype = compute_dtype(query.dtype)
        q, k, v = query.to(dtype), key.to(dtype), value.to(dtype)
        _, heads, tokens, size = q.shape
        out = q.new_empty(1, tokens, heads, size).transpose(1, 2)
        lse = q.new_empty(1, tokens, heads).transpose(1, 2)
        for block in program.own:
            rows = slice(*block.rows)
            out[:, :, rows], lse[:, :, rows] = _forward_block(block, q, k, v, scale)
        for block in program.cross:
            rows = slice(*block.rows)
            other_out, other_lse = _forward_block(block, q, k, v, scale)
            own_out, own_lse = out[:, :, rows], lse[:, :, rows]
            share = torch.sigmoid(own_lse - other_lse)[..., None]
            out[:, :, rows] = torch.lerp(other_out, own_out, share)
            lse[:, :, rows] = torch.logaddexp(own_lse, other_lse)
        result = out.transpose(1, 2).to(query.dtype)
        ctx.save_for_backward(query, key, value, result, lse)
        ctx.program, ctx.scale = program, scale
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, result, lse = ctx.saved_tensors
        dtype = lse.dtype
        q, k, v = (x.to(dtype) for x in (query, key, value))
        out, grad = result.to(dtype).transpose(1, 2), grad.to(dtype).transpose(1, 2)
        grads = tuple(_zeros_by_token(x) for x in (q, k, v))
        for block in (*ctx.program.own, *ctx.program.cross):
            parts = _backward_block(block, grad, q, k, v, out, lse, ctx.scale)
            for total, part, span in zip(
                grads, parts, (block.rows, block.keys, block.keys), strict=True
            ):
                total[:, :, slice(*span)].add_(part)
        return (*(g.to(query.dtype) for g in grads), None, None)


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype in which the CPU kernel computes inputs of ``dtype``."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _zeros_by_token(x: Tensor) -> Tensor:
    """Zeros shaped like [1, H, T, D], laid out as [1, T, H, D] as the projections want them."""
    _, heads, tokens, size = x.shape
    return x.new_zeros(1, tokens, heads, size).transpose(1, 2)


def _forward_block(
    block: Block, q: Tensor, k: Tensor, v: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Output [1, H, rows, D] and log-sum-exp [1, H, rows] of one block."""
    rows, keys = slice(*block.rows), slice(*block.keys)
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default(
        q[:, :, rows],
        k[:, :, keys],
        v[:, :, keys],
        0.0,
        block.causal,
        attn_mask=block.mask,
        scale=scale,
    )


def _backward_block(
    block: Block,
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of one block's queries, keys and values, from the merged ``out`` and ``lse``."""
    rows, keys = slice(*block.rows), slice(*block.keys)
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default(
        grad[:, :, rows],
        q[:, :, rows],
        k[:, :, keys],
        v[:, :, keys],
        out[:, :, rows],
        lse[:, :, rows],
        0.0,
        block.causal,
        attn_mask=block.mask,
        scale=scale,
    )


@functools.cache
def block_attention_works() -> bool:
    """Whether this build of PyTorch computes blocks right: compared with the twin, once.

    The kernel is called by a private name and with fewer key heads than query heads, neither of
    which PyTorch promises; where it is missing or wrong, the twin computes everything.
    """
    spans = (TreeSpans(Span(0, 40), (Span(40, 70), Span(70, 75))),)
    depth = torch.cat((torch.arange(70), torch.arange(40, 45)))
    plan = TreePlan(spans, depth)
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float32)

    def run(blocks: bool) -> list[Tensor]:
        q, k, v = leaves = tuple(x.clone().requires_grad_() for x in inputs)
        with torch.enable_grad():
            if blocks:
                out = block_attention(q, k, v, plan.program(50, torch.float32), 0.3)
            else:
                out = masked_attention(q, k, v, plan, window=50, scale=0.3)
            return [out, *torch.autograd.grad((out * weight).sum(), leaves)]

    try:
        with torch.inference_mode(False):  # the first call may come from within one
            inputs = [draw(1, heads, 75, 8) for heads in (4, 2, 2)]
            weight = draw(1, 75, 4, 8)
            pairs = zip(run(True), run(False), strict=True)
            return all(torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in pairs)
    except (AttributeError, NotImplementedError, RuntimeError):
        return False
