"""What the model will see of a file: ``trimtab data inspect FILE --model M``.

Reads the file as training would, tokenises it as training would, and gathers what a person should
look at before a run: the kind of rows, bad rows, lengths, truncation, drops by reason, where masks
came from, stop tokens, and a few rows token by token (``inspect_view.py`` prints it).
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from trimtab.data.chat import ChatRenderer
from trimtab.data.chat_tokens import Tokenizer
from trimtab.data.rows import (
    ChatExample,
    CompletionExample,
    Example,
    LabelledExample,
    PreferenceExample,
    PromptExample,
    RankedExample,
    TextExample,
    kind_of,
)
from trimtab.data.store import TreeStore
from trimtab.data.tokenise import TokeniseOptions, tokenise_all
from trimtab.data.tokenise_report import TokeniseReport
from trimtab.data.trees import Branch, TokenTree
from trimtab.errors import DataError, UsageError

if TYPE_CHECKING:
    from rich.console import Console

_BAD_ROWS = 5  # shown of the quarantine
_ALL_BAD = 1e12  # a limit that no file reaches: looking is allowed whatever the rows are


@dataclass(frozen=True)
class FileSource:
    """One file or folder as a data source (``locate.DatasetSpec``)."""

    path: str
    columns: Mapping[str, str] | None = None
    kind: str | None = None
    name: str | None = None
    data_files: str | Sequence[str] | None = None
    split: str | None = None
    fraction: float | None = None
    weight: float | None = None


class Lengths(NamedTuple):
    """Quantiles over trees, in tokens (characters without a model)."""

    p50: int
    p95: int
    most: int

    @classmethod
    def of(cls, values: Iterable[int]) -> Lengths | None:
        """Quantiles of ``values``, None without any."""
        found = np.fromiter(values, np.int64)
        if not len(found):
            return None
        p50, p95 = np.quantile(found, [0.5, 0.95], method="higher")
        return cls(int(p50), int(p95), int(found.max()))


@dataclass
class Inspection:
    """Everything that is printed, or written as JSON."""

    path: str
    kind: str
    rows: int
    used: int
    notices: list[str]
    bad: dict[str, int]
    bad_rows: list[str]
    model: str | None = None
    unit: str = "characters"
    max_length: int | None = None
    lengths: dict[str, Lengths] = field(default_factory=dict[str, Lengths])
    tokenised: TokeniseReport | None = None
    stop_tokens: list[str] = field(default_factory=list[str])
    trees: list[TokenTree] = field(default_factory=list[TokenTree])
    examples: list[Example] = field(default_factory=list[Example])
    tokenizer: Tokenizer = None

    def to_json(self) -> dict[str, Any]:
        """As JSON types; rows token by token."""
        found: dict[str, Any] = {
            "path": self.path,
            "kind": self.kind,
            "rows": self.rows,
            "used": self.used,
            "notices": self.notices,
            "bad": self.bad,
            "bad_rows": self.bad_rows,
            "model": self.model,
            "unit": self.unit,
            "max_length": self.max_length,
            "lengths": {name: lengths._asdict() for name, lengths in self.lengths.items()},
        }
        if self.tokenised is None:
            return found
        report = self.tokenised
        return {
            **found,
            "tokenised": report.to_json(),
            "supervised_share": report.supervised_share,
            "stop_share": report.stop_share,
            "stop_tokens": self.stop_tokens,
            "trees": [tree_json(tree, self.tokenizer) for tree in self.trees],
        }


def inspect_file(
    path: str,
    *,
    model: str | None = None,
    kind: str | None = None,
    columns: Mapping[str, str] | None = None,
    max_length: int | None = None,
    rows: int = 3,
    console: Console | None = None,
    as_json: bool = False,
) -> int:
    """Print what training would make of ``path``; 0, or a ``DataError`` if it cannot be read.

    Args:
        path: File, folder or hub id.
        model: Folder or hub id of a model, for its tokenizer; without it nothing is tokenised.
        kind: Kind of the rows (``rows.KINDS``); None: recognised.
        columns: Our column -> the file's.
        max_length: As in a recipe; None: nothing is truncated.
        rows: How many rows are shown token by token.
        console: Where to print; None: standard output.
        as_json: Print one JSON object instead.
    """
    from trimtab.data.inspect_view import show

    inspection = gather(
        FileSource(path, columns, kind), model=model, max_length=max_length, rows=rows
    )
    if as_json:
        text = json.dumps(inspection.to_json(), ensure_ascii=False)
        if console is None:
            print(text)
        else:
            console.print(text, markup=False, highlight=False, soft_wrap=True)
    else:
        show(inspection, console)
    return 0


def gather(
    source: FileSource, *, model: str | None, max_length: int | None, rows: int
) -> Inspection:
    """Read and tokenise ``source``."""
    from trimtab.data.sources import load_examples

    with tempfile.TemporaryDirectory() as scratch:
        quarantine = Path(scratch) / "bad.jsonl"
        loaded = load_examples([source], max_bad_rows=_ALL_BAD, quarantine_path=quarantine)
        bad_rows = _bad_rows(quarantine)
    examples = loaded.examples[0]
    account = loaded.report.sources[0]
    inspection = Inspection(
        path=source.path,
        kind=kind_of(examples[0]) if examples else account.kind,
        rows=account.rows_in,
        used=account.used,
        notices=list(loaded.report.notices),
        bad=dict(account.bad.most_common()),
        bad_rows=bad_rows,
        examples=examples[:rows],
    )
    if model is None:
        texts = [_characters(example) for example in examples]
        inspection.lengths = _named({"row": Lengths.of(texts)})
        return inspection
    _tokenise(inspection, examples, model, max_length, rows)
    return inspection


def _tokenise(
    inspection: Inspection,
    examples: Sequence[Example],
    model: str,
    max_length: int | None,
    rows: int,
) -> None:
    tokenizer, generation_config = read_tokenizer(model)
    renderer = ChatRenderer(tokenizer, generation_config=generation_config)
    options = TokeniseOptions(max_length=max_length)
    store, report = tokenise_all(examples, renderer, options, max_dropped=None)
    inspection.model, inspection.unit, inspection.max_length = model, "tokens", max_length
    inspection.tokenizer, inspection.tokenised = tokenizer, report
    inspection.lengths = _lengths(store)
    stops: list[str] = tokenizer.convert_ids_to_tokens(sorted(renderer.stop_ids))
    inspection.stop_tokens = stops
    shown: dict[tuple[str, int], None] = {}
    for tree in store:
        shown.setdefault((tree.origin.source, tree.origin.row))
        if len(shown) > rows:
            break
        inspection.trees.append(tree)


def _lengths(store: TreeStore) -> dict[str, Lengths]:
    lengths = np.diff(store.columns["segment"])
    trunk = np.zeros(len(lengths), bool)
    trunk[store.columns["tree"][:-1]] = True
    return _named(
        {
            "prompt": Lengths.of(lengths[trunk]),
            "response": Lengths.of(lengths[~trunk]),
            "together": Lengths.of(store.depths),
        }
    )


def _named(found: Mapping[str, Lengths | None]) -> dict[str, Lengths]:
    return {name: lengths for name, lengths in found.items() if lengths is not None}


def read_tokenizer(model: str) -> tuple[Tokenizer, Any]:
    """The tokenizer of a model folder or hub id, and its generation config or None."""
    from transformers import AutoTokenizer, GenerationConfig

    auto: Any = AutoTokenizer
    generation: Any = GenerationConfig
    try:
        tokenizer = auto.from_pretrained(model)
    except (OSError, ValueError, KeyError, TypeError) as error:
        # The reason is in the first line; transformers adds paragraphs.
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UsageError(
            f"model {model}: no tokenizer could be read: {reason[:200]}; give a folder with a "
            "tokenizer.json or a hub id"
        ) from error
    try:
        return tokenizer, generation.from_pretrained(model)
    except (OSError, ValueError):
        return tokenizer, None


def _bad_rows(quarantine: Path) -> list[str]:
    if not quarantine.is_file():
        return []
    found: list[str] = []
    with quarantine.open(encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            parts = [f"{row['file']}:{row['line']}", row["field"], row["reason"]]
            found.append(": ".join(part for part in parts if part))
            if len(found) == _BAD_ROWS:
                break
    return found


def _characters(example: Example) -> int:
    """Length of a row's longest path of text."""

    def size(text: Any) -> int:
        if text is None:
            return 0
        if isinstance(text, str):
            return len(text)
        return sum(len(str(message.get("content") or "")) for message in text)

    match example:
        case TextExample() | LabelledExample():
            return len(example.text)
        case ChatExample():
            return size(example.messages)
        case PromptExample():
            return size(example.prompt)
        case CompletionExample():
            return size(example.prompt) + size(example.completion)
        case PreferenceExample():
            return size(example.prompt) + max(size(example.chosen), size(example.rejected))
        case RankedExample():
            return size(example.prompt) + max(map(size, example.responses))
        case _:
            raise DataError(f"no kind for {type(example).__name__}")


