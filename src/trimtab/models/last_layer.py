"""The last layer's second half only where something is read.

Of the last hidden states a loss reads those that predict a trained token, or end a branch: with a
prompt of 120 tokens before two answers of 40, two of five. Attention needs every token's key and
value; what comes after it in the *last* layer, the gated MLP and the norms, is needed only for the
rows that are read. That is two thirds of one layer.

The layer is recognised by its code (Llama's, which Mistral, Qwen and others share), and left alone
otherwise. The rows reach it as the keyword argument ``tree_rows``, so that a layer computed again
by activation checkpointing sees them too; without it the layer is its authors' own.
"""

from __future__ import annotations

import types
from typing import Any

from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from trimtab.models.fused import same_code


def _forward(
    self: Any, hidden_states: Tensor, *args: Any, tree_rows: Tensor | None = None, **kwargs: Any
) -> Tensor:
    if tree_rows is None:
        return type(self).forward(self, hidden_states, *args, **kwargs)
    assert not args, "transformers names what it hands to a layer"
    attended, _ = self.self_attn(hidden_states=self.input_layernorm(hidden_states), **kwargs)
    # One gather each, before the sum: the rest of both is not even added up.
    read = hidden_states.index_select(1, tree_rows) + attended.index_select(1, tree_rows)
    return read + self.mlp(self.post_attention_layernorm(read))


def _last_layer(model: Any) -> Any | None:
    """The last layer of a backbone whose layers are a list and end in one norm, if it is known."""
    base = getattr(model, "base_model", model)
    layers = getattr(base, "layers", None)
    if not isinstance(layers, nn.ModuleList) or not len(layers) or not hasattr(base, "norm"):
        return None
    layer = layers[-1]
    return layer if same_code(type(layer), LlamaDecoderLayer, "forward") else None


def install_last_layer(model: Any) -> None:
    """Let ``tree_rows`` work in a transformers model whose last layer is known."""
    layer = _last_layer(model)
    if layer is not None and "forward" not in vars(layer):
        layer.forward = types.MethodType(_forward, layer)


def uninstall_last_layer(model: Any) -> None:
    """Give the last layer its own forward back."""
    layer = _last_layer(model)
    if layer is not None and takes_rows(model):
        del layer.forward


def takes_rows(model: Any) -> bool:
    """Whether the model's last layer knows ``tree_rows`` now."""
    layer = _last_layer(model)
    return layer is not None and getattr(vars(layer).get("forward"), "__func__", None) is _forward
