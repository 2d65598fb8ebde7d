"""The machine's own limit: the rate of its matrix products, at the shapes of a model's layers.

    python -m benchmarks.machine JOB.json

For every dense layer the forward product and both products of the backward pass are timed with
``F.linear``'s own operands, already in the dtype. The rate over all of them, each as often as the
model has it, is what a trainer that did nothing but useful products could reach.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.measure import emit
from trimtab.plan.flops import Product, llama_shape

DTYPES = ("float32", "bfloat16")

# A product that takes longer than this is timed once: some machines have no bf16 to speak of.
SLOW_SECONDS = 0.5


def rates(
    products: list[tuple[int, Product]], dtype: Any, repeats: int, device: str
) -> dict[str, Any]:
    """GFLOP/s over all products, from each one's best and median time; ``products`` have tokens."""
    import torch
    from torch.nn.functional import linear

    work = best = median = 0.0
    for tokens, product in products:
        x = torch.randn(tokens, product.inputs).to(device, dtype)
        weight = torch.randn(product.outputs, product.inputs).to(device, dtype)
        gradient = torch.randn(tokens, product.outputs).to(device, dtype)
        # Bound as defaults: the names are taken again by the next product.
        passes: tuple[Callable[[], Any], ...] = (
            lambda x=x, w=weight: linear(x, w),
            lambda g=gradient, w=weight: g @ w,
            lambda g=gradient, x=x: g.t() @ x,
        )
        for call in passes:
            seconds = _times(call, repeats, torch.cuda.synchronize if device == "cuda" else None)
            work += 2.0 * tokens * product.weights
            best += min(seconds) * product.count
            median += statistics.median(seconds) * product.count
    return {"best_gflops": work / best / 1e9, "median_gflops": work / median / 1e9}


def _times(call: Callable[[], Any], repeats: int, wait: Callable[[], Any] | None) -> list[float]:
    found = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        call()
        if wait:
            wait()
        found.append(time.perf_counter() - start)
        if found[-1] > SLOW_SECONDS:
            return found[-1:]
    return found[1:]  # the first call chooses and compiles its kernel


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())

    import torch

    torch.set_num_threads(job["threads"])
    torch.manual_seed(0)
    shape = llama_shape(json.loads((Path(job["model"]) / "config.json").read_text()))
    products = [(job["tokens"], product) for product in shape.body]
    if shape.head.weights:
        products.append((job["targets"], shape.head))
    found = {
        name: rates(products, getattr(torch, name), job["repeats"], job["device"])
        for name in job["dtypes"]
    }
    emit({"threads": torch.get_num_threads(), "rates": found})


if __name__ == "__main__":
    main()
