"""What is evaluated: a reward model or a language model, found out from its folder."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from trimtab.data.batch import TreeBatch, pack, split_by_tokens
from trimtab.data.chat import ChatRenderer
from trimtab.data.rows import Kind
from trimtab.data.tokenise import TokeniseOptions
from trimtab.data.trees import Origin, TokenTree
from trimtab.errors import RecipeError, RunError
from trimtab.models import load
from trimtab.models.attention import unwrap
from trimtab.models.device import best_device
from trimtab.models.forward import Layout, choose_layout, target_hidden
from trimtab.models.hub import ModelSource, is_scored, locate, read_json
from trimtab.models.logprobs import LogitHead, token_stats
from trimtab.rewards.manifest import MANIFEST, members_of

SubjectKind = Literal["reward", "language_model"]
Scores = dict[str, list[list[float]]]
"""For every way of scoring, the scores of each tree's branches."""

REWARD = "reward"
SUM, MEAN = "log_prob", "log_prob_per_token"

_PAIRS: tuple[Kind, ...] = ("preference", "ranked")
_TEXTS: tuple[Kind, ...] = ("text", "chat", "completion", "prompt")
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json")


class Candidate(NamedTuple):
    """A model that was found and not yet loaded; ``key`` is what errors call it."""

    name: str
    kind: SubjectKind
    key: str

    @property
    def accepts(self) -> frozenset[Kind]:
        """The kinds of rows that it can be evaluated on."""
        return frozenset(_PAIRS if self.kind == "reward" else (*_PAIRS, *_TEXTS))


def find(name: str, key: str) -> Candidate:
    """Look at a model's folder; RecipeError where it is missing or of no kind that can be judged.

    Nothing is loaded: what is wrong with a path should not cost minutes.
    """
    folder = Path(name).expanduser()
    if (folder / MANIFEST).is_file():
        for member in members_of(folder, key):
            _require_tokenizer(locate(member, key=key), key)
        return Candidate(name, "reward", key)
    source = locate(name, key=key)
    _require_tokenizer(source, key)
    if not is_scored(source):
        return Candidate(name, "language_model", key)
    labels = _labels(source)
    if labels > 1:
        raise RecipeError(
            f"{key}={name!r}: a classifier of {labels} labels; give a reward model (one label) or "
            "a causal language model"
        )
    return Candidate(name, "reward", key)


def _labels(source: ModelSource) -> int:
    if source.kind == "adapter":
        return 1  # its head is looked at when it is loaded
    config = read_json(source.folder / "config.json")
    return len(config.get("id2label") or ()) or int(config.get("num_labels", 2))


def _require_tokenizer(source: ModelSource, key: str) -> None:
    folders = dict.fromkeys((source.folder, load.base_of(source, key).folder))
    if not any((folder / name).is_file() for folder in folders for name in _TOKENIZERS):
        raise RecipeError(
            f"{key}={source.name!r}: no tokenizer in {source.folder}; copy tokenizer.json and "
            "tokenizer_config.json of the model that it was trained from into it"
        )


class Subject:
    """A loaded model; ``options`` says how it reads rows, ``score`` what it makes of comparisons.

    ``positions`` is the longest sequence that it takes, None without a limit.
    """

    kind: SubjectKind
    scorings: tuple[str, ...]

    def __init__(self, name: str, renderer: ChatRenderer, parameters: int, config: Any) -> None:
        self.name = name
        self.renderer = renderer
        self.parameters = parameters
        self.positions: int | None = getattr(
            config.get_text_config(decoder=True), "max_position_embeddings", None
        )

    def options(self, kind: str, max_length: int) -> TokeniseOptions:
        """How rows become trees, within the model's own positions."""
        raise NotImplementedError

    def score(self, trees: Sequence[TokenTree]) -> Scores:
        """Scores of all branches in every way the model has."""
        raise NotImplementedError

    def within(self, max_length: int) -> int:
        """``max_length``, or the model's own limit where that is lower."""
        return min(max_length, self.positions or max_length)


class RewardSubject(Subject):
    """A reward model or an ensemble of them."""

    kind = "reward"
    scorings = (REWARD,)

    def __init__(self, candidate: Candidate, token_budget: int) -> None:
        from trimtab.rewards.reward_model import RewardModel

        self.model = RewardModel.load(
            candidate.name, device=best_device(), token_budget=token_budget, key=candidate.key
        )
        config = unwrap(self.model.members[0].model).config
        super().__init__(candidate.name, self.model.renderer, self.model.parameters, config)
        self.members = len(self.model.members)
        self.offset = self.model.offset

    def options(self, kind: str, max_length: int) -> TokeniseOptions:
        """As the reward model's training rows."""
        return TokeniseOptions(max_length=self.within(max_length), scored=True)

    def score(self, trees: Sequence[TokenTree]) -> Scores:
        """Rewards, the offset taken off."""
        return {REWARD: self.model.score_trees(trees)}


