"""The self-check of models with scores: layouts, company, and what plain transformers reads."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from trimtab.algorithms.policy import Policy, frozen
from trimtab.algorithms.selfcheck_records import Check
from trimtab.data.batch import TreeBatch, pack, unshare
from trimtab.data.trees import TokenTree
from trimtab.models.attention import plain_attention, unwrap
from trimtab.models.forward import end_hidden
from trimtab.models.hub import locate
from trimtab.models.score_head import head_of
from trimtab.models.scored import load_scored

# Of a score, relative to the larger of it and 1: rounding, and 8 bits of it in bf16.
TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-4, torch.bfloat16: 0.05, torch.float16: 0.01}


def score_checks(policy: Policy, trees: Sequence[TokenTree]) -> Iterator[Check]:
    """Scores agree over the layouts, and do not depend on what else is in the batch."""
    batch = pack(trees).to(policy.device)
    with frozen(policy.model):
        scores = policy.scores(batch)
        tolerance = TOLERANCE[next(policy.model.parameters()).dtype]
        if policy.layout != "padded":
            for layout in ("shared", "packed", "padded"):
                if layout != policy.layout:
                    gap = _gap(_scores_in(policy, batch, layout), scores)
                    yield Check(f"{policy.layout} = {layout}", gap <= tolerance, f"gap {gap:.2g}")
        alone = torch.cat([policy.scores(pack([t]).to(policy.device)) for t in trees])
        gap = _gap(alone, scores)
        yield Check("a score does not depend on its batch", gap <= tolerance, f"gap {gap:.2g}")


def longest_scored(policy: Policy, longest: TokenTree) -> Check:
    """Forward and backward over the longest row, its language-model loss included if it has one."""
    start = time.perf_counter()
    batch = pack([longest]).to(policy.device)
    if batch.target.numel():
        scores, stats = policy.scores_and_stats(batch)
        (scores.sum() - stats.logp.sum()).backward()
    else:
        policy.scores(batch).sum().backward()
    for parameter in policy.model.parameters():
        parameter.grad = None
    seconds = time.perf_counter() - start
    return Check("the longest row fits", True, f"{longest.token_count} tokens, {seconds:.1f} s")


def reloaded_scores(
    policy: Policy, trees: Sequence[TokenTree], save: Callable[[Path], None], scratch: Path
) -> Iterator[Check]:
    """What plain transformers gives for padded rows, from the saved folder, is what we give."""
    if hasattr(policy.model, "peft_config"):
        return  # an adapter's file has been compared, and its base is what was loaded
    save(scratch)
    again = load_scored(locate(scratch), dtype=next(policy.model.parameters()).dtype, key="save")
    head = head_of(again)
    assert head is not None
    alone = [one for tree in trees for one in unshare(tree)]
    rows = [tree.trunk.ids + tree.branches[0].ids for tree in alone]
    width = max(map(len, rows)) + 3
    ids = torch.tensor([[*row, *[head.pad_token_id] * (width - len(row))] for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    with torch.no_grad(), frozen(policy.model):
        theirs = again(input_ids=ids, attention_mask=mask).logits.float()
        ours = policy.scores(pack(trees).to(policy.device)).cpu()
    gap = _gap(theirs, ours)
    tolerance = TOLERANCE[next(policy.model.parameters()).dtype]
    yield Check("plain transformers reads the same scores", gap <= tolerance, f"gap {gap:.2g}")


def _scores_in(policy: Policy, batch: TreeBatch, layout: str) -> Tensor:
    # The oracle is the model as its authors wrote it, with its own attention.
    own = plain_attention(policy.model) if layout == "padded" else contextlib.nullcontext()
    with own:
        ends = end_hidden(policy.model, batch, layout)  # type: ignore[arg-type]
    return unwrap(policy.model).score(ends).float()


def _gap(here: Tensor, there: Tensor) -> float:
    scale = there.abs().clamp(min=1.0)
    return ((here - there).abs() / scale).max().item()
