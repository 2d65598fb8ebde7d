"""Products with one weight in step after step: the weight packed once, in its kernel's order.

A product of few rows with a large weight spends about a third of its time on bringing the weight
into the order that the kernel reads (64 rows, 16,384 x 256: 8.4 ms instead of 11.5; 8 rows: 2.1
instead of 4.4). oneDNN, which PyTorch brings along on CPUs, can do that beforehand.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

PACK_BYTES = 256 << 20
"""No weight larger than this is packed: it is there a second time then."""

MULTIPLE = 128
"""Outputs of a packed product are filled up to a multiple of this."""


class PackedProduct:
    """x [M, d] -> x W^T [M, V], V filled up to a multiple of ``MULTIPLE`` with zeros."""

    def __init__(self, weight: Tensor, rows: int) -> None:
        """Pack ``weight`` [V, d] for products of about ``rows`` rows."""
        self._extra = -weight.shape[0] % MULTIPLE
        weight = weight.detach()
        self._packed = _pack(F.pad(weight, (0, 0, 0, self._extra)) if self._extra else weight, rows)

    def __call__(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """The product plus ``bias`` [V]."""
        if bias is not None:
            bias = F.pad(bias, (0, self._extra))
        return _multiply(x, self._packed, bias)


def packs(weight: Tensor) -> bool:
    """Whether a weight can be packed here, and is small enough to be."""
    size = weight.numel() * weight.element_size()
    known = weight.device.type == "cpu" and weight.dtype == torch.float32
    return known and size <= PACK_BYTES and _works()


def _pack(weight: Tensor, rows: int) -> Tensor:
    operations: Any = torch.ops.mkldnn
    return operations._reorder_linear_weight(weight.contiguous(), rows)


def _multiply(x: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    operations: Any = torch.ops.mkldnn
    return operations._linear_pointwise(x, packed, bias, "none", [], "")


@functools.cache
def _works() -> bool:
    """Whether this build has these operations, which PyTorch does not promise, and has them right.

    Inductor uses them for frozen models; where they are missing or changed, nothing is packed.
    """
    generator = torch.Generator().manual_seed(0)
    weight, bias, x = (
        torch.randn(shape, generator=generator, dtype=torch.float32)
        for shape in ((MULTIPLE + 3, 32), (MULTIPLE + 3,), (5, 32))
    )
    try:
        with torch.no_grad():
            product = PackedProduct(weight, 4)(x, bias)
            expected = F.linear(x, weight, bias)
            right = torch.allclose(product[:, : MULTIPLE + 3], expected, rtol=1e-4, atol=1e-4)
            return right and not product[:, MULTIPLE + 3 :].any()
    except (AttributeError, NotImplementedError, RuntimeError):
        return False
