"""Stages over random trees and tiny models, for the tests of the algorithms and the loop."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tests.tiny_models import VOCABULARY, norms_in_own_dtype, tiny_model

from trimtab.algorithms.classify import Classification
from trimtab.algorithms.language_model import LanguageModelling
from trimtab.algorithms.policy import Policy
from trimtab.algorithms.preference import PreferenceOptimisation, References
from trimtab.algorithms.reference import ReferenceCache, frozen_copy
from trimtab.algorithms.reward import RewardModelling
from trimtab.algorithms.stage import Mix, Stage
from trimtab.algorithms.stream import TreeStream
from trimtab.config.loss_sum import is_sum, parse_sum
from trimtab.data.tokenise_trees import for_scores
from trimtab.data.trees import Branch, Comparison, Origin, TokenTree
from trimtab.losses import PREFERENCE_LOSSES, bind, bind_sum, describe, describe_sum
from trimtab.models.forward import choose_layout
from trimtab.models.score_head import ScoreHead, attach_head, without_output_head
from trimtab.training.loop import Loop, LoopSettings
from trimtab.training.terms import Metric

CPU = torch.device("cpu")
END = 2  # the end token of the tiny models


def policy(dtype: torch.dtype = torch.float64, *, seed: int = 0, name: str = "llama") -> Policy:
    """A tiny model with its layout chosen; in fp64 its norms are in fp64 too."""
    model = tiny_model(name, seed=seed, dtype=dtype)
    if dtype == torch.float64:
        norms_in_own_dtype(model)
    return Policy(model, choose_layout(model).layout, CPU)


def ids(rng: random.Random, length: int) -> tuple[int, ...]:
    return tuple(rng.randrange(3, VOCABULARY) for _ in range(length))


def branch(rng: random.Random, length: int) -> Branch:
    return Branch(ids(rng, length), (True,) * length)


def prompt(rng: random.Random, length: int, trained: bool = False) -> Branch:
    return Branch(ids(rng, length), (False,) + (trained,) * (length - 1))


def text_trees(count: int, seed: int = 0) -> list[TokenTree]:
    """Documents of very unequal lengths."""
    rng = random.Random(seed)
    return [
        TokenTree(prompt(rng, 1), (branch(rng, rng.choice([2, 5, 30])),), (), Origin("text", i + 1))
        for i in range(count)
    ]


def labelled_trees(count: int, seed: int = 6, classes: int = 3) -> list[TokenTree]:
    """Texts of a class each, with weights, that end in the end token."""
    rng = random.Random(seed)
    trees = []
    for i in range(count):
        text = (*ids(rng, rng.choice([1, 4, 20])), END)
        tree = TokenTree(
            prompt(rng, 1), (Branch(text, (True,) * len(text)),), (), Origin("labelled", i + 1)
        )
        weight = rng.choice([1.0, 0.5])
        trees.append(tree._replace(weight=weight, classes=(rng.randrange(classes),)))
    return trees


def pair_trees(count: int, seed: int = 1, *, train_trunk: bool = False) -> list[TokenTree]:
    """Pairs with labels, of unequal lengths and weights."""
    rng = random.Random(seed)
    return [
        TokenTree(
            prompt(rng, rng.randint(2, 9), train_trunk),
            (branch(rng, rng.choice([1, 4, 20])), branch(rng, rng.choice([2, 7]))),
            (Comparison(0, 1, rng.choice([1.0, 0.5]), 0.0),),
            Origin("pairs", i + 1),
            ranks=(1.0, 2.0),
            labels=(True, False),
        )
        for i in range(count)
    ]


def ranked_trees(count: int, seed: int = 2) -> list[TokenTree]:
    """Rankings of 2 to 4 responses in scrambled order, with scores."""
    rng = random.Random(seed)
    trees = []
    for i in range(count):
        size = rng.randint(2, 4)
        ranks = [float(r) for r in rng.sample(range(1, size + 1), size)]
        comparisons = tuple(
            Comparison(a, b) for a in range(size) for b in range(size) if ranks[a] < ranks[b]
        )
        branches = tuple(branch(rng, rng.randint(1, 9)) for _ in range(size))
        trees.append(
            TokenTree(
                prompt(rng, 4),
                branches,
                comparisons,
                Origin("ranked", i + 1),
                tuple(ranks),
                scores=tuple(2.0 - 0.3 * rank for rank in ranks),
            )
        )
    return trees


def stream(trees: Sequence[TokenTree], per_step: int, budget: int = 10_000, **more: Any) -> Any:
    return TreeStream([list(trees)], rows_per_step=per_step, token_budget=budget, seed=5, **more)


def preference(
    model: Policy,
    loss: str,
    main: TreeStream,
    *,
    total_steps: int = 1,
    held_out: TreeStream | None = None,
    cache: Path | None = None,
    reference: Policy | None = None,
    **more: Any,
) -> PreferenceOptimisation:
    """A stage with any loss; the reference is another model, so that log-ratios are not zero."""
    weights = parse_sum(loss) if is_sum(loss) else None
    spec = describe(loss) if weights is None else describe_sum(weights)
    other = reference or policy(next(model.model.parameters()).dtype, seed=9)
    kept = ReferenceCache(cache, "test", 10_000)
    references = References(
        kept.compute(other, main, range(len(main.sources[0]))),
        kept.compute(other, held_out, range(len(held_out))) if held_out else None,
        frozen_copy(other),
    )
    parameters = more.pop("parameters", {})
    return PreferenceOptimisation(
        model,
        main,
        spec=spec,
        make_loss=lambda: (
            bind(loss, parameters) if weights is None else bind_sum(weights, parameters)
        ),
        references=references,
        seed=3,
        total_steps=total_steps,
        held_out=held_out,
        **more,
    )


def make_stage(kind: str, *, per_step: int, budget: int, steps: int = 1) -> Stage:
    """One stage of every kind: ``sft``, ``sft+mix``, or any preference loss (``orpo+nll``)."""
    model = policy()
    if kind.startswith("sft"):
        mix = None
        if kind == "sft+mix":
            texts = stream(text_trees(7, seed=4), 3, budget, name="mix")
            mix = Mix(texts, 0.7, "sequence_sum")
        main = stream(text_trees(per_step * steps), per_step, budget)
        return LanguageModelling(model, main, total_steps=steps, mix=mix)
    if kind.startswith("classify"):
        return classify(kind, per_step, budget, steps)
    if kind.startswith("reward"):
        return reward(kind, per_step, budget, steps)
    loss, nll = kind.removesuffix("+nll"), kind.endswith("+nll")
    count = per_step * steps
    ranked = loss in PREFERENCE_LOSSES and describe(loss).kind == "ranking"
    trees = ranked_trees(count) if ranked else pair_trees(count, train_trunk=nll)
    return preference(
        model,
        loss,
        stream(trees, per_step, budget),
        total_steps=steps,
        nll_weight=0.5 if nll else 0.0,
    )


def classify(kind: str, per_step: int, budget: int, steps: int = 1) -> Classification:
    """``classify`` with alpha 0.5, ``classify+alpha0``, or ``classify+mix`` without alpha."""
    model = policy()
    attach_head(model.model, ScoreHead("classify", ("a", "b", "c")), std=0.3, seed=4)
    if kind == "classify+alpha0":
        without_output_head(model.model)
    mix = None
    if kind == "classify+mix":
        mix = Mix(stream(text_trees(7, seed=4), 3, budget, name="mix"), 0.7)
    return Classification(
        model,
        stream(labelled_trees(per_step * steps), per_step, budget),
        labels=("a", "b", "c"),
        total_steps=steps,
        alpha=0.5 if kind == "classify" else 0.0,
        mix=mix,
    )


def reward(kind: str, per_step: int, budget: int, steps: int = 1) -> RewardModelling:
    """``reward``, with ``+centring``, ``+plackett_luce`` or ``+mix``, on rankings of 2 to 4."""
    model = policy()
    attach_head(model.model, ScoreHead("reward"), std=0.3, seed=4)
    if kind != "reward+mix":
        without_output_head(model.model)
    trees = [for_scores(tree, "column", 1.0) for tree in ranked_trees(per_step * steps)]
    mix = None
    if kind == "reward+mix":
        mix = Mix(stream(text_trees(7, seed=4), 3, budget, name="mix"), 0.7)
    return RewardModelling(
        model,
        stream(trees, per_step, budget),
        total_steps=steps,
        loss="plackett_luce" if kind.endswith("plackett_luce") else "pairwise",
        centring=0.1 if kind.endswith("centring") else 0.0,
        mix=mix,
    )


class Silent:
    """Hooks that keep what was logged."""

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []
        self.saved: list[int] = []
        self.folder = Path()

    def log(self, step: int, record: dict[str, Any]) -> None:
        self.records.append({"step": step, **record})

    def progress(self, step: int) -> None: ...

    def sample(self, step: int) -> None: ...

    def save(self, step: int) -> None:
        self.saved.append(step)

    def evaluating(self, step: int, going_on: bool) -> None:
        pass

    def dump(self, step: int, micro: Any) -> Path:
        return self.folder / f"dump-{step}.json"


def settings(**changes: Any) -> LoopSettings:
    """Settings of a short plain run."""
    values: dict[str, Any] = {
        "learning_rate": 1e-3,
        "schedule": "constant",
        "warmup": 0,
        "min_lr_ratio": 0.0,
        "optimizer": "adamw",
        "weight_decay": 0.0,
        "betas": (0.9, 0.999),
        "epsilon": 1e-8,
        "max_grad_norm": 0.0,
        "seed": 0,
        "on_nonfinite": "stop",
        "max_skipped_steps": 2,
        "logging_steps": 1,
        "eval_steps": None,
        "save_steps": None,
        "sample_steps": None,
        "eval_on_start": False,
    }
    return LoopSettings(**{**values, **changes})


def gradients(stage: Stage) -> dict[str, torch.Tensor]:
    """Gradients of the stage's first step, as the loop accumulates them."""
    loop = Loop(stage, settings(), Silent())
    captured: dict[str, torch.Tensor] = {}

    def capture(step: int, norm: torch.Tensor) -> None:
        captured.update({n: p.grad.clone() for n, p in loop.masters if p.grad is not None})

    loop._update = capture  # type: ignore[method-assign]
    loop.train_step()
    return captured


def metric_value(metric: Metric) -> float:
    return metric.sum / metric.count
