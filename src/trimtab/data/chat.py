"""Conversations to token ids and the exact mask of what the assistant wrote.

A conversation is one run of ids when what the model sees before each answer is a prefix of the
whole, in text and in tokens. Where it is not (a template that strips the reasoning of earlier
turns, or content that would merge with the header before it), every trained turn becomes a run of
its own, so that a prompt always has the ids that sampling would give it.

The mask of a turn starts behind the generation prompt (an empty reasoning block counts to the
prompt) and ends with the stop token, both inclusive of what the model has to write and of nothing
else: the newline that many templates put behind the stop token is not trained, and what follows the
last trained token is left out.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

from trimtab.data.chat_template import RowProblem, Template
from trimtab.data.chat_tokens import Encoder, Offsets, Steps, Tokenizer, drive, stop_ids
from trimtab.data.rows import Message, Text

_INSEPARABLE = "the chat template rewrites earlier turns within one continuation"


MASK_SOURCES = ("markers", "incremental", "per turn")
SPLIT = "split"


class Span(NamedTuple):
    """Half-open range of characters."""

    start: int
    end: int


class Conversation(NamedTuple):
    """Rendered text through the last trained character, and its trained spans in text order.

    ``source`` says how the spans were found: ``markers``, ``incremental`` or ``per turn``.
    """

    text: str
    spans: tuple[Span, ...]
    source: str


class Rendered(NamedTuple):
    """Ids of a conversation and which of them are trained; ``prompt`` of them come before those.

    ids, trained   same length; ``trained[:prompt]`` is all False
    """

    ids: list[int]
    trained: list[bool]
    prompt: int


class ChatRenderer:
    """Renders with the tokenizer's own chat template, and tokenises plain text beside it.

    ``variables`` are given to the template (``{"enable_thinking": False}``). ``generation_config``
    adds its ``eos_token_id`` to the stop tokens. ``counts`` counts turns: by how their masks were
    found (``MASK_SOURCES``), cut in token space (``SPLIT``), and by what the template did to them.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        generation_config: Any = None,
        variables: Mapping[str, Any] | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.encoder = Encoder(tokenizer)
        configured = stop_ids(tokenizer, generation_config)
        self.template = Template(self.encoder, configured, variables or {})
        self.counts = self.template.counts
        self._required = False

    @property
    def stop_ids(self) -> frozenset[int]:
        """Ids that end a response: tokenizer, generation config and template together."""
        if not self.template.source:
            return self.template.configured_stops
        return self.template.stop_ids

    def require_template(self) -> None:
        """Raise a ``DataError`` when conversations cannot be rendered with an exact mask."""
        if not self._required:
            self.template.require()
            self._required = True

    def render(
        self, messages: Sequence[Message], tools: Sequence[Any] | None = None
    ) -> list[Rendered]:
        """All assistant turns of a conversation trained; several results where turns interfere."""
        steps = self.conversation_steps(messages, tools)
        return drive(steps, self.encoder.encode)

    def prompt_ids(self, prompt: Text, tools: Sequence[Any] | None = None) -> list[int]:
        """Ids to sample from: what training sees as the trunk of the same prompt."""
        return drive(self.prompt_steps(prompt, tools), self.encoder.encode)

    def prompt_steps(self, prompt: Text, tools: Sequence[Any] | None) -> Steps[list[int]]:
        """As ``prompt_ids``, in steps."""
        if isinstance(prompt, str):
            (encoding,) = yield [prompt]
            return self.encoder.with_prefix(encoding.ids)
        (encoding,) = yield [self.template.text(prompt, tools, True)]
        return encoding.ids

    def conversation_steps(
        self, messages: Sequence[Message], tools: Sequence[Any] | None
    ) -> Steps[list[Rendered]]:
        """As ``render``, in steps."""
        found = self.conversations(messages, tools)
        if len(found) == 1 and len(found[0].spans) > 1:
            rendered = yield from self._together(found[0])
            if rendered is not None:
                self.counts[found[0].source] += len(found[0].spans)
                return [rendered]
            found = self.conversations(messages, tools, apart=True)
        results: list[Rendered] = []
        for conversation in found:
            results.append((yield from self.completion_steps(conversation)))
        return results

    def completion_steps(self, conversation: Conversation) -> Steps[Rendered]:
        """Ids of one conversation in one piece, cut in token space where a prompt needs that."""
        self.counts[conversation.source] += len(conversation.spans)
        if len(conversation.spans) == 1:
            return (yield from self._single(conversation))
        rendered = yield from self._together(conversation)
        return (yield from self._in_parts(conversation)) if rendered is None else rendered

    def whole_steps(
        self, messages: Sequence[Message], tools: Sequence[Any] | None
    ) -> Steps[list[int]]:
        """Ids of the whole rendered conversation, without a mask."""
        (encoding,) = yield [self.template.text(messages, tools, False)]
        return encoding.ids

    def completion(
        self, prompt: Sequence[Message], response: Sequence[Message], tools: Sequence[Any] | None
    ) -> Conversation:
        """The text of ``prompt`` with ``response``, of which the assistant's turns are trained."""
        found = self.conversations([*prompt, *response], tools, first=len(prompt))
        if len(found) > 1:
            raise RowProblem(_INSEPARABLE)
        return found[0]

    def conversations(
        self,
        messages: Sequence[Message],
        tools: Sequence[Any] | None,
        *,
        first: int = 0,
        apart: bool = False,
    ) -> list[Conversation]:
        """Text and trained spans of the assistant turns from message ``first`` on.

        One conversation if each turn, with all that the model saw before it, is a prefix of the
        last one's; else, or with ``apart``, one for each turn.
        """
        # A conversation that opens with the assistant: there is no prompt that asks for that turn.
        wanted = range(max(first, 1), len(messages))
        indices = [i for i in wanted if messages[i].get("role") == "assistant"]
        if not indices:
            raise RowProblem("no assistant turn with a message before it")
        if any(is_empty(messages[i]) for i in indices):
            raise RowProblem("an assistant message is empty")
        turns = [self.template.turn(messages, i, tools) for i in indices]
        last = turns[-1]
        together = not apart and all(last.text.startswith(t.text[: t.end]) for t in turns)
        source = "markers" if all(t.marked for t in turns) else "incremental"
        if together:
            spans = tuple(Span(t.start, t.end) for t in turns)
            return [Conversation(last.text[: last.end], spans, source)]
        return [Conversation(t.text[: t.end], (Span(t.start, t.end),), "per turn") for t in turns]

    def _single(self, conversation: Conversation) -> Steps[Rendered]:
        """Ids of a conversation whose only trained span is its end.

        The prompt is encoded alone, and the response behind the prompt's last header alone: nothing
        is encoded twice when several responses have one prompt.
        """
        text, ((start, _),), _ = conversation
        origin = self._header_start(text, start)
        prompt, header, tail = yield [text[:start], text[origin:start], text[origin:]]
        length = len(header.ids)
        fits = prompt.ids[len(prompt.ids) - length :] == header.ids == tail.ids[:length]
        if not fits:
            return (yield from self._in_parts(conversation))
        response = tail.ids[length:]
        trained = [False] * len(prompt.ids) + [True] * len(response)
        return Rendered(prompt.ids + response, trained, len(prompt.ids))

    def _together(self, conversation: Conversation) -> Steps[Rendered | None]:
        """Ids of several turns at once, or None if what precedes a turn has other ids alone."""
        text, spans, _ = conversation
        origins = [self._header_start(text, span.start) for span in spans]
        headers = [text[origin : span.start] for origin, span in zip(origins, spans, strict=True)]
        whole, *expected = yield [text, *headers]
        offsets = Offsets(whole)
        trained = [False] * len(whole.ids)
        first: int | None = None
        for origin, span, header in zip(origins, spans, expected, strict=True):
            begin = offsets.token_from(origin) if origin else 0
            start = (begin or 0) + len(header.ids)
            if begin is None or whole.ids[begin:start] != header.ids:
                return None
            end = offsets.tokens_before(span.end)
            trained[start:end] = [True] * (end - start)
            first = start if first is None else first
        assert first is not None
        return Rendered(whole.ids, trained, first)

    def _header_start(self, text: str, position: int) -> int:
        """Where the last control token before ``position`` begins, 0 without one nearby.

        Control tokens cut a text before anything else does: from one on, the ids are the same
        whatever stands before it.
        """
        origin = 0
        if self.encoder.special_pattern is not None:
            window = max(0, position - 256)
            for match in self.encoder.special_pattern.finditer(text, window, position):
                origin = match.start()
        return origin

    def _in_parts(self, conversation: Conversation) -> Steps[Rendered]:
        """Cut before each trained span and encode the parts apart: the cut is in token space."""
        self.counts[SPLIT] += len(conversation.spans)
        text, spans, _ = conversation
        cuts = [span.start for span in spans] + [len(text)]
        parts = [text[a:b] for a, b in itertools.pairwise(cuts)]
        (prompt,) = yield [text[: cuts[0]]]
        ids, trained = list(prompt.ids), [False] * len(prompt.ids)
        heads = [part[: span.end - span.start] for part, span in zip(parts, spans, strict=True)]
        rests = [part[len(head) :] for part, head in zip(parts, heads, strict=True)]
        pieces = yield from self.encoder.continuations(heads + rests)
        for head, rest in zip(pieces[: len(heads)], pieces[len(heads) :], strict=True):
            ids += head + rest
            trained += [True] * len(head) + [False] * len(rest)
        return Rendered(ids, trained, len(prompt.ids))


def is_empty(message: Message) -> bool:
    """Whether an assistant message says nothing: no text, no reasoning, no tool call."""
    content = message.get("content")
    if isinstance(content, str):
        said = bool(content.strip())
    else:
        parts: list[Any] = content or []
        said = any(
            isinstance(p, dict) and str(cast("dict[str, Any]", p).get("text") or "").strip()
            for p in parts
        )
    return not (said or message.get("tool_calls"))
