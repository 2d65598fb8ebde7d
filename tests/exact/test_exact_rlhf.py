"""RLHF on a language that can be enumerated: PPO reaches the optimum that is known in closed form.

Every outcome of a rollout is listed, also the ones that are cut off, with its probability by
transformers alone: 21 strings of up to two tokens. pi* ~ pi_ref exp(r / beta) over them, and
max J = beta log Z. "DPO is equivalent to RLHF": DPO meets pi* in the other files
here, PPO in this one.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from tests.exact.exact_runs import LANGUAGE, PROMPT, WORDS, prepare, rewards_of, sampled
from torch import Tensor
from transformers import AutoModelForCausalLM

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


def test_ppo_reaches_the_optimum(setting: Setting) -> None:
    found = trained(
        setting,
        "ppo",
        "ppo",
        max_steps=100,
        num_ppo_epochs=2,
        lam=1.0,
        truncated_value="zero",
        whiten_advantages=False,
        vf_coef=0.5,
    )
    assert setting.distance(setting.reference) > 0.5  # there is a way to go
    assert abs(setting.objective(found) - setting.most) < 0.02 * abs(setting.most)
    assert setting.distance(found) < 0.02


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["on_policy", "clip_reward"])
def test_the_lines_before_reach_it_too(setting: Setting, objective: str) -> None:
    epochs = 1 if objective == "on_policy" else 2
    found = trained(
        setting,
        "ppo",
        objective,
        objective=objective,
        ratio="sequence",
        max_steps=50 * epochs,
        num_ppo_epochs=epochs,
    )
    assert setting.distance(found) < 0.02, objective


@pytest.mark.slow
def test_literal_kl_lets_the_policy_collapse(setting: Setting) -> None:
    """The wrong variant: beta does nothing, and the best response takes everything."""
    found = trained(
        setting,
        "ppo",
        "literal",
        objective="importance",
        ratio="sequence",
        kl_placement="literal",
        max_steps=50,
        num_ppo_epochs=1,
    )
    assert setting.distance(found) > 0.3
    assert found.argmax() == setting.rewards.argmax()
    assert found.exp().max() > 1.5 * setting.best.exp().max()


@pytest.mark.slow
def test_rloo_reaches_the_optimum(setting: Setting) -> None:
    found = trained(setting, "rloo", "rloo", max_steps=60)
    assert setting.distance(found) < 0.02
