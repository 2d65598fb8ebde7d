"""The output head of a causal language model, taken apart so that logits need not be materialised.

``logits = softcap * tanh(scale * (hidden @ weight.T + bias) / softcap)``: ``scale`` and ``softcap``
are what some architectures (Cohere, Granite, Falcon-H1, Gemma 2 and 3, ...) add to the plain
projection. ``check_head`` compares the result with the model's own logits, so that an architecture
with a twist that is not known here is found before it trains on wrong numbers.

Shapes: S tokens of a text, V vocabulary, d width.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trimtab.errors import RecipeError, RunError
from trimtab.models.attention import unwrap

# Factors on the logits, by model_type. The same name multiplies in one family and divides in
# another (transformers' GraniteForCausalLM, HyperCLOVAXForCausalLM), so names alone are not enough.
_SCALES: dict[str, tuple[str, Literal["multiply", "divide"]]] = {
    "cohere": ("logit_scale", "multiply"),
    "cohere2": ("logit_scale", "multiply"),
    "cohere2_moe": ("logit_scale", "multiply"),
    "cohere_compass": ("logit_scale", "multiply"),
    "falcon_h1": ("lm_head_multiplier", "multiply"),
    "granite": ("logits_scaling", "divide"),
    "granite_swa": ("logits_scaling", "divide"),
    "granitemoe": ("logits_scaling", "divide"),
    "granitemoe_swa": ("logits_scaling", "divide"),
    "granitemoehybrid": ("logits_scaling", "divide"),
    "granitemoeshared": ("logits_scaling", "divide"),
    "hyperclovax": ("logits_scaling", "multiply"),
}
_SOFTCAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")


@dataclasses.dataclass(frozen=True, eq=False)
class LogitHead:
    """Weight [V, d], bias [V] or None, factor on the logits, and soft-cap of an output head."""

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    @classmethod
    def of(cls, model: nn.Module) -> LogitHead:
        """Read the head of a ``PreTrainedModel`` or ``PeftModel`` as it is at this moment.

        Cheap enough for every forward pass; call it again after switching or disabling adapters,
        within the context that does so. A tied head is the embedding's own parameter, so its
        gradient adds to the embedding's. A LoRA on the head gives ``W + scaling * B @ A`` [V, d],
        differentiable in A and B. Raises RecipeError for a head of an unknown kind.
        """
        module = _output_module(model)
        weight, bias = _weight_and_bias(module)
        config = _text_config(model)
        return cls(weight, bias, _scale(config), _softcap(config))

    def at_temperature(self, temperature: float) -> LogitHead:
        """The head whose logits are this one's divided by ``temperature``."""
        if temperature == 1.0:
            return self
        # softcap * tanh(scale * x / softcap) / T is the same form with both divided by T.
        softcap = None if self.softcap is None else self.softcap / temperature
        return dataclasses.replace(self, scale=self.scale / temperature, softcap=softcap)

    @property
    def vocabulary(self) -> int:
        """V, the number of logits."""
        return self.weight.shape[0]

    @property
    def trains(self) -> bool:
        """Whether the weight or the bias wants a gradient."""
        return self.weight.requires_grad or (self.bias is not None and self.bias.requires_grad)

    def raw(self, hidden: Tensor) -> Tensor:
        """Project ``hidden`` [..., d] to [..., V] in the working dtype, before scale and cap."""
        return F.linear(hidden, self.weight, self.bias)

    def logits(self, hidden: Tensor) -> Tensor:
        """Give the model's logits [..., V] in at least fp32; holds them all, for few positions."""
        logits = self.raw(hidden)
        logits = logits.to(accumulation_dtype(logits.dtype)) * self.scale
        if self.softcap is not None:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        return logits


