"""dpo, simpo, orpo, kto and the rest of the family: any loss of ``PREFERENCE_LOSSES``.

A loss asks for what it needs by naming it (see ``losses/contract.py``); this file brings it. The
objective is the loss per comparison (per response for unpaired losses, per prompt for rankings)
and, with ``nll_weight``, the language-model loss of the preferred responses per token.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from trimtab.algorithms.loss_inputs import join, loss_inputs, ranking_order
from trimtab.algorithms.policy import Policy, branch_sums, frozen
from trimtab.algorithms.reference import CachedLogprobs, LiveReference
from trimtab.algorithms.stage import Mix, Stage, target_weights
from trimtab.algorithms.stream import TreeStream, micro_batches
from trimtab.data.batch import TreeBatch, pack, split_by_tokens
from trimtab.data.trees import TokenTree
from trimtab.evaluation.preference import PreferenceRecord, summarise
from trimtab.losses.contract import CALL_INPUTS, OF_THE_CALL, LossSpec
from trimtab.losses.sums import WeightedSum
from trimtab.losses.types import SequenceLogprobs
from trimtab.models.logprobs import TokenStats
from trimtab.training.algorithm import Micro, Outcome
from trimtab.training.seeds import generator
from trimtab.training.terms import Metric, Term

MISMATCHED = frozenset({"mismatched_policy", "mismatched_reference"})
UNITS = {"pair": "pair", "unpaired": "sequence", "ranking": "prompt"}


@dataclasses.dataclass
class References:
    """What the loss may ask of the reference: cached sums of both streams, or a live model.

    ``named``: it is a model that the recipe names, and need not be the policy at the start.
    """

    train: CachedLogprobs | None = None
    held_out: CachedLogprobs | None = None
    live: LiveReference | None = None
    named: bool = False


class PreferenceOptimisation(Stage):
    """Optimises one loss of the family over comparisons, rankings or labelled responses."""

    def __init__(
        self,
        policy: Policy,
        stream: TreeStream,
        *,
        spec: LossSpec,
        make_loss: Callable[[], Callable[..., Any]],
        references: References,
        seed: int,
        total_steps: int,
        nll_weight: float = 0.0,
        mix: Mix | None = None,
        held_out: TreeStream | None = None,
    ) -> None:
        super().__init__(policy, stream, total_steps=total_steps, mix=mix, held_out=held_out)
        self.spec = spec
        self.make_loss = make_loss
        self.loss = make_loss()
        self.references = references
        self.seed = seed
        self.nll_weight = nll_weight
        self.per_token = spec.needs & OF_THE_CALL

    @property
    def named_reference(self) -> bool:
        """Whether implicit rewards mean something before the first step.

        They are 0 while the policy is its own reference, and real for losses without a reference.
        """
        return self.references.named or "reference" not in self.spec.needs

    # ------------------------------------------------------------------ the step

    def attach(self, micro: Micro) -> None:
        """Bring the reference's log-probs of the micro-batch's rows."""
        if micro.stream == "main":
            self._attach(micro, self.references.train)

    def _attach(self, micro: Micro, cached: CachedLogprobs | None) -> None:
        micro.reference = self._reference(micro, cached)
        if "reference_tokens" in self.per_token:
            assert self.references.live is not None
            micro.tokens = {"reference": self.references.live.token_logprobs(micro.batch)}

    def _reference(self, micro: Micro, cached: CachedLogprobs | None) -> Tensor | None:
        """Log-probs [N] of the branches under the reference: cached, computed now, or not asked."""
        if "reference" not in self.spec.needs | self.spec.prepare_needs:
            return None
        if cached is not None:
            return cached.of(micro.rows).to(self.policy.device)
        assert self.references.live is not None
        return self.references.live.branch_logprobs(micro.batch).sum

    def prepare(self, step: int, micros: Sequence[Micro]) -> dict[str, Metric]:
        """What the loss needs of the whole step: mismatched responses, or every pair's gap."""
        own = [micro for micro in micros if micro.stream == "main"]
        return self._prepare(self.loss, self.spec.prepare_needs, own, step)

    def _prepare(
        self, loss: Any, needs: frozenset[str], micros: Sequence[Micro], step: int
    ) -> dict[str, Metric]:
        """Call ``loss.prepare`` with what it names; its weights go to the micro-batches."""
        if not needs:
            return {}
        inputs = self._mismatched(needs & MISMATCHED, micros)
        if needs & CALL_INPUTS[self.spec.kind]:
            with frozen(self.model):
                parts = [
                    loss_inputs(self.spec, needs, m, self.policy.branch_logprobs(m.batch))
                    for m in micros
                ]
            inputs |= {name: join([part[name] for part in parts]) for name in parts[0]}
        if "generator" in needs:
            inputs["generator"] = generator(self.seed, "pair filter", step)
        weights = loss.prepare(**inputs)
        metrics = {"kl": Metric(loss.z0, 1.0)} if hasattr(loss, "z0") else {}
        if weights is None:
            return metrics
        pairs = [micro.batch.winner.numel() for micro in micros]
        for micro, weight in zip(micros, weights.split(pairs), strict=True):
            micro.pair_weight = weight.to(self.policy.device)
        return {**metrics, "pairs_kept": Metric(weights.sum().item(), float(weights.numel()))}

    def _mismatched(self, needs: frozenset[str], micros: Sequence[Micro]) -> dict[str, Any]:
        """Every response after the next row's prompt, over the whole step: what KTO's z0 is of."""
        if not needs:
            return {}
        trees = mismatched([tree for micro in micros for tree in micro.batch.trees])
        nothing = torch.zeros(0, device=self.policy.device)
        found = {name: [SequenceLogprobs(nothing, nothing)] for name in needs}
        for run in split_by_tokens(trees, self.stream.token_budget):
            batch = pack(run).to(self.policy.device)
            if "mismatched_policy" in needs:
                with frozen(self.model):
                    found["mismatched_policy"].append(self.policy.branch_logprobs(batch))
            if "mismatched_reference" in needs:
                assert self.references.live is not None
                found["mismatched_reference"].append(self.references.live.branch_logprobs(batch))
        return {name: join(parts) for name, parts in found.items()}

    def own_counts(self, micro: Micro) -> Mapping[str, float]:
        """Comparisons, responses or prompts by weight; tokens of the preferred responses."""
        batch = micro.batch
        counts = {self.spec.name: float(self._weights(micro).cpu().double().sum())}
        if self.nll_weight:
            counts["nll"] = float(preferred_targets(batch).sum().cpu().double())
        return counts

    def _weights(self, micro: Micro) -> Tensor:
        """Weight of every unit of the loss: [P], [N] or [R]."""
        batch = micro.batch
        if self.spec.kind == "unpaired":
            return batch.tree_weight[batch.tree_of_branch]
        if self.spec.kind == "ranking":
            return batch.tree_weight
        return batch.weight if micro.pair_weight is None else batch.weight * micro.pair_weight

    def own_terms(self, micro: Micro) -> Outcome:
        """The loss of the family and, if asked for, the NLL of the preferred responses."""
        stats = self.stats(micro)
        sums = branch_sums(micro.batch, stats.logp)
        record = self.judge(self.loss, micro, sums, stats)
        weights = self._weights(micro)
        counts = self.own_counts(micro)
        count = counts[self.spec.name]
        unit = UNITS[self.spec.kind]
        terms = [Term(self.spec.name, (record.losses * weights).sum(), count, unit)]  # type: ignore[arg-type]
        metrics = record.metrics()
        parts = getattr(self.loss, "parts", {})  # those of a weighted sum, for the log
        for name, part in parts.items() if len(parts) > 1 else ():
            metrics[f"loss/{name}"] = Metric((part * weights).sum().item(), count)
        if self.nll_weight:
            preferred = preferred_targets(micro.batch)
            total, tokens = -(stats.logp * preferred).sum(), counts["nll"]
            terms.append(Term("nll", total, tokens, "token", self.nll_weight))
            metrics["nll_loss"] = Metric(total.item(), tokens)
        return Outcome(terms, metrics)

    def stats(self, micro: Micro) -> TokenStats:
        """Token log-probs; over the whole vocabulary, a KL or squares where the loss names them."""
        reference = None
        if "sequence_kl" in self.per_token:
            assert self.references.live is not None
            reference = self.references.live.hidden(micro.batch)
        square = "log_square" in self.per_token
        return self.policy.token_stats(micro.batch, reference=reference, square=square)

    def judge(
        self,
        loss: Callable[..., Any],
        micro: Micro,
        sums: SequenceLogprobs,
        stats: TokenStats | None = None,
    ) -> PreferenceRecord:
        """Call the loss with what it names; ``stats`` [M] is what it needs of each token."""
        batch = micro.batch
        order = ranking_order(batch) if self.spec.kind == "ranking" else None
        terms = loss(**loss_inputs(self.spec, self.spec.needs, micro, sums, stats, order))
        weights = self._weights(micro)
        reference = micro.reference
        if self.spec.kind == "pair":
            return PreferenceRecord.of_pairs(batch, sums, terms, weights, reference)
        if order is None:
            return PreferenceRecord.of_responses(batch, sums, terms, weights, reference)
        return PreferenceRecord.of_rankings(batch, sums, terms, order, weights, reference)

    # ------------------------------------------------------------------ held-out rows

    def evaluate(self, step: int) -> dict[str, Any]:
        """Loss, accuracy, margins and log-probs on the held-out rows, with 95 % intervals.

        The loss is a fresh one: evaluation never touches running statistics. Before the first step
        the policy is its own reference, whose log-probs are known: no pass over the rows is made.
        """
        if self.held_out is None:
            return {}
        rows = range(len(self.held_out))
        micros = micro_batches(self.held_out, rows, self.held_out.token_budget, "eval")
        for micro in micros:
            micro.batch = micro.batch.to(self.policy.device)
            self._attach(micro, self.references.held_out)
        loss = self.make_loss()
        members = (
            loss.members.values() if isinstance(loss, WeightedSum) else [(self.spec, 1.0, loss)]
        )
        for spec, _, member in members:
            if spec.prepare_needs <= MISMATCHED:
                self._prepare(member, spec.prepare_needs, micros, step)
        known = self.references.held_out is not None and not self.references.named
        if step == 0 and known and not self.per_token and not self.nll_weight:
            return summarise([self._judge_at_reference(loss, micro) for micro in micros])
        nll, tokens = 0.0, 0.0
        with frozen(self.model):
            records = []
            for micro in micros:
                stats = self.stats(micro)
                sums = branch_sums(micro.batch, stats.logp)
                records.append(self.judge(loss, micro, sums, stats))
                if self.nll_weight:
                    preferred = preferred_targets(micro.batch)
                    nll -= (stats.logp * preferred).sum().item()
                    tokens += preferred.sum().item()
        found = summarise(records)
        if self.nll_weight and tokens:
            found["nll_loss"] = nll / tokens
            found["loss"] += self.nll_weight * found["nll_loss"]
        return found

    def _judge_at_reference(self, loss: Callable[..., Any], micro: Micro) -> PreferenceRecord:
        """The record of a policy that is its reference."""
        assert micro.reference is not None
        lengths = micro.batch.length[: micro.batch.branch_count]
        return self.judge(loss, micro, SequenceLogprobs(micro.reference, lengths))

    # ------------------------------------------------------------------ state

    def state_dict(self) -> dict[str, Any]:
        """The loss's running statistics, where it has any."""
        has_state = hasattr(self.loss, "state_dict")
        return {"loss": self.loss.state_dict()} if has_state else {}  # type: ignore[attr-defined]

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what ``state_dict`` gave."""
        if "loss" in state:
            self.loss.load_state_dict(state["loss"])  # type: ignore[attr-defined]


def mismatched(trees: Sequence[TokenTree]) -> list[TokenTree]:
    """Every tree's responses after another tree's prompt: the next one in the step that differs.

    Neighbours with one prompt (several responses to it) would meet their own and bias z0. Trees of
    one step; where all have the same prompt (a last step of one row, say) there is no mismatch.
    Nothing is made that is longer than the longest tree of the step, which is known to fit.
    """
    found: list[TokenTree] = []
    limit = max((tree.depth for tree in trees), default=0)
    for i, tree in enumerate(trees):
        room = limit - max((len(branch.ids) for branch in tree.branches), default=0)
        others = (trees[(i + shift) % len(trees)].trunk for shift in range(1, len(trees)))
        fitting = (o for o in others if o.ids != tree.trunk.ids and len(o.ids) <= room)
        trunk = next(fitting, None)
        if trunk is not None:
            found.append(TokenTree(trunk, tree.branches, (), tree.origin))
    return found


def preferred_targets(batch: TreeBatch) -> Tensor:
    """[M] the row's weight for tokens of preferred responses and of trained prompts, 0 for others.

    Preferred: no comparison is lost and no label says undesirable. With labels, the prompt counts
    where one of its responses is preferred.
    """
    losers = torch.zeros(batch.branch_count, dtype=torch.bool, device=batch.ids.device)
    losers[batch.loser] = True
    trunks = torch.ones(batch.tree_count, dtype=torch.float32, device=batch.ids.device)
    if batch.labels is not None:
        losers |= ~batch.labels
        trunks.zero_()
        trunks[batch.tree_of_branch[~losers]] = 1.0
    preferred = torch.cat([(~losers).float(), trunks])
    return preferred[batch.target_sequence] * target_weights(batch)
