"""Tree attention for unmodified Hugging Face models, through transformers' attention interface.

A model on which ``install`` was called computes tree attention whenever it is called with
``tree_plan=TreePlan`` (any keyword reaches the attention function), and is an ordinary causal
model otherwise: masks, padding and generation work as with ``sdpa``. So nothing has to be switched
between training and sampling; ``plain_attention`` exists for comparisons.

The name must not contain "flash": transformers takes that substring as a kernel of its own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from trimtab.models.attention_kernels import (
    batched_attention,
    block_attention,
    block_attention_works,
    compute_dtype,
    dense_attention,
    masked_attention,
)
from trimtab.models.attention_plan import LayerCall, TreePlan
from trimtab.models.fused import install_fused, uninstall_fused
from trimtab.models.last_layer import install_last_layer, uninstall_last_layer

ATTENTION_NAME = "trimtab_tree"

_KNOWN_TENSORS = frozenset({"position_ids", "cache_position", "tree_rows"})
"""Tensor arguments that do not change what attention computes once RoPE has been applied."""


def tree_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    tree_plan: TreePlan | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention function in transformers' form.

    query [B, H, T, D], key and value [B, H_kv, S, D]; returns [B, T, H, D]. With ``tree_plan``,
    B is 1, S = T, and ``attention_mask`` is not read; a plan that has ``attend`` computes by itself
    (``rollout/attention.py``). Raises ValueError on tensor arguments that it does not know (a
    position bias, say): the canary of ``forward.py`` then finds another way.
    """
    if tree_plan is None:
        if attention_mask is not None and attention_mask.numel() == 1 < query.shape[2]:
            raise ValueError("the architecture does not hand tree_plan on to its attention")
        return _plain(
            module,
            query,
            key,
            value,
            attention_mask,
            dropout=dropout,
            scaling=scaling,
            softcap=softcap,
            s_aux=s_aux,
            **kwargs,
        )
    unknown = [n for n, x in kwargs.items() if isinstance(x, Tensor) and n not in _KNOWN_TENSORS]
    if unknown:
        raise ValueError(f"tree attention does not know the argument {', '.join(unknown)}")
    assert not dropout, "attention dropout must be off: trees have no meaning for it"
    attend = getattr(tree_plan, "attend", None)
    if attend is not None:
        options = {"scaling": scaling, "sliding_window": sliding_window}
        options |= {"softcap": softcap, "s_aux": s_aux}
        return attend(module, query, key, value, **options), None
    assert query.shape[0] == 1 and query.shape[2] == key.shape[2] == tree_plan.token_count
    if tree_plan.calls is not None:
        tree_plan.calls.append(LayerCall(id(module), sliding_window))
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if softcap is None and s_aux is None and _takes_blocks(query, value):
        program = tree_plan.program(sliding_window, compute_dtype(query.dtype))
        return block_attention(query, key, value, program, scale), None
    attend_by_masks = masked_attention if query.device.type == "cpu" else batched_attention
    out = attend_by_masks(
        query,
        key,
        value,
        tree_plan,
        window=sliding_window,
        scale=scale,
        softcap=softcap,
        sinks=s_aux,
    )
    return out, None


def _takes_blocks(query: Tensor, value: Tensor) -> bool:
    return (
        query.device.type == "cpu"
        and query.shape[-1] == value.shape[-1]
        and block_attention_works()
    )


def _plain(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    dropout: float,
    scaling: float | None,
    softcap: float | None,
    s_aux: Tensor | None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention without a plan: transformers' SDPA, or dense for what that cannot do."""
    if softcap is None and s_aux is None:
        out, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
        return out, None
    assert not dropout, "attention dropout must be off"
    rows, keys = query.shape[2], key.shape[2]
    if attention_mask is None and rows > 1:
        ones = torch.ones(rows, keys, dtype=torch.bool, device=query.device)
        attention_mask = ones.tril(keys - rows)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    out = dense_attention(
        query, key, value, attention_mask, scale=scale, softcap=softcap, sinks=s_aux
    )
    return out.transpose(1, 2), None


def register() -> None:
    """Make the name known to transformers; done when this module is imported.

    The mask function is SDPA's, for calls without a plan. Calls with one pass a 4-D mask, which
    transformers hands through as it is, so that no [T, T] mask is ever built for nothing.
    """
    AttentionInterface.register(ATTENTION_NAME, tree_attention)
    AttentionMaskInterface.register(ATTENTION_NAME, sdpa_mask)


register()


def unwrap(model: nn.Module) -> Any:
    """Return the transformers model inside a PEFT wrapper, or the model itself."""
    inner: Any = getattr(model, "get_base_model", None)  # PEFT's; transformers has no such method
    return model if inner is None else inner()


def is_installed(model: nn.Module) -> bool:
    """Whether tree attention is what the model uses now."""
    return unwrap(model).config._attn_implementation == ATTENTION_NAME


def install(model: nn.Module) -> None:
    """Switch a model (PEFT-wrapped or not) to tree attention, fused parts and a short last layer.

    See ``fused.py`` and ``last_layer.py``. Does nothing the second time. Whether the architecture
    really calls tree attention is for ``forward.choose_layout`` to find out.
    """
    inner = unwrap(model)
    if not is_installed(model):
        # On the model, not in its config: that would be written to config.json.
        inner._trimtab_plain_attention = inner.config._attn_implementation
        inner.set_attn_implementation(ATTENTION_NAME)
    install_fused(inner)
    install_last_layer(inner)


def uninstall(model: nn.Module) -> None:
    """Give a model back the attention and the modules that it had before ``install``."""
    inner = unwrap(model)
    uninstall_fused(inner)
    uninstall_last_layer(inner)
    if is_installed(model):
        inner.set_attn_implementation(getattr(inner, "_trimtab_plain_attention", "eager"))


@contextlib.contextmanager
def plain_attention(model: nn.Module) -> Iterator[None]:
    """Let a model use its own attention for a while: the oracle of tests and of the canary.

    A backward pass belongs inside too where activations are checkpointed, since they are then
    computed again.
    """
    installed = is_installed(model)
    uninstall(model)
    try:
        yield
    finally:
        if installed:
            install(model)
