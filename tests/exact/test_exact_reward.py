"""The reward loss recovers the true rewards, up to a constant a prompt, at the statistical rate.

Preferences are drawn from Bradley-Terry, rankings from Plackett-Luce, at rewards that are known.
From all of them with their probabilities a reward model has to find the rewards themselves; from n
comparisons it may be off by about sqrt(c / n), and RMSE * sqrt(n) < 8 here. Once with free numbers,
once with a small transformer through the verb ``reward``, read back with transformers alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.exact.exact_runs import LANGUAGE, full_batch
from torch import Tensor, nn

from trimtab.losses import plackett_luce_ranking_loss, ranking_loss
from trimtab.models.hub import quiet
from trimtab.proof.expectation import minimise
from trimtab.proof.preferences import (
    Pairs,
    Rankings,
    all_pairs,
    all_rankings,
    collapse,
    pairs_of,
    sample_pairs,
    sample_rankings,
)
from trimtab.proof.problem import Problem, random_rewards, uniform
from trimtab.proof.transformer import (
    folder_scores,
    pair_rows,
    ranking_rows,
    save_transformer,
)

RATE = 8.0
COUNTS = (500, 5_000, 50_000)
Scores = Callable[[Tensor], Tensor]


def problem() -> Problem:
    """Two prompts, six responses, rewards of spread 1; the reference plays no part."""
    rewards = random_rewards(len(LANGUAGE.prompts), len(LANGUAGE.texts), seed=1)
    return uniform(torch.zeros_like(rewards), rewards, LANGUAGE.lengths)


def centred(scores: Tensor) -> Tensor:
    return scores - scores.mean(-1, keepdim=True)


def rmse(found: Tensor) -> float:
    """Of the scores [X, Y] against the true rewards, a constant a prompt apart."""
    return (centred(found) - centred(problem().rewards)).square().mean().sqrt().item()


class Table(nn.Module):
    """A free score for every response of every prompt."""

    def __init__(self) -> None:
        super().__init__()
        self.scores = nn.Parameter(torch.zeros(problem().shape, dtype=torch.float64))


def of_pairs(pairs: Pairs, scores: Tensor, loss: Any = ranking_loss) -> Tensor:
    losses = loss(scores[pairs.prompt, pairs.winner], scores[pairs.prompt, pairs.loser])
    return (losses * pairs.weight).sum() / pairs.weight.sum()


def of_rankings(rankings: Rankings, scores: Tensor) -> Tensor:
    """Plackett-Luce over whole orders."""
    ordered = scores[rankings.prompt[:, None], rankings.order]
    losses = plackett_luce_ranking_loss(ordered, torch.ones_like(ordered, dtype=torch.bool))
    return (losses * rankings.weight).sum() / rankings.weight.sum()


def fitted(loss: Scores) -> Tensor:
    table = Table()
    minimise(table, lambda: loss(table.scores), rounds=6)
    return table.scores.detach()


# --------------------------------------------------------------------------- free numbers


def test_exact_expectations_give_the_rewards() -> None:
    """To 1e-6: pairs, the pairs of rankings of four, and whole rankings of four."""
    four = all_rankings(problem(), 4)
    assert rmse(fitted(lambda s: of_pairs(all_pairs(problem()), s))) < 1e-6
    assert rmse(fitted(lambda s: of_pairs(pairs_of(four), s))) < 1e-6
    assert rmse(fitted(lambda s: of_rankings(four, s))) < 1e-6


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("seed", range(3))
def test_sampled_comparisons_give_them_at_the_rate(count: int, seed: int) -> None:
    """n counts comparisons; a ranking of four holds six that are not independent."""
    pairs = collapse(sample_pairs(problem(), count, seed=seed))
    assert rmse(fitted(lambda s: of_pairs(pairs, s))) * math.sqrt(count) < RATE
    rankings = sample_rankings(problem(), 4, count // 6, seed=seed)
    for loss in (lambda s: of_pairs(pairs_of(rankings), s), lambda s: of_rankings(rankings, s)):
        assert rmse(fitted(loss)) * math.sqrt(count) < RATE


def no_logarithm(chosen: Tensor, rejected: Tensor) -> Tensor:
    return 1 - torch.sigmoid(chosen - rejected)


def half(chosen: Tensor, rejected: Tensor) -> Tensor:
    return nn.functional.softplus(-0.5 * (chosen - rejected))


def hinge(chosen: Tensor, rejected: Tensor) -> Tensor:
    return (1 - (chosen - rejected)).clamp(min=0)


def margin(chosen: Tensor, rejected: Tensor) -> Tensor:
    return ranking_loss(chosen, rejected, torch.full_like(chosen, 0.5))


@pytest.mark.parametrize("wrong", [no_logarithm, half, hinge, margin], ids=lambda f: f.__name__)
def test_other_losses_of_pairs_do_not(wrong: Any) -> None:
    pairs = collapse(sample_pairs(problem(), COUNTS[-1], seed=0))
    assert rmse(fitted(lambda s: of_pairs(pairs, s, wrong))) * math.sqrt(COUNTS[-1]) > 2 * RATE


def test_neighbours_of_a_ranking_alone_do_not() -> None:
    """Which comparisons of a ranking are taken must not depend on its order.

    That i stands right before j says little of which is better: both orders are about as likely.
    """
    whole = pairs_of(sample_rankings(problem(), 4, COUNTS[-1] // 6, seed=0))
    first, last = torch.combinations(torch.arange(4)).T
    near = (last - first == 1).repeat(len(whole.weight) // 6)
    some = Pairs(*(column[near] for column in whole))
    assert rmse(fitted(lambda s: of_pairs(some, s))) * math.sqrt(COUNTS[-1] / 2) > 2 * RATE


# --------------------------------------------------------------------------- the verb itself


class Place:
    """A model folder of the language, and runs of ``trimtab reward`` from it."""

    def __init__(self, root: Path) -> None:
        quiet()
        self.root, self.count = root, 0
        save_transformer(root / "model", LANGUAGE)

    def train(self, rows: list[dict[str, Any]], **keys: Any) -> Tensor:
        """Scores [X, Y] of a model trained on rows, all of them in every step."""
        self.count += 1
        name = f"run-{self.count}"
        keys = {"sample_prompts": ..., "max_steps": 150, **keys}
        return folder_scores(full_batch(self.root, "reward", name, rows, **keys), LANGUAGE)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("reward"))


def test_the_verb_finds_the_rewards_from_exact_preferences(place: Place) -> None:
    """RMSE < 0.005 in fp32, where the rewards' spread is 1."""
    spread = centred(problem().rewards).square().mean().sqrt().item()
    assert spread > 0.5
    assert rmse(place.train(pair_rows(LANGUAGE, all_pairs(problem())))) < 0.005


