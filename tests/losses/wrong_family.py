"""Wrong versions of the family's losses: bugs that libraries shipped, or that a reader would write.

Each is called as the loss is, with the hyper-parameters of the golden numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from trimtab.losses import (
    Pair,
    PreferenceTerms,
    cdpo_loss,
    describe,
    dpo_loss,
    exo_loss,
    ipo_loss,
    ipo_sum_loss,
    robust_loss,
)
from trimtab.losses.pairs import log_ratios, mean_log_ratios

Loss = Callable[..., Any]


def terms(losses: Tensor) -> PreferenceTerms:
    return PreferenceTerms(losses, losses.detach(), losses.detach())


def gap(policy: Pair, reference: Pair) -> Tensor:
    chosen, rejected = log_ratios(policy, reference)
    return chosen - rejected


# ---------------------------------------------------------------- of any paired loss


def flipped(loss: Loss) -> Loss:
    """Chosen and rejected exchanged, in all that the loss is given."""
    return lambda **inputs: loss(**{k: _swap(v) for k, v in inputs.items()})


def _swap(value: Any) -> Any:
    return type(value)(value.rejected, value.chosen) if hasattr(value, "rejected") else value


def without_reference(loss: Loss) -> Loss:
    """Log-probs where log-ratios belong."""

    def broken(policy: Pair, reference: Pair, **more: Any) -> Any:
        sides = (side._replace(sum=torch.zeros_like(side.sum)) for side in reference)
        return loss(policy=policy, reference=Pair(*sides), **more)

    return broken


def other_normalisation(loss: Loss) -> Loss:
    """Means per token where sums belong, and sums where means belong."""

    def scaled(pair: Any) -> Any:
        if not isinstance(pair, Pair):
            return pair
        ones = torch.ones_like(pair.chosen.length)
        # A loss of sums reads the mean as a sum; a loss of means reads a length of 1.
        return Pair(*(s._replace(sum=s.sum / s.length, length=s.length) for s in pair)), Pair(
            *(s._replace(length=ones) for s in pair)
        )

    def broken(**inputs: Any) -> Any:
        plain = loss(**inputs).losses
        means = loss(**{k: scaled(v)[1] if isinstance(v, Pair) else v for k, v in inputs.items()})
        if not torch.equal(means.losses, plain):
            return means
        return loss(**{k: scaled(v)[0] if isinstance(v, Pair) else v for k, v in inputs.items()})

    return broken


def rejected_detached(loss: Loss) -> Loss:
    def broken(policy: Pair, **more: Any) -> Any:
        still = policy.rejected._replace(sum=policy.rejected.sum.detach())
        return loss(policy=Pair(policy.chosen, still), **more)

    return broken


def general(name: str, loss: Loss) -> Mapping[str, Loss]:
    """The wrong versions that any paired loss has."""
    found = {
        "flipped": flipped(loss),
        "other normalisation": other_normalisation(loss),
        "rejected detached": rejected_detached(loss),
    }
    if "reference" in describe(name).needs:
        found["no reference"] = without_reference(loss)
    return found


# ---------------------------------------------------------------- of one loss


def _of_gap(function: Callable[..., Tensor]) -> Loss:
    """A loss of beta and the gap of the log-ratios."""
    return lambda policy, reference, **h: terms(function(gap(policy, reference), **h))


def _of_ratios(function: Callable[..., Tensor]) -> Loss:
    return lambda policy, reference, **h: terms(function(*log_ratios(policy, reference), **h))


def _sums(function: Callable[..., Tensor]) -> Loss:
    return lambda policy, **h: terms(function(policy.chosen, policy.rejected, **h))


def _dpop(where: str) -> Loss:
    def losses(a: Tensor, b: Tensor, *, beta: float, penalty: float) -> Tensor:
        lost = torch.relu(-a)
        if where == "outside":
            return -F.logsigmoid(beta * (a - b)) + penalty * lost
        if where == "unscaled":
            return -F.logsigmoid(beta * (a - b) - penalty * lost)
        return -F.logsigmoid(beta * (a - b - penalty * torch.relu(a)))

    return _of_ratios(losses)


def _disco(z: Tensor, tau: float, swapped: bool, detached: bool) -> Tensor:
    m = torch.sigmoid((-z if swapped else z) / tau)
    m = m.detach() if detached else m
    return (1 - m) * -F.logsigmoid(z) + m * torch.exp(-z)


PAIRS: dict[str, dict[str, Loss]] = {
    "cdpo": {
        "robust": lambda **i: robust_loss(**i),
        "epsilon on the wrong side": _of_gap(
            lambda d, beta, epsilon: (
                -epsilon * F.logsigmoid(beta * d) - (1 - epsilon) * F.logsigmoid(-beta * d)
            )
        ),
    },
    "robust": {
        "cdpo": lambda **i: cdpo_loss(**i),
        "not divided": lambda **i: terms(robust_loss(**i).losses * (1 - 2 * i["epsilon"])),
        "kept above 0": lambda **i: terms(robust_loss(**i).losses.clamp(min=0.55)),
    },
    "ipo": {
        "sums": lambda **i: ipo_sum_loss(**i),
        "target 1 / tau": lambda policy, reference, tau: terms(
            (torch.sub(*mean_log_ratios(policy, reference)) - 1 / tau).square()
        ),
    },
    "ipo_sum": {
        "means": lambda **i: ipo_loss(**i),
        "target 1 / tau": _of_gap(lambda d, tau: (d - 1 / tau).square()),
        "tau times the gap": _of_gap(lambda d, tau: (tau * d - 0.5).square()),
    },
    "hinge": {
        "beta on the margin": _of_gap(lambda d, beta: torch.relu(beta - beta * d)),
        "not cut": _of_gap(lambda d, beta: beta * d - 1),
    },
    "slic_hf": {
        "regulariser's sign": _sums(
            lambda w, x, delta, target_weight: (
                torch.relu(delta - w.sum + x.sum) + target_weight * w.sum
            )
        ),
        "regulariser's mean": _sums(
            lambda w, x, delta, target_weight: (
                torch.relu(delta - w.sum + x.sum) - target_weight * w.mean
            )
        ),
    },
    "simpo_ratio": {
        "the ratio as gamma": _sums(
            lambda w, x, beta, gamma_beta_ratio: (
                -F.logsigmoid(beta * (w.mean - x.mean) - gamma_beta_ratio)
            )
        ),
    },
    "alphapo": {
        "sign of alpha": _sums(
            lambda w, x, beta, gamma, alpha: (
                -F.logsigmoid(
                    beta * ((alpha * w.mean).expm1() - (alpha * x.mean).expm1()) / alpha - gamma
                )
            )
        ),
        "simpo": _sums(
            lambda w, x, beta, gamma, alpha: -F.logsigmoid(beta * (w.mean - x.mean) - gamma)
        ),
    },
    "cpo": {"beta outside": _sums(lambda w, x, beta: -beta * F.logsigmoid(w.sum - x.sum))},
    "apo_zero": {
        "logarithms": _of_ratios(
            lambda a, b, beta: -F.logsigmoid(beta * a) - F.logsigmoid(-beta * b)
        ),
        "both up": _of_ratios(
            lambda a, b, beta: torch.sigmoid(-beta * a) + torch.sigmoid(-beta * b)
        ),
    },
    "apo_down": {
        "apo_zero": _of_ratios(
            lambda a, b, beta: torch.sigmoid(-beta * a) + torch.sigmoid(beta * b)
        ),
        "chosen up": _of_ratios(
            lambda a, b, beta: torch.sigmoid(-beta * a) + torch.sigmoid(-beta * (a - b))
        ),
    },
    "exo": {
        "forward KL": _of_gap(
            lambda d, beta, epsilon: (
                -(1 - epsilon) * F.logsigmoid(beta * d) - epsilon * F.logsigmoid(-beta * d)
            )
        ),
        "target of the authors": _of_gap(
            lambda d, beta, epsilon: (
                torch.sigmoid(beta * d) * F.logsigmoid(beta * d)
                + torch.sigmoid(-beta * d) * (F.logsigmoid(-beta * d) + 10)
            )
        ),
    },
    "exo_authors": {
        "target that sums to 1": lambda policy, reference, beta, log_epsilon: exo_loss(
            policy, reference, beta=beta, epsilon=1e-3
        ),
    },
    "nca": {
        "no half": _of_ratios(
            lambda a, b, beta: (
                -F.logsigmoid(beta * a) - F.logsigmoid(-beta * a) - F.logsigmoid(-beta * b)
            )
        ),
        "chosen without its noise": _of_ratios(
            lambda a, b, beta: -F.logsigmoid(beta * a) - 0.5 * F.logsigmoid(-beta * b)
        ),
    },
    "bco_pair": {"dpo, as one documentation has it": lambda **i: dpo_loss(**i)},
    "sppo": {
        "eta not halved": _of_ratios(lambda a, b, eta: (a - eta).square() + (b + eta).square()),
        "both up": _of_ratios(lambda a, b, eta: (a - eta / 2).square() + (b - eta / 2).square()),
        "eta for 1 / eta": _of_ratios(
            lambda a, b, eta: (a - 0.5 / eta).square() + (b + 0.5 / eta).square()
        ),
    },
    "dpop": {
        "penalty outside": _dpop("outside"),
        "penalty without beta": _dpop("unscaled"),
        "penalty of what was won": _dpop("won"),
    },
    "irpo": {
        "likelihood summed": lambda policy, reference, beta, alpha: terms(
            dpo_loss(policy, reference, beta=beta).losses - alpha * policy.chosen.sum
        ),
        "likelihood's sign": lambda policy, reference, beta, alpha: terms(
            dpo_loss(policy, reference, beta=beta).losses + alpha * policy.chosen.mean
        ),
    },
    "rpo": {
        "likelihood of the rejected": lambda policy, reference, beta, alpha: terms(
            dpo_loss(policy, reference, beta=beta).losses - alpha * policy.rejected.mean
        ),
    },
    "r_dpo": {
        "minus": lambda policy, reference, beta, alpha: terms(
            -F.logsigmoid(
                beta * gap(policy, reference)
                - alpha * (policy.chosen.length - policy.rejected.length)
            )
        ),
    },
    "ln_dpo": {"sums": lambda **i: dpo_loss(**i)},
    "discopop": {
        "roles swapped": _of_gap(lambda d, beta, tau: _disco(beta * d, tau, True, False)),
        "blend detached": _of_gap(lambda d, beta, tau: _disco(beta * d, tau, False, True)),
    },
    "fdpo_forward": {
        "sign of the exponent": _of_ratios(
            lambda a, b, beta: -F.logsigmoid(beta * (a.exp() - b.exp()))
        ),
        "reverse KL": lambda **i: dpo_loss(**i),
    },
    "fdpo_js": {
        "probabilities": _of_ratios(
            lambda a, b, beta: -F.logsigmoid(beta * (torch.sigmoid(a) - torch.sigmoid(b)))
        ),
    },
    "fdpo_alpha": {
        "not divided": _of_ratios(
            lambda a, b, beta, alpha: (
                -F.logsigmoid(beta * ((-alpha * b).exp() - (-alpha * a).exp()))
            )
        ),
    },
}
