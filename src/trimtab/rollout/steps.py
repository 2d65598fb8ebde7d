"""What runs the model: prompts in one packed row, and one step of all running rows.

``ModelSteps`` calls the unmodified model through its attention interface and works for every
architecture that tree attention works for. ``llama_steps.py`` has a quicker step for a family of
them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from trimtab.models.attention import unwrap
from trimtab.models.forward import backbone
from trimtab.models.last_layer import takes_rows
from trimtab.rollout.attention import Crew, PromptPlan, RowPlan
from trimtab.rollout.cache import KeyValues

PROMPT_TOKENS = 2048
"""Prompts are read together up to so many tokens: enough for full products, while activations stay
small (9 M weights: 1.2 s for 7,100 tokens, 1.5 s with 512 or 8,192)."""


class Steps(Protocol):
    """Hidden states after the final norm, with keys and values kept in a cache."""

    prompt_windows: list[int | None]
    step_windows: list[int | None]
    """Of the last call of either kind, layer by layer: the window that attention has."""

    def read(
        self, prompts: Sequence[Sequence[int]], places: Sequence[int], cache: KeyValues
    ) -> Tensor:
        """[n, d] at the last token of each prompt; keys and values go to ``places``."""
        ...

    def step(self, tokens: Tensor, crew: Crew, cache: KeyValues) -> Tensor:
        """[R, d] at the tokens [R], the newest of each row of ``crew``."""
        ...


class ModelSteps:
    """Steps by the model as its authors wrote it; tree attention must be installed."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.backbone = backbone(model)
        self.device = unwrap(model).get_input_embeddings().weight.device
        self.prompt_windows: list[int | None] = []
        self.step_windows: list[int | None] = []

    def read(  # noqa: D102
        self, prompts: Sequence[Sequence[int]], places: Sequence[int], cache: KeyValues
    ) -> Tensor:
        found: list[Tensor] = []
        first = 0
        while first < len(prompts):
            stop, tokens = first + 1, len(prompts[first])
            while stop < len(prompts) and tokens + len(prompts[stop]) <= PROMPT_TOKENS:
                tokens += len(prompts[stop])
                stop += 1
            found.append(self._read(prompts[first:stop], places[first:stop], cache))
            first = stop
        return torch.cat(found)

    def _read(
        self, prompts: Sequence[Sequence[int]], places: Sequence[int], cache: KeyValues
    ) -> Tensor:
        plan = PromptPlan(cache, [len(ids) for ids in prompts], places, self.device)
        ids = torch.tensor([i for ids in prompts for i in ids], device=self.device)
        more = {"tree_rows": plan.last} if takes_rows(unwrap(self.model)) else {}
        hidden = self._call(ids, plan.depth, plan, **more)
        self.prompt_windows = plan.windows
        return hidden if more else hidden.index_select(0, plan.last)

    def step(self, tokens: Tensor, crew: Crew, cache: KeyValues) -> Tensor:  # noqa: D102
        plan = RowPlan(cache, crew)
        hidden = self._call(tokens, plan.depth, plan)
        self.step_windows = plan.windows
        return hidden

    def _call(self, ids: Tensor, depth: Tensor, plan: PromptPlan | RowPlan, **more: Any) -> Tensor:
        output = self.backbone(
            input_ids=ids[None],
            position_ids=depth[None],
            # Never read: a 4-D mask is handed through, for None transformers would build one.
            attention_mask=ids.new_zeros(1, 1, 1, 1),
            tree_plan=plan,
            use_cache=False,
            **more,
        )
        return output.last_hidden_state[0]
