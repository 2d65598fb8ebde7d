"""Smaller backbones out of a checkpoint: its first layers, and its widest channels.

A reward model is usually smaller than the policy that it judges. The first layers of a pretrained
model keep all they know of the text; where its width has to go down, the channels with the largest
weights stay (structured pruning by magnitude, as in arXiv:2310.06694 and arXiv:2407.14679, without
their recovery training: the reward stage is what follows).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from trimtab.errors import RecipeError
from trimtab.models.forward import backbone

WIDTHS = ("hidden_size", "intermediate_size", "num_attention_heads")


def parameter_count(model: nn.Module) -> int:
    """Weights of a model, tied ones once."""
    return sum(p.numel() for p in model.parameters())


def keep_first_layers(model: Any, count: int) -> Any:
    """Drop all layers but the first ``count``, in place (the final norm stays); the model."""
    config = model.config.get_text_config()
    holder = backbone(model)
    name, layers = _layers(holder, config.num_hidden_layers)
    if not 1 <= count <= len(layers):
        raise RecipeError(
            f"backbone.num_hidden_layers={count}: the model has {len(layers)}; choose 1 to "
            f"{len(layers)}"
        )
    setattr(holder, name, layers[:count])
    config.num_hidden_layers = count
    if getattr(config, "layer_types", None) is not None:
        config.layer_types = list(config.layer_types[:count])
    return model


def narrow(model: Any, sizes: Mapping[str, int]) -> Any:
    """A copy of a Llama-shaped model with fewer channels; ``sizes`` has some of ``WIDTHS``.

    Raises RecipeError for a size that the model cannot have, and for other shapes of model.
    """
    config = model.config
    groups = config.num_key_value_heads if hasattr(config, "num_key_value_heads") else 0
    if not groups or not _is_gated(backbone(model)):
        raise RecipeError(
            f"backbone.{next(iter(sizes))}: the widths of {type(model).__name__} cannot be cut; "
            "cut backbone.num_hidden_layers"
        )
    for name, size in sizes.items():
        if not 1 <= size <= getattr(config, name):
            raise RecipeError(
                f"backbone.{name}={size}: the model has {getattr(config, name)}; choose at most "
                "that"
            )
    heads = sizes.get("num_attention_heads", config.num_attention_heads)
    per_group = config.num_attention_heads // groups
    if heads % per_group:
        raise RecipeError(
            f"backbone.num_attention_heads={heads}: {per_group} query heads share a key head, so "
            f"it must be a multiple of {per_group}"
        )
    small = copy.deepcopy(config)
    small.head_dim = head_dim(config)
    for name, size in sizes.items():
        setattr(small, name, size)
    small.num_key_value_heads = heads // per_group
    with torch.random.fork_rng(devices=[]):
        made = type(model)._from_config(small, dtype=model.dtype)
    _Slices(model, made, per_group, head_dim(config)).copy()
    made.generation_config = model.generation_config
    kept: Any = made
    kept._trimtab_dropout = getattr(model, "_trimtab_dropout", {})
    return made.to(model.device).eval()


def head_dim(config: Any) -> int:
    """Width of an attention head."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def fit(model: Any, share: float) -> tuple[int, dict[str, int]]:
    """The number of layers and the widths whose weights are at most ``share`` of the model's.

    As many of the first layers as fit; where fewer than a third would be left, because the
    embeddings are most of the model, half of the layers and narrower ones. Weights are those that
    scores need: an output head of its own is counted in the whole, not in what is made.
    """
    config = model.config.get_text_config()
    whole = parameter_count(model)
    every = config.num_hidden_layers
    if share >= 1:
        return every, {}
    _, layers = _layers(backbone(model), every)
    each = parameter_count(layers[0])
    rest = parameter_count(backbone(model)) - parameter_count(layers)
    fitting = int((share * whole - rest) // each)
    if fitting >= max(1, every // 3):
        return min(fitting, every), {}
    depth = max(1, every // 2)
    hidden, inner = config.hidden_size, getattr(config, "intermediate_size", 0)
    for width in range(hidden - 8, 7, -8):
        ratio = width / hidden
        narrow_layer = each * ratio  # of attention and MLP alike, the heads being kept
        if rest * ratio + depth * narrow_layer <= share * whole:
            return depth, {"hidden_size": width}
    raise RecipeError(
        f"backbone.share={share:g}: a model of {whole:,} weights with hidden_size {hidden} and "
        f"intermediate_size {inner} cannot be made so small; name its sizes, or another checkpoint"
    )


def _layers(holder: Any, count: int) -> tuple[str, nn.ModuleList]:
    for name, module in holder.named_children():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return name, module
    raise RecipeError(
        f"backbone: the layers of {type(holder).__name__} are not one list; set backbone.share=1"
    )


def _is_gated(base: Any) -> bool:
    layer = base.layers[0] if isinstance(getattr(base, "layers", None), nn.ModuleList) else None
    return all(hasattr(getattr(layer, "mlp", None), n) for n in ("gate_proj", "up_proj")) and all(
        hasattr(getattr(layer, "self_attn", None), n) for n in ("q_proj", "k_proj", "o_proj")
    )


class _Slices:
    """Copies the chosen channels of ``big`` into ``small``, tensor by tensor."""

    def __init__(self, big: Any, small: Any, per_group: int, dim: int) -> None:
        self.big, self.small = big, small
        self.config: Any = small.config
        self.per_group, self.dim = per_group, dim
        self.channels = _largest(self._channel_norms(backbone(big)), self.config.hidden_size)

    def _channel_norms(self, base: Any) -> Tensor:
        """[d] how much is written into each channel of the residual stream."""
        written = [base.embed_tokens.weight.float().square().sum(0)]
        for layer in base.layers:
            written += [
                module.weight.float().square().sum(1)
                for module in (layer.self_attn.o_proj, layer.mlp.down_proj)
            ]
        return torch.stack([w / w.mean() for w in written]).sum(0)

    @torch.no_grad()
    def copy(self) -> None:
        state = dict(self.big.named_parameters())
        for name, parameter in self.small.named_parameters():
            source = state[name]
            for axis, index in enumerate(self._indices(name, source, state)):
                if index is not None:
                    source = source.index_select(axis, index.to(source.device))
            assert source.shape == parameter.shape, (name, source.shape, parameter.shape)
            parameter.copy_(source)

    def _indices(self, name: str, tensor: Tensor, state: dict[str, Any]) -> Sequence[Tensor | None]:
        """Which rows and columns of a tensor are kept; None keeps all."""
        channels = self.channels
        leaf = name.rsplit(".", 2)[-2]
        if leaf in ("embed_tokens", "lm_head", "score"):
            return [None, channels]
        prefix = name.rsplit(".", 3)[0]
        if leaf in ("gate_proj", "up_proj", "down_proj"):
            neurons = self._neurons(prefix, state)
            rows, columns = (channels, neurons) if leaf == "down_proj" else (neurons, channels)
            return [rows, columns][: tensor.ndim]
        if leaf in ("q_proj", "k_proj", "v_proj", "o_proj"):
            groups = self._groups(prefix, state)
            spread = groups if leaf in ("k_proj", "v_proj") else self._queries(groups)
            inner = (spread[:, None] * self.dim + torch.arange(self.dim)).flatten()
            rows, columns = (channels, inner) if leaf == "o_proj" else (inner, channels)
            return [rows, columns][: tensor.ndim]
        if leaf in ("q_norm", "k_norm"):
            return [None]
        return [channels]

    def _queries(self, groups: Tensor) -> Tensor:
        return (groups[:, None] * self.per_group + torch.arange(self.per_group)).flatten()

    def _neurons(self, prefix: str, state: dict[str, Any]) -> Tensor:
        gate, up, down = (
            state[f"{prefix}.mlp.{n}.weight"].float() for n in ("gate_proj", "up_proj", "down_proj")
        )
        worth = gate.norm(dim=1) * up.norm(dim=1) * down.norm(dim=0)
        return _largest(worth, self.config.intermediate_size)

    def _groups(self, prefix: str, state: dict[str, Any]) -> Tensor:
        values = state[f"{prefix}.self_attn.v_proj.weight"].float()
        worth = values.square().sum(1).view(-1, self.dim).sum(1)
        return _largest(worth, self.config.num_key_value_heads)


def _largest(worth: Tensor, count: int) -> Tensor:
    """Numbers of the ``count`` largest, in their own order; equal ones by number."""
    order = torch.argsort(worth.cpu(), descending=True, stable=True)
    return order[:count].sort().values
