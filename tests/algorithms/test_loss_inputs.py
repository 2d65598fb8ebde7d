"""What a loss is given, against full logits of one response at a time; sums of losses."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from tests.algorithms.support import (
    gradients,
    metric_value,
    pair_trees,
    policy,
    preference,
    ranked_trees,
    stream,
)

from trimtab.algorithms.loss_inputs import loss_inputs, pair_tokens, ranking_order
from trimtab.algorithms.policy import branch_sums
from trimtab.data.batch import pack
from trimtab.models.attention import plain_attention


def rows_by_hand(model: Any, tree: Any, index: int) -> torch.Tensor:
    """[T, V] log-probs of the vocabulary at every token of a branch, with plain attention."""
    branch = tree.branches[index]
    ids = torch.tensor([tree.trunk.ids + branch.ids])
    with torch.no_grad(), plain_attention(model):
        logp = model(input_ids=ids).logits[0].log_softmax(-1)
    return logp[len(tree.trunk.ids) - 1 : -1]


def tokens_by_hand(model: Any, tree: Any, index: int) -> list[float]:
    rows = rows_by_hand(model, tree, index)
    return [row[i].item() for row, i in zip(rows, tree.branches[index].ids, strict=True)]


def softplus(x: float) -> float:
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def test_tokens_of_pairs_are_those_of_each_response() -> None:
    model, trees = policy(), pair_trees(5, train_trunk=True)
    batch = pack(trees)
    chosen, rejected = pair_tokens(batch, model.token_stats(batch).logp)
    for row, tree in enumerate(trees):
        for side, index in ((chosen, 0), (rejected, 1)):
            wanted = tokens_by_hand(model.model, tree, index)
            assert side.mask[row].tolist() == [i < len(wanted) for i in range(side.mask.shape[1])]
            found = side.logp[row].tolist()
            assert found[: len(wanted)] == pytest.approx(wanted, abs=1e-9)
            assert not any(found[len(wanted) :])


def test_ld_dpo_equals_the_formula() -> None:
    trees, model, reference = pair_trees(4), policy(), policy(seed=9)
    stage = preference(model, "ld_dpo", stream(trees, 4, shuffle=False), reference=reference)
    outcome = stage.terms(stage.micros(0)[0])
    expected = 0.0
    for tree in trees:
        shorter = min(len(branch.ids) for branch in tree.branches)
        found = []
        for index in (0, 1):
            ours = tokens_by_hand(model.model, tree, index)
            theirs = tokens_by_hand(reference.model, tree, index)
            gaps = [a - b for a, b in zip(ours, theirs, strict=True)]
            found.append(sum(gaps[:shorter]) + 0.5 * sum(gaps[shorter:]))
        expected += tree.comparisons[0].weight * softplus(-0.1 * (found[0] - found[1]))
    assert outcome.terms[0].sum.item() == pytest.approx(expected, rel=1e-7)
    plain = preference(model, "dpo", stream(trees, 4, shuffle=False), reference=reference)
    other = plain.terms(plain.micros(0)[0]).terms[0].sum.item()
    assert other != pytest.approx(expected, rel=1e-4)


def test_wpo_equals_the_formula() -> None:
    trees, model, reference = pair_trees(4), policy(), policy(seed=9)
    stage = preference(model, "wpo", stream(trees, 4, shuffle=False), reference=reference)
    outcome = stage.terms(stage.micros(0)[0])
    expected, unweighted = 0.0, 0.0
    for tree in trees:
        logs, gaps = [], []
        for index in (0, 1):
            rows = rows_by_hand(model.model, tree, index)
            ours = tokens_by_hand(model.model, tree, index)
            square = rows.exp().square().sum(-1).log().sum().item()
            logs.append((sum(ours) - square) / len(ours))
            gaps.append(sum(ours) - sum(tokens_by_hand(reference.model, tree, index)))
        plain = tree.comparisons[0].weight * softplus(-0.01 * (gaps[0] - gaps[1]))
        expected, unweighted = expected + math.exp(sum(logs)) * plain, unweighted + plain
    assert outcome.terms[0].sum.item() == pytest.approx(expected, rel=1e-7)
    assert unweighted != pytest.approx(expected, rel=1e-3)


def test_scores_stand_from_best_to_worst() -> None:
    batch = pack(ranked_trees(6))
    stage = preference(policy(), "infonca", stream(ranked_trees(6), 6, shuffle=False))
    micro = stage.micros(0)[0]
    sums = branch_sums(micro.batch, stage.stats(micro).logp)
    scores = loss_inputs(stage.spec, frozenset({"scores"}), micro, sums)["scores"]
    order = ranking_order(batch)
    assert scores.shape == order.shape
    for tree, row, mask in zip(micro.batch.trees, scores.tolist(), order >= 0, strict=True):
        assert row[: len(tree.scores)] == pytest.approx(sorted(tree.scores, reverse=True))
        assert not any(row[int(mask.sum()) :])


def test_bco_sees_the_whole_step_before_its_first_micro_batch() -> None:
    trees = pair_trees(8)
    found = []
    for budget in (10_000, 40):
        stage = preference(policy(), "bco", stream(trees, 8, budget))
        stage.prepare(0, stage.micros(0))
        found.append(stage.state_dict()["loss"])
    assert found[0] == pytest.approx(found[1], rel=1e-9) and found[0].keys() == {
        "desirable",
        "undesirable",
    }


# ---------------------------------------------------------------- sums of losses


def test_a_sum_is_its_members_weighted() -> None:
    """Value, gradient and log, of losses that ask for different things."""
    trees, model = pair_trees(6), policy()
    main = stream(trees, 6, shuffle=False)
    stages = {name: preference(model, name, main) for name in ("dpo", "wpo", "0.8 dpo + 0.3 wpo")}
    total = stages["0.8 dpo + 0.3 wpo"]
    outcome = total.terms(total.micros(0)[0])
    alone = {n: s.terms(s.micros(0)[0]).terms[0] for n, s in stages.items() if n in ("dpo", "wpo")}
    assert outcome.terms[0].name == "dpo+wpo" and outcome.terms[0].unit == "pair"
    wanted = 0.8 * alone["dpo"].sum.item() + 0.3 * alone["wpo"].sum.item()
    assert outcome.terms[0].sum.item() == pytest.approx(wanted, rel=1e-12)
    for name, term in alone.items():
        logged = metric_value(outcome.metrics[f"loss/{name}"])
        assert logged == pytest.approx(term.sum.item() / term.count, rel=1e-9)
    found, one, two = (gradients(stages[n]) for n in ("0.8 dpo + 0.3 wpo", "dpo", "wpo"))
    for key, gradient in found.items():
        torch.testing.assert_close(gradient, 0.8 * one[key] + 0.3 * two[key])


def test_state_of_a_sum_is_that_of_each_member() -> None:
    def make() -> Any:
        return preference(policy(), "kto + 0.5 bco", stream(pair_trees(6), 6))

    stage = make()
    metrics = stage.prepare(0, stage.micros(0))
    assert metric_value(metrics["kl"]) == stage.loss.members["kto"].loss.z0  # type: ignore[attr-defined]
    state = json.loads(json.dumps(stage.state_dict()))
    assert state["loss"].keys() == {"kto.z0", "bco.desirable", "bco.undesirable"}
    other = make()
    fresh = other.terms(other.micros(0)[0]).terms[0].sum.item()
    other.load_state_dict(state)
    restored = other.terms(other.micros(0)[0]).terms[0].sum.item()
    assert restored == stage.terms(stage.micros(0)[0]).terms[0].sum.item() != fresh
    assert preference(policy(), "dpo + hinge", stream(pair_trees(2), 2)).state_dict() == {}


def test_held_out_rows_have_a_z0_of_their_own_in_a_sum_with_bco() -> None:
    found = {}
    for name in ("kto", "bco", "kto + 0.5 bco"):
        held_out = stream(pair_trees(5, seed=11), 5)
        stage = preference(policy(), name, stream(pair_trees(6), 6), held_out=held_out)
        found[name] = stage.evaluate(1)["loss"]
    assert found["kto + 0.5 bco"] == pytest.approx(found["kto"] + 0.5 * found["bco"], rel=1e-9)
