"""The stage's losses against a computation by hand: full logits, one sequence at a time."""

import math

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
    text_trees,
)

from trimtab.algorithms.language_model import LanguageModelling
from trimtab.algorithms.loss_inputs import ranking_order
from trimtab.algorithms.preference import mismatched, preferred_targets
from trimtab.data.batch import pack


def by_hand(model, tree, index) -> tuple[float, int]:
    """Summed log-prob and length of a branch: its own copy of the prompt, plain attention."""
    from trimtab.models.attention import plain_attention

    branch = tree.branches[index]
    ids = torch.tensor([tree.trunk.ids + branch.ids])
    with torch.no_grad(), plain_attention(model):
        logp = model(input_ids=ids).logits[0].log_softmax(-1)
    start = len(tree.trunk.ids)
    total = sum(
        logp[start + i - 1, token].item()
        for i, (token, trained) in enumerate(zip(branch.ids, branch.trained, strict=True))
        if trained
    )
    return total, branch.trained_count


def softplus(x: float) -> float:
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def test_dpo_equals_the_formula() -> None:
    trees = pair_trees(4)
    model, reference = policy(), policy(seed=9)
    stage = preference(model, "dpo", stream(trees, 4), reference=reference)
    micro = stage.micros(0)[0]
    outcome = stage.terms(micro)
    expected, weights, correct = 0.0, 0.0, 0
    for tree in micro.batch.trees:
        (w, _), (x, _) = by_hand(model.model, tree, 0), by_hand(model.model, tree, 1)
        (rw, _), (rl, _) = by_hand(reference.model, tree, 0), by_hand(reference.model, tree, 1)
        gap = (w - rw) - (x - rl)
        expected += tree.comparisons[0].weight * softplus(-0.1 * gap)
        weights += tree.comparisons[0].weight
        correct += gap > 0
    (term,) = outcome.terms
    assert term.sum.item() == pytest.approx(expected, rel=1e-7)
    assert term.count == pytest.approx(weights) and term.unit == "pair"
    assert metric_value(outcome.metrics["rewards/accuracies"]) == correct / 4


def test_simpo_uses_means_and_orpo_adds_the_nll_of_prompt_and_chosen() -> None:
    trees = pair_trees(3, train_trunk=True)
    model = policy()
    simpo = preference(model, "simpo", stream(trees, 3, shuffle=False))
    expected = 0.0
    for tree in trees:
        (w, n), (x, m) = by_hand(model.model, tree, 0), by_hand(model.model, tree, 1)
        expected += tree.comparisons[0].weight * softplus(-(2.0 * (w / n - x / m) - 1.0))
    assert simpo.terms(simpo.micros(0)[0]).terms[0].sum.item() == pytest.approx(expected, rel=1e-7)

    orpo = preference(model, "orpo", stream(trees, 3, shuffle=False), nll_weight=1.0)
    nll = orpo.terms(orpo.micros(0)[0]).terms[1]
    tokens = sum(len(t.trunk.ids) - 1 + len(t.branches[0].ids) for t in trees)
    assert nll.count == tokens and nll.unit == "token"


def test_preferred_targets_are_prompt_and_chosen_only() -> None:
    batch = pack(pair_trees(2, train_trunk=True))
    preferred = preferred_targets(batch)
    for target, keep in zip(batch.target_sequence.tolist(), preferred.tolist(), strict=True):
        rejected = target < batch.branch_count and target % 2 == 1
        assert keep == (0.0 if rejected else 1.0)


def test_undesirable_responses_and_their_prompts_have_no_likelihood_term() -> None:
    """Rows with a label have no comparisons, so nobody loses one."""
    trees = [
        tree._replace(branches=tree.branches[side : side + 1], comparisons=(), labels=(side == 0,))
        for tree, side in zip(pair_trees(3, train_trunk=True), (0, 1, 1), strict=True)
    ]
    wanted = len(trees[0].trunk.ids) - 1 + len(trees[0].branches[0].ids)
    assert preferred_targets(pack(trees)).count_nonzero() == wanted
    assert preferred_targets(pack(trees[1:])).sum() == 0

    stages = [preference(policy(), "kto", stream(trees[1:], 2), nll_weight=w) for w in (0.0, 1.0)]
    alone, both = (gradients(stage) for stage in stages)
    assert all(torch.equal(both[key], gradient) for key, gradient in alone.items())


def test_rankings_run_from_best_to_worst() -> None:
    batch = pack(ranked_trees(5))
    assert batch.ranks is not None
    order = ranking_order(batch)
    for row in order:
        ranks = batch.ranks[row[row >= 0]].tolist()
        assert ranks == sorted(ranks)
    assert sorted(order[order >= 0].tolist()) == list(range(batch.branch_count))


