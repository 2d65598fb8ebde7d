"""What all stages share: the main stream, the mixed-in language-model stream, held-out rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from trimtab.algorithms.policy import Policy
from trimtab.algorithms.stream import TreeStream
from trimtab.data.batch import TreeBatch
from trimtab.data.trees import TokenTree
from trimtab.training.algorithm import Micro, Outcome
from trimtab.training.terms import Metric, Term

Reduction = Literal["token_mean", "sequence_sum"]


@dataclasses.dataclass(frozen=True)
class Mix:
    """A language-model term on a second stream of text.

    The α of GPT-1's fine-tune, the γ of PPO-ptx and a replay term are this one thing:
    ``weight * mean nll`` per token, or per sequence with ``sequence_sum``.
    """

    stream: TreeStream
    weight: float
    reduction: Reduction = "token_mean"


def target_weights(batch: TreeBatch) -> Tensor:
    """[M] the weight of the row that each trained token belongs to."""
    owner = batch.target_sequence
    branches = batch.branch_count
    if branches == 0:
        return batch.tree_weight[owner]
    of_branch = batch.tree_of_branch[owner.clamp(max=branches - 1)]
    tree = of_branch.where(owner < branches, owner - branches)
    return batch.tree_weight[tree]


def token_nll(batch: TreeBatch, logp: Tensor, name: str, weight: float = 1.0) -> Term:
    """Language-model loss over all trained tokens, rows weighted, per token."""
    weights = target_weights(batch)
    return Term(name, -(logp * weights).sum(), token_count(batch), "token", weight)


def token_count(batch: TreeBatch) -> float:
    """Trained tokens, each counted with its row's weight."""
    return float(target_weights(batch).cpu().double().sum())


class Stage:
    """Base of the algorithms: streams, epochs, and the ``mix`` term; see ``Algorithm``."""

    def __init__(
        self,
        policy: Policy,
        stream: TreeStream,
        *,
        total_steps: int,
        mix: Mix | None = None,
        held_out: TreeStream | None = None,
    ) -> None:
        self.policy = policy
        self.model = policy.model
        self.stream = stream
        self.total_steps = total_steps
        self.mix = mix
        self.held_out = held_out

    def epoch(self, step: int) -> float:
        """Epochs of the main stream done after ``step`` steps."""
        return self.stream.epoch(step)

    def counted(self, step: int) -> dict[str, int]:
        """Nothing but what the loop counts."""
        return {}

    def micros(self, step: int) -> Sequence[Micro]:
        """The main stream's micro-batches, then the mixed-in ones."""
        found = self.stream.micros(step)
        if self.mix is not None:
            found += self.mix.stream.micros(step)
        for micro in found:
            micro.batch = micro.batch.to(self.policy.device)
            self.attach(micro)
        return found

    def first_trees(self) -> Iterator[TokenTree]:
        """Trees of the first step, for the self-check."""
        return (self.stream.tree(row) for row in self.stream.rows(0))

    def example(self, steps: int) -> TokenTree | None:
        """A tree that was trained on within the first ``steps`` steps, to be looked at."""
        return next(self.first_trees(), None)

    def attach(self, micro: Micro) -> None:
        """Add what the algorithm keeps about a micro-batch's rows (cached log-probs, say)."""

    def prepare(self, step: int, micros: Sequence[Micro]) -> dict[str, Metric]:
        """Nothing to prepare, unless an algorithm says otherwise."""
        return {}

    def counts(self, micro: Micro) -> Mapping[str, float]:
        """Counts of the mix term, or of the algorithm's own."""
        if micro.stream == "mix":
            assert self.mix is not None
            return {"mix": self._mix_count(micro.batch)}
        return self.own_counts(micro)

    def terms(self, micro: Micro) -> Outcome:
        """The mix term, or the algorithm's own."""
        if micro.stream != "mix":
            return self.own_terms(micro)
        assert self.mix is not None
        logp = self.policy.token_stats(micro.batch).logp
        total = -(logp * target_weights(micro.batch)).sum()
        count = self._mix_count(micro.batch)
        unit = "token" if self.mix.reduction == "token_mean" else "sequence"
        metrics = {"mix_nll": Metric(total.item(), token_count(micro.batch))}
        return Outcome([Term("mix", total, count, unit, self.mix.weight)], metrics)

    def _mix_count(self, batch: TreeBatch) -> float:
        assert self.mix is not None
        if self.mix.reduction == "token_mean":
            return token_count(batch)
        return float(batch.tree_weight.cpu().double().sum())

    def own_counts(self, micro: Micro) -> Mapping[str, float]:
        """Counts of the algorithm's own terms."""
        raise AssertionError("an algorithm says what it counts")

    def own_terms(self, micro: Micro) -> Outcome:
        """The algorithm's own terms."""
        raise AssertionError("an algorithm says what it optimises")

    def evaluate(self, step: int) -> dict[str, Any]:
        """Metrics on the held-out rows after ``step`` steps; empty without any."""
        return {}

    def beside(self, tokenizer: Any, stop_ids: Sequence[int]) -> tuple[Callable[[Path], None], ...]:
        """Writers of what a finished run's folder holds beside the trained model."""
        return ()

    def state_dict(self) -> dict[str, Any]:
        """Stages without running state have none."""
        return {}

    def tensors(self) -> dict[str, Tensor]:
        """Weights that a checkpoint has to keep beside the trained ones; stages have none."""
        return {}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back what ``tensors`` gave."""
        raise AssertionError("tensors for a stage that has none")

    def forget_tensors(self) -> None:
        """Begin with what there was before ``tensors``, after ``load_state_dict``."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what ``state_dict`` gave."""
        assert not state, "state for a stage that has none"
