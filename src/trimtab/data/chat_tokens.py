"""What a tokenizer does at the edges: its special tokens, and text that continues other text.

Every id that training or sampling sees goes through ``Encoder``, so that a prompt has the same ids
in both and BOS is decided in one place: rendered chat templates get no special tokens (the template
wrote its own), plain prompts get what the tokenizer puts in front by default. Nothing here looks at
the pad id.
"""

from __future__ import annotations

import hashlib
import json
import re
from bisect import bisect_left
from collections.abc import Callable, Generator, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, cast

from trimtab.errors import DataError

if TYPE_CHECKING:
    from tokenizers import Encoding

T = TypeVar("T")

# A fast tokenizer of transformers (``PreTrainedTokenizerBase``, whose annotations are not usable).
Tokenizer: TypeAlias = Any

# A step yields texts and is sent their encodings: many rows are then encoded in one batch.
Steps = Generator[list[str], "list[Encoding]", T]

# Texts that stand in front of a continuation while it is encoded, then are cut off again; "" is
# right for byte-level BPE, the others for tokenizers that put a space before every text.
_ANCHORS = ("", "\n", ".", "a")
_PROBES = ("b", " b", "hello world", "\n\nyes", "é", "7")


def drive(steps: Steps[T], encode: Callable[[list[str]], list[Encoding]]) -> T:
    """Run one coroutine of steps to its end."""
    try:
        texts = next(steps)
        while True:
            texts = steps.send(encode(texts))
    except StopIteration as stop:
        return stop.value


def side_by_side(every: Sequence[Steps[T]]) -> Steps[list[T]]:
    """Advance all at once: what they ask for next is one list, in which each text stands once.

    What one of them raises ends all.
    """
    results: dict[int, T] = {}
    waiting: list[tuple[int, list[str]]] = []

    def advance(index: int, encodings: list[Encoding] | None) -> None:
        steps = every[index]
        try:
            waiting.append((index, next(steps) if encodings is None else steps.send(encodings)))
        except StopIteration as stop:
            results[index] = stop.value

    for index in range(len(every)):
        advance(index, None)
    while waiting:
        asked, waiting = waiting, []
        unique = list(dict.fromkeys(text for _, texts in asked for text in texts))
        found = dict(zip(unique, (yield unique), strict=True))
        for index, texts in asked:
            advance(index, [found[text] for text in texts])
    return [results[index] for index in range(len(every))]


class Encoder:
    """A tokenizer with its edges known.

    prefix      ids that the tokenizer puts before a plain text by default (BOS, or nothing)
    bos, eos    ids or None; neither is ever invented
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        if not getattr(tokenizer, "is_fast", False):
            raise DataError(
                f"tokenizer {name_of(tokenizer)}: {type(tokenizer).__name__} gives no character "
                "offsets; use a tokenizer with a tokenizer.json"
            )
        self.tokenizer = tokenizer
        self.bos: int | None = _single(tokenizer.bos_token_id)
        self.eos: int | None = _single(tokenizer.eos_token_id)
        self.prefix = self._default_prefix()
        added = tokenizer.added_tokens_decoder
        self.added_ids = frozenset(added)
        # Only these split a text before anything else does: what follows one is encoded as if
        # nothing stood before it.
        isolating = [token.content for token in added.values() if not token.normalized]
        self.special_pattern = _alternatives(isolating)
        self.added_pattern = _alternatives(token.content for token in added.values())
        control = [token.content for token in added.values() if token.special and token.content]
        self._control_pattern = _alternatives(control)
        self._control_starts = {content[:2] for content in control}
        self._memo: dict[str, list[int]] = {}
        self._anchor = self._safe_anchor()

    def encode(self, texts: list[str]) -> list[Encoding]:
        """Encode each text as it is: no special tokens, no truncation, no padding."""
        if not texts:
            return []
        batch = self.tokenizer(
            texts,
            add_special_tokens=False,
            padding=False,
            truncation=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
        encodings = batch.encodings
        assert encodings is not None, "a fast tokenizer gives encodings"
        return list(encodings)

    def ids(self, text: str) -> list[int]:
        """Ids of one short text, remembered."""
        found = self._memo.get(text)
        if found is None:
            found = self._memo[text] = self.encode([text])[0].ids
        return found

    def has_control_token(self, text: str) -> bool:
        """Whether a special token of the tokenizer is spelt out in ``text``."""
        return self.control_token(text) is not None

    def control_token(self, text: str) -> str | None:
        """The first special token of the tokenizer that is spelt out in ``text``."""
        # Plain searches first: ten times faster than the pattern, and nearly always enough.
        if self._control_pattern is None or not any(s in text for s in self._control_starts):
            return None
        found = self._control_pattern.search(text)
        return found.group() if found else None

    def with_prefix(self, ids: Sequence[int]) -> list[int]:
        """``ids`` of a plain text behind the tokenizer's default prefix, never a second time."""
        prefix = list(self.prefix)
        return list(ids) if prefix == list(ids[: len(prefix)]) else prefix + list(ids)

    def with_eos(self, ids: Sequence[int], stops: frozenset[int]) -> list[int]:
        """``ids`` with EOS behind them, unless the tokenizer has none or a stop is there."""
        if self.eos is None or (ids and ids[-1] in stops):
            return list(ids)
        return [*ids, self.eos]

    def continuations(self, texts: Sequence[str]) -> Steps[list[list[int]]]:
        """Ids of texts that continue other text, with no space or BOS that is not in them."""
        encodings = yield [self._anchor + text for text in texts]
        cut = len(self.ids(self._anchor)) if self._anchor else 0
        return [
            encoding.ids[cut:]
            if encoding.ids[:cut] == (self.ids(self._anchor) if cut else [])
            else self._continuation_elsewhere(text)
            for text, encoding in zip(texts, encodings, strict=True)
        ]

    def _continuation_elsewhere(self, text: str) -> list[int]:
        """A continuation that merges with the usual anchor: try the others."""
        for anchor in _ANCHORS[1:]:
            before = self.ids(anchor)
            ids = self.encode([anchor + text])[0].ids
            if ids[: len(before)] == before:
                return ids[len(before) :]
        return self.encode([text])[0].ids

    def _default_prefix(self) -> tuple[int, ...]:
        bare = self.tokenizer("a", add_special_tokens=False).input_ids
        full = self.tokenizer("a", add_special_tokens=True).input_ids
        for start in range(len(full) - len(bare) + 1):
            if full[start : start + len(bare)] == bare:
                return tuple(full[:start])
        return ()

    def _safe_anchor(self) -> str:
        """The first anchor behind which every probe keeps its own tokens and its own text."""
        if self.is_safe_anchor(""):
            return ""
        return next((anchor for anchor in _ANCHORS[1:] if self.is_safe_anchor(anchor)), "")

    def is_safe_anchor(self, anchor: str) -> bool:
        """Whether continuations encoded behind ``anchor`` decode to exactly themselves."""
        backend = self.tokenizer.backend_tokenizer
        head, before = self.ids("x"), self.ids(anchor) if anchor else []
        shown = backend.decode(head, skip_special_tokens=False)
        for probe in _PROBES:
            ids = self.encode([anchor + probe])[0].ids
            joined = backend.decode(head + ids[len(before) :], skip_special_tokens=False)
            if ids[: len(before)] != before or joined != shown + probe:
                return False
        return True


