"""Optima that can be written down. All tensors are [X, Y] or [X], in float64."""

from __future__ import annotations

from collections.abc import Callable

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


def f_policy(problem: Problem, beta: float, inverse: Callable[[Tensor], Tensor]) -> Tensor:
    """f-DPO's optimum, log-probs [X, Y]: beta g(log pi / pi_ref) = r - c, c by normalisation.

    ``inverse`` [X, Y] is g's, increasing; where it has a pole (the forward KL's -1 / u at 0, from
    below) values beyond it are taken as infinite. arXiv:2309.16240.
    """

    def mass(c: Tensor) -> Tensor:
        u = (problem.rewards - c[:, None]) / beta
        return (problem.reference + inverse(u)).nan_to_num(float("inf")).logsumexp(-1)

    c = _root(mass, problem.rewards.amin(-1) - 60 * beta, problem.rewards.amax(-1) + 60 * beta)
    return problem.reference + inverse((problem.rewards - c[:, None]) / beta)


def sppo_policy(problem: Problem, eta: float) -> Tensor:
    """SPPO's optimum after one round, log-probs [X, Y], responses drawn from the reference.

    The least squares a = eta (P - 1/2), P the win rate against the reference itself, under sum
    pi_ref exp(a) = 1: a = t - W(lambda exp(t)) with t that target and W Lambert's function. The
    paper (arXiv:2405.00675) leaves the constraint out: its log Z is taken to be eta / 2.
    """
    target = eta * (win_rate(problem._replace(sampling=problem.reference.exp())) - 0.5)

    def moved(log_lambda: Tensor) -> Tensor:
        return target - _lambert(log_lambda[:, None] + target)

    def mass(log_lambda: Tensor) -> Tensor:
        return (problem.reference + moved(log_lambda)).logsumexp(-1)

    edge = torch.full_like(target[:, 0], 60.0)
    return problem.reference + moved(_root(mass, -edge, edge))


def _lambert(log_x: Tensor) -> Tensor:
    """W(x) for x = exp(log_x): W + log W = log x, by Newton's steps on log W."""
    found = torch.where(log_x > 1, log_x.clamp(min=1).log(), log_x)
    for _ in range(50):
        w = found.exp()
        found = found - (w + found - log_x) / (w + 1)
    return found.exp()


def _root(mass: Callable[[Tensor], Tensor], low: Tensor, high: Tensor) -> Tensor:
    """[X] where the falling ``mass`` [X] is 0, by bisection to the last digit."""
    for _ in range(200):
        middle = (low + high) / 2
        above = mass(middle) > 0
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    return (low + high) / 2
