"""Claims about whole runs: a small transformer, the verb's own path, the real loop and batches.

Rows are JSONL files with a ``weight`` column, read, tokenised, packed and trained on as anybody's;
what was learnt is read back with transformers alone. Distances are KL(optimum || model) in nats,
over the responses of the language, of the worst prompt. The wrong variants are loss files with the
mistakes of ``wrong_losses.py``, trained in the same way.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.exact import wrong_losses
from tests.exact.exact_runs import full_batch
from torch import Tensor

from trimtab.errors import RecipeError
from trimtab.models import forward
from trimtab.models.hub import quiet
from trimtab.proof.closed_forms import best_policy, ipo_policy, kl
from trimtab.proof.language import Language
from trimtab.proof.preferences import (
    Pairs,
    all_pairs,
    all_rankings,
    collapse,
    sample_pairs,
)
from trimtab.proof.problem import Problem, random_rewards, uniform
from trimtab.proof.transformer import (
    folder_logprobs,
    pair_rows,
    ranking_rows,
    save_transformer,
)

BETA = 0.5
LOSSES = Path(wrong_losses.__file__)
REACHED, SAMPLED, ELSEWHERE = 1e-5, 0.02, 0.005


class Place:
    """A model folder of a language, and the problem that its own distribution poses."""

    def __init__(self, root: Path, language: Language) -> None:
        quiet()
        self.root, self.language, self.count = root, language, 0
        save_transformer(root / "model", language)
        reference = folder_logprobs(root / "model", language)
        rewards = random_rewards(*reference.shape, seed=1)
        self.problem: Problem = uniform(reference, rewards, language.lengths)

    def train(self, rows: Sequence[dict[str, Any]], **keys: Any) -> Tensor:
        """Train on rows with ``trimtab dpo``, all of them in every step; log-probs [X, Y]."""
        self.count += 1
        name = f"run-{self.count}"
        keys = {"group_by_prompt": True, **keys}
        return folder_logprobs(full_batch(self.root, "dpo", name, rows, **keys), self.language)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """Two prompts, six responses."""
    return Place(tmp_path_factory.mktemp("small"), Language(prompts="xy"))


def distance(optimum: Tensor, found: Tensor) -> float:
    return kl(optimum, found).max().item()


def exact_rows(place: Place) -> list[dict[str, Any]]:
    return pair_rows(place.language, all_pairs(place.problem))


def test_dpo_on_exact_preferences_reaches_pi_star(tmp_path: Path) -> None:
    """KL < 1e-5 in fp32: two trees of fourteen responses and 182 weighted comparisons each."""
    place = Place(tmp_path, Language(longest=3, prompts="xy"))
    best = best_policy(place.problem, BETA)
    assert distance(best, place.problem.reference) > 0.5
    found = place.train(exact_rows(place), beta=BETA, max_steps=150, self_check=True)
    assert distance(best, found) < REACHED
    assert distance(ipo_policy(place.problem, BETA), found) > 0.1
    record = json.loads((tmp_path / "run-1" / "selfcheck.json").read_text())
    assert any(check["name"] == "shared = padded" for check in record["checks"])


def test_dpo_on_sampled_pairs_comes_close(small: Place) -> None:
    """KL < 0.02 from 20,000 pairs that were drawn one by one; equal ones are one weighted row."""
    pairs = sample_pairs(small.problem, 20_000, seed=0)
    rows = pair_rows(small.language, collapse(pairs))
    assert sum(row["weight"] for row in rows) == 20_000 and len(rows) < 61
    best = best_policy(small.problem, BETA)
    assert distance(best, small.problem.reference) > 5 * SAMPLED
    found = small.train(rows, beta=BETA, max_steps=60)
    assert REACHED < distance(best, found) < SAMPLED
    few = pair_rows(small.language, collapse(sample_pairs(small.problem, 200, seed=0)))
    assert distance(best, small.train(few, beta=BETA, max_steps=60)) > SAMPLED


@pytest.mark.parametrize("wrong", wrong_losses.DPO, ids=lambda f: f.__name__)
def test_wrong_variants_of_dpo_end_elsewhere(small: Place, wrong: Any) -> None:
    best = best_policy(small.problem, BETA)
    loss = {"file": f"{LOSSES}:{wrong.__name__}", "beta": BETA}
    assert distance(best, small.train(exact_rows(small), loss=loss, max_steps=40)) > SAMPLED


@pytest.mark.slow
def test_siblings_that_see_each_other_end_elsewhere(
    small: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same run twice, the second with every tree as one causal row, past the canary's word."""
    from tests.exact.test_exact_gradients import siblings

    best = best_policy(small.problem, BETA)
    keys = {"beta": BETA, "max_steps": 80, "attn_layout": "shared"}
    assert distance(best, small.train(exact_rows(small), **keys)) < REACHED
    siblings(None, monkeypatch)
    with pytest.raises(RecipeError, match="a trial call differs from its own attention"):
        small.train(exact_rows(small), **keys)
    monkeypatch.setattr(forward, "_obstacle", lambda model: None)
    fresh = {"cache_dir": str(small.root / "cache-of-siblings")}
    assert distance(best, small.train(exact_rows(small), **keys, **fresh)) > SAMPLED
    forward._ROUTES.clear()


