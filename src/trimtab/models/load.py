"""Loading: a folder, a run folder, an adapter folder or a hub id to a model and its tokenizer.

Whatever transformers would repair in silence is an error here: weights that the folder lacks (they
would be drawn at random), weights of another shape, pickled weights. Dropout is off: with it the
log-ratio of a policy to itself would not be zero.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trimtab.errors import RecipeError
from trimtab.models.build import cast_weights, model_from_config
from trimtab.models.fingerprint import fingerprint
from trimtab.models.hub import ModelSource, is_scored, locate, quiet, read_json

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = [
    "ModelSource",
    "base_of",
    "cast_weights",
    "checkpoint_activations",
    "disable_dropout",
    "fingerprint",
    "generation_config",
    "load_model",
    "load_tokenizer",
    "locate",
    "model_from_config",
]

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json")
_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json", "adapter_model.bin")


def load_tokenizer(
    path: str | Path | ModelSource,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    key: str = "tokenizer_name_or_path",
) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model as it is: no token is added, none stands in for a missing one.

    An adapter folder without a tokenizer has its base model's. Raises RecipeError, naming ``key``.
    """
    source = _found(path, revision, key, trust_remote_code)
    if not any((source.folder / name).is_file() for name in _TOKENIZER_FILES):
        if source.kind == "adapter":
            base = base_of(source, key)
            return load_tokenizer(base, trust_remote_code=trust_remote_code, key=key)
        raise RecipeError(
            f"{key}={source.name!r}: no tokenizer in {source.folder}; set tokenizer_name_or_path"
        )
    quiet()
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(
            source.folder, trust_remote_code=trust_remote_code, local_files_only=True
        )
    except Exception as error:  # the Rust tokenizer raises bare Exceptions
        raise RecipeError(_line(key, source, error, "the tokenizer could not be read")) from error


def load_model(
    path: str | Path | ModelSource,
    *,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    revision: str | None = None,
    trust_remote_code: bool = False,
    key: str = "model_name_or_path",
) -> PreTrainedModel | Any:
    """Load a causal language model in evaluation mode, without dropout, every weight accounted for.

    Returns a ``PeftModel`` with one frozen adapter, "default", for an adapter folder (``lora.py``
    makes it trainable), a ``PreTrainedModel`` otherwise. ``dtype`` None keeps the folder's. A
    ``ModelSource`` of ``locate`` saves looking twice. Raises RecipeError, naming ``key``.
    """
    source = _found(path, revision, key, trust_remote_code)
    if is_scored(source):  # with tied embeddings transformers would make a language model of it
        raise RecipeError(
            f"{key}={source.name!r}: it has scores and no language model's head; give a language "
            "model"
        )
    if source.kind == "adapter":
        base = load_model(
            base_of(source, key),
            dtype=dtype,
            device=device,
            trust_remote_code=trust_remote_code,
            key=key,
        )
        return with_adapter(base, source, key)
    quiet()
    from transformers import AutoModelForCausalLM

    model = from_pretrained(AutoModelForCausalLM, source, dtype, trust_remote_code, key)
    disable_dropout(model)
    return model.to(device).eval()


def from_pretrained(
    auto: Any,
    source: ModelSource,
    dtype: torch.dtype | None,
    trust_remote_code: bool,
    key: str,
) -> Any:
    """A whole model by one of transformers' auto classes; missing weights are a RecipeError."""
    _refuse_pickles(source, key)
    try:
        loaded: Any = auto.from_pretrained(
            source.folder,
            dtype="auto" if dtype is None else dtype,
            trust_remote_code=trust_remote_code,
            local_files_only=True,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # refused below, with their names
            output_loading_info=True,
        )
    except Exception as error:  # safetensors, configuration and remote-code errors have no base
        raise RecipeError(_line(key, source, error, "the model could not be loaded")) from error
    model, info = loaded
    for problem in ("missing_keys", "mismatched_keys"):
        if names := sorted(str(n if isinstance(n, str) else n[0]) for n in info[problem]):
            raise RecipeError(
                f"{key}={source.name!r}: {len(names)} weights of {type(model).__name__} are "
                f"{problem.removesuffix('_keys')} in it ({', '.join(names[:3])}); "
                f"it is incomplete, or no model for {auto.__name__}"
            )
    model.config._name_or_path = model.name_or_path = source.name
    return model


def disable_dropout(model: nn.Module) -> None:
    """Turn every dropout of a model off, whatever the mode; its config keeps its numbers.

    Modules keep rates in ``nn.Dropout`` or as plain numbers (``attention_dropout``, ``dropout``).
    What reads the config at run time is caught too: the numbers there become 0, and ``save.py``
    writes the original ones.
    """
    from torch import nn

    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        for name, value in vars(module).items():
            if _is_rate(name, value):
                setattr(module, name, 0.0)
    config: Any = getattr(model, "config", None)
    if config is None:
        return
    original = {k: v for k, v in vars(config).items() if _is_rate(k, v) and v}
    for name in original:
        setattr(config, name, 0.0)
    kept: Any = model
    kept._trimtab_dropout = {**original, **getattr(model, "_trimtab_dropout", {})}


