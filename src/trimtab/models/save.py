"""Saving: what ``from_pretrained`` and vLLM read, and the proof that it was written.

    whole model   config.json, generation_config.json, model.safetensors (shards above 5 GB)
    adapter       adapter_config.json, adapter_model.safetensors, in PEFT's format
    both          the tokenizer's files with chat_template.jinja

Files are written one by one into the folder that is given; making that atomic and durable is the
caller's part (training/checkpoint.py, training/run_folder.py).
"""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from trimtab.data.chat_tokens import fingerprint_tokenizer
from trimtab.errors import CheckpointError, RunError
from trimtab.models.attention import ATTENTION_NAME, unwrap
from trimtab.models.fingerprint import fingerprint_tensors, saved_tensors
from trimtab.models.hub import locate
from trimtab.models.score_head import head_of
from trimtab.models.scored import load_scored, save_adapter_facts, scored_shell

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ADAPTER = "default"
"""PEFT's name for the adapter that is trained and saved."""

_SHARD_SIZE = "5GB"


def save_model(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    *,
    dtype: torch.dtype | None = None,
    stop_ids: Sequence[int] = (),
) -> None:
    """Save a ``PreTrainedModel`` whole, or the adapter "default" of a ``PeftModel``.

    A model with scores (``score_head.py``) becomes a sequence-classification folder.

    ``dtype`` (None: as it is) is what the weights are cast to. ``stop_ids`` join the end tokens
    that generation stops at (a chat template's end of turn). Raises RunError if a weight is empty.
    """
    folder.mkdir(parents=True, exist_ok=True)
    scored = head_of(model) is not None
    if hasattr(model, "peft_config"):
        _save_adapter(model, folder, dtype)
        if scored:
            save_adapter_facts(model, folder)
    else:
        whole = scored_shell(model) if scored else model
        _save_whole(whole, tokenizer, folder, dtype, stop_ids)
    _save_tokenizer(tokenizer, folder)
    for file in folder.iterdir():
        if file.suffix == ".safetensors":
            file.chmod(0o644)  # safetensors makes them readable by their owner alone


