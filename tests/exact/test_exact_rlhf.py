"""RLHF on a language that can be enumerated: PPO reaches the optimum that is known in closed form.

Every outcome of a rollout is listed, also the ones that are cut off, with its probability by
transformers alone: 21 strings of up to two tokens. pi* ~ pi_ref exp(r / beta) over them, and
max J = beta log Z. "DPO is equivalent to RLHF": from the same folder, on the same prompt, with the
same rewards and beta, ``ppo`` samples and ``dpo`` reads every comparison with its probability
sigmoid(r - r'), and they end at one policy.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from tests.exact.exact_runs import (
    LANGUAGE,
    PROMPT,
    WORDS,
    full_batch,
    prepare,
    rewards_of,
    sampled,
)
from torch import Tensor
from transformers import AutoModelForCausalLM

from trimtab.proof.preferences import all_pairs
from trimtab.proof.problem import uniform
from trimtab.proof.transformer import STOP

BETA = 0.5
TOKENS = 2


class Setting(NamedTuple):
    """The reference's folder, the rewards of all outcomes [21] and the reference's log-probs."""

    root: Path
    rewards: Tensor
    reference: Tensor

    @property
    def best(self) -> Tensor:
        """log pi* [21]."""
        return torch.log_softmax(self.reference + self.rewards / BETA, -1)

    @property
    def most(self) -> float:
        """max J = beta log Z."""
        return (BETA * torch.logsumexp(self.reference + self.rewards / BETA, -1)).item()

    def objective(self, logp: Tensor) -> float:
        """J of a policy given by its log-probs."""
        gain = (logp.exp() * self.rewards).sum() - BETA * (
            logp.exp() * (logp - self.reference)
        ).sum()
        return gain.item()

    def distance(self, logp: Tensor) -> float:
        """KL(pi || pi*)."""
        return (logp.exp() * (logp - self.best)).sum().item()


def outcomes() -> list[tuple[int, ...]]:
    """Everything a rollout can be: ended by the stop token, or cut off after two tokens."""
    others = [t for t in range(LANGUAGE.vocabulary) if t != LANGUAGE.stop]
    ended = [
        (*before, LANGUAGE.stop)
        for length in range(TOKENS)
        for before in itertools.product(others, repeat=length)
    ]
    return ended + list(itertools.product(others, repeat=TOKENS))


def logprobs(folder: Path) -> Tensor:
    """[21] fp64 log-probs of the outcomes, by plain transformers, one sequence at a time."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    found = []
    for ids in outcomes():
        row = torch.tensor([*map(LANGUAGE.prompt_id, PROMPT), *ids])
        with torch.no_grad():
            logits = model(input_ids=row[None]).logits[0, len(PROMPT) - 1 : -1].double()
        found.append(torch.log_softmax(logits, -1).gather(1, row[len(PROMPT) :, None]).sum())
    return torch.stack(found)


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    root = tmp_path_factory.mktemp("rlhf")
    reference = logprobs(prepare(root))
    rewards = rewards_of(["".join(WORDS[i] for i in ids) for ids in outcomes()])
    assert reference.logsumexp(-1).item() == pytest.approx(0.0, abs=1e-5)  # nothing is left out
    return Setting(root, rewards, reference)


def trained(setting: Setting, verb: str, name: str, **keys: Any) -> Tensor:
    """log-probs [21] after training with the verb's own path; ``...`` leaves a key out."""
    common: dict[str, Any] = {"max_completion_length": TOKENS, "kl_coef": BETA}
    return logprobs(sampled(setting.root, verb, name, **{**common, **keys}))


def assert_at_the_optimum(setting: Setting, found: Tensor) -> None:
    """J within 2 % of beta log Z, and KL(pi || pi*) < 0.02."""
    assert abs(setting.objective(found) - setting.most) < 0.02 * abs(setting.most)
    assert setting.distance(found) < 0.02


def optimum(setting: Setting, beta: float, rewards: Tensor | None = None) -> Tensor:
    """log pi* [21] of another beta, or of other rewards."""
    given = setting.rewards if rewards is None else rewards
    return torch.log_softmax(setting.reference + given / beta, -1)


def kl(log_p: Tensor, log_q: Tensor) -> float:
    return (log_p.exp() * (log_p - log_q)).sum().item()


def test_the_bounds_refuse_other_optima(setting: Setting) -> None:
    """beta twice as large or a half; the KL turned round or left out; other rewards."""
    assert_at_the_optimum(setting, setting.best)
    wrong = {
        "the reference": setting.reference,
        "2 beta": optimum(setting, 2 * BETA),
        "beta / 2": optimum(setting, BETA / 2),
        "1.3 beta": optimum(setting, 1.3 * BETA),
        "no reference": torch.log_softmax(setting.rewards / BETA, -1),
        "the KL rewarded": torch.log_softmax(setting.reference - setting.rewards / BETA, -1),
        "no KL": torch.log_softmax(setting.reference + 1e3 * setting.rewards, -1),
    }
    for name, found in wrong.items():
        with pytest.raises(AssertionError):
            assert_at_the_optimum(setting, found)
        assert setting.distance(found) > 0.02, name


# --------------------------------------------------------------------------- DPO is RLHF


