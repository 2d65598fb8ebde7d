"""Claim: every path to a training gradient gives that of the enumerated expectation.

The expectation is computed by hand: the model's own logits, one sequence after the other, one
softplus a pair, one division at the end. The paths are those of a run: trees of a prompt's
responses or of pairs, in the layouts shared, packed and padded, through the fused head, norms and
gates, in one micro-batch or many. Tolerances are relative distances of whole gradients: 1e-9 in
fp64, 1e-4 in fp32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
from tests.algorithms.support import CPU, gradients, preference, stream
from tests.exact import wrong_losses
from tests.tiny_models import norms_in_own_dtype
from torch import Tensor
from torch.nn import functional as F

from trimtab.algorithms.policy import Policy
from trimtab.data.batch import Span, TreeSpans
from trimtab.data.trees import Branch, Comparison, Origin, TokenTree
from trimtab.models import forward
from trimtab.models.forward import choose_layout
from trimtab.proof.language import Language
from trimtab.proof.preferences import Pairs, all_pairs
from trimtab.proof.problem import random_rewards, uniform
from trimtab.proof.transformer import make_transformer, response_logprobs

BETA = 0.5
LANGUAGE = Language(prompts="xyz")
Grouping = Literal["responses", "pairs"]


def model(seed: int, dtype: torch.dtype) -> Any:
    made = make_transformer(LANGUAGE, seed=seed).to(dtype).train()
    if dtype == torch.float64:
        norms_in_own_dtype(made)
    return made


def preferences() -> Pairs:
    """Exact preferences; the prompts matter unequally, or a wrong divisor would not show."""
    responses = len(LANGUAGE.texts)
    problem = uniform(
        random_rewards(3, responses, seed=0), random_rewards(3, responses, seed=1), LANGUAGE.lengths
    )
    pairs = all_pairs(problem)
    importance = torch.tensor([1.0, 3.0, 0.2], dtype=torch.float64)
    return pairs._replace(weight=(pairs.weight * importance[pairs.prompt]).float().double())


def enumerated(policy: Any, reference: Any) -> dict[str, Tensor]:
    """The gradient of the expected DPO loss, term by term."""
    pairs = preferences()
    with torch.no_grad():
        kept = response_logprobs(reference, LANGUAGE)
    ratios = response_logprobs(policy, LANGUAGE) - kept
    gaps = ratios[pairs.prompt, pairs.winner] - ratios[pairs.prompt, pairs.loser]
    loss = (pairs.weight * F.softplus(-BETA * gaps)).sum() / pairs.weight.sum()
    names = [name for name, _ in policy.named_parameters()]
    return dict(zip(names, torch.autograd.grad(loss, list(policy.parameters())), strict=True))


def trees(grouping: Grouping) -> list[TokenTree]:
    """One tree a prompt with all of its responses, or one tree a pair."""
    pairs = preferences()
    texts = [LANGUAGE.ids(text) for text in LANGUAGE.texts]

    def tree(prompt: int, responses: list[int], comparisons: list[Comparison]) -> TokenTree:
        trunk = Branch((LANGUAGE.prompt_id(LANGUAGE.prompts[prompt]),), (False,))
        branches = tuple(Branch(texts[i], (True,) * len(texts[i])) for i in responses)
        return TokenTree(trunk, branches, tuple(comparisons), Origin("exact", prompt + 1))

    columns = list(zip(*(column.tolist() for column in pairs), strict=True))
    if grouping == "pairs":
        return [tree(p, [w, x], [Comparison(0, 1, weight)]) for p, w, x, weight in columns]
    return [
        tree(
            prompt,
            list(range(len(texts))),
            [Comparison(w, x, weight) for p, w, x, weight in columns if p == prompt],
        )
        for prompt in range(len(LANGUAGE.prompts))
    ]


def stage(dtype: torch.dtype, layout: Any, grouping: Grouping, budget: int) -> Any:
    """The stage of a run whose one step sees everything."""
    policies = []
    for seed in (0, 1):
        made = model(seed, dtype)
        policies.append(Policy(made, choose_layout(made, layout).layout, CPU))
    rows = trees(grouping)
    main = stream(rows, len(rows), budget)
    policy, reference = policies
    return preference(policy, "dpo", main, reference=reference, parameters={"beta": BETA})


def distance(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    assert found.keys() == wanted.keys()
    apart = sum(float((found[k].double() - wanted[k].double()).square().sum()) for k in wanted)
    return (apart / sum(float(wanted[k].double().square().sum()) for k in wanted)) ** 0.5


@pytest.fixture(scope="module")
def exact() -> dict[torch.dtype, dict[str, Tensor]]:
    """By dtype of the model; the sums are in fp64 either way."""
    return {
        dtype: enumerated(model(0, dtype), model(1, dtype))
        for dtype in (torch.float64, torch.float32)
    }


@pytest.mark.parametrize("budget", [10_000, 30], ids=["one-micro-batch", "many"])
@pytest.mark.parametrize("grouping", ["responses", "pairs"])
@pytest.mark.parametrize("layout", ["shared", "packed", "padded"])
def test_every_path_is_the_enumeration(
    exact: Any, layout: str, grouping: Grouping, budget: int
) -> None:
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-4)):
        made = stage(dtype, layout, grouping, budget)
        assert (len(made.micros(0)) == 1) == (budget == 10_000)
        assert distance(gradients(made), exact[dtype]) < tolerance, dtype


def test_fp32_goes_through_the_fused_nodes() -> None:
    """Otherwise the test above would say nothing of them."""
    made = stage(torch.float32, "shared", "pairs", 10_000)
    layer = made.policy.model.model.layers[0]
    assert "fused" in layer.input_layernorm.forward.__func__.__module__
    assert "fused" in layer.mlp.forward.__func__.__module__


# ---------------------------------------------------------------------- wrong variants


def siblings(made: Any, patch: pytest.MonkeyPatch) -> None:
    """A branch sees the branches before it: the tree as one causal row."""

    def merged(spans: Any, depth: Tensor) -> Any:
        return plan(tuple(TreeSpans(Span(s.start, s.end), ()) for s in spans), depth)

    plan = forward.TreePlan
    patch.setattr(forward, "TreePlan", merged)
    forward._ROUTES.clear()


def divisor_per_micro_batch(made: Any, patch: pytest.MonkeyPatch) -> None:
    """Every micro-batch divided by its own count, and their mean taken."""
    micros, terms, counts = made.micros(0), made.terms, made.counts
    total = sum(counts(micro)["dpo"] for micro in micros)

    def wrong(micro: Any) -> Any:
        outcome = terms(micro)
        (term,) = outcome.terms
        mean = term.sum / term.count / len(micros)
        return outcome._replace(terms=[term._replace(sum=mean * total)])

    patch.setattr(made, "terms", wrong)


def other_loss(loss: Callable[..., Any]) -> Callable[..., None]:
    def change(made: Any, patch: pytest.MonkeyPatch) -> None:
        def call(policy: Any, reference: Any) -> Any:
            given = {} if loss is wrong_losses.reference_left_out else {"reference": reference}
            return loss(policy=policy, **given, beta=BETA)

        patch.setattr(made, "loss", call)

    change.__name__ = loss.__name__
    return change


def without_weights(made: Any, patch: pytest.MonkeyPatch) -> None:
    """Every pair counts 1."""
    patch.setattr(made, "_weights", lambda micro: torch.ones_like(micro.batch.weight))


WRONG = [
    siblings,
    divisor_per_micro_batch,
    without_weights,
    *(other_loss(loss) for loss in wrong_losses.DPO),
]


@pytest.mark.parametrize("wrong", WRONG, ids=lambda f: f.__name__)
def test_wrong_variants_are_refused(
    exact: Any, wrong: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = stage(torch.float64, "shared", "responses", 30)
    good = exact[torch.float64]
    assert distance(gradients(made), good) < 1e-9
    wrong(made, monkeypatch)
    assert distance(gradients(made), good) > 1e-3
