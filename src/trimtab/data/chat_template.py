"""A tokenizer's chat template as text: where an assistant turn begins, and where it stops.

One turn is found by rendering the conversation twice: up to the turn with the generation prompt
(what the model sees when it is asked), and with the turn (what it should have said). What the
second has beyond the first, through the stop token, is what is trained: nothing is searched for in
the text, and what the assistant wrote may look like anything, control tokens included.
"""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

from jinja2 import TemplateSyntaxError

from trimtab.data.chat_tokens import Encoder, name_of, shared_length
from trimtab.data.rows import Message
from trimtab.errors import DataError

_GENERATION = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")
_CLOCK = re.compile(r"\bstrftime_now\b")
# A reasoning block with nothing in it, or the rest of one that the generation prompt opened.
_EMPTY_REASONING = re.compile(
    r"\s*(?:<think>)?\s*</think>\s*|\s*<\|channel>thought\s*<channel\|>\s*|\[THINK\]\s*\[/THINK\]\s*"
)
_REASONING_FIELDS = ("reasoning_content", "reasoning", "thinking")
# Template variables that turn reasoning off; the generation prompt then has the empty block.
_REASONING_SWITCHES = ("enable_thinking", "thinking")
_SENTINEL = "Zq7kX"
# What ``Template.counts`` counts, beside the sources of masks: turns rendered with reasoning
# switched off, and turns whose reasoning the template leaves out.
REASONING_OFF, REASONING_LOST = "reasoning off", "reasoning lost"
_RENDERED_TWICE = 16
_NO_MASK = "the chat template's generation prompt is not how it renders an answer"


class RowProblem(Exception):
    """A row that cannot become a tree: ``reason`` to count by, ``detail`` of this row."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail


class Turn(NamedTuple):
    """One assistant turn: ``text[start:end]`` is trained, ``text[:start]`` is what precedes it.

    ``text`` is the conversation rendered up to and with the turn. ``marked``: the start is that of
    a ``{% generation %}`` block.
    """

    text: str
    start: int
    end: int
    marked: bool


class _Tail(NamedTuple):
    """What the template writes behind the last turn's content; ``stop`` ends the stop token."""

    text: str
    stop: int


