"""Wrong losses: each one is a bug that some library shipped. Every check here must refuse them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from trimtab.losses import (
    Pair,
    PreferenceTerms,
    RankingTerms,
    SequenceLogprobs,
    UnpairedTerms,
    dpo_loss,
    log_odds,
    orpo_loss,
    simpo_loss,
    tdpo2_loss,
)
from trimtab.losses.stable import log_ratio


def _terms(losses: Any) -> PreferenceTerms:
    return PreferenceTerms(losses, losses.detach(), losses.detach())


def _swapped(pair: Pair) -> Pair:
    return Pair(pair.rejected, pair.chosen)


def _gap(policy: Pair, reference: Pair) -> Any:
    chosen = log_ratio(policy.chosen, reference.chosen)
    return chosen - log_ratio(policy.rejected, reference.rejected)


def _mean_gap(policy: Pair, reference: Pair) -> Any:
    chosen = log_ratio(policy.chosen, reference.chosen) / policy.chosen.length
    return chosen - log_ratio(policy.rejected, reference.rejected) / policy.rejected.length


def _without_eos(pair: Pair) -> Pair:
    """The stop token's log-prob is summed but not counted."""
    return Pair(*(s._replace(length=s.length - 1) for s in pair))


def _as_sum(pair: Pair) -> Pair:
    """Sums where the definition asks for means."""
    return Pair(*(s._replace(length=torch.ones_like(s.length)) for s in pair))


def _detached(sequence: SequenceLogprobs) -> SequenceLogprobs:
    return sequence._replace(sum=sequence.sum.detach())


DPO: dict[str, Callable[..., PreferenceTerms]] = {
    "flipped sign": lambda policy, reference, beta: dpo_loss(
        _swapped(policy), _swapped(reference), beta=beta
    ),
    "mean for sum": lambda policy, reference, beta: _terms(
        -F.logsigmoid(beta * _mean_gap(policy, reference))
    ),
    "beta outside": lambda policy, reference, beta: _terms(
        -beta * F.logsigmoid(_gap(policy, reference))
    ),
    "no reference": lambda policy, reference, beta: _terms(
        -F.logsigmoid(beta * (policy.chosen.sum - policy.rejected.sum))
    ),
    "reference of the other response": lambda policy, reference, beta: dpo_loss(
        policy, _swapped(reference), beta=beta
    ),
    "rejected detached": lambda policy, reference, beta: dpo_loss(
        Pair(policy.chosen, _detached(policy.rejected)), reference, beta=beta
    ),
}

SIMPO: dict[str, Callable[..., PreferenceTerms]] = {
    "flipped sign": lambda policy, beta, gamma: simpo_loss(
        _swapped(policy), beta=beta, gamma=gamma
    ),
    "sum for mean": lambda policy, beta, gamma: simpo_loss(_as_sum(policy), beta=beta, gamma=gamma),
    "gamma read as gamma / beta": lambda policy, beta, gamma: simpo_loss(
        policy, beta=beta, gamma=beta * gamma
    ),
    "gamma added": lambda policy, beta, gamma: _terms(
        -F.logsigmoid(beta * (policy.chosen.mean - policy.rejected.mean) + gamma)
    ),
    "length without the stop token": lambda policy, beta, gamma: simpo_loss(
        _without_eos(policy), beta=beta, gamma=gamma
    ),
}

ORPO: dict[str, Callable[..., PreferenceTerms]] = {
    "flipped sign": lambda policy, beta: orpo_loss(_swapped(policy), beta=beta),
    "sum for mean": lambda policy, beta: orpo_loss(_as_sum(policy), beta=beta),
    "length without the stop token": lambda policy, beta: orpo_loss(
        _without_eos(policy), beta=beta
    ),
    "probabilities for odds": lambda policy, beta: _terms(
        -beta * F.logsigmoid(policy.chosen.mean - policy.rejected.mean)
    ),
    "lambda inside": lambda policy, beta: _terms(
        -F.logsigmoid(2 * beta * (log_odds(policy.chosen) - log_odds(policy.rejected)))
    ),
    "subtracted": lambda policy, beta: _terms(-orpo_loss(policy, beta=beta).losses),
}


