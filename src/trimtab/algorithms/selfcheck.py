"""The self-check at the start of a run: seconds that would have saved others weeks.

On real rows and the real model, before the first step: the fused log-probs equal the model's own
logits, the layouts agree, the loss at the reference has its known value, every trainable tensor
gets a gradient, the longest row fits, and what is saved can be read back. A failure stops the run.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trimtab.algorithms.policy import Policy, branch_sums, frozen
from trimtab.algorithms.preference import PreferenceOptimisation
from trimtab.algorithms.selfcheck_records import Check
from trimtab.algorithms.selfcheck_scores import longest_scored, reloaded_scores, score_checks
from trimtab.algorithms.stage import Stage
from trimtab.data.batch import TreeBatch, pack
from trimtab.data.trees import TokenTree
from trimtab.errors import RunError
from trimtab.losses.types import SequenceLogprobs
from trimtab.models.attention import plain_attention
from trimtab.models.forward import target_hidden
from trimtab.models.head import check_head
from trimtab.models.logprobs import token_stats
from trimtab.models.score_head import head_of
from trimtab.training.algorithm import Micro

# Nats per token: the largest difference in fp32, the root mean square in half precision, where
# single tokens of low probability differ by the rounding of their logits (8 bits in bf16).
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.bfloat16: 0.08, torch.float16: 0.02}
SAMPLE_TOKENS = 384  # seconds on a CPU, for a model of hundreds of millions too
# The loss where policy and reference agree, for those that have one value there at all settings.
_LN2 = "dpo cdpo robust dpop tdpo1 tdpo2 ln_dpo ld_dpo fdpo_forward fdpo_js fdpo_alpha"
KNOWN = {
    **dict.fromkeys(_LN2.split(), math.log(2)),
    **dict.fromkeys(("bco_pair", "nca"), 2 * math.log(2)),
    **dict.fromkeys(("hinge", "apo_zero", "apo_down"), 1.0),
    "apo_zero_unpaired": 0.5,
    "discopop": 0.5 + 0.5 * math.log(2),
}
RELOAD_LIMIT = 400_000_000  # parameters; beyond, saving is verified when the run saves


def self_check(
    stage: Stage, *, save: Callable[[Path], None], scratch: Path, longest: TokenTree
) -> list[Check]:
    """Run all checks that apply; raises ``RunError`` naming the first that failed."""
    if head_of(stage.policy.model) is None:
        checks = _language_model_checks(stage, longest)
    else:
        checks = [*score_checks(stage.policy, _sample(stage)), *_token_checks(stage)]
        checks += [_gradients(stage), longest_scored(stage.policy, longest)]
    if sum(p.numel() for p in stage.policy.model.parameters()) <= RELOAD_LIMIT:
        checks.append(_reload(save, scratch))
        if head_of(stage.policy.model) is not None and checks[-1].passed:
            checks += reloaded_scores(stage.policy, _sample(stage), save, scratch)
    for check in checks:
        if not check.passed:
            raise RunError(
                f"self-check: {check.name}: {check.detail}; the run would train on wrong numbers "
                "(self_check=false runs it anyway)"
            )
    return checks


def _language_model_checks(stage: Stage, longest: TokenTree) -> list[Check]:
    checks = _token_checks(stage)
    # Online preference learning has such a stage inside.
    preference = getattr(stage, "preference", stage)
    if isinstance(preference, PreferenceOptimisation):
        micro = next(m for m in stage.micros(0) if m.stream == "main")
        with frozen(stage.policy.model):
            tolerance = TOLERANCE[next(stage.model.parameters()).dtype]
            checks += _reference(preference, micro, tolerance)
    return [*checks, _gradients(stage), _longest(stage, longest)]


def _token_checks(stage: Stage) -> list[Check]:
    """Log-probs of a few rows, if they have trained tokens, on every path."""
    policy = stage.policy
    batch = pack(_sample(stage)).to(policy.device)
    if not batch.target.numel():
        return []
    tolerance = TOLERANCE[next(policy.model.parameters()).dtype]
    with frozen(policy.model):
        fused = policy.token_stats(batch).logp
        return [
            _model_logits(policy, batch, tolerance),
            *_layouts(policy, batch, fused, tolerance),
        ]


def _sample(stage: Stage) -> list[TokenTree]:
    """Trees of the first step, up to a few hundred tokens, at least one."""
    trees: list[TokenTree] = []
    used = 0
    for tree in stage.first_trees():
        if trees and (used + tree.token_count > SAMPLE_TOKENS or len(trees) == 4):
            break
        trees.append(tree)
        used += tree.token_count
    return trees


def _model_logits(policy: Policy, batch: TreeBatch, tolerance: float) -> Check:
    """Fused log-probs against the model's own logits, on the path of the first branch."""
    tree = batch.trees[0]
    ids = tree.trunk.ids + (tree.branches[0].ids if tree.branches else ())
    found = check_head(policy.model, torch.tensor(ids[:256], device=policy.device))
    return Check(
        "log-probs equal the model's own logits",
        found.difference <= max(found.tolerance, tolerance),
        f"largest gap {found.difference:.2g} nats over {found.tokens} tokens",
    )


