"""From the sources of a recipe to token trees: read, checked, tokenised, cached, reported."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from trimtab.config.data_keys import DatasetSpec
from trimtab.data.chat import ChatRenderer
from trimtab.data.labels import Labels
from trimtab.data.rows import Kind, PromptExample
from trimtab.data.sources import Loaded, load_examples
from trimtab.data.store import TreeStore
from trimtab.data.store_cache import cached
from trimtab.data.tokenise import TokeniseOptions, cache_parts, tokenise_all
from trimtab.data.tokenise_report import TokeniseReport

Note = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Rows:
    """Trees of one role ("training", "held-out", "mix"), one store a source.

    ``weights`` are the sources' relative shares, or None where they come as they are; ``summary``
    is a line for people and for the model card. ``prompts`` are rows to be answered, whole, as
    rewards see them.
    """

    role: str
    stores: tuple[TreeStore, ...]
    weights: tuple[float, ...] | None
    reports: tuple[TokeniseReport, ...]
    loaded: Loaded
    summary: str
    prompts: tuple[PromptExample, ...] = ()

    @property
    def count(self) -> int:
        """Trees in all sources."""
        return sum(len(store) for store in self.stores)


@dataclasses.dataclass(frozen=True)
class RowSettings:
    """What the recipe says about reading and tokenising, apart from the sources."""

    max_bad_rows: float
    max_dropped_rows: float
    cache_dir: Path | None
    quarantine_folder: Path
    seed: int


def load_rows(
    role: str,
    specs: Sequence[DatasetSpec],
    renderer: ChatRenderer,
    options: TokeniseOptions,
    accept: frozenset[Kind],
    settings: RowSettings,
    note: Note,
    *,
    max_rows: int | None = None,
    labels: Labels | None = None,
) -> Rows:
    """Read and tokenise all sources; raises ``DataError`` beyond the recipe's limits.

    ``labels`` are the classes of labelled rows: learnt from training rows, held against others.
    """
    loaded = load_examples(
        specs,
        accept,
        max_rows=max_rows,
        max_bad_rows=settings.max_bad_rows,
        quarantine_path=settings.quarantine_folder / f"quarantine.{role}.jsonl",
        seed=settings.seed,
        check=None if labels is None else labels.check,
    )
    for account in loaded.report.sources:
        for notice in account.notices:
            note(notice)
    if labels is not None:
        if role == "training":
            for line in labels.learn(itertools.chain.from_iterable(loaded.examples)):
                note(line)
        options = dataclasses.replace(options, classes=labels.names or ())
    stores: list[TreeStore] = []
    reports: list[TokeniseReport] = []
    for index, spec in enumerate(specs):
        # All that decides which examples a source gives, besides its bytes.
        source = [
            index,
            spec.path,
            spec.columns,
            spec.fraction,
            spec.kind,
            max_rows,
            sorted(accept),
        ]
        store, report = _tokenised(loaded, index, source, renderer, options, settings)
        stores.append(store)
        reports.append(report)
        for notice in report.notices:
            note(notice)
    summary = _summary(role, loaded, stores, reports)
    note(summary)
    weights = None if loaded.weights is None else tuple(loaded.weights)
    examples = (example for one in loaded.examples for example in one)
    prompts = tuple(example for example in examples if isinstance(example, PromptExample))
    loaded = dataclasses.replace(loaded, examples=[])  # trees are compact, rows are not
    return Rows(role, tuple(stores), weights, tuple(reports), loaded, summary, prompts)


def _tokenised(
    loaded: Loaded,
    index: int,
    source: list[Any],
    renderer: ChatRenderer,
    options: TokeniseOptions,
    settings: RowSettings,
) -> tuple[TreeStore, TokeniseReport]:
    """The trees of one source, from the cache where nothing that shapes them has changed."""
    examples = loaded.examples[index]
    limit = settings.max_dropped_rows
    share = limit if limit < 1 else limit / max(len(examples), 1)
    reading = {"source": source, "seed": settings.seed}
    key = cache_parts(renderer, options, loaded.fingerprint, reading)

    def build() -> tuple[TreeStore, dict[str, Any]]:
        store, report = tokenise_all(examples, renderer, options, max_dropped=share)
        return store, report.to_json()

    folder = None if settings.cache_dir is None else settings.cache_dir / "trees"
    found = cached(key, build, folder)
    report = TokeniseReport.from_json(found.notes)
    report.check(share)
    return found.store, report


def _summary(
    role: str, loaded: Loaded, stores: Sequence[TreeStore], reports: Sequence[TokeniseReport]
) -> str:
    """``training: 4,920 rows, 4,911 trees (9 dropped: ...), 1.1 M tokens, 38 % trained, ...``."""
    dropped: dict[str, int] = {}
    for report in reports:
        for reason, found in report.dropped.items():
            dropped[reason] = dropped.get(reason, 0) + found.count
    tokens, trained = sum(r.tokens for r in reports), sum(r.trained for r in reports)
    branches = sum(r.branches for r in reports)
    stopped = sum(r.branches_stopped for r in reports)
    cut = sum(r.prompts_cut + r.responses_cut for r in reports)
    used = sum(account.used for account in loaded.report.sources)
    parts = [f"{role}: {used:,} rows, {sum(map(len, stores)):,} trees"]
    bad = sum((account.bad for account in loaded.report.sources), Counter[str]())
    if bad:
        reasons = ", ".join(f"{n} x {reason}" for reason, n in bad.items())
        parts.append(f"{bad.total()} bad rows set aside in {loaded.report.quarantine} ({reasons})")
    if dropped:
        parts.append("dropped " + ", ".join(f"{n} x {reason}" for reason, n in dropped.items()))
    if cut:
        parts.append(f"{cut} cut to length")
    share = f", {100 * trained / max(tokens, 1):.0f} % trained" if trained else ""
    parts.append(f"{tokens:,} tokens{share}")
    if branches:  # prompts have none
        parts.append(f"{100 * stopped / branches:.0f} % of responses end in a stop token")
    return "; ".join(parts)