def pieces(branch: Branch, tokenizer: Tokenizer) -> list[str]:
    """The text of each token; where bytes of a character are apart, the token's own name."""
    shown: list[str] = []
    for token in branch.ids:
        text: str = tokenizer.backend_tokenizer.decode([token], skip_special_tokens=False)
        name: str = tokenizer.convert_ids_to_tokens(token)
        # Some decoders drop the space that a word starts with.
        if name.startswith("▁") and not text.startswith(" "):
            text = " " + text
        shown.append(name if "\ufffd" in text or not text else text)
    return shown


def segment_names(tree: TokenTree) -> list[str]:
    """What each branch of a tree is, for people."""
    if len(tree.branches) == 2 and tree.ranks == (1.0, 2.0) and not tree.scores:
        return ["chosen", "rejected"]
    if tree.labels:
        return ["wanted" if label else "unwanted" for label in tree.labels]
    if tree.ranks:
        return [f"rank {rank:g}" for rank in tree.ranks]
    return ["response"] * len(tree.branches)


def tree_json(tree: TokenTree, tokenizer: Tokenizer) -> dict[str, Any]:
    """A tree token by token."""

    def segment(name: str, branch: Branch) -> dict[str, Any]:
        texts = pieces(branch, tokenizer)
        return {
            "name": name,
            "ids": list(branch.ids),
            "tokens": texts,
            "trained": [int(trained) for trained in branch.trained],
        }

    names = segment_names(tree)
    return {
        "origin": tree.origin._asdict(),
        "weight": tree.weight,
        "prompt": segment("prompt", tree.trunk),
        "branches": [segment(n, b) for n, b in zip(names, tree.branches, strict=True)],
        "comparisons": [comparison._asdict() for comparison in tree.comparisons],
        "ranks": list(tree.ranks),
        "scores": list(tree.scores),
        "labels": list(tree.labels),
    }
