"""A second implementation of every loss, on plain numbers of 1000 digits.

Written from the formulas in docs/losses.md in their most literal form: at this precision nothing
of double range overflows or cancels, so no trick of ``losses/stable.py`` is shared. Gradients are
central differences with a step of 1e-333.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import mpmath

mp = mpmath.mp.clone()
mp.dps = 1000
mpf, exp, log = mp.mpf, mp.exp, mp.log

STEP = mpf(10) ** -333


def sigmoid(z: Any) -> Any:
    return 1 / (1 + exp(-z))


def dpo(sw: Any, sl: Any, *, rw: float, rl: float, beta: float) -> Any:
    return -log(sigmoid(mpf(beta) * ((sw - rw) - (sl - rl))))


def simpo(sw: Any, sl: Any, *, nw: int, nl: int, beta: float, gamma: float) -> Any:
    return -log(sigmoid(mpf(beta) * (sw / nw - sl / nl) - mpf(gamma)))


def orpo(sw: Any, sl: Any, *, nw: int, nl: int, beta: float) -> Any:
    pw, pl = exp(sw / nw), exp(sl / nl)
    return -mpf(beta) * log(sigmoid(log(pw / (1 - pw)) - log(pl / (1 - pl))))


def tdpo2(
    sw: Any, sl: Any, kl: Any, *, kw: float, rw: float, rl: float, beta: float, alpha: float
) -> Any:
    """``kl`` is the rejected response's; the chosen one's, ``kw``, is a constant."""
    return -log(sigmoid(mpf(beta) * ((sw - rw) - (sl - rl) - mpf(alpha) * (kl - mpf(kw)))))


def kto(s: Any, *, r: float, z0: float, desirable: bool, beta: float, weight: float) -> Any:
    u = mpf(beta) * (s - r - mpf(z0))
    return mpf(weight) * (1 - sigmoid(u if desirable else -u))


def plackett_luce(*s: Any, r: Sequence[float], beta: float) -> Any:
    h = [mpf(beta) * (x - y) for x, y in zip(s, r, strict=True)]
    return -sum(h[k] - log(sum(exp(x) for x in h[k:])) for k in range(len(h) - 1))


def value_and_gradient(
    function: Callable[..., Any], *at: float, **constants: Any
) -> tuple[float, list[float]]:
    """``function(*at, **constants)`` and its derivative by each of ``at``, as doubles."""
    point = [mpf(x) for x in at]
    gradient: list[float] = []
    for i in range(len(point)):
        up, down = (
            function(*point[:i], point[i] + step, *point[i + 1 :], **constants)
            for step in (STEP, -STEP)
        )
        gradient.append(float((up - down) / (2 * STEP)))
    return float(function(*point, **constants)), gradient