class HeadCheck(NamedTuple):
    """Largest difference, in nats, between fused and own log-probs over ``tokens`` tokens."""

    difference: float
    tolerance: float
    tokens: int


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """Dtype of log-sum-exp and log-probs: fp64 stays, everything else is fp32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


@torch.no_grad()
def check_head(model: nn.Module, ids: Tensor) -> HeadCheck:
    """Compare fused log-probs with the model's own logits on one text ``ids`` [S], S >= 2.

    The model runs as it is (its own attention, its own head); the hidden states that reach its head
    are caught on the way. Raises RunError with the difference if the fused path computes something
    else. Tolerance: 1e-4 nats in fp32; in half precision the model rounds its logits, to steps that
    are coarse where they are large, so it is one such step at the largest (0.25 nats at 40, bf16).
    """
    from trimtab.models.logprobs import token_stats

    seen: list[Tensor] = []
    hook = _output_module(model).register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    try:
        logits = model(input_ids=ids[None], use_cache=False).logits[0]
    finally:
        hook.remove()
    hidden = seen[0].reshape(-1, seen[0].shape[-1])[: ids.numel() - 1]
    targets = ids[1:]
    fused = token_stats(hidden, LogitHead.of(model), targets).logp
    upcast = logits[:-1].to(accumulation_dtype(logits.dtype))
    own = upcast.log_softmax(-1).gather(1, targets[:, None]).squeeze(1)
    unit = torch.finfo(logits.dtype).eps
    tolerance = max(1e-4, unit * float(upcast.abs().max()))
    check = HeadCheck(float((fused - own).abs().max()), tolerance, targets.numel())
    if not check.difference <= tolerance:
        raise RunError(
            f"self-check: the logits of {type(unwrap(model)).__name__} are not its output head "
            f"applied to its last hidden state (log-probs differ by {check.difference:.3g} nats, "
            f"allowed {tolerance:.1g}); this architecture cannot be trained with trimtab yet"
        )
    return check


def _text_config(model: nn.Module) -> Any:
    return unwrap(model).config.get_text_config()


def _scale(config: Any) -> float:
    name, operation = _SCALES.get(config.model_type.removesuffix("_text"), ("", "multiply"))
    value = getattr(config, name, None) if name else None
    if value is None:
        return 1.0
    return float(value) if operation == "multiply" else 1.0 / float(value)


def _softcap(config: Any) -> float | None:
    for name in _SOFTCAPS:
        if (value := getattr(config, name, None)) is not None:
            return float(value)
    return None


def _output_module(model: nn.Module) -> nn.Module:
    module = unwrap(model).get_output_embeddings()
    if not isinstance(module, nn.Module):
        raise RecipeError(
            f"model_name_or_path: {type(unwrap(model)).__name__} has no output head; "
            "give a causal language model"
        )
    return module


def _weight_and_bias(module: nn.Module) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of a plain linear map, through PEFT's wrappers as they are switched now."""
    if type(module) is nn.Linear:  # not a subclass: bitsandbytes packs 4-bit weights into one
        return module.weight, module.bias
    if hasattr(module, "modules_to_save"):  # peft.utils.ModulesToSaveWrapper
        wrapper: Any = module
        if wrapper.disable_adapters or not wrapper.active_adapters:
            return _weight_and_bias(wrapper.original_module)
        return _weight_and_bias(wrapper.modules_to_save[wrapper.active_adapters[0]])
    if hasattr(module, "lora_A"):
        return _lora_weight_and_bias(module)
    raise RecipeError(
        f"model_name_or_path: the output head is a {type(module).__name__}, "
        "which trimtab does not know; give a model whose head is a plain linear layer"
    )


def _lora_weight_and_bias(layer: Any) -> tuple[Tensor, Tensor | None]:
    """Effective weight of ``peft.tuners.lora.Linear``; [V, d] is made anew, which is the price."""
    weight, bias = _weight_and_bias(layer.base_layer)
    if layer.disable_adapters:
        return weight, bias
    for name in layer.active_adapters:
        if name not in layer.lora_A:
            continue
        dropout = getattr(layer.lora_dropout[name], "p", 0.0)
        if name in getattr(layer, "lora_variant", {}) or layer.lora_bias.get(name):
            reason = "a LoRA variant (DoRA or a bias)"
        elif layer.training and dropout:
            reason = f"dropout {dropout:g}"
        else:
            delta = layer.lora_B[name].weight @ layer.lora_A[name].weight
            weight = weight + (layer.scaling[name] * delta).to(weight.dtype)
            continue
        raise RecipeError(
            f"lora_target_modules: the output head carries {reason}, which its fused log-probs "
            "cannot express; leave the head out, or name it in lora_modules_to_save"
        )
    return weight, bias
