"""The reference that a recipe and its loss ask for: cached log-probs, a live model, or none."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trimtab.algorithms.policy import Policy
from trimtab.algorithms.preference import References
from trimtab.algorithms.reference import (
    CachedLogprobs,
    LiveReference,
    ReferenceCache,
    frozen_copy,
)
from trimtab.algorithms.stream import TreeStream
from trimtab.data.chat_tokens import fingerprint_tokenizer
from trimtab.errors import RecipeError
from trimtab.losses.contract import LossSpec
from trimtab.models import load, lora
from trimtab.models.fingerprint import fingerprint
from trimtab.models.forward import choose_layout
from trimtab.training.progress import Progress

# Inputs of a loss that its cached sums cannot give.
NEEDS_LIVE = frozenset({"sequence_kl", "reference_tokens", "mismatched_reference"})
EVALUATION_BUDGET = 2  # times token_budget: no gradients, so twice the tokens fit


class RecipeReference:
    """Makes the reference of one recipe, while the policy is still what it starts from."""

    def __init__(
        self,
        recipe: Any,
        spec: LossSpec | None,
        source: load.ModelSource | None,
        tokenizer: Any,
        progress: Progress,
        cache_dir: Path,
    ) -> None:
        self.recipe = recipe
        self.spec = spec
        self.source = source
        self.tokenizer = tokenizer
        self.progress = progress
        self.cache_dir = cache_dir

    def live(self, policy: Policy) -> LiveReference:
        """A model that answers for what is sampled during training."""
        source, _ = self._reference_policy(policy)
        return self._live(policy, source)

    def needs_live(self) -> bool:
        """Whether sums of log-probs, computed once, are not enough."""
        if not self._needs_reference():
            return False
        assert self.spec is not None
        asked = NEEDS_LIVE & (self.spec.needs | self.spec.prepare_needs)
        return bool(asked) or not self.recipe.precompute_ref_log_probs

    def _needs_reference(self) -> bool:
        assert self.spec is not None
        needs = self.spec.needs | self.spec.prepare_needs
        return bool(needs & ({"reference"} | NEEDS_LIVE))

    def references(
        self, policy: Policy, stream: TreeStream, held: TreeStream | None, total: int
    ) -> References:
        """The references of ``policy`` for all rows that ``total`` steps will see."""
        if not self._needs_reference():
            return References()
        named = self.recipe.ref_model_name_or_path is not None
        source, identity = self._reference_policy(policy)
        live: LiveReference | None = None
        if self.needs_live():
            live = self._live(policy, source)
        if not self.recipe.precompute_ref_log_probs:
            return References(live=live, named=named)
        cache = ReferenceCache(
            self.cache_dir, identity, self.recipe.token_budget * EVALUATION_BUDGET
        )
        epoch_steps = min(total, stream.steps_per_epoch)
        rows = sorted({row for step in range(epoch_steps) for row in stream.rows(step)})
        if total > epoch_steps and stream.order.shares is not None:
            rows = sorted({row for step in range(total) for row in stream.rows(step)})
        train = self._logprobs(cache, source, stream, rows, "training")
        kept = None
        if held is not None:
            kept = self._logprobs(cache, source, held, range(len(held)), "held-out")
        return References(train, kept, live, named)

    def _logprobs(
        self,
        cache: ReferenceCache,
        source: Policy,
        stream: TreeStream,
        rows: Sequence[int],
        role: str,
    ) -> CachedLogprobs:
        self.progress.stage(f"reference log-probs of {role} rows", len(rows))
        return cache.compute(source, stream, rows, lambda done: self.progress.update(done))

    def _reference_policy(self, policy: Policy) -> tuple[Policy, str]:
        """Who the reference is, and a name for exactly that model in exactly this arithmetic."""
        name = self.recipe.ref_model_name_or_path
        dtype = str(next(policy.model.parameters()).dtype)
        if name is None:
            assert self.source is not None
            # A live fingerprint covers base and adapter; a folder's is the same for every run.
            adapter = self.source.kind == "adapter"
            who = fingerprint(policy.model if adapter else self.source.folder)
            reference = policy
        else:
            found = load.locate(name, key="ref_model_name_or_path")
            model: Any = load.load_model(
                found,
                dtype=next(policy.model.parameters()).dtype,
                device=policy.device,
                key="ref_model_name_or_path",
            )
            theirs = fingerprint_tokenizer(load.load_tokenizer(found))
            if theirs != fingerprint_tokenizer(self.tokenizer):
                raise RecipeError(
                    f"ref_model_name_or_path={name!r}: its tokenizer differs from the policy's; "
                    "token log-probs cannot be compared, choose a reference with the same one"
                )
            layout = choose_layout(model, self.recipe.attn_layout).layout
            reference = Policy(model.requires_grad_(False), layout, policy.device)
            theirs_only = found.kind == "adapter"  # a folder's fingerprint would leave out its base
            who = fingerprint(model if theirs_only else found.folder)
            self._check_vocabulary(name, reference, policy)
        return reference, ":".join([who, dtype, reference.layout, str(policy.device)])

    def _live(self, policy: Policy, source: Policy) -> LiveReference:
        if source is not policy:
            return LiveReference(source, contextlib.nullcontext)
        if self.recipe.use_peft:
            model: Any = policy.model
            return LiveReference(policy, lambda: lora.reference_context(model))
        return frozen_copy(policy)

    def _check_vocabulary(self, name: str, reference: Policy, policy: Policy) -> None:
        """A KL over the vocabulary needs the same one: models pad theirs to different sizes."""
        theirs, ours = reference.head.vocabulary, policy.head.vocabulary
        if self.spec and "sequence_kl" in self.spec.needs and theirs != ours:
            raise RecipeError(
                f"ref_model_name_or_path={name!r}: has {theirs} logits and the policy {ours}; "
                f"{self.spec.name} compares all of them, choose a reference with as many"
            )