def comparisons(setting: Setting, rewards: Tensor) -> list[dict[str, Any]]:
    """A row for every two outcomes in both orders, weighted with Bradley-Terry's probability.

    Those that were cut off have no stop token, here by the recipe's ``max_length``.
    """
    words = [STOP if i == LANGUAGE.stop else word for i, word in enumerate(WORDS)]
    texts = ["".join(words[i] for i in ids) for ids in outcomes()]
    lengths = torch.tensor([len(ids) for ids in outcomes()])
    pairs = all_pairs(uniform(setting.reference, rewards, lengths))
    columns = (pairs.winner, pairs.loser, pairs.weight)
    return [
        {"prompt": PROMPT, "chosen": texts[w], "rejected": texts[x], "weight": weight}
        for w, x, weight in zip(*(c.tolist() for c in columns), strict=True)
    ]


def preferred(setting: Setting, name: str, rewards: Tensor, beta: float, **keys: Any) -> Tensor:
    """log-probs [21] after ``trimtab dpo`` on the comparisons of these rewards."""
    common: dict[str, Any] = {
        "model_name_or_path": str(setting.root / "reference"),
        "group_by_prompt": True,
        "max_length": len(PROMPT) + TOKENS,
        "max_steps": 60,
        "beta": beta,
    }
    rows = comparisons(setting, rewards)
    return logprobs(full_batch(setting.root, "dpo", name, rows, **{**common, **keys}))


PPO: dict[str, Any] = {
    "max_steps": 60,
    "num_ppo_epochs": 2,
    "truncated_value": "zero",
    "whiten_advantages": False,
    "vf_coef": 0.5,
}


def test_dpo_is_equivalent_to_rlhf(setting: Setting) -> None:
    """One test, so that nobody runs PPO twice."""
    assert setting.distance(setting.reference) > 0.5  # there is a way to go
    by_ppo = trained(setting, "ppo", "ppo", lam=1.0, **PPO)
    assert_at_the_optimum(setting, by_ppo)
    by_dpo = preferred(setting, "dpo", setting.rewards, BETA)
    assert_at_the_optimum(setting, by_dpo)
    assert setting.distance(by_dpo) < 1e-3
    assert kl(by_ppo, by_dpo) < 0.02 and kl(by_dpo, by_ppo) < 0.02


@pytest.mark.parametrize("wrong", ["beta", "rewards", "stops"])
def test_other_dpo_is_not(setting: Setting, wrong: str) -> None:
    """Another beta; the comparisons turned round; a stop token behind responses cut off."""
    keys: dict[str, Any] = {"max_length": len(PROMPT) + TOKENS + 1} if wrong == "stops" else {}
    rewards = -setting.rewards if wrong == "rewards" else setting.rewards
    beta = 2 * BETA if wrong == "beta" else BETA
    found = preferred(setting, wrong, rewards, beta, **keys)
    assert setting.distance(found) > 0.1
    assert abs(setting.objective(found) - setting.most) > 0.05 * setting.most
    if wrong != "stops":  # there it is another policy that is the best
        assert kl(found, optimum(setting, beta, rewards)) < 0.02


# --------------------------------------------------------------------------- the other algorithms

LINES = {"on_policy": 1, "importance": 2, "clip_reward": 2}
"""Passes over a rollout."""
LESS_NOISE: dict[str, Any] = {"num_generations": 512, "rollout_slots": 512, "learning_rate": 5e-3}
"""There is no baseline."""


@pytest.mark.slow
@pytest.mark.parametrize("ratio", ["sequence", "token"])
@pytest.mark.parametrize("objective", LINES)
def test_the_lines_before_reach_it_too(setting: Setting, objective: str, ratio: str) -> None:
    """With the KL in the reward; a token's is then the reward to go, the KL behind it included."""
    passes = LINES[objective]
    found = trained(
        setting,
        "ppo",
        f"{objective}-{ratio}",
        objective=objective,
        ratio=ratio,
        max_steps=60 * passes,
        num_ppo_epochs=passes,
        **LESS_NOISE,
    )
    assert_at_the_optimum(setting, found)


@pytest.mark.slow
def test_ppo_of_whole_responses_reaches_it_too(setting: Setting) -> None:
    assert_at_the_optimum(setting, trained(setting, "ppo", "whole", ratio="sequence", **PPO))


@pytest.mark.slow
@pytest.mark.parametrize("ratio", ["sequence", "token"])
def test_literal_kl_lets_the_policy_collapse(setting: Setting, ratio: str) -> None:
    """The wrong variant: beta does nothing, and the best response takes everything."""
    found = trained(
        setting,
        "ppo",
        f"literal-{ratio}",
        objective="importance",
        ratio=ratio,
        kl_placement="literal",
        max_steps=50,
        num_ppo_epochs=1,
    )
    assert setting.distance(found) > 0.3
    assert found.argmax() == setting.rewards.argmax()
    assert found.exp().max() > 1.5 * setting.best.exp().max()


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["ppo", "rloo"])
def test_another_beta_ends_elsewhere(setting: Setting, verb: str) -> None:
    """The wrong variant: at the optimum of that beta, and not at this one's."""
    keys: dict[str, Any] = {"max_steps": 60} if verb == "rloo" else {"lam": 1.0, **PPO}
    found = trained(setting, verb, f"{verb}-2-beta", kl_coef=2 * BETA, **keys)
    assert kl(found, optimum(setting, 2 * BETA)) < 0.02
    assert setting.distance(found) > 0.1
    assert abs(setting.objective(found) - setting.most) > 0.05 * setting.most


@pytest.mark.slow
def test_rloo_reaches_the_optimum(setting: Setting) -> None:
    assert_at_the_optimum(setting, trained(setting, "rloo", "rloo", max_steps=60))
