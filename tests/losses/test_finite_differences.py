"""Autograd in fp64 against differences of a second, 1000-digit implementation (``oracle.py``).

Sizes run over five decades, to |z| of 1e4, where doubles underflow and naive formulas overflow.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from trimtab.losses import (
    Pair,
    PairValues,
    dpo_loss,
    kto_loss,
    orpo_loss,
    plackett_luce_loss,
    simpo_loss,
    tdpo2_loss,
)

from . import oracle, wrong
from .support import F64, close, gradients, leaf, pair, ranking, responses

COUNT = 100


class Problem(NamedTuple):
    """A batch for the loss, the leaves in the oracle's order, and the oracle's constants a row."""

    inputs: dict[str, Any]
    leaves: list[Any]
    points: list[list[float]]
    constants: list[dict[str, Any]]
    oracle: Callable[..., Any]
    hyperparameters: dict[str, Any]
    # The smallest normal double; more where a gradient is a difference next to a probability of 1.
    atol: float = 1e-307


def sizes(rng: np.random.Generator, count: int = COUNT) -> Any:
    """Signed numbers of all sizes from 0.1 to 1e4."""
    return rng.choice([-1.0, 1.0], count) * 10 ** rng.uniform(-1, 4, count)


def rows(*columns: Any) -> list[list[float]]:
    return [[float(x) for x in row] for row in zip(*columns, strict=True)]


def dpo(rng: np.random.Generator) -> Problem:
    rw, rl = -(10 ** rng.uniform(0, 3, (2, COUNT)))
    sw, sl = rw + sizes(rng), rl + sizes(rng)
    leaves = [leaf(sw), leaf(sl)]
    return Problem(
        {"policy": pair(*leaves), "reference": pair(torch.tensor(rw), torch.tensor(rl))},
        leaves,
        rows(sw, sl),
        [{"rw": w, "rl": r, "beta": 0.7} for w, r in rows(rw, rl)],
        oracle.dpo,
        {"beta": 0.7},
    )


def tdpo2(rng: np.random.Generator) -> Problem:
    plain = dpo(rng)
    kw, kl = 10 ** rng.uniform(-2, 2, (2, COUNT))
    kl_leaf = leaf(kl)
    return Problem(
        {**plain.inputs, "sequence_kl": PairValues(torch.tensor(kw), kl_leaf)},
        [*plain.leaves, kl_leaf],
        [[*point, float(k)] for point, k in zip(plain.points, kl, strict=True)],
        [{**c, "kw": float(k), "alpha": 0.5} for c, k in zip(plain.constants, kw, strict=True)],
        oracle.tdpo2,
        {"beta": 0.7, "alpha": 0.5},
    )


def simpo(rng: np.random.Generator) -> Problem:
    nw, nl = rng.integers(1, 500, (2, COUNT))
    sw, sl = -(10 ** rng.uniform(-2, 3.5, (2, COUNT))) * np.stack([nw, nl])
    leaves = [leaf(sw), leaf(sl)]
    return Problem(
        {"policy": pair(*leaves, torch.tensor(nw), torch.tensor(nl))},
        leaves,
        rows(sw, sl),
        [{"nw": int(w), "nl": int(r), "beta": 2.5, "gamma": 1.4} for w, r in rows(nw, nl)],
        oracle.simpo,
        {"beta": 2.5, "gamma": 1.4},
    )


def orpo(rng: np.random.Generator) -> Problem:
    plain = simpo(rng)
    # Means per token from -1e-6 (all but certain) to -1000.
    n = np.array([[c["nw"], c["nl"]] for c in plain.constants], dtype=float).T
    sw, sl = -(10 ** rng.uniform(-6, 3, (2, COUNT))) * n
    leaves = [leaf(sw), leaf(sl)]
    lengths = torch.tensor(n, dtype=torch.int64)
    return Problem(
        {"policy": pair(*leaves, *lengths)},
        leaves,
        rows(sw, sl),
        [{"nw": c["nw"], "nl": c["nl"], "beta": 0.3} for c in plain.constants],
        oracle.orpo,
        {"beta": 0.3},
    )


def kto(rng: np.random.Generator) -> Problem:
    r = -(10 ** rng.uniform(0, 3, COUNT))
    s = r + sizes(rng)
    sums, labels = leaf(s), rng.random(COUNT) < 0.5
    weights = {"desirable_weight": 1.3, "undesirable_weight": 0.8}
    shared = {"z0": 0.4, "beta": 0.7}
    return Problem(
        {
            "policy": responses(sums),
            "reference": responses(torch.tensor(r)),
            "labels": torch.tensor(labels),
            "kl": torch.tensor(0.4, dtype=F64),
        },
        [sums],
        rows(s),
        [
            {"r": float(x), "desirable": bool(good), "weight": 1.3 if good else 0.8, **shared}
            for x, good in zip(r, labels, strict=True)
        ],
        oracle.kto,
        {"beta": 0.7, **weights},
        atol=1e-14,
    )


def plackett_luce(rng: np.random.Generator) -> Problem:
    r = -(10 ** rng.uniform(0, 3, (COUNT, 3)))
    a = sizes(rng, 3 * COUNT).reshape(COUNT, 3)
    a[: COUNT // 2] = -np.sort(-a[: COUNT // 2])  # the model agrees with half of the rankings
    s = r + a
    sums = leaf(s)
    return Problem(
        {"policy": ranking(sums), "reference": ranking(torch.tensor(r))},
        [sums],
        s.tolist(),
        [{"r": row, "beta": 0.7} for row in r.tolist()],
        oracle.plackett_luce,
        {"beta": 0.7},
        atol=1e-14,
    )


PROBLEMS = {f.__name__: f for f in (dpo, simpo, orpo, tdpo2, kto, plackett_luce)}
LOSSES = {
    "dpo": dpo_loss,
    "simpo": simpo_loss,
    "orpo": orpo_loss,
    "tdpo2": tdpo2_loss,
    "kto": kto_loss,
    "plackett_luce": plackett_luce_loss,
}
WRONG = {
    "dpo": wrong.DPO,
    "simpo": wrong.SIMPO,
    "orpo": wrong.ORPO,
    "tdpo2": wrong.TDPO2,
    "kto": wrong.KTO,
    "plackett_luce": wrong.PLACKETT_LUCE,
}
# Right in value and in the derivatives taken here; test_golden.py refuses them.
INVISIBLE = {"missing stop-gradient", "z0 with gradient"}


@functools.cache
def exact(name: str, seed: int = 0) -> tuple[Problem, Any, Any]:
    """A problem with its exact values [rows] and gradients [rows, leaves]."""
    problem = PROBLEMS[name](np.random.default_rng(seed))
    found = [
        oracle.value_and_gradient(problem.oracle, *point, **constants)
        for point, constants in zip(problem.points, problem.constants, strict=True)
    ]
    return problem, [value for value, _ in found], [gradient for _, gradient in found]


def agrees_with_differences(loss: Callable[..., Any], name: str, rtol: float = 1e-6) -> bool:
    """Whether values and gradients are finite and exact to ``rtol``."""
    problem, values, slopes = exact(name)
    losses = loss(**problem.inputs).losses
    found = gradients(losses, *problem.leaves)
    gradient = found[0] if found[0].ndim == 2 else torch.stack(found, dim=1)
    return (
        bool(losses.isfinite().all())
        and close(losses.detach(), values, rtol, problem.atol)
        and close(gradient, slopes, rtol, problem.atol)
    )


@pytest.mark.parametrize("name", PROBLEMS)
def test_gradient(name: str) -> None:
    problem = exact(name)[0]
    loss = functools.partial(LOSSES[name], **problem.hyperparameters)
    assert agrees_with_differences(loss, name)


@pytest.mark.parametrize("name", PROBLEMS)
def test_inputs_reach_both_tails_and_the_middle(name: str) -> None:
    values = np.array(exact(name)[1])
    top = 1.0 if name == "kto" else 100.0
    assert (values < 1e-6).sum() >= 3
    assert ((values > 0.01) & (values < 1)).sum() >= 3
    assert (values > 0.79 * top).sum() >= 3


@pytest.mark.parametrize(
    ("name", "variant"),
    [(name, v) for name, all_ in WRONG.items() for v in all_ if v not in INVISIBLE],
)
def test_gradient_rejects(name: str, variant: str) -> None:
    known = {k: v for k, v in exact(name)[0].hyperparameters.items() if "weight" not in k}
    loss = functools.partial(WRONG[name][variant], **known)
    assert not agrees_with_differences(loss, name, rtol=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("name", PROBLEMS)
def test_low_precision_inputs_give_finite_fp32(name: str, dtype: torch.dtype) -> None:
    """|z| of 1e4 in whatever dtype comes in: fp32 comes out, and no NaN anywhere."""
    problem = PROBLEMS[name](np.random.default_rng(1))
    leaves: list[Any] = []

    def cast(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            if not value.is_floating_point():
                return value
            lower = value.detach().clamp(-6e4, 6e4).to(dtype).requires_grad_(value.requires_grad)
            leaves.extend([lower] if value.requires_grad else [])
            return lower
        return type(value)(*(cast(part) for part in value))

    losses = LOSSES[name](
        **{key: cast(value) for key, value in problem.inputs.items()}, **problem.hyperparameters
    ).losses
    assert losses.dtype == torch.float32
    assert losses.isfinite().all()
    assert len(leaves) == len(problem.leaves)
    assert all(g.isfinite().all() for g in gradients(losses, *leaves))


def test_a_bf16_log_ratio_is_taken_in_fp32() -> None:
    """-250 and -250.5 differ by 0.5 in fp32 and by 0 or 1 in bf16, whose step is 1 there."""
    policy = pair(*(torch.tensor([x], dtype=torch.bfloat16) for x in (-250.0, -252.0)))
    reference = pair(*(torch.tensor([x]) for x in (-250.5, -252.0)))
    loss = dpo_loss(policy, reference, beta=1.0).losses
    assert close(loss, [np.log1p(np.exp(-0.5))], 1e-6)


def test_naive_forms_overflow_where_ours_do_not() -> None:
    """The twin of the finiteness tests: the literal formulas fail on the same inputs."""
    big = torch.tensor([-1e4])
    assert not torch.log(1 + torch.exp(-big)).isfinite().all()
    assert not torch.log(1 - torch.exp(torch.tensor([-1e-8]))).isfinite().all()
    zero = Pair(responses(torch.tensor([0.0])), responses(torch.tensor([-1e4])))
    assert orpo_loss(zero).losses.isfinite().all()