@pytest.mark.slow
@pytest.mark.parametrize(
    ("loss", "size"),
    [("pairwise", 4), pytest.param("plackett_luce", 3, marks=pytest.mark.slow)],
)
def test_the_verb_finds_them_from_sampled_rankings(place: Place, loss: str, size: int) -> None:
    """What the verb finds is the best fit, and that is at the rate."""
    count = 12_000
    rankings = sample_rankings(problem(), size, count // math.comb(size, 2), seed=3)
    fits: dict[str, Scores] = {
        "pairwise": lambda s: of_pairs(pairs_of(rankings), s),
        "plackett_luce": lambda s: of_rankings(rankings, s),
    }
    found = place.train(ranking_rows(LANGUAGE, rankings), ranking_loss=loss)
    assert (centred(found) - centred(fitted(fits[loss]))).abs().max() < 0.02
    assert rmse(found) * math.sqrt(count) < RATE


def test_the_verb_finds_them_from_sampled_pairs(place: Place) -> None:
    count = 20_000
    pairs = collapse(sample_pairs(problem(), count, seed=3))
    found = place.train(pair_rows(LANGUAGE, pairs), max_steps=100)
    assert rmse(found) * math.sqrt(count) < RATE
    # a margin that the preferences do not have ends elsewhere
    other = [{**row, "margin": 0.5} for row in pair_rows(LANGUAGE, pairs)]
    wrong = place.train(other, max_steps=100)
    assert rmse(wrong) * math.sqrt(count) > 2 * RATE