def test_a_weight_is_a_number_of_equal_rows(small: Place) -> None:
    """Ten steps of SGD, 80 rows or the same collapsed; without weights it is another run."""
    pairs = sample_pairs(small.problem, 80, seed=3)
    once = collapse(pairs)
    assert len(once.weight) < 45
    # Without momentum: Adam would make whole steps of the rounding of gradients that are nearly 0.
    keys: dict[str, Any] = {"optim": "sgd", "learning_rate": 1.0, "adam_beta2": 0.999}
    keys |= {"beta": BETA, "max_steps": 10, "warmup_steps": 0, "group_by_prompt": False}

    def train(rows: Pairs, **more: Any) -> Tensor:
        return small.train(pair_rows(small.language, rows), **{**keys, **more})

    repeated = train(pairs)
    assert distance(repeated, small.problem.reference) > 1e-3
    assert (train(once) - repeated).abs().max().item() < 5e-5
    assert (train(once, group_by_prompt=True) - repeated).abs().max().item() < 5e-5
    unweighted = once._replace(weight=torch.ones_like(once.weight))
    assert (train(unweighted) - repeated).abs().max().item() > 1e-3


@pytest.mark.slow
def test_ipo_from_a_file_reaches_its_own_optimum(small: Place) -> None:
    """A user's loss through ``loss.file``: KL < 1e-5 to IPO's optimum, which is not pi*."""
    ipo, best = ipo_policy(small.problem, BETA), best_policy(small.problem, BETA)
    for loss in (wrong_losses.own_ipo, *wrong_losses.IPO):
        choice = {"file": f"{LOSSES}:{loss.__name__}", "tau": BETA}
        found = small.train(exact_rows(small), loss=choice, max_steps=100)
        if loss is wrong_losses.own_ipo:
            assert distance(ipo, found) < REACHED and distance(best, found) > SAMPLED
        else:
            assert distance(ipo, found) > ELSEWHERE, loss.__name__


@pytest.mark.slow
def test_plackett_luce_on_exact_rankings_reaches_pi_star(tmp_path: Path) -> None:
    """KL < 1e-5 from all 120 rankings of three of six responses, one tree each."""
    place = Place(tmp_path, Language())
    rows = ranking_rows(place.language, all_rankings(place.problem, 3))
    best = best_policy(place.problem, BETA)
    keys = {"group_by_prompt": False}
    found = place.train(rows, loss={"name": "plackett_luce", "beta": BETA}, max_steps=90, **keys)
    assert distance(best, found) < REACHED
    wrong = {"file": f"{LOSSES}:{wrong_losses.rivals_stay.__name__}", "beta": BETA}
    assert distance(best, place.train(rows, loss=wrong, max_steps=40, **keys)) > ELSEWHERE
