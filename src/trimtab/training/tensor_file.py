"""safetensors files written piece by piece, through ``files``, with their hash.

The library's own ``save_file`` writes behind our back (no fault can be injected, no hash taken on
the way) and ``save`` holds the whole file in memory a second time. The format is simple: the
length of the header (8 bytes, little endian), a JSON header, the tensors' bytes.
https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from trimtab.training import files

_NAMES: dict[torch.dtype, str] = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def tensor_bytes(tensors: Mapping[str, Tensor]) -> int:
    """Bytes that the tensors' content takes in a file."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> files.Written:
    """Write tensors with their exact dtypes and bits, and fsync the file.

    Tensors on any device, with any strides. Tensors that share memory (tied weights) are written
    once under each name, by value: no reader finds one missing, and what is tied again by the
    model that loads them was equal anyway. Pass ``named_parameters`` to write tied ones once.
    """
    assert sys.byteorder == "little", "safetensors files are little endian"
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))  # aligned
    header: dict[str, object] = {}
    offset = 0
    for name in order:
        tensor = tensors[name]
        if tensor.dtype not in _NAMES or tensor.layout != torch.strided:
            raise TypeError(f"{path.name}: {name} is {tensor.dtype}, {tensor.layout}")
        end = offset + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)

    def content(sink: files.Sink) -> None:
        sink.write(len(text).to_bytes(8, "little"))
        sink.write(text)
        for name in order:  # one tensor at a time: a device's memory is copied piece by piece
            flat = tensors[name].detach().cpu().contiguous().reshape(-1)
            sink.write(flat.view(torch.uint8).numpy().data)

    return files.write_file(path, content)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, on the CPU, in memory of their own.

    Copied out of the file's mapping: a mapped file cannot be deleted on Windows, and one that is
    cut short under a mapping ends the process.
    """
    from safetensors import safe_open

    with safe_open(path, framework="pt", device="cpu") as file:
        return {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
