"""P6: how a step is cut into micro-batches changes nothing, for every algorithm.

The wrong variant, a mean of micro-batch means, is shown to be rejected by the same comparison.
"""

import pytest
import torch
from tests.algorithms.support import gradients, make_stage

from trimtab.losses import PREFERENCE_LOSSES, describe

REWARDS = ["reward", "reward+centring", "reward+plackett_luce", "reward+mix"]
CLASSES = ["classify", "classify+alpha0", "classify+mix"]
# One loss for everything that a loss can ask for: the others go the same ways.
SPECS = {(s.kind, s.needs, s.prepare_needs): n for n in PREFERENCE_LOSSES for s in [describe(n)]}
SUMS = ["0.8 dpo + 2 wpo", "0.5 kto + bco"]
KINDS = ["sft", "sft+mix", "orpo+nll", "dpo+nll", *REWARDS, *CLASSES, *SPECS.values(), *SUMS]


def distance(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert a.keys() == b.keys()
    top = sum(float((a[k] - b[k]).square().sum()) for k in a)
    return (top / sum(float(b[k].square().sum()) for k in b)) ** 0.5


@pytest.mark.parametrize("kind", KINDS)
def test_token_budget_does_not_change_the_gradient(kind: str) -> None:
    whole_stage = make_stage(kind, per_step=8, budget=100_000)
    assert len([m for m in whole_stage.micros(0) if m.stream == "main"]) == 1
    whole = gradients(whole_stage)
    assert sum(float(g.abs().sum()) for g in whole.values()) > 0
    for budget in (16, 60, 120):
        split_stage = make_stage(kind, per_step=8, budget=budget)
        assert len(split_stage.micros(0)) > 1
        assert distance(gradients(split_stage), whole) < 1e-12, budget


@pytest.mark.parametrize("kind", ["sft", "dpo", "orpo+nll", "reward", "classify"])
def test_mean_of_micro_batch_means_is_rejected(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each micro-batch divided by its own counts, then averaged: the bug of HF#34191."""
    whole = gradients(make_stage(kind, per_step=8, budget=100_000))
    stage = make_stage(kind, per_step=8, budget=60)
    micros = stage.micros(0)
    counts, terms = stage.counts, stage.terms

    def wrong_terms(micro):
        outcome = terms(micro)
        total = {k: sum(counts(m).get(k, 0.0) for m in micros) for k in counts(micro)}
        scaled = [
            t._replace(sum=t.sum / max(t.count, 1) * total[t.name] / len(micros))
            for t in outcome.terms
        ]
        return outcome._replace(terms=scaled)

    monkeypatch.setattr(stage, "terms", wrong_terms)
    assert distance(gradients(stage), whole) > 1e-3


def test_gradient_of_an_incomplete_last_step_has_its_own_divisor() -> None:
    """B2: five rows in steps of four; the last step of one row is divided by one row."""
    from tests.algorithms.support import pair_trees, policy, preference, stream

    trees = pair_trees(5)
    stage = preference(policy(), "dpo", stream(trees, 4, shuffle=False), total_steps=2)
    assert [len(stage.stream.rows(step)) for step in (0, 1, 2)] == [4, 1, 4]
    stage.micros = lambda step: type(stage).micros(stage, 1)  # type: ignore[method-assign]
    last = gradients(stage)
    alone = preference(policy(), "dpo", stream(trees[4:], 4, shuffle=False))
    assert distance(last, gradients(alone)) < 1e-12
