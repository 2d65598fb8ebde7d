"""The mean update of a group algorithm over several tokens, by hand, and the policy where it is 0.

Nothing of ``trimtab.losses`` is used here. A policy is a table: the log-probability l(v|p) of token
v after prefix p. Groups of G responses are drawn from it, and every token of a response y adds

    w(y) (A(y) + beta g(d)) grad l,    d = l_reference - l

to the ascent, with the samples taken as given. A is the advantage in the group, w is 1 or
1 / length, and g says what the KL term in the loss does: exp(d) - 1 for k3, d for k2 and for k3
times the ratio. The mean over all groups is a sum here. It is the gradient of nothing, so its zero
is looked for, and no optimum.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.autograd.functional import jacobian

from trimtab.proof.problem import Problem
from trimtab.proof.tabular import TokenTable


class Form(NamedTuple):
    """Responses of a group, what A is divided by, whether w is 1 / length, and the KL term."""

    size: int
    spread: Literal["none", "group", "batch"]
    by_length: bool
    term: Literal["k2", "k3"]


class Outcomes(NamedTuple):
    """Outcomes of rollouts as a language: what ``Language`` says of tokens, of any list of them.

    visits    [Y, prefixes, tokens] float64: 1 where an outcome has that token after that prefix
    choices   [prefixes, tokens] bool: what may follow
    lengths   [Y] tokens of each outcome
    """

    visits: Tensor
    choices: Tensor
    lengths: Tensor


def outcomes_of(sequences: list[tuple[int, ...]], vocabulary: int) -> Outcomes:
    """Every token may follow every prefix, as after a real model."""
    prefixes = sorted({ids[:place] for ids in sequences for place in range(len(ids))})
    visits = torch.zeros(len(sequences), len(prefixes), vocabulary, dtype=torch.float64)
    for row, ids in enumerate(sequences):
        for place, token in enumerate(ids):
            visits[row, prefixes.index(ids[:place]), token] = 1.0
    lengths = torch.tensor([len(ids) for ids in sequences])
    return Outcomes(visits, torch.ones(len(prefixes), vocabulary, dtype=torch.bool), lengths)


def rest(language: Any, problem: Problem, form: Form, beta: float) -> Tensor:
    """Log-probs [Y] of the policy that the mean update leaves where it is, for one prompt.

    ``language`` is a ``Language`` or ``Outcomes``. ``problem.lengths`` says how long they are.
    """
    table = TokenTable(language, problem.reference)
    choices = language.choices
    reference = _tokens(table.logits[0].detach(), choices)
    advantages = _advantages(form, problem.rewards[0], problem.lengths)
    places = choices.nonzero(as_tuple=True)

    def ascent(free: Tensor) -> Tensor:
        """[choices]: per visit of the prefix, for one that is hardly met would seem at rest."""
        logp = _tokens(torch.zeros(choices.shape).double().index_put(places, free), choices)
        whole = (language.visits * logp).sum((1, 2))
        shares = whole.exp() / problem.lengths if form.by_length else whole.exp()
        apart = reference - logp
        pull = apart.exp() - 1 if form.term == "k3" else apart
        push = torch.einsum("y,ypt->pt", shares * advantages(whole), language.visits)
        push = push + beta * pull * torch.einsum("y,ypt->pt", shares, language.visits)
        met = torch.einsum("y,ypt->p", whole.exp(), language.visits)[:, None]
        return ((push - logp.exp() * push.sum(-1, keepdim=True)) / met)[choices]

    free = _zero(ascent, table.logits[0].detach()[choices])
    logp = _tokens(torch.zeros(choices.shape).double().index_put(places, free), choices)
    return (language.visits * logp).sum((1, 2))


def _tokens(logits: Tensor, choices: Tensor) -> Tensor:
    """[prefixes, tokens] log-probs; 0 for what may not follow, which nothing visits."""
    logp = torch.log_softmax(logits.masked_fill(~choices, -torch.inf), -1)
    return logp.masked_fill(~choices, 0.0)


def _advantages(form: Form, rewards: Tensor, lengths: Tensor) -> Callable[[Tensor], Tensor]:
    """From log-probs [Y] the mean advantage [Y] of a response, over who else is in its group."""
    others = torch.tensor(list(itertools.product(range(len(rewards)), repeat=form.size - 1)))
    mine = torch.arange(len(rewards))[:, None, None].expand(-1, len(others), 1)
    group = rewards[torch.cat([mine, others.expand(len(rewards), -1, -1)], -1)]  # [Y, rest, G]
    apart = group[..., 0] - group.mean(-1)
    if form.spread == "group":
        spread = group.std(-1)
        apart = torch.where(spread > 1e-9, apart / (spread + 1e-4), 0.0)

    def mean(logp: Tensor) -> Tensor:
        likely = logp.exp()[others].prod(-1)
        found = apart @ likely
        if form.spread == "batch":  # over the tokens of a batch without end
            weight = (logp.exp() * lengths)[:, None] * likely
            weight = weight / weight.sum()
            centre = (weight * apart).sum()
            found = found / (weight * (apart - centre).square()).sum().sqrt()
        return found

    return mean


def _zero(field: Callable[[Tensor], Tensor], start: Tensor, rounds: int = 300) -> Tensor:
    """Follow the field from ``start`` in implicit steps that grow into Newton's."""
    place, step = start.clone(), 1.0
    for _ in range(rounds):
        value = field(place)
        if value.abs().max() < 1e-12:
            # Where every direction leads back; one number a prefix moves nothing at all.
            slopes = torch.linalg.eigvals(jacobian(field, place)).real
            assert slopes.max() < 1e-9, "a zero, and training would leave it"
            return place
        still = torch.eye(len(place), dtype=place.dtype) / step
        place = place + torch.linalg.solve(still - jacobian(field, place), value)
        step = min(1.5 * step, 1e6)
    raise AssertionError(f"no zero was found: {value.abs().max():.1e}")  # pyright: ignore