def checkpoint_activations(model: nn.Module) -> None:
    """Recompute each layer's activations in the backward pass; takes effect in training mode.

    Non-reentrant, so that frozen embeddings under adapters do not cut the graph (PEFT#1142: with
    the reentrant kind LoRA got no gradient at all).
    """
    from trimtab.models.attention import unwrap

    inner = unwrap(model)
    if not getattr(inner, "supports_gradient_checkpointing", False):
        raise RecipeError(
            f"gradient_checkpointing=true: {type(inner).__name__} does not support it; set it false"
        )
    options = {"use_reentrant": False}
    if hasattr(inner, "activation_checkpointing_enable"):  # its name in later transformers 5
        inner.activation_checkpointing_enable(activation_checkpointing_kwargs=options)
    else:
        inner.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)


def _is_rate(name: str, value: Any) -> bool:
    rate = "dropout" in name or name.endswith(("pdrop", "_drop", "layerdrop"))
    return rate and isinstance(value, (int, float)) and not isinstance(value, bool)


def _found(
    path: str | Path | ModelSource, revision: str | None, key: str, code: bool
) -> ModelSource:
    if isinstance(path, ModelSource):
        return path
    return locate(path, revision=revision, key=key, code=code)


def base_of(source: ModelSource, key: str = "model_name_or_path") -> ModelSource:
    """Find the whole model under an adapter: as written in it, beside it, on the hub.

    A whole model is its own base. Where config.json and generation_config.json are wanted, this
    is the folder that has them.
    """
    if source.kind == "model":
        return source
    settings = read_json(source.folder / "adapter_config.json")
    name = settings.get("base_model_name_or_path")
    if not name:
        raise RecipeError(
            f"{key}={source.name!r}: its adapter_config.json names no base model; "
            "set base_model_name_or_path in it"
        )
    for candidate in (Path(name).expanduser(), source.folder / name):
        if candidate.is_dir():
            found = locate(candidate, key=key)
            return found._replace(name=name)
    try:
        return locate(name, revision=settings.get("revision"), key=key)
    except RecipeError as error:
        problem = str(error).removeprefix(f"{key}={name!r}: ")
        raise RecipeError(f"{key}={source.name!r}: base model {name!r}: {problem}") from None


def generation_config(source: ModelSource, key: str = "model_name_or_path") -> Any:
    """The ``GenerationConfig`` of a model's folder (an adapter's base), None where it has none."""
    folder = base_of(source, key).folder
    if not (folder / "generation_config.json").is_file():
        return None
    quiet()
    from transformers import GenerationConfig

    return GenerationConfig.from_pretrained(folder)


def _refuse_pickles(source: ModelSource, key: str) -> None:
    if any(source.folder.glob("*.safetensors")):
        return
    if found := [name for name in _PICKLES if (source.folder / name).exists()]:
        raise RecipeError(
            f"{key}={source.name!r}: its weights are pickled ({found[0]}), which can run code; "
            "save it as safetensors first"
        )
    raise RecipeError(f"{key}={source.name!r}: no .safetensors file in {source.folder}")


def with_adapter(base: PreTrainedModel, source: ModelSource, key: str) -> Any:
    """Put an adapter on its base, frozen; every tensor of the file and of the model must match."""
    from peft import PeftModel
    from safetensors import safe_open

    from trimtab.models.save import adapter_tensors

    _refuse_pickles(source, key)
    if getattr(base, "peft_config", None):
        raise RecipeError(
            f"{key}={source.name!r}: its base is an adapter itself; merge that one first"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what they are about is checked below
            model = PeftModel.from_pretrained(
                base, source.folder, autocast_adapter_dtype=False, local_files_only=True
            )
        with safe_open(source.folder / "adapter_model.safetensors", "pt") as file:
            found = set(file.keys())
    except Exception as error:  # PEFT has no base class of errors
        raise RecipeError(_line(key, source, error, "the adapter could not be loaded")) from error
    wanted = set(adapter_tensors(model))
    # PEFT may have added whole embeddings of the base to the file; those are no left-overs.
    for problem, names in (
        ("missing in", wanted - found),
        ("unknown to its base model in", found - wanted - set(model.state_dict())),
    ):
        if names:
            raise RecipeError(
                f"{key}={source.name!r}: {len(names)} tensors are {problem} its "
                f"adapter_model.safetensors ({min(names)}); is its base model another one?"
            )
    cast_weights(model, base.dtype)
    disable_dropout(model)
    return model.eval()


def _line(key: str, source: ModelSource, error: Exception, what: str) -> str:
    """One line for an error of another library, cut where it gets long."""
    text = " ".join(str(error).split())
    if "trust_remote_code" in text:
        return (
            f"{key}={source.name!r}: its architecture is Python code in its folder; "
            "set trust_remote_code=true if you trust it"
        )
    text = text if len(text) <= 300 else text[:297] + "..."
    return f"{key}={source.name!r}: {what}: {type(error).__name__}: {text}"