class LanguageSubject(Subject):
    """A causal language model, an adapter on one included."""

    kind = "language_model"
    scorings = (SUM, MEAN)

    def __init__(self, candidate: Candidate, token_budget: int) -> None:
        source = locate(candidate.name, key=candidate.key)
        tokenizer = load.load_tokenizer(source, key=candidate.key)
        where = best_device()
        # In fp32 on a CPU: few have instructions for bf16. Elsewhere as it was saved.
        dtype = torch.float32 if where.type == "cpu" else None
        self.model = load.load_model(source, dtype=dtype, device=where, key=candidate.key)
        self.model.requires_grad_(False)
        self.layout: Layout = choose_layout(self.model).layout
        renderer = ChatRenderer(tokenizer, generation_config=self._generation_config(source))
        parameters = sum(p.numel() for p in self.model.parameters())
        super().__init__(candidate.name, renderer, parameters, unwrap(self.model).config)

    def options(self, kind: str, max_length: int) -> TokeniseOptions:
        """Comparisons, chats and completions are cut to length; of texts every token is scored."""
        length = self.within(max_length)
        if kind == "text":
            return TokeniseOptions(max_length=None, context_length=max(1, length - 1))
        return TokeniseOptions(max_length=length)

    def score(self, trees: Sequence[TokenTree]) -> Scores:
        """Log-probabilities of the responses given the prompt, summed and per token."""
        batch, logp, _ = self._predict(trees, correct=False)
        count = batch.branch_count
        sums = batch.sequence_sums(logp)[:count]
        lengths = batch.length[:count]
        sizes = [len(tree.branches) for tree in trees]
        return {
            SUM: [part.tolist() for part in sums.split(sizes)],
            MEAN: [part.tolist() for part in (sums / lengths).split(sizes)],
        }

    def predict(self, trees: Sequence[TokenTree]) -> list[tuple[float, int, int]]:
        """Of each tree: summed -log p of its trained tokens, how many, how many were likeliest."""
        batch, logp, correct = self._predict(trees, correct=True)
        assert correct is not None
        tree = batch.tree_of_branch[batch.target_sequence]
        totals = torch.zeros(batch.tree_count, 3, dtype=torch.float64)
        values = torch.stack((-logp, torch.ones_like(logp), correct.to(logp.dtype)), dim=1)
        totals.index_add_(0, tree, values)
        return [(nll, int(count), int(right)) for nll, count, right in totals.tolist()]

    @torch.no_grad()
    def _predict(
        self, trees: Sequence[TokenTree], *, correct: bool
    ) -> tuple[TreeBatch, torch.Tensor, torch.Tensor | None]:
        batch = pack(trees)
        moved = batch.to(next(self.model.parameters()).device)
        stats = token_stats(
            target_hidden(self.model, moved, self.layout),
            LogitHead.of(self.model),
            moved.target_ids,
            correct=correct,
        )
        found = None if stats.correct is None else stats.correct.cpu()
        return batch, stats.logp.cpu().double(), found

    @staticmethod
    def _generation_config(source: ModelSource) -> Any:
        folder = load.base_of(source).folder
        if not (folder / "generation_config.json").is_file():
            return None
        from transformers import GenerationConfig

        return GenerationConfig.from_pretrained(folder)


@contextlib.contextmanager
def loaded(candidate: Candidate, token_budget: int) -> Iterator[Subject]:
    """The model of a candidate for as long as it is needed: two need not fit at once."""
    make = RewardSubject if candidate.kind == "reward" else LanguageSubject
    yield make(candidate, token_budget)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def score_all(
    subject: Subject,
    trees: Sequence[TokenTree],
    token_budget: int,
    update: Callable[[int], None] = lambda done: None,
) -> Scores:
    """Scores of all trees, under the token budget; ``update`` is told how many are done.

    Raises RunError, naming the row, where a score is not finite.
    """
    found: Scores = {name: [] for name in subject.scorings}
    done = 0
    for run in split_by_tokens(trees, token_budget):
        for name, scores in subject.score(run).items():
            _require_finite(scores, [tree.origin for tree in run], name)
            found[name] += scores
        done += len(run)
        update(done)
    return found


def _require_finite(
    scores: Sequence[Sequence[float]], origins: Sequence[Origin], name: str
) -> None:
    for row, origin in zip(scores, origins, strict=True):
        if not np.isfinite(row).all():
            raise RunError(
                f"{origin.source}:{origin.row}: the model's {name} is not finite; its weights are "
                "damaged or overflow in their precision"
            )


def facts(subject: Subject, max_length: int) -> dict[str, Any]:
    """What the card says of a model, and the length that its rows were cut to."""
    found: dict[str, Any] = {
        "name": subject.name,
        "kind": subject.kind,
        "parameters": subject.parameters,
        "max_length": subject.within(max_length),
    }
    if isinstance(subject, RewardSubject):
        found |= {"members": subject.members, "offset": subject.offset}
    return found
