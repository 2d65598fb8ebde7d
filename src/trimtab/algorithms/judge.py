"""Scores of sampled responses: a reward model's, reward functions', or both with weights.

A score is a number, or NaN for a response that is left out: it then enters no statistic and no
loss. A reward model with the policy's tokenizer reads the very tokens that were sampled, closed by
the stop token of its own rows; another one gets the text, rendered anew with its own tokenizer and
template.

Watched rewards judge the same responses and are in no score: what they say of a policy that
optimises the others tells whether those are being gamed.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from trimtab.data.rows import CompletionExample, Text
from trimtab.data.tokenise import Drop
from trimtab.data.trees import Branch, TokenTree
from trimtab.errors import RecipeError, RunError
from trimtab.rewards.functions import OnBad, RewardFunction, call, columns_of, shown
from trimtab.rewards.reward_model import RewardModel

REWARD, WATCH, DISAGREEMENT = "reward:", "watch:", "disagreement"  # columns of a rollout


class Rated(NamedTuple):
    """A source's rewards [N]; of an ensemble, the standard deviation between its members [N]."""

    values: Sequence[float | None]
    disagreement: Sequence[float] | None = None


Score = Callable[[Sequence["Asked"]], Rated]


@dataclasses.dataclass(frozen=True)
class Asked:
    """One response as rewards see it: the row it answers, its text and its tokens."""

    prompt: Text
    completion: Text
    columns: Mapping[str, Any]
    tree: TokenTree  # the prompt with this response alone
    ended: bool


class Judge:
    """Weighted rewards by name, and ``watched`` ones without a weight."""

    def __init__(
        self,
        sources: Mapping[str, Score],
        weights: Sequence[float] | None = None,
        watched: Mapping[str, Score] | None = None,
    ) -> None:
        self.sources = dict(sources)
        self.watched = dict(watched or {})
        self.weights = list(weights) if weights is not None else [1.0] * len(self.sources)
        assert len(self.weights) == len(self.sources)

    def score(self, asked: Sequence[Asked]) -> tuple[Tensor, dict[str, Tensor]]:
        """Scores [N] fp32, and columns [N]: ``reward:<name>``, ``watch:<name>``, ``disagreement``.

        A source that has nothing to say of a response (None) leaves it to the others; what none
        can judge is NaN. Watched sources neither count nor judge.
        """
        columns: dict[str, Tensor] = {}
        total = torch.zeros(len(asked))
        judged = torch.zeros(len(asked), dtype=torch.bool)
        for (name, source), weight in zip(self.sources.items(), self.weights, strict=True):
            rated = source(asked)
            values = columns[REWARD + name] = _tensor(rated.values)
            if rated.disagreement is not None:
                columns[DISAGREEMENT] = _tensor(rated.disagreement)
            known = ~values.isnan()
            total = total + torch.where(known, weight * values, 0.0)
            judged |= known
        for name, source in self.watched.items():
            columns[WATCH + name] = _tensor(source(asked).values)
        return torch.where(judged, total, math.nan), columns


def _tensor(values: Sequence[float | None]) -> Tensor:
    return torch.tensor([math.nan if v is None else v for v in values], dtype=torch.float32)


def by_reward_model(
    model: RewardModel, tokenizer: Any, *, on_bad: OnBad, key: str = "reward_model"
) -> Score:
    """A reward model as a source of scores; ``tokenizer`` is the policy's.

    A score that is not finite is a RunError with ``on_bad="stop"``, and left out otherwise.
    """
    same = same_tokens(model.tokenizer, tokenizer)

    def rated(asked: Sequence[Asked], trees: Sequence[TokenTree]) -> Rated:
        for item, tree in zip(asked, trees, strict=True):
            length = len(tree.trunk.ids) + len(tree.branches[0].ids)
            if model.positions is not None and length > model.positions:
                raise RunError(
                    f"{key}={model.name!r}: {shown(item.completion, item.tree.origin)}: prompt and "
                    f"response have {length} tokens, and it reads {model.positions}; lower "
                    "max_prompt_length or max_completion_length"
                )
        members = [[one for (one,) in scores] for scores in model.member_scores(trees)]
        means: list[float | None] = []
        apart: list[float] = []
        for item, values in zip(asked, zip(*members, strict=True), strict=True):
            bad = next((value for value in values if not math.isfinite(value)), None)
            if bad is not None and on_bad == "stop":
                raise RunError(
                    f"{key}={model.name!r}: {shown(item.completion, item.tree.origin)}: gave "
                    f"{bad}, not a number; its weights are damaged or overflow in their precision "
                    "(on_bad_reward=drop leaves such samples out)"
                )
            means.append(statistics.fmean(values) if bad is None else None)
            known = bad is None and len(values) > 1
            apart.append(statistics.stdev(values) if known else math.nan)
        return Rated(means, apart if len(members) > 1 else None)

    stops: dict[bool, int | None] = {}  # of plain prompts and of chats

    def closed(item: Asked) -> TokenTree:
        plain = isinstance(item.prompt, str)
        if plain not in stops:
            stops[plain] = model.stop_after(item.prompt)
        return with_stop(item, stops[plain], model.positions)

    def score(asked: Sequence[Asked]) -> Rated:
        if same:
            return rated(asked, [closed(item) for item in asked])
        examples = [
            CompletionExample(
                origin=item.tree.origin, prompt=item.prompt, completion=item.completion
            )
            for item in asked
        ]
        found = model.trees(examples)
        for trees in found:
            if isinstance(trees, Drop):
                raise RecipeError(
                    f"{key}={model.name!r}: its chat template cannot render a response "
                    f"({trees.reason}); choose a reward model for such rows"
                )
        trees = [tree for one in found if not isinstance(one, Drop) for tree in one]
        return rated(asked, trees)

    return score


def with_stop(item: Asked, stop: int | None, positions: int | None) -> TokenTree:
    """The sampled tokens as a reward model has learned to read them: with ``stop`` at their end.

    A score is read at the last token, which was a stop token in every training row; in the middle
    of a sentence, where a response was cut off, it says next to nothing (docs/algorithms.md). A
    response that another stop token ended gets this one in its place. Where a response fills all
    ``positions``, its last token makes room.
    """
    (branch,) = item.tree.branches
    if stop is None or branch.ids[-1] == stop:
        return item.tree
    ids = branch.ids[:-1] if item.ended else branch.ids
    if positions == len(item.tree.trunk.ids) + len(ids):
        ids = ids[:-1]
    ids = (*ids, stop)
    return item.tree._replace(branches=(Branch(ids, (False,) * len(ids)),))


def by_function(function: RewardFunction, *, time_limit: float, on_bad: OnBad) -> Score:
    """A reward function as a source of scores."""

    def score(asked: Sequence[Asked]) -> Rated:
        found = call(
            function,
            [item.prompt for item in asked],
            [item.completion for item in asked],
            columns_of([item.columns for item in asked]),
            time_limit,
            completion_ids=[item.tree.branches[0].ids for item in asked],
            origins=[item.tree.origin for item in asked],
            on_bad=on_bad,
            on_bad_key="on_bad_reward",
        )
        return Rated(found.values)

    return score


def same_tokens(one: Any, other: Any) -> bool:
    """Whether two tokenizers write the same prompts with the same ids; their pads may differ."""
    return one.get_vocab() == other.get_vocab() and one.chat_template == other.chat_template
