"""Claims in closed form: which optimum an exact expectation has, on policies that can be anything.

Tolerances are KL divergences in nats, of the worst prompt.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.exact import wrong_losses
from torch import Tensor, nn

from trimtab.losses import bind, describe
from trimtab.proof.closed_forms import (
    best_objective,
    best_policy,
    ipo_policy,
    kl,
    objective,
    win_probability,
)
from trimtab.proof.expectation import Expectation, minimise
from trimtab.proof.language import Language
from trimtab.proof.preferences import all_pairs, all_rankings, collapse, sample_pairs
from trimtab.proof.problem import Problem, random_rewards, setup_e6, uniform
from trimtab.proof.tabular import ResponseTable, TokenTable

BETA = 0.5
LONG = Language(longest=3, prompts="xyz")
REACHED, APART = 1e-8, 1e-2


def long_problem() -> Problem:
    """Three prompts, fourteen responses, which are not equally often compared."""
    draws = random_rewards(9, len(LONG.texts), seed=3)
    problem = uniform(draws[:3], draws[3:6], LONG.lengths)
    return problem._replace(sampling=torch.softmax(draws[6:], -1))


def settled(
    loss: Any, problem: Problem, policy: nn.Module | None = None, **settings: Any
) -> Tensor:
    """Log-probs [X, Y] of the policy that minimises the exact expectation of a loss."""
    spec = describe(loss)
    expectation, call = Expectation.of(spec, problem), bind(loss, settings)
    policy = policy or ResponseTable(problem.reference)
    minimise(policy, lambda: expectation.value(call, policy()))
    return policy().detach()


def distance(optimum: Tensor, found: Tensor) -> float:
    return kl(optimum, found).max().item()


# ---------------------------------------------------------------------- the closed forms


def test_known_numbers_of_e6() -> None:
    problem = setup_e6()
    best = best_policy(problem, BETA)
    pi_star = [0.14875294, 0.01221039, 0.00904568, 0.81426579, 0.01349456, 0.00223064]
    assert best.exp()[0].tolist() == pytest.approx(pi_star, abs=5e-9)
    assert best_objective(problem, BETA).item() == pytest.approx(1.1730978242576657, rel=1e-14)
    assert kl(best, problem.reference).item() == pytest.approx(1.2029632, abs=5e-8)
    ipo = [0.2663467, 0.10831233, 0.1786417, 0.27241169, 0.07430084, 0.09998675]
    assert ipo_policy(problem, BETA).exp()[0].tolist() == pytest.approx(ipo, abs=5e-9)


def test_pi_star_is_the_best_policy() -> None:
    """J(pi*) = beta log Z, and every other policy is below it by exactly beta KL(pi || pi*)."""
    problem = long_problem()
    best = best_policy(problem, BETA)
    top = best_objective(problem, BETA)
    assert torch.allclose(objective(best, problem, BETA), top, rtol=1e-13)
    for seed in range(20):
        other = torch.log_softmax(best + random_rewards(3, 14, seed=seed), -1)
        below = top - objective(other, problem, BETA)
        assert torch.allclose(below, BETA * kl(other, best), rtol=1e-10) and bool((below > 0).all())
    misplaced = torch.log_softmax(problem.reference + problem.rewards * BETA, -1)
    assert bool((top - objective(misplaced, problem, BETA) > APART).all())


# ---------------------------------------------------------------------- DPO reaches pi*


def tables(problem: Problem) -> list[Callable[[], nn.Module]]:
    language = LONG if problem.shape[1] == 14 else Language()
    return [
        lambda: ResponseTable(problem.reference),
        lambda: TokenTable(language, problem.reference),
    ]


@pytest.mark.parametrize("make", [setup_e6, long_problem], ids=["e6", "long"])
def test_dpo_on_exact_preferences_reaches_pi_star(make: Callable[[], Problem]) -> None:
    """KL < 1e-8 over all ordered pairs, for a table of responses and for a table of tokens."""
    problem = make()
    best = best_policy(problem, BETA)
    assert distance(best, problem.reference) > 0.1
    for table in tables(problem):
        found = settled("dpo", problem, table(), beta=BETA)
        assert distance(best, found) < REACHED
        assert torch.allclose(found, best, atol=1e-3), "log-probs of rare responses, too"
    for wrong in wrong_losses.DPO:
        assert distance(best, settled(wrong, problem, beta=BETA)) > APART, wrong.__name__


def test_a_family_of_losses_that_reach_it_too() -> None:
    """Each one with the settings that make it DPO, and none with others."""
    problem = setup_e6()
    best = best_policy(problem, BETA)
    assert distance(best, settled("beta_dpo", problem, beta=BETA)) < REACHED
    language = Language()
    start = TokenTable(language, problem.reference).requires_grad_(False)
    for alpha, reaches in ((0.0, True), (0.5, False)):
        policy = TokenTable(language, problem.reference)
        spec, loss = describe("tdpo2"), bind("tdpo2", {"beta": BETA, "alpha": alpha})
        expectation = Expectation.of(spec, problem)
        minimise(
            policy,
            lambda p=policy, e=expectation, f=loss: e.value(
                f, p(), {"sequence_kl": p.sequence_kl(start)}
            ),
            rounds=4,
        )
        assert (distance(best, policy().detach()) < REACHED) is reaches
    for name in ("simpo", "orpo"):
        assert distance(best, settled(name, problem, beta=BETA)) > APART


# ---------------------------------------------------------------------- other optima


@pytest.mark.parametrize("make", [setup_e6, long_problem], ids=["e6", "long"])
def test_ipo_has_an_optimum_of_its_own(make: Callable[[], Problem]) -> None:
    """log pi / pi_ref = E[p(y > y')] / tau + c, and not pi*; DPO does not reach it."""
    problem = make()
    ipo, best = ipo_policy(problem, BETA), best_policy(problem, BETA)
    found = settled(wrong_losses.own_ipo, problem, tau=BETA)
    assert distance(ipo, found) < REACHED < APART < distance(best, found)
    assert distance(ipo, settled("dpo", problem, beta=BETA)) > APART
    for wrong in wrong_losses.IPO:
        assert distance(ipo, settled(wrong, problem, tau=BETA)) > APART, wrong.__name__


def test_plackett_luce_on_exact_rankings_reaches_pi_star() -> None:
    """Over all rankings of three responses with Plackett-Luce probabilities."""
    for problem in (setup_e6(), long_problem()._replace(sampling=torch.full((3, 14), 1 / 14))):
        best = best_policy(problem, BETA)
        assert distance(best, settled("plackett_luce", problem, beta=BETA)) < REACHED
    problem = setup_e6()
    best = best_policy(problem, BETA)
    for wrong in wrong_losses.PLACKETT_LUCE:
        assert distance(best, settled(wrong, problem, beta=BETA)) > APART, wrong.__name__


# ---------------------------------------------------------------------- the tools themselves


def test_the_language_is_whole() -> None:
    assert Language().texts == ("a", "b", "aa", "ab", "ba", "bb")
    assert Language().lengths.tolist() == [2, 2, 3, 3, 3, 3]
    assert LONG.ids("ba") == (1, 0, 2) and LONG.prompt_id("y") == 4 and LONG.vocabulary == 6
    assert LONG.visits.sum((1, 2)).tolist() == [2] * 2 + [3] * 12, "the last stop is no choice"


def test_a_table_of_tokens_is_any_distribution() -> None:
    problem = long_problem()
    table = TokenTable(LONG, problem.reference)
    assert torch.allclose(table(), problem.reference, atol=1e-12)
    with torch.no_grad():
        table.logits.add_(random_rewards(3, table.logits[0].numel(), seed=1).view_as(table.logits))
    assert torch.allclose(table().exp().sum(-1), torch.ones(3, dtype=torch.float64))
    start = TokenTable(LONG, problem.reference)
    # A chain rule: the whole KL is the reference's mean of the tokens' sums.
    expected = (problem.reference.exp() * table.sequence_kl(start)).sum(-1)
    assert torch.allclose(expected, kl(problem.reference, table().detach()))


def test_exact_preferences_are_probabilities() -> None:
    problem = long_problem()
    pairs = all_pairs(problem)
    alike = (problem.sampling.square().sum(-1)).mean()
    assert pairs.weight.sum().item() == pytest.approx(1 - alike.item(), rel=1e-12)
    wins = win_probability(problem)[pairs.prompt, pairs.winner, pairs.loser]
    there = dict(zip(zip(*(c.tolist() for c in pairs[:3]), strict=True), pairs.weight, strict=True))
    back = torch.stack([there[p, j, i] for p, i, j in there])
    assert torch.allclose(pairs.weight / (pairs.weight + back), wins, rtol=1e-12)
    ranked = all_rankings(setup_e6(), 3)
    assert len(ranked.weight) == 120 and ranked.weight.sum().item() == pytest.approx(1, rel=1e-12)
    two = all_rankings(setup_e6(), 2)
    assert torch.allclose(
        two.weight * 15, win_probability(setup_e6())[0, two.order[:, 0], two.order[:, 1]]
    )


def test_samples_follow_the_exact_probabilities() -> None:
    problem, count = long_problem(), 40_000
    exact, drawn = all_pairs(problem), collapse(sample_pairs(problem, count, seed=0))
    assert drawn.weight.sum().item() == count
    shape = (3, 14, 14)
    found, wanted = torch.zeros(shape).double(), torch.zeros(shape).double()
    found[drawn.prompt, drawn.winner, drawn.loser] = drawn.weight
    wanted[exact.prompt, exact.winner, exact.loser] = exact.weight / exact.weight.sum() * count
    often = wanted > 5
    deviations = ((found - wanted) / wanted.sqrt())[often]
    # Pearson's statistic over its cells is 1 with a standard deviation of sqrt(2 / cells).
    assert abs(deviations.square().mean().item() - 1) < 5 * (2 / int(often.sum())) ** 0.5
    swapped = ((found.transpose(1, 2) - wanted) / wanted.sqrt())[often]
    assert swapped.square().mean().item() > 5
    again = sample_pairs(problem, 50, seed=0)
    assert torch.equal(again.winner, sample_pairs(problem, 50, seed=0).winner)
    assert not torch.equal(again.winner, sample_pairs(problem, 50, seed=1).winner)