def _tdpo(chosen_kl: Callable[[Any], Any], sign: float = 1.0, beta_on_kl: bool = True) -> Any:
    def loss(policy: Any, reference: Any, sequence_kl: Any, beta: float, alpha: float) -> Any:
        kl_gap = sign * alpha * (sequence_kl.rejected - chosen_kl(sequence_kl.chosen))
        z = beta * _gap(policy, reference) - (beta if beta_on_kl else 1.0) * kl_gap
        return _terms(-F.logsigmoid(z))

    return loss


TDPO2: dict[str, Callable[..., PreferenceTerms]] = {
    "missing stop-gradient": _tdpo(lambda kl: kl),
    "KL sign": _tdpo(lambda kl: kl.detach(), sign=-1.0),
    "KL without beta": _tdpo(lambda kl: kl.detach(), beta_on_kl=False),
    "TDPO1": lambda policy, reference, sequence_kl, beta, alpha: tdpo2_loss(
        policy, reference, sequence_kl, beta=beta, alpha=1.0
    ),
    "stop-gradient on the wrong side": lambda policy, reference, sequence_kl, beta, alpha: (
        tdpo2_loss(
            policy,
            reference,
            sequence_kl._replace(rejected=sequence_kl.rejected.detach()),
            beta=beta,
            alpha=alpha,
        )
    ),
}


def _kto(inner: Callable[[Any, Any, float], Any], log: bool = False, flip: bool = False) -> Any:
    def loss(policy: Any, reference: Any, labels: Any, kl: Any, beta: float) -> UnpairedTerms:
        u = inner(log_ratio(policy, reference), kl, beta)
        signed = torch.where(labels != flip, u, -u)
        losses = -F.logsigmoid(signed) if log else torch.sigmoid(-signed)
        return UnpairedTerms(losses, losses.detach())

    return loss


KTO: dict[str, Callable[..., UnpairedTerms]] = {
    "z0 outside beta": _kto(lambda a, kl, beta: beta * a - kl.detach()),
    "z0 with gradient": _kto(lambda a, kl, beta: beta * (a - kl)),
    "labels flipped": _kto(lambda a, kl, beta: beta * (a - kl.detach()), flip=True),
    "logarithm": _kto(lambda a, kl, beta: beta * (a - kl.detach()), log=True),
    "z0 forgotten": _kto(lambda a, kl, beta: beta * a),
    "z0 subtracted twice": _kto(lambda a, kl, beta: beta * (a - 2 * kl.detach())),
}


def _listwise(reorder: Callable[[Any], Any], all_rivals: bool = False, pairs: bool = False) -> Any:
    def loss(policy: Any, reference: Any, beta: float) -> RankingTerms:
        h = reorder(beta * (policy.sum - reference.sum))
        if pairs:
            gaps = h[:, :, None] - h[:, None, :]
            upper = torch.ones(gaps.shape[1:], dtype=torch.bool).triu(1)
            losses = -F.logsigmoid(gaps[:, upper]).sum(-1)
        elif all_rivals:
            losses = -torch.log_softmax(h, -1)[:, :-1].sum(-1)
        else:
            losses = -(h - torch.logcumsumexp(h.flip(-1), -1).flip(-1)).sum(-1)
        return RankingTerms(losses, h.detach())

    return loss


PLACKETT_LUCE: dict[str, Callable[..., RankingTerms]] = {
    "worst first": _listwise(lambda h: h.flip(-1)),
    "placed responses stay rivals": _listwise(lambda h: h, all_rivals=True),
    "all pairs instead of places": _listwise(lambda h: h, pairs=True),
    "mean over places": lambda policy, reference, beta: RankingTerms(
        _listwise(lambda h: h)(policy, reference, beta).losses / policy.sum.shape[-1], policy.sum
    ),
}
