"""A quicker step for Llama's family: the same arithmetic without what surrounds it.

Through transformers a step of one token a row spends about as long between the products of a small
model as in them: modules, keyword arguments, masks that nobody reads, rotations out of six
operations. Here a layer is a dozen operations on [R, d], its residual sums within the products.
Weights are the model's own tensors; a projection that is no plain linear layer (LoRA) is called as
the module that it is.

Only layers whose code is, instruction for instruction, that of Llama, Mistral, Qwen 2 or Qwen 3
are taken; for all else, and for reading prompts, the model itself is called.

Shapes: R rows, d width, H query heads and H_kv key heads of size D.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.models.llama import modeling_llama as llama
from transformers.models.mistral import modeling_mistral as mistral
from transformers.models.qwen2 import modeling_qwen2 as qwen2
from transformers.models.qwen3 import modeling_qwen3 as qwen3

from trimtab.models.attention import unwrap
from trimtab.models.forward import backbone
from trimtab.models.fused import same_code
from trimtab.rollout.attention import Crew, RowPlan
from trimtab.rollout.cache import KeyValues
from trimtab.rollout.steps import ModelSteps

_MODELS = (
    llama.LlamaModel,
    mistral.MistralModel,
    qwen2.Qwen2Model,
    qwen3.Qwen3Model,
)
_ATTENTIONS = (
    llama.LlamaAttention,
    mistral.MistralAttention,
    qwen2.Qwen2Attention,
    qwen3.Qwen3Attention,
)
_LAYERS = (llama.LlamaDecoderLayer, qwen3.Qwen3DecoderLayer)


def llama_steps(model: nn.Module) -> LlamaSteps | None:
    """The quicker steps for a model, or None where its code is another."""
    base: Any = backbone(model)
    if not _is_one_of(base, _MODELS) or not all(_is_known(layer) for layer in base.layers):
        return None
    return LlamaSteps(model)


def _is_one_of(module: nn.Module, kinds: Sequence[type]) -> bool:
    return any(same_code(type(module), kind, "forward") for kind in kinds)


def _is_known(layer: Any) -> bool:
    """Whether a decoder layer and all its parts have code that is known."""
    attention = getattr(layer, "self_attn", None)
    mlp = getattr(layer, "mlp", None)
    if not _is_one_of(layer, _LAYERS) or attention is None or mlp is None:
        return False
    if not _is_one_of(attention, _ATTENTIONS) or not _is_one_of(mlp, (llama.LlamaMLP,)):
        return False
    norms = [layer.input_layernorm, layer.post_attention_layernorm]
    norms += [getattr(attention, name) for name in ("q_norm", "k_norm") if hasattr(attention, name)]
    return all(_is_one_of(norm, (llama.LlamaRMSNorm,)) for norm in norms)


class LlamaSteps(ModelSteps):
    """Reads prompts through the model, and steps by itself."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self._base: Any = self.backbone
        self._embed = unwrap(model).get_input_embeddings()
        self._layers = [_Layer(layer) for layer in self._base.layers]
        self._norm = _norm(self._base.norm)

    def step(self, tokens: Tensor, crew: Crew, cache: KeyValues) -> Tensor:  # noqa: D102
        plan = RowPlan(cache, crew)
        hidden = self._embed(tokens)
        cos, sin = self._base.rotary_emb(hidden, position_ids=plan.depth[None])
        cos, sin = cos[0][:, None], sin[0][:, None]
        # rotate_half(x) * sin is x, rolled by half a head, times sin with its first half negated.
        half = sin.shape[-1] // 2
        sin = torch.cat((-sin[..., :half], sin[..., half:]), -1)
        for layer in self._layers:
            hidden = layer(hidden, cos, sin, plan)
        self.step_windows = plan.windows
        return self._norm(hidden)


class _Layer:
    """One decoder layer on [R, d]."""

    def __init__(self, layer: Any) -> None:
        attention = layer.self_attn
        self.size: int = attention.head_dim
        self.scaling: float = attention.scaling
        self.window = _window(attention)
        self.before, self.behind = (
            _norm(layer.input_layernorm),
            _norm(layer.post_attention_layernorm),
        )
        self.query_norm = _norm(attention.q_norm) if hasattr(attention, "q_norm") else None
        self.key_norm = _norm(attention.k_norm) if hasattr(attention, "k_norm") else None
        self.query, self.key = _product(attention.q_proj), _product(attention.k_proj)
        self.value, self.out = _product(attention.v_proj), attention.o_proj
        self.gate, self.up = _product(layer.mlp.gate_proj), _product(layer.mlp.up_proj)
        self.down = layer.mlp.down_proj
        self.activation = layer.mlp.act_fn

    def __call__(self, hidden: Tensor, cos: Tensor, sin: Tensor, plan: RowPlan) -> Tensor:
        rows = hidden.shape[0]
        x = self.before(hidden)
        query, key, value = (
            p(x).view(rows, -1, self.size) for p in (self.query, self.key, self.value)
        )
        if self.query_norm is not None and self.key_norm is not None:
            query, key = self.query_norm(query), self.key_norm(key)
        attended = plan.attend_rows(
            _rotate(query, cos, sin),
            _rotate(key, cos, sin),
            value,
            scaling=self.scaling,
            sliding_window=self.window,
        )
        hidden = _add_product(hidden, attended.view(rows, -1), self.out)
        x = self.behind(hidden)
        x = self.activation(self.gate(x)).mul_(self.up(x))
        return _add_product(hidden, x, self.down)


def _window(attention: Any) -> int | None:
    """The window that the attention's own forward hands on."""
    if same_code(type(attention), llama.LlamaAttention, "forward"):
        return None
    if same_code(type(attention), mistral.MistralAttention, "forward"):
        return getattr(attention.config, "sliding_window", None)
    return attention.sliding_window


def _norm(norm: Any) -> Callable[[Tensor], Tensor]:
    """Llama's RMSNorm as one operation; half precision as the model itself, which rounds twice."""
    weight, epsilon = norm.weight, norm.variance_epsilon
    if weight.dtype in (torch.bfloat16, torch.float16):
        return norm
    return lambda x: F.rms_norm(x, weight.shape, weight, epsilon)


def _product(module: Any) -> Callable[[Tensor], Tensor]:
    """A projection without the call of a module around it, where it is a plain one."""
    if type(module) is not nn.Linear:
        return module
    weight, bias = module.weight, module.bias
    return lambda x: F.linear(x, weight, bias)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return (x * cos).addcmul_(x.roll(x.shape[-1] // 2, -1), sin)


def _add_product(residual: Tensor, x: Tensor, module: Any) -> Tensor:
    """Residual + module(x), in place where the module is a plain product."""
    if type(module) is not nn.Linear or module.bias is not None:
        return residual + module(x)
    return residual.addmm_(x, module.weight.t())
