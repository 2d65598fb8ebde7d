"""Fingerprints of models and tokenizers: SHA-256 of what determines their numbers.

A model's is over its configuration and, tensor by tensor in the order of their names, over name,
dtype, shape and bytes. So it is the same for a live model and for the folder it was saved to or
loaded from, in one file or in shards, and does not depend on where the folder lies.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from trimtab.errors import RecipeError
from trimtab.models.hub import read_json

if TYPE_CHECKING:
    from torch import Tensor, nn

_CHUNK = 1 << 24  # bytes read at a time

# What may differ between two saves of the same model, or does not touch its numbers.
_VOLATILE = (
    *("_name_or_path", "transformers_version", "architectures", "dtype", "torch_dtype"),
    *("use_cache", "output_attentions", "output_hidden_states", "return_dict", "problem_type"),
    *("id2label", "label2id", "chunk_size_feed_forward"),
)
_ADAPTER_VOLATILE = ("base_model_name_or_path", "inference_mode", "peft_version", "revision")


class _Entry(NamedTuple):
    """Where a tensor's bytes lie in a safetensors file."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def fingerprint(source: str | Path | nn.Module) -> str:
    """Fingerprint (64 hex digits) of a model folder, an adapter folder or a live model.

    An adapter's covers the adapter alone in a folder, base and adapter in a live ``PeftModel``.
    Raises RecipeError for a folder whose files cannot be read.
    """
    if not isinstance(source, (str, Path)):
        return _of_model(source)
    folder = Path(source)
    if (folder / "adapter_config.json").is_file():
        settings = _without(read_json(folder / "adapter_config.json"), _ADAPTER_VOLATILE)
        return _combine(_sorted_lists(settings), _hash_files(folder, "adapter_model*.safetensors"))
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise RecipeError(f"{folder}: {' '.join(str(error).split())[:200]}") from None
    return _combine(_settings(config), _hash_files(folder, "model*.safetensors"))


def fingerprint_tensors(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        _announce(digest, name, _DTYPES[str(tensor.dtype)], tuple(tensor.shape))
        if tensor.numel():
            digest.update(memoryview(_bytes_of(tensor)))
    return digest.hexdigest()


def saved_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return a model's tensors by name as its folder holds them: of tied ones, one.

    Live tensors, not copies. ``model`` is a ``PreTrainedModel`` without adapters.
    """
    state = model.state_dict()
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    for name, twin in dict(tied).items():
        if name in state and twin in state and state[name].data_ptr() == state[twin].data_ptr():
            del state[name]
    return state


def _of_model(model: Any) -> str:
    if not hasattr(model, "peft_config"):
        return _combine(_settings(model.config), fingerprint_tensors(saved_tensors(model)))
    base = model.get_base_model()
    # Every tensor, adapters of every name included: a PEFT model is live only within a run.
    return _combine(_settings(base.config), fingerprint_tensors(base.state_dict()))


def _settings(config: Any) -> dict[str, Any]:
    settings = _without(config.to_dict(), _VOLATILE)
    return {
        name: value
        for name, value in settings.items()
        if not (name.startswith("_") or "dropout" in name or name.endswith("pdrop"))
    }


def _without(settings: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name not in names}


def _sorted_lists(settings: dict[str, Any]) -> dict[str, Any]:
    """PEFT keeps sets of module names, whose order in a file means nothing."""
    return {
        name: sorted(value) if isinstance(value, list) else value
        for name, value in settings.items()
    }


def _combine(settings: dict[str, Any], tensors: str) -> str:
    return hashlib.sha256(_canonical([settings, tensors]).encode()).hexdigest()


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)


def _announce(digest: Any, name: str, dtype: str, shape: tuple[int, ...]) -> None:
    digest.update(_canonical([name, dtype, list(shape)]).encode())


def _bytes_of(tensor: Tensor) -> Any:
    import torch

    return tensor.reshape(-1).view(torch.uint8).numpy()


def _hash_files(folder: Path, pattern: str) -> str:
    files = sorted(folder.glob(pattern))
    if not files:
        raise RecipeError(f"{folder}: no {pattern} file in it; give a model folder")
    entries = {name: entry for file in files for name, entry in _entries(file)}
    digest = hashlib.sha256()
    for name in sorted(entries):
        entry = entries[name]
        _announce(digest, name, entry.dtype, entry.shape)
        with entry.file.open("rb") as stream:
            stream.seek(entry.start)
            left = entry.end - entry.start
            while left:
                block = stream.read(min(left, _CHUNK))
                if not block:
                    raise RecipeError(f"{entry.file}: ends within {name}; fetch or save it again")
                digest.update(block)
                left -= len(block)
    return digest.hexdigest()


def _entries(file: Path) -> Iterator[tuple[str, _Entry]]:
    """Read the header of a safetensors file: 8 bytes of length, then JSON."""
    try:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > file.stat().st_size:
                raise ValueError("its header is longer than the file")
            header = json.loads(stream.read(length))
        for name, entry in header.items():
            if name != "__metadata__":
                start, end = (8 + length + offset for offset in entry["data_offsets"])
                yield name, _Entry(file, entry["dtype"], tuple(entry["shape"]), start, end)
    except (OSError, ValueError, struct.error, KeyError, TypeError) as error:
        raise RecipeError(f"{file}: not a safetensors file ({error}); save it again") from None


_DTYPES = {
    "torch.float64": "F64",
    "torch.float32": "F32",
    "torch.float16": "F16",
    "torch.bfloat16": "BF16",
    "torch.int64": "I64",
    "torch.int32": "I32",
    "torch.int16": "I16",
    "torch.int8": "I8",
    "torch.uint8": "U8",
    "torch.bool": "BOOL",
    "torch.float8_e4m3fn": "F8_E4M3",
    "torch.float8_e5m2": "F8_E5M2",
}