@pytest.mark.parametrize("size", range(1, 10))
def test_no_response_meets_its_own_prompt(size: int) -> None:
    """T#1911: reversed order pairs the middle of an odd batch with itself."""
    trees = pair_trees(size)
    crossed = mismatched(trees)
    assert len(crossed) == (size if size > 1 else 0)
    for i, tree in enumerate(crossed):
        assert tree.branches == trees[i].branches
        assert tree.trunk == trees[(i + 1) % size].trunk
        assert tree.trunk != trees[i].trunk


def test_neighbours_with_one_prompt_do_not_meet_it() -> None:
    a, b = pair_trees(2)
    crossed = mismatched([a, a._replace(branches=b.branches), b])
    assert [tree.trunk for tree in crossed] == [b.trunk, b.trunk, a.trunk]


def test_reversing_would_meet_its_own_prompt() -> None:
    trees = pair_trees(5)
    reversed_trunks = [tree.trunk for tree in reversed(trees)]
    assert any(a.trunk == b for a, b in zip(trees, reversed_trunks, strict=True))


def test_reference_is_frozen_and_identical_at_the_start() -> None:
    """P8: with the policy as its own reference the first loss is ln 2 to the last bits."""
    model = policy(torch.float32)
    stage = preference(model, "dpo", stream(pair_trees(6), 6), reference=model)
    micro = stage.micros(0)[0]
    outcome = stage.terms(micro)
    value = outcome.terms[0].sum.item() / outcome.terms[0].count
    assert value == pytest.approx(math.log(2), abs=1e-6)
    assert metric_value(outcome.metrics["rewards/margins"]) == pytest.approx(0.0, abs=1e-5)
    live = stage.references.live
    assert live is not None
    assert not any(p.requires_grad for p in live.policy.model.parameters())
    assert {id(p) for p in live.policy.model.parameters()}.isdisjoint(
        id(p) for p in model.model.parameters()
    )


def test_cached_reference_is_read_back_bit_by_bit(tmp_path) -> None:
    reference, trees = policy(torch.float32, seed=9), pair_trees(70)
    main = stream(trees, 4)
    fresh = preference(policy(torch.float32), "dpo", main, cache=tmp_path, reference=reference)
    files = sorted(tmp_path.rglob("*.safetensors"))
    assert len(files) == 2  # 64 + 6 trees
    again = preference(policy(torch.float32), "dpo", main, cache=tmp_path, reference=policy())
    assert fresh.references.train and again.references.train
    rows = list(range(70))
    assert torch.equal(fresh.references.train.of(rows), again.references.train.of(rows))

    for path in files:  # a damaged file is computed again, not believed
        path.write_bytes(path.read_bytes()[:-3] + b"abc")
    repaired = preference(policy(torch.float32), "dpo", main, cache=tmp_path, reference=reference)
    assert repaired.references.train
    assert torch.equal(fresh.references.train.of(rows), repaired.references.train.of(rows))


def test_cached_reference_follows_the_rows_not_their_order(tmp_path) -> None:
    """C3: every row keeps its own log-probs under any order of the rows."""
    reference, trees = policy(torch.float32, seed=9), pair_trees(9)
    stage = preference(policy(torch.float32), "dpo", stream(trees, 4), reference=reference)
    for step in range(3):
        for micro in stage.micros(step):
            online = reference.branch_logprobs(micro.batch).sum
            assert micro.reference is not None
            torch.testing.assert_close(micro.reference, online, rtol=1e-5, atol=1e-5)


def test_row_weights_reach_the_nll_term_and_the_evaluation() -> None:
    """A row of weight 0 is as if it were not there; without weights it would be trained in full."""
    trees = [
        tree._replace(weight=weight, comparisons=(tree.comparisons[0]._replace(weight=weight),))
        for tree, weight in zip(pair_trees(6), (1.0, 0.0, 2.0, 0.0, 0.5, 1.0), strict=True)
    ]
    kept = [tree for tree in trees if tree.weight > 0]
    model = policy()
    found = []
    for rows in (trees, kept):
        held = stream(rows, 1)
        stage = preference(
            model, "dpo", stream(rows, 6), nll_weight=0.5, held_out=held, reference=policy(seed=9)
        )
        outcome = stage.terms(stage.micros(0)[0])
        means = [term.sum.item() / term.count for term in outcome.terms]
        evaluation = stage.evaluate(1)
        found.append([*means, evaluation["loss"], evaluation["nll_loss"]])
        assert evaluation["loss"] == pytest.approx(means[0] + 0.5 * means[1], rel=1e-9)
    assert found[0] == pytest.approx(found[1], rel=1e-9)
    plain = [tree._replace(weight=1.0) for tree in trees]
    stage = preference(model, "dpo", stream(plain, 6), nll_weight=0.5)
    nll = stage.terms(stage.micros(0)[0]).terms[1]
    assert nll.sum.item() / nll.count != pytest.approx(found[0][1], rel=1e-4)


