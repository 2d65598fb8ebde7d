"""The classify stage: its two terms against transformers alone, and wrong variants of them."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from tests.algorithms.support import (
    END,
    classify,
    gradients,
    labelled_trees,
    metric_value,
    policy,
    stream,
)
from tests.tiny_models import norms_in_own_dtype
from torch.nn import functional as F

from trimtab.algorithms.classify import Classification
from trimtab.algorithms.language_model import LanguageModelling
from trimtab.algorithms.policy import Policy
from trimtab.data.trees import TokenTree
from trimtab.models.forward import choose_layout
from trimtab.models.score_head import ScoreHead, attach_head, without_output_head
from trimtab.models.scored import scored_shell


def stage(trees: list[TokenTree], alpha: float = 0.5, name: str = "llama") -> Classification:
    model = policy(name=name)
    attach_head(model.model, ScoreHead("classify", ("a", "b", "c")), std=0.3, seed=4)
    main = stream(trees, len(trees), shuffle=False)
    return Classification(model, main, labels="abc", total_steps=1, alpha=alpha)


def terms(found: Classification) -> dict[str, Any]:
    (micro,) = found.micros(0)
    return {term.name: term for term in found.own_terms(micro).terms}


def path(tree: TokenTree) -> list[int]:
    """The text with its end token."""
    return [*tree.trunk.ids, *tree.branches[0].ids]


def states(model: Any, tree: TokenTree) -> torch.Tensor:
    """[S, d] after the final norm, one text alone, through the model's own attention."""
    with torch.no_grad():
        return model.base_model(torch.tensor([path(tree)])).last_hidden_state[0]


# ---------------------------------------------------------------------- the two terms


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_class_loss_is_that_of_transformers_own_class(name: str) -> None:
    """Logits of its sequence-classification model, row by row, and torch's cross-entropy."""
    trees = labelled_trees(6)
    found = stage(trees, name=name)
    model: Any = found.model
    plain = type(scored_shell(model))(model.config_class.from_dict(_labelled(model))).double()
    state = model.state_dict()
    plain.load_state_dict({key: state[key] for key in plain.state_dict()})
    norms_in_own_dtype(plain)
    expected = weight = 0.0
    for tree in trees:
        with torch.no_grad():
            logits = plain.eval()(torch.tensor([path(tree)])).logits
        loss = F.cross_entropy(logits, torch.tensor(tree.classes))
        expected += tree.weight * loss.item()
        weight += tree.weight
    term = terms(found)["classification"]
    assert (term.unit, term.weight, term.count) == ("sequence", 1.0, weight)
    assert (term.sum / term.count).item() == pytest.approx(expected / weight, abs=1e-12)


def _labelled(model: Any) -> dict[str, Any]:
    return {**model.config.to_dict(), "num_labels": 3, "pad_token_id": None}


def wrong_state(model: Any, tree: TokenTree, kind: str) -> torch.Tensor:
    """[d] what the class could be read from by mistake."""
    found = states(model, tree)
    if kind == "before the end token":
        return found[-2]
    if kind == "mean over the text":
        return found.mean(0)
    if kind == "first token":
        return found[0]
    assert kind == "before the final norm"
    kept: list[torch.Tensor] = []
    norm = model.base_model.norm
    handle = norm.register_forward_pre_hook(lambda module, inputs: kept.append(inputs[0]))
    states(model, tree)
    handle.remove()
    return kept[-1][0, -1]


@pytest.mark.parametrize(
    "kind",
    ["before the end token", "mean over the text", "first token", "before the final norm"],
)
def test_another_state_gives_another_loss(kind: str) -> None:
    trees = labelled_trees(6)
    found = stage(trees)
    model: Any = found.model
    expected = sum(
        tree.weight
        * F.cross_entropy(model.score(states(model, tree)[-1:]), torch.tensor(tree.classes)).item()
        for tree in trees
    )
    value = terms(found)["classification"].sum.item()
    assert value == pytest.approx(expected, abs=1e-9)
    wrong = sum(
        tree.weight
        * F.cross_entropy(
            model.score(wrong_state(model, tree, kind)[None]), torch.tensor(tree.classes)
        ).item()
        for tree in trees
    )
    assert abs(wrong - value) > 1e-2


def test_another_divisor_gives_another_loss() -> None:
    """Texts are counted, by weight; not tokens, and not rows whatever their weight."""
    found = stage(labelled_trees(6))
    (micro,) = found.micros(0)
    batch = micro.batch
    counts = found.own_counts(micro)
    assert counts["classification"] == sum(tree.weight for tree in batch.trees) != 6
    assert counts["nll"] == sum(t.weight * t.trained_count for t in batch.trees)
    term = terms(found)["classification"]
    value = (term.sum / term.count).item()
    for wrong in (counts["nll"], 6.0, 1.0):
        assert abs(term.sum.item() / wrong - value) > 1e-2


