"""The second implementation of the family's paired losses: see ``oracle.py``.

Every function takes summed log-probs ``sw`` and ``sl``, and constants: the reference's ``rw`` and
``rl``, lengths ``nw`` and ``nl``, and the hyper-parameters as ``h``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from .oracle import exp, log, mpf, sigmoid

H = Mapping[str, float]


def _z(sw: Any, sl: Any, c: Any) -> Any:
    return mpf(c["h"]["beta"]) * ((sw - c["rw"]) - (sl - c["rl"]))


def _of_gap(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda sw, sl, **c: function(_z(sw, sl, c), **{k: mpf(v) for k, v in c["h"].items()})


def _of_ratios(function: Callable[..., Any]) -> Callable[..., Any]:
    """Of both log-ratios."""

    def oracle(sw: Any, sl: Any, **c: Any) -> Any:
        return function(sw - c["rw"], sl - c["rl"], **{k: mpf(v) for k, v in c["h"].items()})

    return oracle


def _of_sums(function: Callable[..., Any]) -> Callable[..., Any]:
    """Of sums, lengths and log-ratios by name."""

    def oracle(sw: Any, sl: Any, **c: Any) -> Any:
        named = {"sw": sw, "sl": sl, "nw": c["nw"], "nl": c["nl"]}
        ratios = {"a": sw - c["rw"], "b": sl - c["rl"]}
        return function(**named, **ratios, **{k: mpf(v) for k, v in c["h"].items()})

    return oracle


def _capped(x: Any) -> Any:
    """exp, which ends at 40 nats (losses/stable.py)."""
    return exp(min(x, mpf(40)))


def _exo(z: Any, won: Any, lost: Any) -> Any:
    return sigmoid(z) * (log(sigmoid(z)) - won) + sigmoid(-z) * (log(sigmoid(-z)) - lost)


def _f_dpo(g: Callable[..., Any]) -> Callable[..., Any]:
    return _of_ratios(lambda a, b, beta, **h: -log(sigmoid(beta * (g(a, **h) - g(b, **h)))))


def _slic_hf(sw: Any, sl: Any, delta: Any, target_weight: Any, **_: Any) -> Any:
    return max(mpf(0), delta - sw + sl) - target_weight * sw


def _dpop(a: Any, b: Any, beta: Any, penalty: Any) -> Any:
    return -log(sigmoid(beta * (a - b - penalty * max(mpf(0), -a))))


def _alphapo(
    sw: Any, sl: Any, nw: int, nl: int, beta: Any, gamma: Any, alpha: Any, **_: Any
) -> Any:
    def f(s: Any) -> Any:
        return (1 - _capped(-alpha * s)) / alpha

    return -log(sigmoid(beta * (f(sw / nw) - f(sl / nl)) - gamma))


def _likelihood(a: Any, b: Any, sw: Any, nw: int, beta: Any, alpha: Any, **_: Any) -> Any:
    return -log(sigmoid(beta * (a - b))) - alpha * sw / nw


PAIRS: dict[str, Callable[..., Any]] = {
    "cdpo": _of_gap(
        lambda z, epsilon, **_: -(1 - epsilon) * log(sigmoid(z)) - epsilon * log(sigmoid(-z))
    ),
    "robust": _of_gap(
        lambda z, epsilon, **_: (
            (-(1 - epsilon) * log(sigmoid(z)) + epsilon * log(sigmoid(-z))) / (1 - 2 * epsilon)
        )
    ),
    "ipo": _of_sums(lambda a, b, nw, nl, tau, **_: (a / nw - b / nl - 1 / (2 * tau)) ** 2),
    "ipo_sum": _of_ratios(lambda a, b, tau: (a - b - 1 / (2 * tau)) ** 2),
    "hinge": _of_gap(lambda z, **_: max(mpf(0), 1 - z)),
    "slic_hf": _of_sums(_slic_hf),
    "simpo_ratio": _of_sums(
        lambda sw, sl, nw, nl, beta, gamma_beta_ratio, **_: (
            -log(sigmoid(beta * (sw / nw - sl / nl - gamma_beta_ratio)))
        )
    ),
    "alphapo": _of_sums(_alphapo),
    "cpo": _of_sums(lambda sw, sl, beta, **_: -log(sigmoid(beta * (sw - sl)))),
    "apo_zero": _of_ratios(lambda a, b, beta: 1 - sigmoid(beta * a) + sigmoid(beta * b)),
    "apo_down": _of_ratios(lambda a, b, beta: sigmoid(beta * a) + 1 - sigmoid(beta * (a - b))),
    "exo": _of_gap(lambda z, epsilon, **_: _exo(z, log(1 - epsilon), log(epsilon))),
    "exo_authors": _of_gap(lambda z, log_epsilon, **_: _exo(z, 0, log_epsilon)),
    "nca": _of_ratios(
        lambda a, b, beta: (
            -log(sigmoid(beta * a)) - (log(sigmoid(-beta * a)) + log(sigmoid(-beta * b))) / 2
        )
    ),
    "bco_pair": _of_ratios(lambda a, b, beta: -log(sigmoid(beta * a)) - log(sigmoid(-beta * b))),
    "sppo": _of_ratios(lambda a, b, eta: (a - eta / 2) ** 2 + (b + eta / 2) ** 2),
    "dpop": _of_ratios(_dpop),
    "irpo": _of_sums(_likelihood),
    "rpo": _of_sums(_likelihood),
    "r_dpo": _of_sums(
        lambda a, b, nw, nl, beta, alpha, **_: -log(sigmoid(beta * (a - b) + alpha * (nw - nl)))
    ),
    "ln_dpo": _of_sums(lambda a, b, nw, nl, beta, **_: -log(sigmoid(beta * (a / nw - b / nl)))),
    "discopop": _of_gap(
        lambda z, tau, **_: (1 - sigmoid(z / tau)) * -log(sigmoid(z)) + sigmoid(z / tau) * exp(-z)
    ),
    "fdpo_forward": _f_dpo(lambda a: -_capped(-a)),
    "fdpo_js": _f_dpo(lambda a: log(sigmoid(a))),
    "fdpo_alpha": _f_dpo(lambda a, alpha: (1 - _capped(-alpha * a)) / alpha),
}
