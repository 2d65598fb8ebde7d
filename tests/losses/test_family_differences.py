"""The family's paired losses in fp64 against differences of a 1000-digit implementation.

Log-ratios of all sizes from 0.1 to 1e4, as in ``test_finite_differences.py``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from trimtab.losses import bind, describe

from . import wrong_family
from .oracle import value_and_gradient
from .oracle_family import PAIRS
from .support import GOLDEN, close, gradients, leaf, pair

COUNT = 12
SETTINGS = {entry["loss"]: entry["hyperparameters"] for entry in GOLDEN["pairs"]}
# Sums of terms that cancel, or a probability next to 1: an error of the size of a double's last
# digit, next to values of the order 1 (of 1e7 where a square of 1e4 nats is taken).
ATOL = 1e-13


@functools.cache
def problem(name: str, seed: int = 0) -> tuple[dict[str, Any], list[Any], Any, Any]:
    """Inputs, leaves, and the exact values [rows] and gradients [rows, 2]."""
    rng = np.random.default_rng(seed)
    n = rng.integers(1, 60, (2, COUNT))
    r = -(10 ** rng.uniform(-0.5, 2, (2, COUNT))) * n
    size = rng.choice([-1.0, 1.0], (2, COUNT)) * 10 ** rng.uniform(-1, 4, (2, COUNT))
    s = r + size
    if name in ("simpo_ratio", "alphapo"):  # of means, which are log-probs
        s = -(10 ** rng.uniform(-2, 2, (2, COUNT))) * n
    leaves = [leaf(s[0]), leaf(s[1])]
    lengths = torch.tensor(n)
    inputs = {"policy": pair(*leaves, *lengths)}
    if "reference" in describe(name).needs:
        inputs["reference"] = pair(*torch.tensor(r), *lengths)
    exact = [
        value_and_gradient(
            PAIRS[name],
            *s[:, i],
            rw=r[0, i],
            rl=r[1, i],
            nw=int(n[0, i]),
            nl=int(n[1, i]),
            h=SETTINGS[name],
        )
        for i in range(COUNT)
    ]
    return inputs, leaves, [value for value, _ in exact], [slopes for _, slopes in exact]


def agrees(loss: Callable[..., Any], name: str, rtol: float = 1e-6) -> bool:
    """Whether values and gradients are finite and exact."""
    inputs, leaves, values, slopes = problem(name)
    losses = loss(**inputs).losses
    found = torch.stack(gradients(losses, *leaves), 1)
    return (
        bool(losses.isfinite().all())
        and close(losses.detach(), values, rtol, ATOL)
        and close(found, slopes, rtol, ATOL)
    )


@pytest.mark.parametrize("name", PAIRS)
def test_values_and_gradients(name: str) -> None:
    assert agrees(bind(name, SETTINGS[name]), name)
    for what, broken in wrong_family.general(name, bind(name, SETTINGS[name])).items():
        assert not agrees(broken, name, rtol=1e-3), what
    for what, broken in wrong_family.PAIRS[name].items():
        assert not agrees(functools.partial(broken, **SETTINGS[name]), name, rtol=1e-3), what


def test_every_paired_loss_of_the_golden_table_has_a_second_implementation() -> None:
    elsewhere = {"dpo", "simpo", "orpo", "beta_dpo"}  # test_finite_differences.py
    assert SETTINGS.keys() == PAIRS.keys() | elsewhere