def test_there_is_no_bias() -> None:
    """A constant for a class would be one: it changes the loss, and no parameter holds it."""
    found = stage(labelled_trees(6))
    model: Any = found.model
    assert model.score.bias is None and tuple(model.score.weight.shape) == (3, 32)
    value = terms(found)["classification"].sum.item()
    (micro,) = found.micros(0)
    logits = found.policy.scores(micro.batch) + torch.tensor([0.3, 0.0, 0.0])
    losses = F.cross_entropy(logits, micro.batch.classes, reduction="none")
    assert abs((losses * micro.batch.tree_weight).sum().item() - value) > 1e-2


def test_alpha_term_is_that_of_sft_on_the_same_text() -> None:
    trees = labelled_trees(6)
    found = terms(stage(trees, alpha=0.3))["nll"]
    plain = LanguageModelling(policy(), stream(trees, 6, shuffle=False), total_steps=1)
    (micro,) = plain.micros(0)
    (expected,) = plain.own_terms(micro).terms
    assert (found.count, found.unit, found.weight) == (expected.count, "token", 0.3)
    assert found.sum.item() == pytest.approx(expected.sum.item(), rel=1e-13)
    # By hand, with transformers alone; the end token is predicted, too.
    model: Any = policy().model
    total = without_end = 0.0
    for tree in trees:
        ids = torch.tensor([path(tree)])
        with torch.no_grad():
            logp = model(ids).logits[0].log_softmax(-1)[:-1].gather(1, ids[0, 1:, None])[:, 0]
        assert ids[0, -1] == END
        total -= tree.weight * logp.sum().item()
        without_end -= tree.weight * logp[:-1].sum().item()
    assert found.sum.item() == pytest.approx(total, rel=1e-10)
    assert abs(without_end - total) > 1e-1


def test_gradient_is_the_sum_of_both() -> None:
    """alpha weighs the language model's gradient, on one forward pass as on two."""
    trees = labelled_trees(5)
    both, classes = gradients(stage(trees, alpha=0.3)), gradients(stage(trees, alpha=0.0))
    plain = LanguageModelling(policy(), stream(trees, 5, shuffle=False), total_steps=1)
    text = gradients(plain)
    for name, gradient in both.items():
        expected = classes.get(name, 0.0) + 0.3 * text.get(name, torch.zeros(()))
        assert torch.allclose(gradient, expected, atol=1e-12), name
    assert "score.weight" in classes and "lm_head.weight" not in classes
    assert float(both["lm_head.weight"].abs().max()) > 1e-4


def test_layouts_agree() -> None:
    trees = labelled_trees(6)
    values = {}
    for layout in ("shared", "packed", "padded"):
        found = stage(trees)
        model = found.policy.model
        choose_layout(model, layout)  # type: ignore[arg-type]
        found.policy = Policy(model, layout, found.policy.device)  # type: ignore[arg-type]
        values[layout] = {name: term.sum.item() for name, term in terms(found).items()}
    for name, value in values["shared"].items():
        assert values["packed"][name] == pytest.approx(value, rel=1e-12)
        assert values["padded"][name] == pytest.approx(value, rel=1e-12)
    assert values["shared"]["classification"] > 1.0


# ---------------------------------------------------------------------- heads and metrics


def test_output_head_is_frozen_where_nothing_reads_it() -> None:
    model = policy().model
    assert model.lm_head.weight is not model.get_input_embeddings().weight  # type: ignore
    without_output_head(model)
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {"lm_head.weight"}
    assert "lm_head.weight" not in gradients(classify("classify+alpha0", 4, 10_000))


def test_metrics_of_a_step() -> None:
    found = stage(labelled_trees(6))
    (micro,) = found.micros(0)
    metrics = found.own_terms(micro).metrics
    predicted = found.policy.scores(micro.batch).argmax(-1)
    right = sum(int(p == t.classes[0]) for p, t in zip(predicted, micro.batch.trees, strict=True))
    assert metric_value(metrics["accuracy"]) == right / 6
    nll = terms(found)["nll"]
    assert metric_value(metrics["nll"]) == pytest.approx((nll.sum / nll.count).item())
    assert set(stage(labelled_trees(6), alpha=0.0).own_terms(micro).metrics) == {"accuracy"}


def test_evaluation_is_over_all_rows_whatever_the_budget() -> None:
    trees = labelled_trees(7, seed=8)
    found = []
    for budget in (25, 10_000):
        one = stage(labelled_trees(2))
        one.held_out = stream(trees, 1, budget)
        found.append(one.evaluate(0))
    small, large = found
    assert small["accuracy"] == large["accuracy"] and small["confusion"] == large["confusion"]
    for name in ("loss", "lm_loss"):
        assert small[name] == pytest.approx(large[name], rel=1e-12)
    whole = stage(trees)
    values = {name: (t.sum / t.count).item() for name, t in terms(whole).items()}
    assert large["loss"] == pytest.approx(values["classification"], rel=1e-12)
    assert large["lm_loss"] == pytest.approx(values["nll"], rel=1e-12)
    assert large["rows"] == 7 == sum(map(sum, large["confusion"].values()))
    assert math.isfinite(large["macro_f1"]) and stage(trees).evaluate(0) == {}
