"""Optima that can be written down. All tensors are [X, Y] or [X], in float64."""

from __future__ import annotations

import torch
from torch import Tensor

from trimtab.proof.problem import Problem


def best_policy(problem: Problem, beta: float) -> Tensor:
    """log pi* [X, Y], pi* ~ pi_ref exp(r / beta): KL-regularised reward maximisation.

    Also the optimum of DPO (arXiv:2305.18290, equation 4) and of Plackett-Luce's loss over
    preferences of the Bradley-Terry and Plackett-Luce models with rewards r.
    """
    return torch.log_softmax(problem.reference + problem.rewards / beta, -1)


def best_objective(problem: Problem, beta: float) -> Tensor:
    """max J [X] = beta log Z, with Z = E_ref[exp(r / beta)]."""
    return beta * torch.logsumexp(problem.reference + problem.rewards / beta, -1)


def objective(log_policy: Tensor, problem: Problem, beta: float) -> Tensor:
    """J [X] = E_pi[r] - beta KL(pi || pi_ref)."""
    expected = (log_policy.exp() * problem.rewards).sum(-1)
    return expected - beta * kl(log_policy, problem.reference)


def kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) [X] of distributions given by their log-probs [X, Y]."""
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def best_of_n_policy(problem: Problem, n: int) -> Tensor:
    """log-probs [X, Y] of the best by reward of n responses drawn independently from pi_ref.

    P(y) = F(y)^n - F_<(y)^n with F the probability of a reward at most y's, F_< of a lower one;
    responses of equal reward share it by their probability (the first that was drawn wins).
    """
    p = problem.reference.exp()
    lower = (problem.rewards[:, None, :] < problem.rewards[:, :, None]).to(p)
    equal = (problem.rewards[:, None, :] == problem.rewards[:, :, None]).to(p)
    below, level = (lower * p[:, None, :]).sum(-1), (equal * p[:, None, :]).sum(-1)
    return torch.log(((below + level) ** n - below**n) * p / level)


def win_probability(problem: Problem) -> Tensor:
    """[X, Y, Y] Bradley-Terry: how likely response i is preferred to response j."""
    return torch.sigmoid(problem.rewards[:, :, None] - problem.rewards[:, None, :])


def win_rate(problem: Problem) -> Tensor:
    """[X, Y] how likely a response is preferred to one that is drawn from ``sampling``."""
    return (win_probability(problem) * problem.sampling[:, None, :]).sum(-1)


def ipo_policy(problem: Problem, tau: float) -> Tensor:
    """IPO's optimum, log-probs [X, Y]: log pi / pi_ref = E_{y' ~ sampling}[p(y > y')] / tau + c.

    From sums, over pairs drawn independently from ``sampling`` (arXiv:2310.12036, whose equation 17
    is the loss). It is not pi*: a preference probability is bounded, and so are the log-ratios.
    """
    return torch.log_softmax(problem.reference + win_rate(problem) / tau, -1)
