"""The optima of the family, each against its own closed form; KL divergences in nats."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from trimtab.losses import bind, describe
from trimtab.proof.closed_forms import (
    best_policy,
    f_policy,
    kl,
    sppo_policy,
    win_probability,
    win_rate,
)
from trimtab.proof.expectation import Expectation, minimise, per_token
from trimtab.proof.language import Language
from trimtab.proof.preferences import all_pairs
from trimtab.proof.problem import Problem, random_rewards, setup_e6, uniform
from trimtab.proof.tabular import ResponseTable, TokenTable

BETA = 0.5
REACHED, APART = 1e-8, 1e-2
NOISE = 0.2
E6 = setup_e6()
BEST = best_policy(E6, BETA)


def settled(expectation: Expectation, **settings: Any) -> Tensor:
    """Log-probs [X, Y] of the policy that minimises an exact expectation."""
    loss = bind(expectation.spec.name, settings)
    policy = ResponseTable(expectation.problem.reference)
    minimise(policy, lambda: expectation.value(loss, policy()))
    return policy().detach()


def of_pairs(name: str, problem: Problem = E6, **how: Any) -> Expectation:
    return Expectation.of_pairs(describe(name), problem, all_pairs(problem, **how))


def distance(optimum: Tensor, found: Tensor) -> float:
    return kl(optimum, found).max().item()


def twins() -> Problem:
    """Eight prompts with two responses each: a loss of pairs then has a rest for each prompt."""
    draws = random_rewards(16, 2, seed=5)
    return uniform(draws[:8], draws[8:], torch.tensor([3, 5]))


def log_odds(log_policy: Tensor, problem: Problem) -> Tensor:
    """[X] log-ratio of the first response less that of the second."""
    ratios = log_policy - problem.reference
    return ratios[:, 0] - ratios[:, 1]


# ---------------------------------------------------------------------- noise


def test_robust_dpo_reaches_pi_star_under_label_noise_and_dpo_does_not() -> None:
    found = {
        "robust": settled(of_pairs("robust", noise=NOISE), beta=BETA, epsilon=NOISE),
        "dpo": settled(of_pairs("dpo", noise=NOISE), beta=BETA),
        "cdpo": settled(of_pairs("cdpo", noise=NOISE), beta=BETA, epsilon=NOISE),
        "wrong rate": settled(of_pairs("robust", noise=NOISE), beta=BETA, epsilon=0.1),
    }
    assert distance(BEST, found.pop("robust")) < REACHED
    assert (found["dpo"] - BEST).abs().max().item() == pytest.approx(2.6, abs=0.05)
    for name, other in found.items():
        assert distance(BEST, other) > APART, name


def test_cdpo_on_right_labels_is_dpo_on_noisy_ones() -> None:
    conservative = settled(of_pairs("cdpo"), beta=BETA, epsilon=NOISE)
    noisy = settled(of_pairs("dpo", noise=NOISE), beta=BETA)
    assert distance(noisy, conservative) < REACHED < APART < distance(BEST, conservative)


def test_cdpo_rests_at_the_log_odds_of_its_blurred_preferences() -> None:
    problem = twins()
    wins = win_probability(problem)[:, 0, 1]
    blurred = (1 - NOISE) * wins + NOISE * (1 - wins)
    found = settled(of_pairs("cdpo", problem), beta=BETA, epsilon=NOISE)
    assert torch.allclose(BETA * log_odds(found, problem), blurred.logit(), atol=1e-6)
    assert not torch.allclose(BETA * log_odds(found, problem), wins.logit(), atol=1e-2)


# ---------------------------------------------------------------------- EXO, NCA, SPPO


def test_exo_of_pairs_rests_at_the_mean_of_its_targets_log_odds() -> None:
    """The reverse KL averages logarithms: (2 p - 1) log((1 - e) / e), where cDPO has a logit."""
    problem, epsilon = twins(), 0.1
    wins = win_probability(problem)[:, 0, 1]
    found = settled(of_pairs("exo", problem), beta=BETA, epsilon=epsilon)
    target = (2 * wins - 1) * math.log((1 - epsilon) / epsilon)
    assert torch.allclose(BETA * log_odds(found, problem), target, atol=1e-6)
    forward = settled(of_pairs("cdpo", problem), beta=BETA, epsilon=epsilon)
    assert not torch.allclose(BETA * log_odds(forward, problem), target, atol=1e-2)


@pytest.mark.parametrize(("name", "scale"), [("exo_rewards", "reward_beta"), ("infonca", "alpha")])
def test_losses_of_scores_reach_pi_star(name: str, scale: str) -> None:
    """Over all responses at once: pi_ref exp(r / (beta scale)); by sets of three as well."""
    whole = Expectation.of_whole_rankings(describe(name), E6)
    threes = Expectation.of(describe(name), E6)
    for expectation in (whole, threes):
        assert distance(BEST, settled(expectation, beta=0.25, **{scale: 2.0})) < REACHED
        assert distance(BEST, settled(expectation, beta=0.25, **{scale: 1.0})) > APART


def test_nca_of_pairs_reaches_twice_the_win_rate() -> None:
    """beta = 1, responses drawn from the reference: pi_ref 2 P(y > y'), normalised as it is."""
    problem = E6._replace(sampling=E6.reference.exp())
    wins = win_rate(problem)
    optimum = problem.reference + (2 * wins).log()
    assert optimum.exp().sum().item() == pytest.approx(1, rel=1e-12)
    found = settled(of_pairs("nca", problem, itself=True), beta=1.0)
    assert distance(optimum, found) < REACHED
    assert distance(optimum, settled(of_pairs("nca", problem, itself=True), beta=0.5)) > 1e-3
    assert distance(optimum, settled(of_pairs("dpo", problem, itself=True), beta=1.0)) > APART


def test_nca_of_scores_reaches_their_shares() -> None:
    """R = log(K w) of every response by itself; from a uniform reference, at beta = 1, pi = w."""
    problem = uniform(torch.zeros(6), E6.rewards[0], E6.lengths)
    expectation = Expectation.of_whole_rankings(describe("nca_rewards"), problem)
    optimum = torch.log_softmax(problem.rewards / 0.7, -1)
    assert distance(optimum, settled(expectation, beta=1.0, alpha=0.7)) < REACHED
    assert distance(optimum, settled(expectation, beta=1.0, alpha=1.0)) > APART


def test_sppo_reaches_its_least_squares() -> None:
    """a = t - W(lambda exp t), t = eta (P - 1/2), and not quite pi_ref exp(t) / Z."""
    problem, eta = E6._replace(sampling=E6.reference.exp()), 3.0
    optimum = sppo_policy(problem, eta)
    assert optimum.exp().sum().item() == pytest.approx(1, rel=1e-12)
    expectation = of_pairs("sppo", problem, itself=True)
    found = settled(expectation, eta=eta)
    assert distance(optimum, found) < REACHED
    tilted = torch.log_softmax(problem.reference + eta * win_rate(problem), -1)
    assert 1e-3 < distance(tilted, found) < 0.1
    assert distance(optimum, settled(expectation, eta=2.0)) > APART
    small = sppo_policy(problem, 0.01)
    tilt = torch.log_softmax(problem.reference + 0.01 * win_rate(problem), -1)
    assert distance(tilt, small) < 1e-9, "at small steps the two are one"


# ---------------------------------------------------------------------- other divergences


def test_forward_kl_reaches_its_known_numbers() -> None:
    """beta pi_ref / (c - r): also the fixed point of k3 in the loss, in numbers known before."""
    found = settled(of_pairs("fdpo_forward"), beta=BETA).exp()[0]
    known = [0.09554698, 0.03036179, 0.04938524, 0.77545682, 0.02148382, 0.02776535]
    assert found.tolist() == pytest.approx(known, abs=5e-8)
    assert distance(BEST, found.log()[None]) > APART


INVERSES: dict[str, tuple[dict[str, float], Callable[[Tensor], Tensor]]] = {
    "fdpo_forward": ({}, lambda u: -(-u).log()),
    "fdpo_js": ({}, lambda u: torch.where(u < 0, u - torch.log(-torch.expm1(u)), torch.inf)),
    "fdpo_alpha": ({"alpha": 0.5}, lambda u: -2 * torch.log1p(-0.5 * u)),
}


@pytest.mark.parametrize("name", INVERSES)
def test_f_dpo_reaches_the_optimum_of_its_divergence(name: str) -> None:
    settings, inverse = INVERSES[name]
    optimum = f_policy(E6, BETA, inverse)
    assert optimum.exp().sum().item() == pytest.approx(1, rel=1e-12)
    found = settled(of_pairs(name), beta=BETA, **settings)
    assert distance(optimum, found) < REACHED < 1e-3 < distance(BEST, found)
    for other in INVERSES.keys() - {name}:
        assert distance(optimum, settled(of_pairs(other), beta=BETA)) > 1e-3, other


def test_r_dpo_reaches_pi_star_of_a_reward_less_its_length() -> None:
    alpha = 0.3
    shorter = E6._replace(rewards=E6.rewards - alpha * E6.lengths)
    found = settled(of_pairs("r_dpo"), beta=BETA, alpha=alpha)
    assert distance(best_policy(shorter, BETA), found) < REACHED < APART < distance(BEST, found)
    longer = E6._replace(rewards=E6.rewards + alpha * E6.lengths)
    assert distance(best_policy(longer, BETA), found) > APART


# ---------------------------------------------------------------------- policies of tokens


def test_ld_dpo_leaves_pi_star_where_lengths_differ() -> None:
    """On responses of up to three letters; at alpha = 1 it is DPO. (WPO: test_exact_bench.py.)"""
    language = Language(longest=3)
    reference, rewards = random_rewards(2, 14, seed=3)
    problem = uniform(reference, rewards, language.lengths)
    best, spec = best_policy(problem, BETA), describe("ld_dpo")
    expectation = Expectation.of(spec, problem)
    start = TokenTable(language, problem.reference).requires_grad_(False)
    for alpha, reaches in ((1.0, True), (0.5, False)):
        loss, policy = (
            bind("ld_dpo", {"beta": BETA, "alpha": alpha}),
            TokenTable(language, problem.reference),
        )

        def value(policy: TokenTable = policy, loss: Any = loss) -> Tensor:
            return expectation.value(loss, policy(), per_token(spec.needs, policy, start))

        minimise(policy, value, rounds=4)
        assert (distance(best, policy().detach()) < REACHED) is reaches


# ---------------------------------------------------------------------- sums


def test_a_sum_of_losses_is_the_sum_of_its_expectations() -> None:
    """dpo + cdpo has its minimum between theirs; weights and settings are each loss's own."""
    from trimtab.losses import bind_sum, describe_sum

    weights = {"dpo": 1.0, "cdpo": 2.0}
    settings = {"dpo.beta": BETA, "cdpo.beta": BETA, "cdpo.epsilon": NOISE}
    spec, loss = describe_sum(weights), bind_sum(weights, settings)
    expectation = Expectation.of(spec, E6)
    policy = ResponseTable(E6.reference)
    minimise(policy, lambda: expectation.value(loss, policy()))
    # A cross-entropy of labels that are wrong with the mean of the two rates.
    between = settled(of_pairs("cdpo"), beta=BETA, epsilon=2 * NOISE / 3)
    assert distance(between, policy().detach()) < REACHED
    assert distance(between, settled(of_pairs("cdpo"), beta=BETA, epsilon=NOISE)) > 1e-3
