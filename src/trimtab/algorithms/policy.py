"""A language model as algorithms use it: token and sequence log-probs of a batch of trees."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from trimtab.data.batch import TreeBatch
from trimtab.losses.types import SequenceLogprobs
from trimtab.models.attention import unwrap
from trimtab.models.forward import Layout, end_hidden, hidden_states, target_hidden
from trimtab.models.head import accumulation_dtype
from trimtab.models.logprobs import LogitHead, TokenStats, token_stats


@dataclasses.dataclass(frozen=True)
class Policy:
    """A model and the layout in which it reads trees."""

    model: nn.Module
    layout: Layout
    device: torch.device

    @property
    def head(self) -> LogitHead:
        """The logit head as it is now: adapters may have been switched since the last call."""
        return LogitHead.of(self.model)

    def hidden(self, batch: TreeBatch) -> Tensor:
        """[M, d] hidden states at the positions that predict a trained token."""
        return target_hidden(self.model, batch, self.layout)

    def token_stats(
        self,
        batch: TreeBatch,
        *,
        entropy: bool = False,
        correct: bool = False,
        square: bool = False,
        reference: tuple[Tensor, LogitHead] | None = None,
        temperature: float = 1.0,
        hidden: Tensor | None = None,
    ) -> TokenStats:
        """Log-probs [M] of the trained tokens, and what else is asked for, in one pass.

        The entropy is for the log: it has no gradient where that saves work. ``temperature``
        divides the logits, as in the sampling of a rollout; ``hidden`` [M, d] are the states of
        ``hidden(batch)`` where they are at hand.
        """
        return token_stats(
            self.hidden(batch) if hidden is None else hidden,
            self.head.at_temperature(temperature),
            batch.target_ids,
            entropy=entropy,
            entropy_gradient=False,
            correct=correct,
            square=square,
            reference=reference,
        )

    def scores(self, batch: TreeBatch) -> Tensor:
        """[N, C] scores of the branches, read at their last tokens, in at least fp32.

        The model has a ``score`` head (``models/score_head.py``): C is 1 for a reward.
        """
        return self._scores_of(end_hidden(self.model, batch, self.layout))

    def scores_and_stats(self, batch: TreeBatch) -> tuple[Tensor, TokenStats]:
        """``scores`` [N, C] and the log-probs [M] of the trained tokens, from one forward pass."""
        hidden = hidden_states(self.model, batch, self.layout)
        stats = token_stats(hidden.targets(), self.head, batch.target_ids)
        return self._scores_of(hidden.ends()), stats

    def _scores_of(self, ends: Tensor) -> Tensor:
        found = unwrap(self.model).score(ends)
        return found.to(accumulation_dtype(found.dtype))

    def branch_logprobs(self, batch: TreeBatch) -> SequenceLogprobs:
        """Summed log-probs [N] of the branches; trained trunk tokens are left out."""
        return branch_sums(batch, self.token_stats(batch).logp)


def branch_sums(batch: TreeBatch, logp: Tensor) -> SequenceLogprobs:
    """Per-token log-probs [M] to sequence log-probs [N] of the branches."""
    count = batch.branch_count
    return SequenceLogprobs(batch.sequence_sums(logp)[:count], batch.length[:count])


@contextlib.contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """No gradients, eval mode; the training mode is put back afterwards."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)
