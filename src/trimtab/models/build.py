"""A fresh model from a small configuration, randomly initialised from a seed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from trimtab.errors import RecipeError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

ARCHITECTURES = {
    "llama": "llama",
    "qwen3": "qwen3",
    "gemma3": "gemma3_text",
    "gpt2": "gpt2",
}
"""Our names and transformers' model types."""

_GIVEN = ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id", "dtype", "architectures")


def model_from_config(
    architecture: str,
    config: Mapping[str, Any],
    *,
    vocab_size: int,
    seed: int,
    dtype: torch.dtype,
    bos_token_id: int | None = None,
    eos_token_id: int | None = None,
    pad_token_id: int | None = None,
    key: str = "new_model",
) -> PreTrainedModel:
    """Make a model of ``ARCHITECTURES`` with transformers' names and defaults for ``config``.

    Weights are a function of the configuration and ``seed`` alone: they are drawn in fp32 on the
    CPU and then cast. Dropout is off. Raises RecipeError, naming ``key``, for an unknown family or
    key and for numbers that do not fit each other.
    """
    import torch
    from huggingface_hub.errors import StrictDataclassError
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM, GenerationConfig

    from trimtab.models.load import disable_dropout

    if architecture not in ARCHITECTURES:
        raise RecipeError(
            f"{key}.architecture={architecture!r}: unknown; use one of {', '.join(ARCHITECTURES)}"
        )
    configuration: Any = CONFIG_MAPPING[ARCHITECTURES[architecture]]
    settings = dict(config)
    _check_keys(settings, configuration, architecture, key)
    if architecture == "gemma3" and "head_dim" in settings:
        # The default, 256, is made for heads of that width: it is the divisor under the root.
        settings.setdefault("query_pre_attn_scalar", settings["head_dim"])
    ids = {
        "bos_token_id": bos_token_id,
        "eos_token_id": eos_token_id,
        "pad_token_id": pad_token_id,
    }
    try:
        made = configuration(**settings, **ids, vocab_size=vocab_size)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = AutoModelForCausalLM.from_config(made, dtype=torch.float32)
    except (StrictDataclassError, ValueError, TypeError, ZeroDivisionError) as error:
        raise RecipeError(f"{key}: {' '.join(str(error).split())}; change {key}") from None
    model.generation_config = GenerationConfig(**ids)
    disable_dropout(model)
    return cast_weights(model, dtype)


def cast_weights(model: Any, dtype: torch.dtype) -> Any:
    """Cast a model's parameters in place and leave its buffers alone; returns the model.

    ``model.to(bfloat16)`` would also round the frequencies of the rotary embedding, which
    ``from_pretrained`` keeps in fp32: the model would then differ from its own saved copy.
    """
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model


def _check_keys(settings: dict[str, Any], configuration: Any, architecture: str, key: str) -> None:
    """Refuse keys that the family does not have: transformers would take and ignore them."""
    import difflib

    known = {k for k in configuration().to_dict() if not k.startswith("_")}
    known |= set(configuration.attribute_map)
    known -= set(_GIVEN)
    for name in settings:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else "remove it"
            raise RecipeError(f"{key}.{name}: {architecture} has no such key; {hint}")
