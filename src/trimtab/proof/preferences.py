"""Preferences over a problem's responses: all of them with exact probabilities, or a sample.

A table's weights are probabilities (or counts) of its rows; prompts are equally likely. Everything
that needs pairs of a known model, reward models included, can start from here.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import torch
from torch import Tensor

from trimtab.proof.closed_forms import win_probability
from trimtab.proof.problem import Problem


class Pairs(NamedTuple):
    """Comparisons: ``prompt``, ``winner``, ``loser`` [P] are indices, ``weight`` [P] float64."""

    prompt: Tensor
    winner: Tensor
    loser: Tensor
    weight: Tensor


class Rankings(NamedTuple):
    """Rankings, best first: ``prompt`` [R], ``order`` [R, K] are indices, ``weight`` [R]."""

    prompt: Tensor
    order: Tensor
    weight: Tensor


def all_pairs(problem: Problem, *, noise: float = 0.0, itself: bool = False) -> Pairs:
    """Every ordered pair of different responses, with the probability that it is drawn so.

    Two responses are drawn from ``sampling``, independently, and the preference from Bradley-Terry;
    a share ``noise`` of the preferences is then turned round. A pair of one response with itself
    teaches nothing to losses of differences and is left out, unless ``itself`` is asked for;
    weights sum to what is left of 1.
    """
    prompts, responses = problem.shape
    drawn = problem.sampling[:, :, None] * problem.sampling[:, None, :]
    wins = win_probability(problem)
    wins = (1 - noise) * wins + noise * wins.mT
    # Once drawn as (i, j) and once as (j, i): both are the comparison "i won against j".
    weight = 2 * drawn * wins / prompts
    kept = torch.ones(responses, responses, dtype=torch.bool)
    if not itself:
        kept.fill_diagonal_(False)
    kept = kept.expand_as(weight)
    prompt, winner, loser = kept.nonzero(as_tuple=True)
    return Pairs(prompt, winner, loser, weight[kept])


def sample_pairs(problem: Problem, count: int, *, seed: int) -> Pairs:
    """``count`` comparisons of different responses, drawn one by one, each of weight 1.

    Prompts are drawn evenly, responses from ``sampling`` (again where both are the same one), the
    preference from Bradley-Terry.
    """
    exact = all_pairs(problem)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.multinomial(exact.weight, count, replacement=True, generator=generator)
    ones = torch.ones(count, dtype=torch.float64)
    return Pairs(exact.prompt[drawn], exact.winner[drawn], exact.loser[drawn], ones)


def collapse(pairs: Pairs) -> Pairs:
    """Equal comparisons as one, with the sum of their weights."""
    columns = torch.stack([pairs.prompt, pairs.winner, pairs.loser], 1)
    kinds, place = columns.unique(dim=0, return_inverse=True)
    weight = torch.zeros(len(kinds), dtype=torch.float64).index_add_(0, place, pairs.weight)
    return Pairs(kinds[:, 0], kinds[:, 1], kinds[:, 2], weight)


def all_rankings(problem: Problem, size: int) -> Rankings:
    """Every ranking of ``size`` different responses, with its Plackett-Luce probability.

    The set is drawn evenly from all sets of that size; the first place goes to a response with
    probability ~ exp(r), and so on among those that are left.
    """
    prompts, responses = problem.shape
    order = torch.tensor(list(itertools.permutations(range(responses), size)))
    rewards = problem.rewards[:, order]  # [X, orders, K]
    left = rewards.flip(-1).logcumsumexp(-1).flip(-1)
    probability = (rewards - left).sum(-1).exp()  # of the order, given the set
    sets = len(order) / _factorial(size)
    weight = probability / sets / prompts
    return Rankings(
        torch.arange(prompts).repeat_interleave(len(order)),
        order.repeat(prompts, 1),
        weight.flatten(),
    )


def sample_rankings(problem: Problem, size: int, count: int, *, seed: int) -> Rankings:
    """``count`` rankings of ``all_rankings``, drawn one by one; weights count equal ones."""
    exact = all_rankings(problem, size)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.multinomial(exact.weight, count, replacement=True, generator=generator)
    times = drawn.bincount(minlength=len(exact.weight)).double()
    seen = times > 0
    return Rankings(exact.prompt[seen], exact.order[seen], times[seen])


def pairs_of(rankings: Rankings) -> Pairs:
    """The C(K, 2) comparisons of every ranking, each with the ranking's weight over C(K, 2)."""
    places = torch.combinations(torch.arange(rankings.order.shape[1]))
    winner, loser = rankings.order[:, places[:, 0]], rankings.order[:, places[:, 1]]
    return Pairs(
        rankings.prompt.repeat_interleave(len(places)),
        winner.flatten(),
        loser.flatten(),
        rankings.weight.repeat_interleave(len(places)) / len(places),
    )


def _factorial(number: int) -> int:
    return int(torch.arange(1, number + 1).prod())