class Template:
    """The chat template of a tokenizer and what was found out about it by probing."""

    def __init__(
        self, encoder: Encoder, configured_stops: frozenset[int], variables: Mapping[str, Any]
    ) -> None:
        self.encoder = encoder
        self.tokenizer = encoder.tokenizer
        self.variables = dict(variables)
        self.configured_stops = configured_stops
        self.counts: Counter[str] = Counter()
        self._last: tuple[tuple[Any, ...], str] | None = None
        self._agreed = 0

    @cached_property
    def source(self) -> str:
        """All of the template's text, or "" when the tokenizer has none."""
        found: str | dict[str, str] | None = self.tokenizer.chat_template
        return "\n".join(found.values()) if isinstance(found, dict) else found or ""

    @cached_property
    def has_markers(self) -> bool:
        """Whether the template has ``{% generation %}`` blocks."""
        return bool(_GENERATION.search(self.source))

    @cached_property
    def switches(self) -> list[str]:
        """Template variables that turn reasoning off and are not set by the user."""
        return [
            switch
            for switch in _REASONING_SWITCHES
            if switch not in self.variables
            and re.search(rf"(?<![.\w'\"]){switch}(?![\w'\"])", self.source)
        ]

    @property
    def reads_the_clock(self) -> bool:
        """Whether renders depend on today's date."""
        return bool(_CLOCK.search(self.source)) and "date_string" not in self.variables

    def text(
        self,
        messages: Sequence[Message],
        tools: Sequence[Any] | None,
        generation_prompt: bool,
        extra: Mapping[str, Any] | None = None,
    ) -> str:
        """Render; a template's complaint about the conversation is a ``RowProblem``.

        The last prompt is kept: all responses of a row ask for the same one in turn.
        """
        shaped = _in_parts(messages) if self.content_parts else list(messages)
        if not generation_prompt:
            return self._render(shaped, tools, False, extra)
        asked = (shaped, tools, extra)
        if self._last is None or self._last[0] != asked:
            self._last = asked, self._render(shaped, tools, True, extra)
        return self._last[1]

    def _render(
        self,
        messages: list[Message],
        tools: Sequence[Any] | None,
        generation_prompt: bool,
        extra: Mapping[str, Any] | None = None,
    ) -> str:
        with self._complaints():
            rendered = self.tokenizer.apply_chat_template(
                messages,
                tools=list(tools) if tools else None,
                tokenize=False,
                add_generation_prompt=generation_prompt,
                **{**self.variables, **(extra or {})},
            )
        assert isinstance(rendered, str)
        return rendered

    @contextlib.contextmanager
    def _complaints(self) -> Generator[None]:
        """What a template raises, as a problem of the row, or of the template itself."""
        try:
            yield
        except TemplateSyntaxError as error:
            raise DataError(
                f"tokenizer {name_of(self.tokenizer)}: line {error.lineno} of its chat template is "
                f"no valid Jinja: {_one_line(error)}; mend chat_template.jinja in its folder"
            ) from error
        except Exception as error:  # a template is a program: it may raise anything
            reason = "the chat template refuses the conversation"
            raise RowProblem(reason, _one_line(error)) from error

    def marked(
        self,
        messages: Sequence[Message],
        tools: Sequence[Any] | None,
        extra: Mapping[str, Any] | None = None,
    ) -> tuple[str, list[tuple[int, int]]]:
        """Render without generation prompt; also the character ranges of generation blocks.

        The library gives the text along with the ranges. That it is the text of an ordinary
        rendering is checked for the first turns only: rendering is what takes the time here.
        """
        if not self.has_markers:
            return self.text(messages, tools, False, extra), []
        from transformers.utils import chat_template_utils

        library: Any = chat_template_utils
        shaped = _in_parts(messages) if self.content_parts else messages
        bare = [{k: v for k, v in m.items() if v is not None} for m in shaped]
        # apply_chat_template gives these ranges only as tokens, and loses those that begin inside
        # a special token that swallows the space behind it.
        with self._complaints():
            (text,), (ranges,) = library.render_jinja_template(
                conversations=[bare],
                tools=list(tools) if tools else None,
                chat_template=self.tokenizer.get_chat_template(
                    None, list(tools) if tools else None
                ),
                return_assistant_tokens_mask=True,
                add_generation_prompt=False,
                **{**self.tokenizer.special_tokens_map, **self.variables, **(extra or {})},
            )
        if self._agreed < _RENDERED_TWICE:
            plain = self.text(messages, tools, False, extra)
            if plain != text:
                return plain, []
            self._agreed += 1
        # Markers inside macros are counted from the macro's start: useless, and then not used.
        return text, [(a, b) for a, b in ranges if b > a]

    def turn(self, messages: Sequence[Message], index: int, tools: Sequence[Any] | None) -> Turn:
        """Find what is trained of ``messages[index]``, an assistant message with one before it.

        A turn without reasoning is rendered with reasoning switched off, where the template has
        such a switch: the empty reasoning block then belongs to the generation prompt.
        """
        message = messages[index]
        reasoned = has_reasoning(message)
        variants: list[dict[str, Any]] = [{name: False} for name in self.switches if not reasoned]
        text, start, marked = "", -1, False
        for extra in (*variants, dict[str, Any]()):
            text, blocks = self.marked(messages[: index + 1], tools, extra)
            prompt = self.text(messages[:index], tools, True, extra)
            start, marked = self._start(prompt, text, blocks)
            if start >= 0:
                self.counts[REASONING_OFF] += bool(extra)
                break
        if start < 0:
            raise RowProblem(_NO_MASK)
        empty = _EMPTY_REASONING.match(text, start)
        own = str(message.get("content")).strip()
        if empty is not None and not own.startswith(empty.group().strip()):
            start = empty.end()
        end = self._stop_end(text, start)
        self._check_rendered(message, text[start:end])
        return Turn(text, start, end, marked)

    def _start(self, prompt: str, text: str, blocks: Sequence[tuple[int, int]]) -> tuple[int, bool]:
        """Where the last turn of ``text`` starts (-1: unknown), and whether a marker says so."""
        asked = text.startswith(prompt)
        # Else the generation prompt opens what the turn does not have (DeepSeek-R1's <think>): the
        # template's author says where the turn starts, after the header that both have.
        begin = len(prompt) if asked else self._common_header(prompt, text)
        own = next((first for first, last in blocks if last > begin), None)
        if own is not None:
            return max(begin, own), True
        return (begin if asked else -1), False

    @cached_property
    def content_parts(self) -> bool:
        """Whether the template wants content as a list of parts; with a string it prints none."""
        probe = [_user("x"), _assistant(_SENTINEL)]
        return not self._renders(probe) and self._renders(_in_parts(probe))

    @cached_property
    def tail(self) -> _Tail | None:
        """What follows the content of a conversation's last turn, or None where probing fails."""
        try:
            last = self.text([_user("x"), _assistant(_SENTINEL)], None, False)
        except RowProblem:
            return None
        try:
            inner = [_user("x"), _assistant(_SENTINEL), _user("y")]
            middle = self.text(inner, None, False)
        except RowProblem:
            middle = last
        if _SENTINEL not in last or _SENTINEL not in middle:
            return None
        return self._find_stop(last.rpartition(_SENTINEL)[2], middle.rpartition(_SENTINEL)[2])

    @cached_property
    def terminator(self) -> int | None:
        """Id of the token that ends an assistant turn, or None when there is no such token."""
        if self.tail is None or not self.tail.stop:
            return None
        return self.encoder.ids(self.tail.text[: self.tail.stop])[-1]

    @cached_property
    def stop_ids(self) -> frozenset[int]:
        """Every id that ends a turn: configured ones and the template's own."""
        if self.terminator is None:
            return self.configured_stops
        return self.configured_stops | {self.terminator}

    def require(self) -> None:
        """Raise a ``DataError`` with the remedy when no conversation can be rendered and masked."""
        name = name_of(self.tokenizer)
        if not self.source:
            raise DataError(
                f"tokenizer {name}: it has no chat template, but the rows are conversations; put a "
                "chat_template.jinja into its folder, take an instruct model's tokenizer, or give "
                "the rows as plain text"
            )
        try:
            self.turn([_user("x"), _assistant(_SENTINEL)], 1, None)
        except RowProblem as problem:
            if problem.detail:  # it refuses this conversation; it may like the rows' own
                return
            prompt = self.text([_user("x")], None, True)[-30:]
            answer = self.text([_user("x"), _assistant(_SENTINEL)], None, False)[-45:]
            raise DataError(
                f"tokenizer {name}: {problem.reason}, so the trained tokens cannot be found: the "
                f"prompt ends in {prompt!r}, the answer {_SENTINEL} is rendered as {answer!r}; put "
                "a template with {% generation %} markers into chat_template.jinja in its folder"
            ) from problem

    def _renders(self, messages: list[Message]) -> bool:
        try:
            return _SENTINEL in self._render(messages, None, False)
        except RowProblem:
            return False

    def _find_stop(self, last: str, middle: str) -> _Tail:
        """Which of the control tokens behind the content is the stop token.

        A configured one that ends inner turns too; else the last token that ends both inner and
        last turns; else the same among those of the last turn alone.
        """
        pattern = self.encoder.added_pattern
        tokens = [(m.end(), m.group()) for m in pattern.finditer(last)] if pattern else []
        tokens = [(end, token) for end, token in tokens if not token.isspace()]
        shared = shared_length(last, middle)
        for group in ([t for t in tokens if t[0] <= shared], tokens):
            known = [
                end
                for end, token in group
                if self.tokenizer.convert_tokens_to_ids(token) in self.configured_stops
            ]
            if known or group:
                return _Tail(last, known[0] if known else group[-1][0])
        return _Tail(last, 0)

    def _stop_end(self, text: str, start: int) -> int:
        """Where the stop token of a rendered last turn ends; its content, without one."""
        tail = self.tail
        if tail is not None and tail.text and text.endswith(tail.text):
            content_end = len(text) - len(tail.text)
            if content_end >= start:
                return content_end + tail.stop
        # Another tail than a plain answer's (tool calls): the control tokens at the very end.
        pattern = self.encoder.added_pattern
        ends: list[tuple[int, bool]] = []
        position = len(text)
        for match in reversed(list(pattern.finditer(text, start)) if pattern else []):
            if text[match.end() : position].strip():
                break
            known = self.tokenizer.convert_tokens_to_ids(match.group()) in self.stop_ids
            ends.append((match.end(), known))
            position = match.start()
        stops = [end for end, known in ends if known]
        if stops:
            return stops[-1]
        return ends[0][0] if ends else len(text)

    def _common_header(self, prompt: str, text: str) -> int:
        """Length of the shared start of both, through its last control token."""
        shared = text[: shared_length(prompt, text)]
        pattern = self.encoder.added_pattern
        return max((m.end() for m in pattern.finditer(shared)), default=0) if pattern else 0

    def _check_rendered(self, message: Message, response: str) -> None:
        """Templates leave out silently what they do not know; a target must not lose its text."""
        content = message.get("content")
        if isinstance(content, str) and _answer(content) not in response:
            raise RowProblem("the chat template does not print what the assistant wrote")
        for call in message.get("tool_calls") or ():
            name = str((call.get("function") or call).get("name", ""))
            if name not in response:
                raise RowProblem("the chat template does not print the tool call", name)
        reasoning = next((str(message[f]) for f in _REASONING_FIELDS if message.get(f)), "")
        self.counts[REASONING_LOST] += reasoning.strip() not in response


def has_reasoning(message: Message) -> bool:
    """Whether an assistant message brings reasoning, in a field of its own or in its content."""
    content = message.get("content")
    inside = isinstance(content, str) and "</think>" in content
    return inside or any(message.get(field) for field in _REASONING_FIELDS)


def _answer(content: str) -> str:
    return content.rsplit("</think>", 1)[-1].strip()


def _user(text: str) -> Message:
    return {"role": "user", "content": text}


def _assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}


def _in_parts(messages: Sequence[Message]) -> list[Message]:
    return [
        {**m, "content": [{"type": "text", "text": m["content"]}]}
        if isinstance(m.get("content"), str)
        else m
        for m in messages
    ]


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:197] + "..."
