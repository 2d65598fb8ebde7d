"""A value for every state: the expected reward to come after the tokens so far.

The value V_t of a response's token t is read where the token is predicted, at the state before it
(arXiv:1707.06347). A critic has a model of its own, or only a head on the policy's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from trimtab.data.batch import TreeBatch
from trimtab.models.attention import unwrap
from trimtab.models.forward import Hidden, Layout, hidden_states
from trimtab.models.head import accumulation_dtype
from trimtab.models.save import add_to_adapter, save_model, verify_saved
from trimtab.models.score_head import ScoreHead, set_head


class Values(NamedTuple):
    """Values before each token [M], and after the last one of each response [N]."""

    tokens: Tensor
    ends: Tensor


@dataclasses.dataclass
class Critic:
    """``model`` has a ``score`` head; for a shared backbone it is that head alone.

    ``head`` is what is saved of the head beside its weights; None: it cannot be saved.
    ``offset`` is added to all values. A ``new`` head is all zeros, and its offset then is the first
    rollout's mean return: values that are far off in the mean would be a reward for ending sooner
    or later, as advantages see the end of a response by powers of lambda.
    """

    model: nn.Module
    layout: Layout
    head: ScoreHead | None
    shared: bool = False
    new: bool = False
    offset: float = 0.0

    def values(self, batch: TreeBatch, policy: Hidden | None = None) -> Values:
        """Values of a batch; ``policy`` are the policy's states, which a shared critic reads."""
        if self.shared:
            assert policy is not None, "a shared critic reads the policy's states"
            return Values(self._read(policy.targets()), self._read(policy.ends()))
        hidden = hidden_states(self.model, batch, self.layout)
        return Values(self._read(hidden.targets()), self._read(hidden.ends()))

    def save(
        self, policy: Any, tokenizer: Any, folder: Path, *, stop_ids: Sequence[int] = ()
    ) -> None:
        """Write a sequence-classification folder, and read it back: a value at the last token.

        A shared critic takes the policy's weights with it; on a policy with an adapter it is an
        adapter, too, with the head among its tensors.
        """
        if self.head is not None:
            self.head.offset = -self.offset  # which readers take off
        if not self.shared:
            save_model(self.model, tokenizer, folder, stop_ids=stop_ids)
            verify_saved(folder, self.model, tokenizer)
            return
        assert self.head is not None
        inner = unwrap(policy)
        inner.score = self.model
        set_head(policy, self.head)
        try:
            save_model(policy, tokenizer, folder, stop_ids=stop_ids)
            if hasattr(policy, "peft_config"):
                add_to_adapter(folder, {"score": self.model})
            else:
                verify_saved(folder, policy, tokenizer)
        finally:
            del inner.score, inner._trimtab_score_head

    def _read(self, states: Tensor) -> Tensor:
        head: Any = self.model if self.shared else unwrap(self.model).score
        found = head(states)
        return found.to(accumulation_dtype(found.dtype)).squeeze(-1) + self.offset
