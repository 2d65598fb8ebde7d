"""Rows of all kinds as one shape, and the keys by which rows are compared.

A plain prompt is one user turn, a plain response one assistant turn, so that a row is the same
whether it is written as text or as messages.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from hashlib import blake2b
from typing import NamedTuple, TypeAlias

from trimtab.data.rows import (
    ChatExample,
    CompletionExample,
    Example,
    LabelledExample,
    Message,
    PreferenceExample,
    PromptExample,
    RankedExample,
    Text,
    TextExample,
)
from trimtab.data.tokenise_trees import ranks_of


class Turn(NamedTuple):
    """Who says what; ``rest`` is the message's other keys (tool calls, reasoning) as JSON."""

    role: str
    content: str
    rest: str = ""


Turns: TypeAlias = tuple[Turn, ...]


class Shape(NamedTuple):
    """A row: its prompt (empty: none), its responses, how they rank, how they are labelled.

    ranks     of the responses, 1 = best; empty where nothing is compared
    label     of the row as text; None: it has none
    messages  whether the row has messages, which a chat template renders
    document  whether it is text alone, which no template ever sees
    tools     what the template shows of tools, as JSON; part of the prompt
    beside    scores, and of a prompt the columns that rewards read, as JSON
    """

    prompt: Turns
    responses: tuple[Turns, ...]
    ranks: tuple[float, ...] = ()
    label: str | None = None
    messages: bool = False
    document: bool = False
    tools: str = ""
    beside: str = ""

    @property
    def turns(self) -> Iterator[Turn]:
        """All turns of the row."""
        yield from self.prompt
        for response in self.responses:
            yield from response


class Seen(NamedTuple):
    """A row on its way through the checks, with its number (``ledger.Rows``)."""

    number: int
    shape: Shape
    example: Example


class Keys(NamedTuple):
    """Digests of 64 bits, unequal for different texts (among a million rows in all likelihood).

    row        everything that is trained: prompt, responses, ranks, scores, label
    loose      the same but for spaces and case
    leak       prompt and responses, in any order, without ranks, but for spaces and case
    prompt     the prompt but for spaces and case; 0 without one
    asked      prompt as it is
    answered   prompt and responses as they are, without the label
    responses  each response as it is
    """

    row: int
    loose: int
    leak: int
    prompt: int
    asked: int
    answered: int
    responses: tuple[int, ...]


def shape_of(example: Example) -> Shape:
    """``example`` as a shape; a text with a label is a prompt, its answer is the label."""
    beside: object = None
    if isinstance(example, PromptExample):
        beside = example.extras
    elif isinstance(example, RankedExample):
        beside = example.scores
    return _text_of(example)._replace(tools=_as_json(example.tools), beside=_as_json(beside))


def _as_json(value: object) -> str:
    return json.dumps(value, sort_keys=True, default=str) if value else ""


def _text_of(example: Example) -> Shape:
    match example:
        case TextExample():
            return Shape((), (_turns(example.text, "assistant"),), document=True)
        case LabelledExample():
            return Shape(_turns(example.text, "user"), (), label=str(example.label), document=True)
        case ChatExample():
            roles = [message["role"] for message in example.messages]
            turns = _turns(example.messages, "")
            first = roles.index("assistant")  # the loader has seen to it that there is one
            return Shape(turns[:first], (turns[first:],), messages=True)
        case PromptExample():
            messages = not isinstance(example.prompt, str)
            return Shape(_turns(example.prompt, "user"), (), messages=messages)
        case CompletionExample():
            label = None if example.label is None else str(example.label)
            return _answered(example.prompt, [example.completion], label=label)
        case PreferenceExample():
            return _answered(example.prompt or "", [example.chosen, example.rejected], (1.0, 2.0))
        case RankedExample():
            ranks = tuple(example.ranks) if example.ranks else ranks_of(example.scores or ())
            return _answered(example.prompt, example.responses, ranks)
        case _:
            raise AssertionError(f"no shape for {type(example).__name__}")


def _answered(
    prompt: Text,
    responses: Sequence[Text],
    ranks: tuple[float, ...] = (),
    label: str | None = None,
) -> Shape:
    answers = tuple(_turns(response, "assistant") for response in responses)
    return Shape(_turns(prompt, "user"), answers, ranks, label, not isinstance(prompt, str))


def _turns(text: Text, role: str) -> Turns:
    if isinstance(text, str):
        return (Turn(role, text),) if text else ()
    return tuple(Turn(m["role"], str(m.get("content") or ""), _rest(m)) for m in text)


def _rest(message: Message) -> str:
    return _as_json({k: v for k, v in message.items() if k not in ("role", "content")})


def keys_of(shape: Shape) -> Keys:
    """The keys of a row."""
    prompt = _digest_prompt(shape)
    responses = tuple(_digest_turns(response) for response in shape.responses)
    loose_prompt = _digest_prompt(shape, loosened)
    loose_responses = tuple(_digest_turns(response, loosened) for response in shape.responses)
    return Keys(
        row=_digest_row(shape, prompt, responses),
        loose=_digest_row(shape, loose_prompt, loose_responses),
        leak=_digest([loose_prompt, *sorted(set(loose_responses)), shape.label or ""]),
        prompt=loose_prompt if shape.prompt else 0,
        asked=prompt,
        answered=_digest([prompt, *responses]),
        responses=responses,
    )


def loosened(text: str) -> str:
    """``text`` without what a reformatting changes: case, runs of spaces, forms of one letter."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    return " ".join(text.casefold().split())


def _digest_row(shape: Shape, prompt: int, responses: Sequence[int]) -> int:
    ranks = shape.ranks or (0.0,) * len(responses)
    # In the order of the responses' digests: how a ranking is written down is not what it says.
    ordered = sorted(zip(responses, ranks_in_order(ranks), strict=True))
    parts = (part for pair in ordered for part in pair)
    return _digest([prompt, *parts, shape.label or "", shape.beside])


def ranks_in_order(ranks: Sequence[float]) -> list[int]:
    """Ranks as 0, 1, 2, ... without gaps: 1, 2 and 1, 3 say the same."""
    places = {rank: place for place, rank in enumerate(sorted(set(ranks)))}
    return [places[rank] for rank in ranks]


def _same(text: str) -> str:
    return text


def _digest_prompt(shape: Shape, text: Callable[[str], str] = _same) -> int:
    turns = _digest_turns(shape.prompt, text)
    return _digest([turns, shape.tools]) if shape.tools else turns


def _digest_turns(turns: Turns, text: Callable[[str], str] = _same) -> int:
    return _digest(part for turn in turns for part in (turn.role, text(turn.content), turn.rest))


def _digest(parts: Iterable[str | int]) -> int:
    found = blake2b(digest_size=8)
    for part in parts:
        data = str(part).encode("utf-8", "surrogatepass")
        found.update(len(data).to_bytes(8, "little"))  # so that no two lists of parts look alike
        found.update(data)
    return int.from_bytes(found.digest(), "little") or 1
