"""Rows to token trees: one row at a time, or all rows of a data set into a store with a report."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Mapping
from importlib.metadata import version
from typing import Any, cast

from trimtab.data.chat import MASK_SOURCES, SPLIT, ChatRenderer
from trimtab.data.chat_template import REASONING_LOST, REASONING_OFF, RowProblem
from trimtab.data.chat_tokens import Steps, drive, fingerprint_tokenizer, side_by_side
from trimtab.data.rows import Example
from trimtab.data.store import TreeStore
from trimtab.data.tokenise_report import TokeniseReport
from trimtab.data.tokenise_rows import Drop, RowRules, TokeniseOptions
from trimtab.data.tokenise_trees import Planted, group_by_prompt
from trimtab.data.trees import TokenTree

__all__ = ["Drop", "TokeniseOptions", "cache_parts", "tokenise", "tokenise_all", "tokenise_rows"]

_BATCH = 512  # rows whose texts are encoded together


def tokenise(
    example: Example, renderer: ChatRenderer, options: TokeniseOptions
) -> list[TokenTree] | Drop:
    """The trees of one row, or why it has none."""
    result = drive(_row(example, renderer, options), renderer.encoder.encode)
    return result if isinstance(result, Drop) else [planted.tree for planted in result]


def tokenise_all(
    examples: Iterable[Example],
    renderer: ChatRenderer,
    options: TokeniseOptions,
    *,
    max_dropped: float | None = 0.1,
) -> tuple[TreeStore, TokeniseReport]:
    """The trees of all rows, and what happened to each row.

    Refuses with a ``DataError`` when no tree is left, or when more than the share ``max_dropped``
    of the rows was dropped (0 to 1; None never refuses).
    """
    report = TokeniseReport()
    before = renderer.counts.copy()
    trees = _planted(examples, renderer, options, report)
    if options.group_by_prompt:
        grouped = group_by_prompt(list(trees), by_weight=options.group_by_weight)
        report.trees = len(grouped)
        report.tokens = sum(tree.token_count for tree in grouped)
        report.trained = sum(tree.trained_count for tree in grouped)
        trees = iter(grouped)
    store = TreeStore.of(trees)
    counts = renderer.counts - before
    report.mask_sources = {name: counts[name] for name in MASK_SOURCES if counts[name]}
    report.boundary_splits = counts[SPLIT]
    report.notices += _notices(counts, renderer)
    if max_dropped is not None:
        report.check(max_dropped)
    return store, report


def cache_parts(
    renderer: ChatRenderer, options: TokeniseOptions, rows: str, reading: Mapping[str, Any]
) -> dict[str, Any]:
    """What shapes the trees, for ``store_cache.cached``.

    ``rows`` is the fingerprint of the raw bytes (``Loaded.fingerprint``), ``reading`` how rows are
    made of them, as JSON types: columns, kinds, fractions, seed, what is accepted.
    """
    return {
        "rows": rows,
        "reading": dict(reading),
        "tokenizer": fingerprint_tokenizer(renderer.tokenizer),
        "stops": sorted(renderer.stop_ids),
        "variables": renderer.template.variables,
        "options": options.to_json(),
        "libraries": {name: version(name) for name in ("transformers", "tokenizers", "jinja2")},
    }


def _notices(counts: Counter[str], renderer: ChatRenderer) -> Iterator[str]:
    """What the template did that a user would not expect."""
    template = renderer.template
    if template.reads_the_clock and any(counts[name] for name in MASK_SOURCES):
        yield "the chat template prints today's date: rows tokenised on another day differ"
    if counts[REASONING_OFF]:
        names = " or ".join(template.switches)
        yield f"answers without reasoning are rendered with {names}=false; sample with it too"
    if counts[REASONING_LOST]:
        yield f"the chat template leaves out the reasoning of {counts[REASONING_LOST]} answers"


def _planted(
    examples: Iterable[Example],
    renderer: ChatRenderer,
    options: TokeniseOptions,
    report: TokeniseReport,
) -> Generator[TokenTree, None, None]:
    """Trees of the rows in their order, counted."""
    stops, bos = renderer.stop_ids, renderer.encoder.bos
    for example, result in tokenise_rows(examples, renderer, options):
        report.rows += 1
        report.control_rows += _has_control_tokens(example, renderer)
        if isinstance(result, Drop):
            report.drop(example.origin, *result)
            continue
        for planted in result:
            report.count(planted, stops, bos)
            yield planted.tree


def tokenise_rows(
    examples: Iterable[Example], renderer: ChatRenderer, options: TokeniseOptions
) -> Iterator[tuple[Example, list[Planted] | Drop]]:
    """Each row with its trees and what was cut of them, or why it has none; in batches inside."""
    iterator = iter(examples)
    while batch := list(itertools.islice(iterator, _BATCH)):
        # Headers are the same in every row, prompts in every response: each is encoded once.
        rows = side_by_side([_row(example, renderer, options) for example in batch])
        yield from zip(batch, drive(rows, renderer.encoder.encode), strict=True)


def _row(
    example: Example, renderer: ChatRenderer, options: TokeniseOptions
) -> Steps[list[Planted] | Drop]:
    """One row in steps; what is wrong with it becomes a ``Drop``."""
    try:
        return (yield from RowRules(renderer, options).trees(example))
    except RowProblem as problem:
        return Drop(problem.reason, problem.detail)


def _has_control_tokens(example: Example, renderer: ChatRenderer) -> bool:
    return any(renderer.encoder.has_control_token(text) for text in _texts(example))


def _texts(example: Example) -> Iterable[str]:
    """All text of a row that comes from the user's file."""
    names = ("text", "messages", "prompt", "completion", "chosen", "rejected", "responses")
    stack: list[Any] = [getattr(example, name, None) for name in names]
    while stack:
        item = stack.pop()
        if isinstance(item, str):
            yield item
        elif isinstance(item, list):
            stack += item
        elif isinstance(item, dict):
            part = cast("dict[str, Any]", item)
            stack += [part.get("content"), part.get("text")]
