"""Online preference learning and best of n on the enumerable language of ``test_exact_rlhf.py``.

Which fixed point the online loop has is a matter of who judges. An annotator who prefers y to y'
with probability sigmoid(r - r') (Bradley-Terry) leads DPO to pi* ~ pi_ref exp(r / beta), whatever
the policy samples. One who always prefers the higher score leads it nowhere: the loss falls as long
as the gap grows, and the policy ends on the best response.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from typing import Any

import pytest
import torch
from tests.exact.exact_runs import LANGUAGE, PROMPT
from tests.exact.test_exact_rlhf import (  # noqa: F401 - a fixture
    BETA,
    TOKENS,
    Setting,
    outcomes,
    setting,
    trained,
)
from torch import Tensor

from trimtab.evaluation.best_of_file import BestOfReward, best_of_file
from trimtab.evaluation.best_of_n import kl_bound
from trimtab.proof.closed_forms import best_of_n_policy, kl
from trimtab.proof.problem import Problem
from trimtab.rollout.sample_file import SampleOptions

ONLINE = {"loss": {"name": "dpo", "beta": BETA}}


def online(setting: Setting, verb: str, name: str, **keys: Any) -> Tensor:  # noqa: F811
    """``trained`` without the keys that only policy gradients have."""
    return trained(setting, verb, name, **{"kl_coef": ..., **keys})


def judged_by(annotator: str, **keys: Any) -> dict[str, Any]:
    return {"pairs": "all", "annotator": annotator, **ONLINE, **keys}


@pytest.mark.slow
def test_online_dpo_reaches_the_optimum(setting: Setting) -> None:  # noqa: F811
    found = online(
        setting,
        "online_dpo",
        "bt",
        **judged_by("bradley_terry", num_generations=128, num_iterations=3, max_steps=180),
    )
    assert setting.distance(setting.reference) > 0.5  # there is a way to go
    assert setting.distance(found) < 0.05
    assert abs(setting.objective(found) - setting.most) < 0.03 * abs(setting.most)


def test_an_exact_annotator_leads_to_the_best_response(setting: Setting) -> None:  # noqa: F811
    """The wrong variant of the above: no noise, no fixed point before the best response."""
    found = online(
        setting,
        "online_dpo",
        "exact",
        **judged_by("exact", num_generations=32, num_iterations=4, max_steps=80),
    )
    assert setting.distance(found) > 0.3
    assert found.argmax() == setting.rewards.argmax()
    assert found.exp().max() > 1.5 * setting.best.exp().max()


@pytest.mark.slow
def test_raft_fits_the_best_of_n(setting: Setting) -> None:  # noqa: F811
    """Sft on the best of 4, one rollout, until it is learnt: the distribution of best of 4."""
    rows = setting.root / "many.jsonl"
    rows.write_text((json.dumps({"prompt": PROMPT}) + "\n") * 512)
    found = online(
        setting,
        "raft",
        "raft",
        dataset_name=str(rows),
        num_generations=4,
        per_device_train_batch_size=512,
        num_iterations=80,
        max_steps=80,
    )
    best_of_4 = best_of_n_policy(problem(setting), 4)
    # 20 free numbers, estimated from 512 draws: KL about 20 / (2 x 512) = 0.02.
    assert kl(best_of_4, found[None]).item() < 0.06
    assert kl(best_of_n_policy(problem(setting), 2), found[None]).item() > 0.12
    assert kl(setting.reference[None], found[None]).item() > 0.5


# ---------------------------------------------------------------------- best of n


def problem(setting: Setting, blank: float | None = None) -> Problem:  # noqa: F811
    """All outcomes; with ``blank`` the empty one has this reward."""
    rewards = setting.rewards.clone()
    if blank is not None:
        rewards[outcomes().index((LANGUAGE.stop,))] = blank
    lengths = torch.tensor([len(ids) for ids in outcomes()])
    reference = torch.log_softmax(setting.reference, -1)[None]  # fp32 log-probs add up to 1 +- 5e-6
    return Problem(reference, rewards[None], reference.exp(), lengths)


def chi_square(counts: Tensor, logp: Tensor) -> float:
    """Of observed outcomes [21] under a distribution; 45.3 is the 99.9 % point at 20 degrees."""
    expected = logp.exp() * counts.sum()
    return ((counts - expected).square() / expected.clamp(min=1e-9)).sum().item()


def test_best_of_n_is_sampled_as_its_distribution_says(
    setting: Setting,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    """``trimtab sample --best-of 3`` on 1500 rows; blank responses are no candidates."""
    rows = setting.root / "rows.jsonl"
    rows.write_text((json.dumps({"prompt": PROMPT}) + "\n") * 1500)
    output = setting.root / "best.jsonl"
    options = SampleOptions(
        model_name_or_path=str(setting.root / "reference"),
        dataset_name=str(rows),
        output=str(output),
        num_generations=3,
        max_completion_length=TOKENS,
        batch_slots=256,
        precision="fp32",
        max_bad_rows=0.1,
    )
    reward = BestOfReward(None, [f"{setting.root / 'reward.py'}:reward"], None)
    assert best_of_file(options, reward, mode="quiet") == 0
    assert f"log n - (n - 1) / n = {math.log(3) - 2 / 3:.3f} nats" in capsys.readouterr().out
    assert sorted(p.name for p in setting.root.glob(".best*")) == []  # nothing is left behind
    found = [json.loads(line) for line in output.read_text().splitlines()]
    counted = Counter((row["completion"], row["ended"]) for row in found)
    words = dict(enumerate([*LANGUAGE.letters, "", *LANGUAGE.prompts]))
    # Cut off: without a stop token. The same text has the same score, ended or not.
    keys = [("".join(words[i] for i in ids), ids[-1] == LANGUAGE.stop) for ids in outcomes()]
    counts = torch.tensor([counted.pop(key, 0) for key in keys], dtype=torch.float64)
    assert not counted

    def said(n: int, sign: float = 1.0) -> Tensor:
        """Without rows in which all were blank."""
        one = problem(setting, blank=-sign * 1e9)
        logp = best_of_n_policy(one._replace(rewards=sign * one.rewards), n)[0].clone()
        logp[outcomes().index((LANGUAGE.stop,))] = -1e9
        return torch.log_softmax(logp, -1)

    used = counts > -1
    used[outcomes().index((LANGUAGE.stop,))] = False
    assert chi_square(counts[used], said(3)[used]) < 45.3
    assert chi_square(counts[used], said(2)[used]) > 60
    assert chi_square(counts[used], said(4)[used]) > 60
    worst = problem(setting, blank=1e9)  # the worst of 3
    logp = best_of_n_policy(worst._replace(rewards=-worst.rewards), 3)[0]
    assert chi_square(counts[used], logp[used]) > 1000


def test_best_of_n_stays_within_its_bound(setting: Setting) -> None:  # noqa: F811
    for n in (1, 2, 4, 16, 64, 512):
        one = problem(setting)
        logp = best_of_n_policy(one, n)
        assert logp.exp().sum().item() == pytest.approx(1.0, abs=1e-6)
        assert kl(logp, one.reference).item() <= kl_bound(n) + 1e-9, n
    # Nearly a continuum: the bound is reached, and log n or log n - 1 are not it.
    many = torch.full((1, 3000), -math.log(3000), dtype=torch.float64)
    rewards = torch.arange(3000, dtype=torch.float64)[None]
    for n in (2, 4, 16):
        fine = Problem(many, rewards, many.exp(), torch.ones(3000))
        found = kl(best_of_n_policy(fine, n), many).item()
        assert found == pytest.approx(kl_bound(n), abs=0.01)
        assert abs(found - math.log(n)) > 0.1 and abs(found - (math.log(n) - 1)) > 0.05


def test_ties_share_by_probability() -> None:
    """Best of 2 of three responses with probabilities .5, .3, .2 and rewards 0, 1, 1."""
    reference = torch.tensor([[0.5, 0.3, 0.2]], dtype=torch.float64).log()
    rewards = torch.tensor([[0.0, 1.0, 1.0]], dtype=torch.float64)
    found = best_of_n_policy(Problem(reference, rewards, reference.exp(), torch.ones(3)), 2)
    assert found.exp().tolist()[0] == pytest.approx([0.25, 0.75 * 0.6, 0.75 * 0.4])