def test_mismatched_rows_are_never_longer_than_the_rows() -> None:
    import random

    from tests.algorithms.support import branch, prompt

    from trimtab.data.trees import Origin, TokenTree

    rng = random.Random(0)
    long_prompt = TokenTree(prompt(rng, 30), (branch(rng, 2),), (), Origin("x", 1))
    long_answer = TokenTree(prompt(rng, 2), (branch(rng, 30),), (), Origin("x", 2))
    crossed = mismatched([long_prompt, long_answer])
    assert [tree.depth for tree in crossed] == [4]  # 30 + 30 would be beyond what was checked


def test_evaluation_leaves_running_statistics_alone() -> None:
    main, held = stream(pair_trees(8), 4), stream(pair_trees(5, seed=7), 1)
    stage = preference(policy(), "beta_dpo", main, held_out=held)
    stage.prepare(0, stage.micros(0))
    before = stage.state_dict()
    found = stage.evaluate(1)
    assert stage.state_dict() == before
    low, high = found["rewards/accuracies_ci95"]
    assert 0 <= low <= found["rewards/accuracies"] <= high <= 1 and found["pairs"] == 5


@pytest.mark.parametrize("loss", ["dpo", "kto"])
def test_evaluating_at_the_reference_needs_no_pass(loss: str) -> None:
    """The slow twin is the same evaluation with the model: equal where the policy is untouched."""
    model = policy()
    main, held = stream(pair_trees(6), 6), stream(pair_trees(5, seed=7), 1)
    stage = preference(model, loss, main, held_out=held, reference=model)
    slow = stage.evaluate(1)
    calls = []
    stage.stats = lambda micro: calls.append(micro)  # type: ignore[method-assign]
    fast = stage.evaluate(0)
    assert not calls
    for name, value in slow.items():
        assert fast[name] == pytest.approx(value, abs=1e-9), name


def test_a_named_reference_is_not_taken_for_the_policy() -> None:
    main, held = stream(pair_trees(6), 6), stream(pair_trees(5, seed=7), 1)
    stage = preference(policy(), "dpo", main, held_out=held)  # another model as reference
    stage.references.named = True
    assert stage.evaluate(0)["rewards/margins"] == stage.evaluate(1)["rewards/margins"] != 0


def test_language_model_loss_and_bits_per_byte() -> None:
    trees = text_trees(6)
    model = policy()
    held = stream(trees, 1)
    stage = LanguageModelling(model, stream(trees, 6), total_steps=1, held_out=held)
    found = stage.evaluate(1)
    total = sum(by_hand(model.model, tree, 0)[0] for tree in trees)
    tokens = sum(tree.trained_count for tree in trees)
    assert found["loss"] == pytest.approx(-total / tokens, rel=1e-9)
    assert found["perplexity"] == pytest.approx(math.exp(-total / tokens), rel=1e-9)
    stage.held_out_bytes = 200
    assert stage.evaluate(1)["bpb"] == pytest.approx(-total / math.log(2) / 200, rel=1e-9)


@pytest.mark.parametrize("loss", ["tdpo2", "kto"])
def test_live_reference_is_unchanged_after_ten_steps(loss: str) -> None:
    """P8: ten optimizer steps move the policy and not one bit of its reference."""
    from tests.algorithms.support import Silent, settings

    from trimtab.models.fingerprint import fingerprint_tensors
    from trimtab.training.loop import Loop

    model = policy(torch.float32)
    main = stream(pair_trees(12), 4)
    stage = preference(model, loss, main, total_steps=10, reference=model)
    assert stage.references.live is not None
    frozen_model = stage.references.live.policy.model
    before = fingerprint_tensors(frozen_model.state_dict())
    assert before == fingerprint_tensors(model.model.state_dict())
    Loop(stage, settings(), Silent()).run()
    assert fingerprint_tensors(frozen_model.state_dict()) == before
    assert fingerprint_tensors(model.model.state_dict()) != before
    assert all(p.grad is None for p in frozen_model.parameters())
