"""Where a loss leads on the setup E6: to pi*, to IPO's optimum, elsewhere, or nowhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from trimtab.losses.contract import OF_THE_CALL, LossSpec
from trimtab.losses.types import SequenceLogprobs
from trimtab.proof.closed_forms import best_policy, ipo_policy, kl
from trimtab.proof.expectation import Expectation, minimise, per_token
from trimtab.proof.language import Language
from trimtab.proof.problem import Problem, setup_e6
from trimtab.proof.tabular import ResponseTable, TokenTable

E6_BETA = 0.5  # of the setup's known numbers
REACHED = 1e-8  # nats of KL
GONE = -15.0  # nats below the reference; pi* stays above -5
STILL = 1e-6  # largest entry of the gradient at an optimum
NEAR = 1e-3  # nats to go by Newton's step at an optimum
KINK = "not settled: it has kinks, and the search stopped at one"


class Optimum(NamedTuple):
    """Distributions [Y] over E6's responses, and how far the loss's own is from the known two.

    Where the search ended: ``gradient`` is the largest entry of the expected loss's gradient,
    ``step`` that of Newton's step (nats; large where a minimum lies at infinity), ``lowest`` the
    lowest log pi / pi_ref. ``verdict`` is the whole in words.
    """

    texts: tuple[str, ...]
    reference: Tensor
    rewards: Tensor
    best: Tensor
    ipo: Tensor
    found: Tensor
    kl_to_best: float
    kl_to_ipo: float
    gradient: float
    step: float
    lowest: float
    verdict: str


def problem_for(beta: float) -> Problem:
    """E6 with its rewards scaled by ``beta`` / 0.5, so that pi* is the same for every beta."""
    plain = setup_e6()
    return plain._replace(rewards=plain.rewards * beta / E6_BETA)


def find_optimum(spec: LossSpec, make: Callable[[], Any], beta: float) -> Optimum:
    """Minimise the exact expectation of a loss over a policy that can be anything.

    ``make`` gives a fresh loss; one with a ``prepare`` prepares once, at the reference. A loss that
    stops gradients of the policy has a rest point and no minimum: it is approached by gradient
    steps where L-BFGS does not settle.
    """
    problem, language = problem_for(beta), Language()
    expectation = Expectation.of(spec, problem)
    start = TokenTable(language, problem.reference).requires_grad_(False)
    if spec.needs & OF_THE_CALL:
        policy: nn.Module = TokenTable(language, problem.reference)
    else:
        policy = ResponseTable(problem.reference)
    loss = make()
    if spec.prepare_needs:
        with torch.no_grad():
            loss.prepare(**_at_reference(spec, expectation))

    def value() -> Tensor:
        more = None
        if isinstance(policy, TokenTable):
            more = per_token(spec.needs, policy, start)
        return expectation.value(loss, policy(), more)

    gradient = minimise(policy, value, rounds=6).gradient
    kink = False
    if not gradient < STILL and _lowest(policy, problem) > GONE:
        kink = _at_a_kink(policy, value)
        gradient = gradient if kink else _settle(policy, value)
    step = float(_newton(policy, value).abs().max())
    found = policy().detach()
    best, ipo = best_policy(problem, beta), ipo_policy(problem, beta)
    apart = kl(best, found).item(), kl(ipo, found).item()
    lowest = _lowest(policy, problem)
    return Optimum(
        language.texts,
        problem.reference.exp()[0],
        problem.rewards[0],
        best.exp()[0],
        ipo.exp()[0],
        found.exp()[0],
        *apart,
        gradient,
        step,
        lowest,
        KINK if kink else _verdict(*apart, gradient, step, lowest),
    )


def _verdict(
    kl_to_best: float, kl_to_ipo: float, gradient: float, step: float, lowest: float
) -> str:
    if not gradient < float("inf"):
        return "not found: the expected loss or its gradient is not finite"
    if kl_to_best < REACHED:
        return "pi*, the optimum of KL-regularised reward maximisation"
    if kl_to_ipo < REACHED:
        return "IPO's optimum"
    if gradient < STILL and step < NEAR:
        return "an optimum of its own"
    if lowest < GONE:
        return "collapses: the probability of some responses goes to 0 without end"
    return "not settled: no optimum was found, the search still moves"


def _lowest(policy: nn.Module, problem: Problem) -> float:
    return (policy().detach() - problem.reference).min().item()


def _settle(policy: nn.Module, value: Callable[[], Tensor], steps: int = 500) -> float:
    """Adam with a rate that goes to 0, then Newton's steps; the gradient's largest entry."""
    optimizer = torch.optim.Adam(policy.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.98)
    for _ in range(steps):
        optimizer.zero_grad()
        value().backward()
        optimizer.step()
        schedule.step()
    (parameter,) = policy.parameters()
    gradient = float(_gradient(policy, value).abs().max())
    for _ in range(6):
        before = parameter.detach().clone()
        with torch.no_grad():
            parameter -= _newton(policy, value).view_as(parameter)
        found = float(_gradient(policy, value).abs().max())
        if not found < gradient:  # too far, or as near as rounding lets it
            with torch.no_grad():
                parameter.copy_(before)
            break
        gradient = found
    return gradient


def _at_a_kink(policy: nn.Module, value: Callable[[], Tensor], reach: float = 1e-6) -> bool:
    """Whether the gradient is another one a hair away against its own direction."""
    (parameter,) = policy.parameters()
    before = _gradient(policy, value)
    largest = before.abs().max()
    if not bool(before.isfinite().all()):
        return False
    shift = (reach * before / largest).view_as(parameter)
    with torch.no_grad():
        parameter -= shift
    after = _gradient(policy, value)
    with torch.no_grad():
        parameter += shift
    return bool((after - before).abs().max() > 0.5 * largest)


def _gradient(policy: nn.Module, value: Callable[[], Tensor]) -> Tensor:
    found = torch.autograd.grad(value(), list(policy.parameters()))
    return torch.cat([part.flatten() for part in found])


@torch.no_grad()
def _newton(policy: nn.Module, value: Callable[[], Tensor], h: float = 1e-4) -> Tensor:
    """Newton's step, flat, with the Hessian by differences of the gradient; else infinities."""
    (parameter,) = policy.parameters()
    flat = parameter.view(-1)
    columns = []
    for place in range(flat.numel()):
        ends = []
        for shift in (h, -2 * h):
            flat[place] += shift
            with torch.enable_grad():
                ends.append(_gradient(policy, value))
        flat[place] += h
        columns.append((ends[0] - ends[1]) / (2 * h))
    with torch.enable_grad():
        gradient = _gradient(policy, value)
    hessian = torch.stack(columns, 1)
    if not bool(hessian.isfinite().all() & gradient.isfinite().all()):
        return torch.full_like(gradient, float("inf"))
    return torch.linalg.pinv(hessian, rtol=1e-11) @ gradient


def _at_reference(spec: LossSpec, expectation: Expectation) -> dict[str, Any]:
    """Inputs of ``prepare`` where the policy is its reference."""
    kept = expectation.problem.reference.flatten()
    mismatched = SequenceLogprobs(kept, expectation.problem.lengths)
    wanted = spec._replace(needs=spec.prepare_needs - {"generator"})
    plain = Expectation(
        wanted._replace(needs=wanted.needs - {"mismatched_policy", "mismatched_reference"}),
        *(expectation.problem, expectation.index, expectation.weight, expectation.labels),
    )
    found = plain.inputs(expectation.problem.reference)
    found["mismatched_policy"] = found["mismatched_reference"] = mismatched
    found["generator"] = torch.Generator().manual_seed(0)
    return {name: found[name] for name in spec.prepare_needs}
