"""LoRA (arXiv:2106.09685) through peft, and the reference that belongs to it.

The reference of a stage is the policy as it was when the stage began. Under a fresh adapter that is
the model with the adapter switched off; where training continues an adapter (dpo after a LoRA sft),
it is a frozen copy of that adapter, kept beside it under the name "reference", never the bare base:
that error trains against the wrong model and shows in no metric (pitfall C1).
"""

from __future__ import annotations

import contextlib
import difflib
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from trimtab.errors import RecipeError
from trimtab.models.attention import unwrap
from trimtab.models.build import cast_weights
from trimtab.models.save import ADAPTER, merge_adapter

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = [
    "ADAPTER",
    "REFERENCE",
    "attach",
    "continue_adapter",
    "merge_adapter",
    "reference_context",
    "trainable_parameters",
]

REFERENCE = "reference"


def attach(
    model: PreTrainedModel,
    *,
    r: int = 16,
    alpha: float = 32.0,
    dropout: float = 0.0,
    target_modules: Literal["all-linear"] | Sequence[str] = "all-linear",
    modules_to_save: Sequence[str] = (),
    seed: int,
) -> Any:
    """Freeze a model and put a fresh adapter on it; returns a ``PeftModel``.

    The adapter changes nothing yet (B = 0), its A is drawn from ``seed``, and it has the model's
    dtype. ``target_modules``: endings of module names, or all linear layers but the output head.
    ``modules_to_save`` are trained whole and saved with the adapter. Raises RecipeError for names
    that the model does not have.
    """
    from peft import LoraConfig, get_peft_model

    assert not hasattr(model, "peft_config"), "continue_adapter is for models with an adapter"
    targets = target_modules if isinstance(target_modules, str) else list(target_modules)
    if targets == ["all-linear"]:
        targets = "all-linear"
    _check_names(model, [] if isinstance(targets, str) else targets, "lora_target_modules")
    _check_names(model, modules_to_save, "lora_modules_to_save")
    config = LoraConfig(
        r=r,
        lora_alpha=int(alpha) if alpha == int(alpha) else alpha,  # type: ignore[arg-type]
        lora_dropout=dropout,
        target_modules=targets,
        modules_to_save=list(modules_to_save) or None,
        task_type="CAUSAL_LM",
        fan_in_fan_out=any(type(m).__name__ == "Conv1D" for m in model.modules()),
    )
    with _quietly(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            wrapped = get_peft_model(model, config, autocast_adapter_dtype=False)
        except ValueError as error:
            raise RecipeError(
                f"lora_target_modules={targets!r}: {' '.join(str(error).split())}"
            ) from None
    cast_weights(wrapped, model.dtype)
    return _remember(wrapped, "base")


def continue_adapter(model: Any, *, dropout: float = 0.0) -> Any:
    """Make the adapter of a loaded ``PeftModel`` trainable, and keep a frozen copy as reference.

    The same object comes back. ``dropout`` is the rate before the adapter while it is trained.
    """
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    assert list(model.peft_config) == [ADAPTER], list(model.peft_config)
    config = model.peft_config[ADAPTER]
    config.inference_mode = False
    with _quietly(), torch.random.fork_rng(devices=[]):
        model.add_adapter(REFERENCE, config, autocast_adapter_dtype=False)
        state = get_peft_model_state_dict(model, adapter_name=ADAPTER, save_embedding_layers=False)
        result = set_peft_model_state_dict(
            model, {k: v.detach().clone() for k, v in state.items()}, adapter_name=REFERENCE
        )
    assert not result.unexpected_keys, result.unexpected_keys
    cast_weights(model, unwrap(model).dtype)
    model.set_adapter(ADAPTER)
    for name, parameter in model.named_parameters():
        if f".{REFERENCE}." in name:
            parameter.requires_grad_(False)
    for name, module in model.named_modules():
        if isinstance(module, nn.Dropout) and name.endswith(f"lora_dropout.{ADAPTER}"):
            module.p = dropout
    return _remember(model, REFERENCE)


@contextlib.contextmanager
def reference_context(model: Any) -> Iterator[None]:
    """Within it, ``model`` is the policy as it was when the stage began. Run it without gradients.

    ``model`` comes from ``attach`` or ``continue_adapter``. Which parameters train is put back on
    leaving (peft's own switches would turn it on for the adapter that was switched to).
    """
    kind = getattr(model, "_trimtab_reference", None)
    assert kind in ("base", REFERENCE), "attach or continue_adapter must have made this model"
    trained = {p: p.requires_grad for p in model.parameters()}
    try:
        if kind == "base":
            with model.disable_adapter():
                yield
        else:
            model.set_adapter(REFERENCE)
            try:
                yield
            finally:
                model.set_adapter(ADAPTER)
    finally:
        for parameter, flag in trained.items():
            parameter.requires_grad_(flag)


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters that are trained, by name, tied ones once."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def _remember(model: Any, kind: str) -> Any:
    model._trimtab_reference = kind
    return model


def _check_names(model: nn.Module, names: Sequence[str], key: str) -> None:
    """Refuse names that no module ends in: peft takes some of those and does nothing."""
    modules = [name for name, _ in model.named_modules() if name]
    for wanted in names:
        if any(name == wanted or name.endswith(f".{wanted}") for name in modules):
            continue
        ends = sorted({name.rsplit(".", 1)[-1] for name in modules if not name[-1].isdigit()})
        close = difflib.get_close_matches(wanted, ends, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"it has {', '.join(ends)}"
        raise RecipeError(f"{key}: the model has no module {wanted!r}; {hint}")


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Keep back warnings of peft's that are about transformers' names, or are handled here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.filterwarnings("ignore", message=".*tie_word_embeddings.*")
        yield
