"""Checks of what a model's tokenizer and chat template make of the rows.

Every row is tokenised exactly as training would (``tokenise.tokenise_rows``).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator

from trimtab.data.chat import ChatRenderer
from trimtab.data.doctor.ledger import Ledger
from trimtab.data.doctor.shape import Seen
from trimtab.data.rows import Example, LabelledExample, TextExample
from trimtab.data.tokenise import Drop, TokeniseOptions, tokenise_rows
from trimtab.data.tokenise_rows import PROMPT_DIFFERS
from trimtab.data.tokenise_trees import (
    NO_ROOM,
    NOTHING,
    NOTHING_LEFT,
    SAME,
    SAME_TRUNCATED,
    Planted,
)
from trimtab.errors import DataError

_DROPS = {
    NO_ROOM: "prompt-too-long",
    NOTHING_LEFT: "prompt-too-long",
    NOTHING: "empty-text",
    SAME: "identical-tokens",
    SAME_TRUNCATED: "identical-when-cut",
    PROMPT_DIFFERS: "prompt-token-mismatch",
}


class TokenChecks:
    """Tokenises rows and notes down what is wrong with their tokens."""

    def __init__(self, renderer: ChatRenderer, options: TokeniseOptions, ledger: Ledger) -> None:
        self.renderer = renderer
        self.options = options
        self.ledger = ledger
        self.unusable = _unusable(renderer)

    def watch(self, rows: Iterable[Seen]) -> None:
        """Go through the rows, keeping few of them at a time."""
        waiting: deque[Seen] = deque()
        for _, result in tokenise_rows(self._fit(rows, waiting), self.renderer, self.options):
            row = waiting.popleft()
            if isinstance(result, Drop):
                name = _DROPS.get(result.reason, "template-unusable")
                self.ledger.add(name, row.number, result.detail or result.reason)
                continue
            for planted in result:
                self._tree(planted, row)

    def _fit(self, rows: Iterable[Seen], waiting: deque[Seen]) -> Iterator[Example]:
        """The rows that can be tokenised at all; what is wrong with the others is said here."""
        for row in rows:
            self._control_tokens(row)
            if row.shape.messages and self.unusable is not None:
                self.ledger.add("template-unusable", row.number)
                self.ledger.details["template-unusable"] = self.unusable
            elif isinstance(row.example, LabelledExample) and self.renderer.encoder.eos is None:
                self.ledger.add("missing-end", row.number, "the tokenizer has no end token")
            else:
                waiting.append(row)
                yield row.example

    def _control_tokens(self, row: Seen) -> None:
        """Special tokens in text that is rendered or continued; a document may bring its own."""
        if row.shape.document:
            return
        texts = [turn.content for turn in row.shape.turns]
        if not row.shape.messages:
            texts = [self._without_edges(text) for text in texts]
        for text in texts:
            token = self.renderer.encoder.control_token(text)
            if token is not None:
                self.ledger.add("control-token", row.number, token)
                return

    def _without_edges(self, text: str) -> str:
        """Plain text without the BOS and the stop token that trimtab does not write twice."""
        encoder = self.renderer.encoder
        if encoder.bos is not None and encoder.bos in encoder.prefix:
            text = text.removeprefix(encoder.tokenizer.convert_ids_to_tokens(encoder.bos))
        for stop in encoder.tokenizer.convert_ids_to_tokens(sorted(self.renderer.stop_ids)):
            if text.endswith(stop):
                return text.removesuffix(stop)
        return text

    def _tree(self, planted: Planted, row: Seen) -> None:
        """What is wrong with the tokens of one tree."""
        tree, ledger = planted.tree, self.ledger
        stops, bos = self.renderer.stop_ids, self.renderer.encoder.bos
        head = (tree.trunk.ids + (tree.branches[0].ids if tree.branches else ()))[:2]
        if bos is not None and head == (bos, bos):
            ledger.add("doubled-bos", row.number)
        ends = [branch.ids[-2:] for branch in tree.branches if branch.ids]
        if isinstance(row.example, TextExample):
            return  # documents are cut into windows, and may end as they like
        if any(len(end) == 2 and set(end) <= stops for end in ends):
            ledger.add("doubled-end", row.number)
        if planted.branches_cut:
            count = len(tree.branches)
            ledger.add("response-cut", row.number, f"{planted.branches_cut} of {count} responses")
        elif any(end[-1] not in stops for end in ends):
            ledger.add("missing-end", row.number)


def _unusable(renderer: ChatRenderer) -> str | None:
    """Why no conversation can be rendered, or None."""
    try:
        renderer.require_template()
    except DataError as error:
        return str(error)
    return None
