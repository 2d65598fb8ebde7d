"""A trained reward model, or an ensemble of them, as a function of rows.

A row is rendered with the reward model's own tokenizer and chat template, exactly as its training
rows were: the score is read at the last token, which is the stop token of a whole response.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from trimtab.data.batch import pack, split_by_tokens
from trimtab.data.chat import ChatRenderer
from trimtab.data.rows import CompletionExample, Example, Text
from trimtab.data.tokenise import Drop, TokeniseOptions, tokenise
from trimtab.data.trees import Origin, TokenTree
from trimtab.errors import RecipeError
from trimtab.models import load
from trimtab.models.attention import unwrap
from trimtab.models.cut import parameter_count
from trimtab.models.forward import Layout, choose_layout, end_hidden
from trimtab.models.head import accumulation_dtype
from trimtab.models.hub import ModelSource, locate
from trimtab.models.score_head import head_of
from trimtab.models.scored import load_scored
from trimtab.rewards.manifest import model_folders


@dataclasses.dataclass(frozen=True)
class Member:
    """One model and its offset."""

    name: str
    model: Any
    layout: Layout
    offset: float

    @torch.no_grad()
    def rewards(self, trees: Sequence[TokenTree]) -> list[float]:
        """Rewards of all branches, tree by tree: the scores less the offset."""
        batch = pack(trees).to(next(self.model.parameters()).device)
        ends = end_hidden(self.model, batch, self.layout)
        scores = unwrap(self.model).score(ends)
        found = scores.to(accumulation_dtype(scores.dtype)).squeeze(-1) - self.offset
        return found.tolist()


class RewardModel:
    """Rewards of responses, from one model or the mean of an ensemble's.

    name        as the user wrote it            tokenizer   the model's (an ensemble's first one)
    parameters  weights of one member           renderer    rows to token ids, as in training
    """

    def __init__(
        self, name: str, members: Sequence[Member], renderer: ChatRenderer, token_budget: int
    ) -> None:
        assert members
        self.name = name
        self.members = members
        self.renderer = renderer
        self.tokenizer = renderer.tokenizer
        self.token_budget = token_budget
        self.parameters = parameter_count(members[0].model)

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        device: str | torch.device = "cpu",
        token_budget: int = 8192,
        trust_remote_code: bool = False,
        key: str = "reward_model",
    ) -> RewardModel:
        """Load a folder of trimtab reward, an adapter, an ensemble's folder, or a hub id.

        Any sequence-classification model with one label and a head ``score`` will do. Raises
        RecipeError, naming ``key``: not found, a language model, a classifier of several labels,
        a missing head, members of an ensemble that have different tokenizers.
        """
        names = model_folders(path, key)
        members: list[Member] = []
        renderers: list[ChatRenderer] = []
        for name in names:
            source = locate(name, key=key, code=trust_remote_code)
            members.append(_member(source, device, trust_remote_code, key))
            renderers.append(_renderer(source, trust_remote_code, key))
        if any(r.tokenizer.get_vocab() != renderers[0].tokenizer.get_vocab() for r in renderers):
            raise RecipeError(f"{key}={str(path)!r}: its members have different tokenizers")
        return cls(str(path), members, renderers[0], token_budget)

    @property
    def offset(self) -> float:
        """What is taken off the scores (the mean of an ensemble's)."""
        return sum(member.offset for member in self.members) / len(self.members)

    def trees(
        self, examples: Sequence[Example], *, max_length: int | None = None
    ) -> list[list[TokenTree] | Drop]:
        """Rows as this model reads them, or why one cannot be read."""
        options = TokeniseOptions(max_length=max_length, scored=True)
        return [tokenise(example, self.renderer, options) for example in examples]

    def stop_after(self, prompt: Text) -> int | None:
        """The stop token at which rows with such a prompt end, where the score is read.

        None where they end without one: there is no end token, or the template writes none.
        """
        said: Text = "." if isinstance(prompt, str) else [{"role": "assistant", "content": "."}]
        example = CompletionExample(origin=Origin("", 0), prompt=prompt, completion=said)
        (found,) = self.trees([example])
        if isinstance(found, Drop):
            return None
        last = found[0].branches[0].ids[-1]
        return last if last in self.renderer.stop_ids else None

    @property
    def positions(self) -> int | None:
        """How many tokens its members can read, None for any number."""
        found = [getattr(m.model.config, "max_position_embeddings", None) for m in self.members]
        return min((one for one in found if one is not None), default=None)

    def score_trees(self, trees: Sequence[TokenTree]) -> list[list[float]]:
        """Rewards of every tree's branches; of an ensemble, the members' mean."""
        every = self.member_scores(trees)
        return [
            [sum(values) / len(values) for values in zip(*of_tree, strict=True)]
            for of_tree in zip(*every, strict=True)
        ]

    def member_scores(self, trees: Sequence[TokenTree]) -> list[list[list[float]]]:
        """Rewards by member, tree and branch: what members disagree on is uncertain."""
        return [self._by_tree(member, trees) for member in self.members]

    def _by_tree(self, member: Member, trees: Sequence[TokenTree]) -> list[list[float]]:
        # Alike lengths together: the runs under the budget are then full. The order is the data's.
        order = sorted(range(len(trees)), key=lambda index: trees[index].token_count)
        found: dict[int, list[float]] = {}
        taken = 0
        for run in split_by_tokens([trees[index] for index in order], self.token_budget):
            rewards = iter(member.rewards(run))
            for tree in run:
                found[order[taken]] = [next(rewards) for _ in tree.branches]
                taken += 1
        return [found[index] for index in range(len(trees))]


def _member(source: ModelSource, device: str | torch.device, code: bool, key: str) -> Member:
    model = load_scored(source, device=device, trust_remote_code=code, key=key)
    head = head_of(model)
    assert head is not None
    if head.kind != "reward":
        raise RecipeError(
            f"{key}={source.name!r}: it has {head.count} labels and so gives no single reward; "
            "give a reward model"
        )
    layout = choose_layout(model).layout
    return Member(source.name, model.requires_grad_(False), layout, head.offset)


def _renderer(source: ModelSource, code: bool, key: str) -> ChatRenderer:
    tokenizer = load.load_tokenizer(source, trust_remote_code=code, key=key)
    return ChatRenderer(tokenizer, generation_config=load.generation_config(source, key))
