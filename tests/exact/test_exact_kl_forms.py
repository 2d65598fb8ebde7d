"""Where each form of the KL term really leads, and where the ptx term does: fixed points.

One-token responses, so that a response's probability is a token's. With rewards r, reference
pi_0, strength beta and samples of the policy itself taken as given:

    KL in the reward, k2, k3 times the ratio   pi* ~ pi_0 exp(r / beta)
    k3 in the loss (GRPO's)                    pi = beta pi_0 / (lambda - r), lambda normalises it
    k1 in the loss                             the best response alone: beta does nothing
    any of the first, and gamma log pi(a)      argmax of the sum, found by Newton's method here

Once with the expectation itself over E6's six responses, once through the verbs. Several tokens are
in ``test_exact_group_forms.py``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from tests.exact.exact_runs import LANGUAGE, PROMPT, WORDS, prepare, rewards_of, sampled
from torch import Tensor
from transformers import AutoModelForCausalLM

from trimtab.losses.kl import KL_ESTIMATORS, weighted_kl
from trimtab.losses.policy_gradient import reinforce_loss
from trimtab.proof.closed_forms import best_policy
from trimtab.proof.problem import setup_e6

BETA = 0.5
K3_OF_E6 = (0.09554698, 0.03036179, 0.04938524, 0.77545682, 0.02148382, 0.02776535)


def k3_point(reference: Tensor, rewards: Tensor, beta: float) -> Tensor:
    """[Y] beta pi_0 / (lambda - r): the sum falls in lambda, which bisection finds."""
    low, high = rewards.max(), rewards.max() + beta
    for _ in range(200):
        middle = (low + high) / 2
        if (beta * reference.exp() / (middle - rewards)).sum() > 1:
            low = middle
        else:
            high = middle
    return beta * reference.exp() / (high - rewards)


# --------------------------------------------------------------------------- the expectation


def settled(form: str, steps: int = 500) -> Tensor:
    """[6] where gradient steps on the exact expectation end; samples are weights without gradient.

    ``reward``: the KL is part of the reward. ``k3_weighted``: times the ratio, which is 1.
    """
    problem = setup_e6()
    reference, rewards = problem.reference[0], problem.rewards[0]
    logits = reference.clone().requires_grad_()
    for _ in range(steps):
        logp = torch.log_softmax(logits, -1)
        fixed = logp.detach()
        score, penalty = rewards, torch.zeros_like(logp)
        if form == "reward":
            score = rewards - BETA * (fixed - reference)
        elif form.endswith("_weighted"):
            penalty = weighted_kl(form[:2], logp, reference, fixed)
        else:
            penalty = KL_ESTIMATORS[form](logp, reference)
        advantage = score - (fixed.exp() * score).sum()
        loss = (fixed.exp() * (reinforce_loss(logp, advantage) + BETA * penalty)).sum()
        (gradient,) = torch.autograd.grad(loss, logits)
        with torch.no_grad():  # Fisher's metric is diagonal in the logits, but for a constant
            logits -= 0.5 * gradient / fixed.exp().clamp(min=1e-6)
    return torch.softmax(logits.detach(), -1)


@pytest.mark.parametrize("form", ["reward", "k2", "k1_weighted", "k3_weighted"])
def test_forms_with_the_gradient_of_the_reverse_kl_reach_pi_star(form: str) -> None:
    best = best_policy(setup_e6(), BETA)[0].exp()
    assert (settled(form) - best).abs().max() < 1e-6


def test_k3_in_the_loss_has_a_point_of_its_own() -> None:
    problem = setup_e6()
    found = settled("k3")
    assert (found - torch.tensor(K3_OF_E6, dtype=torch.float64)).abs().max() < 1e-7
    closed = k3_point(problem.reference[0], problem.rewards[0], BETA)
    assert (found - closed).abs().max() < 1e-7
    assert (found - best_policy(problem, BETA)[0].exp()).abs().max() > 0.03


def test_k1_in_the_loss_ignores_the_reference() -> None:
    found = settled("k1")
    assert found.argmax() == setup_e6().rewards.argmax()
    assert found.max() > 0.999


# --------------------------------------------------------------------------- through the verbs


class Setting(NamedTuple):
    """A model's folder, rewards of the five tokens and the reference's log-probs after xy [5]."""

    root: Path
    rewards: Tensor
    reference: Tensor


def next_token(folder: Path) -> Tensor:
    """[5] fp64 log-probs behind the prompt, by plain transformers."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = torch.tensor([[LANGUAGE.prompt_id(letter) for letter in PROMPT]])
    with torch.no_grad():
        return torch.log_softmax(model(input_ids=ids).logits[0, -1].double(), -1)


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    root = tmp_path_factory.mktemp("kl-forms")
    return Setting(root, rewards_of(WORDS), next_token(prepare(root)))


def trained(setting: Setting, verb: str, name: str, **keys: Any) -> Tensor:
    """[5] log-probs after training with the verb."""
    common: dict[str, Any] = {"max_completion_length": 1, "kl_coef": BETA, "max_steps": 60}
    return next_token(sampled(setting.root, verb, name, **{**common, **keys}))


def distance(found: Tensor, optimum: Tensor) -> float:
    """KL(found || optimum) in nats."""
    return (found.exp() * (found - optimum)).sum().item()


def best(setting: Setting) -> Tensor:
    return torch.log_softmax(setting.reference + setting.rewards / BETA, -1)


@pytest.mark.slow
def test_grpo_with_k3_in_the_loss_ends_at_its_own_point(setting: Setting) -> None:
    """Advantages that are not divided by their spread: dr_grpo's."""
    found = trained(setting, "grpo", "k3", algorithm="dr_grpo", kl_estimator="k3")
    own = k3_point(setting.reference, setting.rewards, BETA).log()
    assert distance(best(setting), own) > 0.05  # the two are apart
    assert distance(found, own) < 0.01
    assert distance(found, best(setting)) > 0.03


@pytest.mark.slow
@pytest.mark.parametrize("estimator", ["k3_weighted", pytest.param("k2", marks=pytest.mark.slow)])
def test_grpo_with_other_terms_in_the_loss_reaches_pi_star(
    setting: Setting, estimator: str
) -> None:
    found = trained(setting, "grpo", estimator, algorithm="dr_grpo", kl_estimator=estimator)
    assert distance(found, best(setting)) < 0.01


def test_the_ptx_term_moves_the_optimum_to_the_mixed_one(setting: Setting) -> None:
    """Text "xya" has three scored tokens, y, a and the end; one of them is behind the prompt."""
    gamma = 0.6
    text = setting.root / "text.jsonl"
    text.write_text(json.dumps({"text": PROMPT + "a"}) + "\n")
    logits = setting.reference.clone().requires_grad_()
    optimiser = torch.optim.LBFGS([logits], lr=0.5, max_iter=500, tolerance_grad=1e-12)

    def objective() -> Tensor:
        logp = torch.log_softmax(logits, -1)
        gain = (logp.exp() * (setting.rewards - BETA * (logp - setting.reference))).sum()
        return gain + gamma / 3 * logp[0]

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = -objective()
        loss.backward()
        return loss

    optimiser.step(closure)  # pyright: ignore[reportArgumentType]
    mixed = torch.log_softmax(logits.detach(), -1)
    assert distance(best(setting), mixed) > 0.05
    mix = {"dataset_name": str(text), "weight": gamma, "batch_size": 1}
    found = trained(setting, "rloo", "ptx", mix=mix, max_steps=40)
    assert distance(found, mixed) < 0.01
    assert distance(found, best(setting)) > 0.03