def _layouts(policy: Policy, batch: TreeBatch, fused: Tensor, tolerance: float) -> Iterator[Check]:
    if policy.layout == "padded":
        return
    for layout in ("shared", "packed", "padded"):
        if layout == policy.layout:
            continue
        # The oracle is the model as its authors wrote it, with its own attention.
        own = plain_attention(policy.model) if layout == "padded" else contextlib.nullcontext()
        with own:
            hidden = target_hidden(policy.model, batch, layout)
        other = token_stats(hidden, policy.head, batch.target_ids).logp
        gap = _gap(other - fused, next(policy.model.parameters()).dtype)
        yield Check(f"{policy.layout} = {layout}", gap <= tolerance, f"gap {gap:.2g} nats a token")


def _gap(difference: Tensor, dtype: torch.dtype) -> float:
    """Size of a difference of log-probs, as ``TOLERANCE`` means it for a model's dtype."""
    half = dtype in (torch.bfloat16, torch.float16)
    return (difference.square().mean().sqrt() if half else difference.abs().max()).item()


def _reference(stage: PreferenceOptimisation, micro: Micro, tolerance: float) -> Iterator[Check]:
    """Log-ratio 0 and the loss at the reference: the line that catches a wrong reference."""
    if micro.reference is None or stage.spec.kind == "ranking":
        return
    stats = stage.stats(micro)
    sums = branch_sums(micro.batch, stats.logp)
    gap = ((sums.sum - micro.reference).abs() / sums.length.clamp(min=1)).max().item()
    if stage.references.named:
        yield Check("log-ratio to the named reference", True, f"{gap:.2g} nats a token")
        return
    yield Check("log-ratio to the reference is 0", gap <= tolerance, f"{gap:.2g} nats a token")
    if stage.spec.prepare_needs:
        return
    exact = SequenceLogprobs(micro.reference, sums.length)
    at_reference = stage.judge(stage.make_loss(), micro, exact, stats).losses
    found = stage.judge(stage.make_loss(), micro, sums, stats).losses
    value = found.mean().item()
    expected = KNOWN.get(stage.spec.name, at_reference.mean().item())
    close = math.isclose(value, expected, rel_tol=0.02, abs_tol=0.02)
    yield Check("loss at the reference", close, f"{value:.6f}, known value {expected:.6f}")


def _gradients(stage: Stage) -> Check:
    """Every trainable tensor gets a finite gradient from one micro-batch of each stream."""
    model = stage.model
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    reached: set[str] = set()
    finite = True
    with _kept_hooks(trainable, reached):
        state = stage.state_dict()  # before a rollout moves a controller of the KL term
        micros = stage.micros(0)
        stage.prepare(0, micros)
        for stream in dict.fromkeys(micro.stream for micro in micros):
            smallest = min(
                (micro for micro in micros if micro.stream == stream),
                key=lambda micro: micro.batch.ids.numel(),
            )
            terms = stage.terms(smallest).terms
            loss = torch.stack([t.weight * t.sum / max(t.count, 1.0) for t in terms]).sum()
            finite = finite and math.isfinite(loss.item())
            loss.backward()
        stage.load_state_dict(state)  # running statistics did not see this
    for parameter in trainable.values():
        parameter.grad = None
    missing = sorted(trainable.keys() - reached)
    detail = f"{len(reached)} of {len(trainable)} trainable tensors"
    if missing:
        detail += f"; none for {missing[0]}"
    return Check("every trainable tensor gets a gradient", not missing and finite, detail)


@contextlib.contextmanager
def _kept_hooks(trainable: dict[str, torch.nn.Parameter], reached: set[str]) -> Iterator[None]:
    """Note which tensors a backward pass reaches, by tensor hooks that change nothing."""

    def note(name: str) -> Callable[[Tensor], None]:
        return lambda gradient: reached.add(name)

    handles = [p.register_hook(note(name)) for name, p in trainable.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _longest(stage: Stage, longest: TokenTree) -> Check:
    """Forward and backward over the longest row: memory is found out now, not at 3 in the night."""
    batch = pack([longest]).to(stage.policy.device)
    start = time.perf_counter()
    (-stage.policy.token_stats(batch).logp.sum()).backward()
    for parameter in stage.policy.model.parameters():
        parameter.grad = None
    seconds = time.perf_counter() - start
    return Check("the longest row fits", True, f"{longest.token_count} tokens, {seconds:.1f} s")


def _reload(save: Callable[[Path], None], scratch: Path) -> Check:
    """Save into a scratch folder and compare every tensor with the model in memory."""
    try:
        save(scratch)
    except RunError as error:
        return Check("saved = in memory", False, str(error))
    return Check("saved = in memory", True, "every tensor equal after a reload")


def as_record(checks: list[Check], seconds: float) -> dict[str, Any]:
    """The checks as JSON for the run folder."""
    return {"seconds": round(seconds, 2), "checks": [check._asdict() for check in checks]}
