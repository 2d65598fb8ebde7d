"""From examples and a model to scored rows, with gold scores where they are known."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from trimtab.data.batch import split_by_tokens
from trimtab.data.rows import Example, PreferenceExample, RankedExample, Text, kind_of
from trimtab.data.tokenise import tokenise_all
from trimtab.data.tokenise_report import TokeniseReport
from trimtab.data.trees import Branch, Origin, TokenTree
from trimtab.errors import DataError
from trimtab.evaluation.comparisons import ScoredRow
from trimtab.evaluation.held_out_text import TextRow, text_bytes
from trimtab.evaluation.subjects import LanguageSubject, Subject, score_all

Update = Callable[[int], None]
Gold = Mapping[tuple[str, int], tuple[float, ...]]


@dataclasses.dataclass(frozen=True)
class Judged:
    """Comparisons as one model scored them, for every way in which it scores."""

    rows: Mapping[str, list[ScoredRow]]
    report: TokeniseReport


@dataclasses.dataclass(frozen=True)
class Read:
    """Texts as one model predicted them."""

    rows: list[TextRow]
    report: TokeniseReport


class Trees:
    """The rows of one model as trees, each with its example."""

    def __init__(self, subject: Subject, examples: Sequence[Example], max_length: int) -> None:
        options = subject.options(kind_of(examples[0]), max_length)
        store, self.report = tokenise_all(examples, subject.renderer, options, max_dropped=None)
        if not self.report.trees:
            raise _nothing(self.report)
        by_place = {_place(example.origin): example for example in examples}
        self.trees: list[TokenTree] = list(store)
        self.examples = [by_place[_place(tree.origin)] for tree in self.trees]


def _nothing(report: TokeniseReport) -> DataError:
    """No row can be read: the commonest reason, with the first row that has it."""
    reason, worst = max(report.dropped.items(), key=lambda item: item[1].count)
    return DataError(
        f"{worst.first[0]}: {reason} ({worst.count} of {report.rows} rows); no row is left to "
        "evaluate on; mend the rows, or raise max_length"
    )


def judge(subject: Subject, trees: Trees, gold: Gold, token_budget: int, update: Update) -> Judged:
    """Score preference and ranked rows."""
    every = score_all(subject, trees.trees, token_budget, update)
    rows = {
        name: [
            _scored(tree, example, scores, gold)
            for tree, example, scores in zip(trees.trees, trees.examples, found, strict=True)
        ]
        for name, found in every.items()
    }
    return Judged(rows, trees.report)


def read(subject: LanguageSubject, trees: Trees, token_budget: int, update: Update) -> Read:
    """Predict the tokens of texts, chats and completions; the trees of a row are added up."""
    rows: dict[tuple[str, int], TextRow] = {}
    places = iter(zip(trees.trees, trees.examples, strict=True))
    done = 0
    for run in split_by_tokens(trees.trees, token_budget):
        for nll, tokens, right in subject.predict(run):
            tree, example = next(places)
            place = _place(tree.origin)
            old = rows.get(place) or TextRow(*place, 0.0, 0, 0, 0, _source(example))
            rows[place] = old._replace(
                nll=old.nll + nll,
                tokens=old.tokens + tokens,
                size=old.size + text_bytes(tree, subject.renderer.tokenizer),
                right=old.right + right,
            )
        done += len(run)
        update(done)
    return Read(list(rows.values()), trees.report)


def gold_of(examples: Sequence[Example]) -> tuple[Gold, str | None]:
    """Gold scores of the responses by file and line, and where they come from.

    The demo world's own reward where every prompt is one of its requests; else the rows' scores.
    """
    found = _world(examples)
    if found is not None:
        return found, "the demo world's gold reward"
    given = {
        _place(example.origin): tuple(example.scores)
        for example in examples
        if isinstance(example, RankedExample) and example.scores
    }
    return given, "the rows' scores" if given else None


def _world(examples: Sequence[Example]) -> dict[tuple[str, int], tuple[float, ...]] | None:
    from trimtab.world.gold import gold_reward

    found: dict[tuple[str, int], tuple[float, ...]] = {}
    for example in examples:
        assert isinstance(example, PreferenceExample | RankedExample)
        prompt, responses = example.prompt, _responses(example)
        if not isinstance(prompt, str):
            return None
        try:
            scores = [gold_reward(prompt, str(response)).total for response in responses]
        except DataError:
            return None  # no request of the world
        found[_place(example.origin)] = tuple(scores)
    return found


def common(
    ours: Sequence[ScoredRow], theirs: Sequence[ScoredRow]
) -> tuple[list[ScoredRow], list[ScoredRow]]:
    """The comparisons that both models could make: each drops what does not fit it."""
    others = {_place(row.origin): row for row in theirs}
    left: list[ScoredRow] = []
    right: list[ScoredRow] = []
    for row in ours:
        other = others.get(_place(row.origin))
        pairs = () if other is None else tuple(p for p in row.pairs if p in set(other.pairs))
        if other is None or not pairs:
            continue
        left.append(dataclasses.replace(row, pairs=pairs))
        right.append(dataclasses.replace(other, pairs=pairs))
    return left, right


def _scored(tree: TokenTree, example: Example, scores: Sequence[float], gold: Gold) -> ScoredRow:
    assert isinstance(example, PreferenceExample | RankedExample)
    margin = example.margin if isinstance(example, PreferenceExample) else 0.0
    return ScoredRow(
        origin=tree.origin,
        prompt=_identity(example.prompt),
        responses=tuple(_identity(text) for text in _responses(example)),
        scores=tuple(scores),
        lengths=tuple(map(_length, tree.branches)),
        ranks=tree.ranks,
        pairs=tuple((c.winner, c.loser) for c in tree.comparisons),
        source=_source(example),
        gold=gold.get(_place(example.origin), ()),
        margin=margin or None,  # a row without one has 0
        extras=example.extras,
    )


def _responses(example: PreferenceExample | RankedExample) -> list[Text]:
    if isinstance(example, PreferenceExample):
        return [example.chosen, example.rejected]
    return example.responses


def _length(branch: Branch) -> int:
    """Tokens of a response: the trained ones; all of them where a reward model trains none."""
    return branch.trained_count or len(branch.ids)


def _source(example: Example) -> str | None:
    value: Any = example.extras.get("source")
    return value if isinstance(value, str) and value else None


def _place(origin: Origin) -> tuple[str, int]:
    return origin.source, origin.row


def _identity(text: Text | None) -> str:
    told = json.dumps(text, sort_keys=True, ensure_ascii=False)
    return hashlib.blake2b(told.encode(), digest_size=16).hexdigest()