def verify_saved(folder: Path, model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> None:
    """Read a saved folder back and compare it with what was saved, tensor by tensor.

    A whole model goes through ``from_pretrained``, an adapter's file is read as PEFT reads it.
    Tensors are compared by SHA-256 after the cast that the save made, and the tokenizer by its
    fingerprint. Raises CheckpointError naming the first difference.
    """
    from trimtab.errors import RecipeError
    from trimtab.models.load import load_model, load_tokenizer

    try:
        if hasattr(model, "peft_config"):
            found = load_file(folder / "adapter_model.safetensors")
            wanted = adapter_tensors(model)
        elif head_of(model) is not None:
            found = saved_tensors(load_scored(locate(folder), key="save"))
            wanted = saved_tensors(scored_shell(model))
        else:
            found = saved_tensors(load_model(folder))
            wanted = saved_tensors(model)
        again = load_tokenizer(folder)
    except (RecipeError, OSError, SafetensorError) as error:
        raise CheckpointError(f"{folder}: cannot be read back: {error}") from error
    _compare(folder, found, wanted)
    if fingerprint_tokenizer(again) != fingerprint_tokenizer(tokenizer):
        raise CheckpointError(f"{folder}: the tokenizer differs after reading it back")


@torch.no_grad()
def merge_adapter(model: Any, ids: Tensor) -> PreTrainedModel:
    """Add the adapter "default" into the weights and return the plain model.

    ``model``, a ``PeftModel``, is used up. The logits of the text ``ids`` [S] before and after are
    compared: RunError if they differ by more than rounding (1e-4 of the largest in fp32; in bf16,
    where every merged weight is rounded once more, 5e-2).
    """
    training = model.training
    before = model.eval()(input_ids=ids[None], use_cache=False).logits
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about tied weights, which is handled here
        merged = model.merge_and_unload(safe_merge=True, adapter_names=[ADAPTER])
    # modules_to_save of one end of a tied pair: the ends are two matrices from here on.
    first, last = merged.get_input_embeddings(), merged.get_output_embeddings()
    if last is not None and first.weight.data_ptr() != last.weight.data_ptr():
        merged.config.get_text_config().tie_word_embeddings = False
        merged.config.tie_word_embeddings = False
        merged.all_tied_weights_keys = {}
    after = merged(input_ids=ids[None], use_cache=False).logits
    tolerance = 5e-2 if before.dtype in (torch.bfloat16, torch.float16) else 1e-4
    difference = float((after - before).abs().max() / before.abs().max())
    if not difference <= tolerance:
        raise RunError(
            f"merge: logits changed by {difference:.2g} of the largest (allowed {tolerance:g}); "
            "keep the adapter as it is"
        )
    return merged.train(training)


def _compare(folder: Path, found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    if difference := sorted(found.keys() ^ wanted.keys()):
        side = "missing" if difference[0] in wanted else "left over"
        raise CheckpointError(f"{folder}: {difference[0]} is {side} in what was saved")
    for name in sorted(wanted):
        here, there = wanted[name], found[name]
        if there.numel() == 0:
            raise CheckpointError(f"{folder}: {name} was saved empty")
        if fingerprint_tensors({name: here.to(there.dtype)}) != fingerprint_tensors({name: there}):
            raise CheckpointError(f"{folder}: {name} differs after reading it back")


def _save_whole(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    dtype: torch.dtype | None,
    stop_ids: Sequence[int],
) -> None:
    from transformers import GenerationConfig

    own = model.generation_config
    state = _cast(model.state_dict(), dtype)
    _refuse_empty(state)
    blank = GenerationConfig() if model.can_generate() else None
    with _restored(model, generation_config=blank):
        # transformers refuses to save a generation config that it loaded with a mere warning
        model.save_pretrained(folder, state_dict=state, max_shard_size=_SHARD_SIZE)
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    for name in [key for key in settings if key.startswith("_attn_implementation")]:
        del settings[name]
    settings.pop("_name_or_path", None)
    settings |= getattr(model, "_trimtab_dropout", {})
    settings["dtype"] = str(dtype or model.dtype).removeprefix("torch.")
    if "use_cache" in settings:
        settings["use_cache"] = True  # activation checkpointing turns it off
    assert ATTENTION_NAME not in json.dumps(settings), settings
    _write_json(folder / "config.json", settings)
    generation = json.loads(own.to_json_string(use_diff=True)) if own is not None else {}
    stops = _end_ids(own, tokenizer, stop_ids)
    _write_json(
        folder / "generation_config.json",
        generation | ({"eos_token_id": stops} if stops else {}),
    )


def _end_ids(own: Any, tokenizer: Any, more: Sequence[int]) -> list[int]:
    """Every token that ends a response: the model's own, the tokenizer's, the template's."""
    known = None if own is None else own.eos_token_id
    ids = [known] if isinstance(known, int) else list(known or ())
    if tokenizer.eos_token_id is not None:
        ids.append(tokenizer.eos_token_id)
    return list(dict.fromkeys([*ids, *more]))


def _save_adapter(model: Any, folder: Path, dtype: torch.dtype | None) -> None:
    state = {k: v.contiguous() for k, v in _cast(adapter_tensors(model), dtype).items()}
    _refuse_empty(state)
    save_file(state, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = model.peft_config[ADAPTER]
    settings = {
        name: sorted(value) if isinstance(value, (set, frozenset)) else value
        for name, value in config.to_dict().items()
    }
    settings["peft_type"] = str(getattr(config.peft_type, "value", config.peft_type))
    settings["inference_mode"] = True
    if head_of(model) is not None:
        settings["task_type"] = "SEQ_CLS"  # it was trained beside the language model's own head
    settings["base_model_name_or_path"] = unwrap(model).name_or_path or None
    _write_json(folder / "adapter_config.json", settings)


def add_to_adapter(folder: Path, modules: dict[str, nn.Module]) -> None:
    """Add whole modules, which are not the adapted model's own, to an adapter that was saved.

    In PEFT's format: their tensors by name, and the names in ``modules_to_save``.
    """
    path = folder / "adapter_model.safetensors"
    state = load_file(path)
    for name, module in modules.items():
        for part, tensor in module.state_dict().items():
            state[f"base_model.model.{name}.{part}"] = tensor.detach().cpu().contiguous()
    save_file(state, path, metadata={"format": "pt"})
    path.chmod(0o644)
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    named = {*(config.get("modules_to_save") or ()), *modules}
    _write_json(folder / "adapter_config.json", config | {"modules_to_save": sorted(named)})


def adapter_tensors(model: Any) -> dict[str, Tensor]:
    """Tensors of the adapter "default" under the names of PEFT's files."""
    from peft import get_peft_model_state_dict

    # Not "auto": that asks the hub whether the vocabulary was changed. Trained embeddings are in
    # modules_to_save, which is always saved.
    return get_peft_model_state_dict(model, adapter_name=ADAPTER, save_embedding_layers=False)


def _save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    for name in ("is_local", "local_files_only", "name_or_path"):  # how it happened to be loaded
        settings.pop(name, None)
    if settings.get("tokenizer_class") == "TokenizersBackend":
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"  # its name before transformers 5
        settings.pop("backend", None)
    _write_json(path, settings)


def _cast(state: dict[str, Tensor], dtype: torch.dtype | None) -> dict[str, Tensor]:
    """Cast floating tensors, tied ones to one tensor again."""
    if dtype is None:
        return state
    made: dict[tuple[int, torch.Size, tuple[int, ...]], Tensor] = {}
    out: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if not tensor.is_floating_point():
            out[name] = tensor
            continue
        place = (tensor.data_ptr(), tensor.shape, tensor.stride())
        if place not in made:
            made[place] = tensor.detach().to(dtype)
        out[name] = made[place]
    return out


def _refuse_empty(state: dict[str, Tensor]) -> None:
    if empty := [name for name, tensor in state.items() if tensor.numel() == 0]:
        raise RunError(
            f"save: {empty[0]} is empty ({len(empty)} such weights); a sharded model must be "
            "gathered before it is saved"
        )


@contextlib.contextmanager
def _restored(model: Any, **attributes: Any) -> Iterator[None]:
    """Set attributes of a model for a while, and put back what saving changes in its config."""
    before = {name: getattr(model, name) for name in attributes}
    config = {name: getattr(model.config, name, None) for name in ("dtype", "architectures")}
    try:
        for name, value in attributes.items():
            setattr(model, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(model, name, value)
        for name, value in config.items():
            setattr(model.config, name, value)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    text = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False, default=str)
    path.write_text(text + "\n", encoding="utf-8")