def stop_ids(tokenizer: Tokenizer, generation_config: Any = None) -> frozenset[int]:
    """Ids that end a sequence: the tokenizer's EOS and all of ``generation_config``'s.

    ``generation_config`` is a transformers ``GenerationConfig``, a dictionary or None. The chat
    template's turn terminator joins them in ``ChatRenderer.stop_ids``.
    """
    if isinstance(generation_config, dict):
        configured: Any = cast("dict[str, Any]", generation_config).get("eos_token_id")
    else:
        configured = getattr(generation_config, "eos_token_id", None)
    found = {*_many(tokenizer.eos_token_id), *_many(configured)}
    return frozenset(found)


def fingerprint_tokenizer(tokenizer: Tokenizer) -> str:
    """SHA-256 over all that shapes ids: tokenizer.json, special tokens, chat template; no paths."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:  # a tokenizer in Python
        content: Any = [type(tokenizer).__name__, sorted(tokenizer.get_vocab().items())]
    else:
        content = json.loads(backend.to_str())
        # A call may set these two; they are passed anew each time and shape nothing.
        content["truncation"] = content["padding"] = None
    state = {
        "special": {k: str(v) for k, v in tokenizer.special_tokens_map.items()},
        "template": tokenizer.chat_template,
        "split_special_tokens": bool(getattr(tokenizer, "split_special_tokens", False)),
    }
    text = json.dumps([content, state], sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def name_of(tokenizer: Tokenizer) -> str:
    """How the user named the tokenizer, for messages."""
    return str(getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__)


class Offsets:
    """Character positions of an encoding's tokens, searched by position."""

    def __init__(self, encoding: Encoding) -> None:
        offsets = encoding.offsets
        self.starts = [start for start, _ in offsets]
        self.ends = [end for _, end in offsets]

    def token_from(self, char: int) -> int | None:
        """Index of the token that starts exactly at ``char``, or None."""
        index = self._skip_empty(bisect_left(self.starts, char), char)
        return index if index < len(self.starts) and self.starts[index] == char else None

    def tokens_before(self, char: int) -> int:
        """How many tokens start before ``char``."""
        return self._skip_empty(bisect_left(self.starts, char), char)

    def _skip_empty(self, index: int, char: int) -> int:
        # Byte-level tokenizers trim spaces off offsets: a token of spaces alone is left empty, at
        # the position where the spaces ended, and belongs to the text before it.
        while index < len(self.starts) and self.starts[index] == self.ends[index] == char:
            index += 1
        return index


def shared_length(first: Sequence[Any], second: Sequence[Any]) -> int:
    """How many items two sequences have in common at their start."""
    count = 0
    for a, b in zip(first, second, strict=False):
        if a != b:
            break
        count += 1
    return count


def _alternatives(contents: Iterable[str]) -> re.Pattern[str] | None:
    """A pattern that finds the longest of ``contents`` at each place, or None without any."""
    unique = sorted({c for c in contents if c}, key=lambda c: (-len(c), c))
    return re.compile("|".join(map(re.escape, unique))) if unique else None


def _many(value: Any) -> list[int]:
    if value is None:
        return []
    if isinstance(value, list | tuple | set):
        return [int(v) for v in cast("list[Any]", value)]
    return [int(value)]


def _single(value: Any) -> int | None:
    found = _many(value)
    return found[0] if found else None
