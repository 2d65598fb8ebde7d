"""One row of a data file as a typed value: what every format is turned into.

A row is read by ``readers``, recognised and checked by ``formats``, and is from then on one of
the classes below; the tokeniser turns it into token trees. Nothing here knows about files,
tokenizers or torch.

A text is a plain string, or a list of messages as chat templates take them:
``{"role": "user", "content": "..."}`` with roles system, user, assistant, tool and developer.

    kind          class               columns
    text          TextExample         text
    labelled      LabelledExample     text, label
    chat          ChatExample         messages
    prompt        PromptExample       prompt
    completion    CompletionExample   prompt, completion
    unpaired      CompletionExample   prompt, completion, label
    preference    PreferenceExample   [prompt,] chosen, rejected
    ranked        RankedExample       prompt, responses, ranks and/or scores
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, get_args

from trimtab.data.trees import Origin

Message: TypeAlias = dict[str, Any]
Text: TypeAlias = str | list[Message]
Kind = Literal[
    "text", "labelled", "chat", "prompt", "completion", "unpaired", "preference", "ranked"
]

KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True, kw_only=True)
class Example:
    """What every row has: where it came from, its weight, and the columns no kind asks for.

    ``extras`` holds the other columns by name (``id``, ``source``, ``solution``, ...) and goes to
    reward functions as it is. ``tools`` is a list of JSON schemas for the chat template, or None.
    ``weight`` is finite and at least 0; it multiplies the row's losses.
    """

    origin: Origin
    extras: dict[str, Any] = field(default_factory=dict[str, Any])
    weight: float = 1.0
    tools: list[dict[str, Any]] | None = None


@dataclass(frozen=True, kw_only=True)
class TextExample(Example):
    """A document; ``text`` is not blank."""

    text: str


@dataclass(frozen=True, kw_only=True)
class LabelledExample(Example):
    """A text and the class that it belongs to: a whole number, or a name."""

    text: str
    label: int | str


@dataclass(frozen=True, kw_only=True)
class ChatExample(Example):
    """A conversation with at least one assistant message."""

    messages: list[Message]


@dataclass(frozen=True, kw_only=True)
class PromptExample(Example):
    """A prompt to be continued by sampling."""

    prompt: Text


@dataclass(frozen=True, kw_only=True)
class CompletionExample(Example):
    """A prompt and one continuation, both plain or both messages.

    ``label`` says whether the continuation is wanted (KTO's unpaired type), None when the row
    makes no such statement.
    """

    prompt: Text
    completion: Text
    label: bool | None = None


@dataclass(frozen=True, kw_only=True)
class PreferenceExample(Example):
    """``chosen`` was preferred to ``rejected``; all three plain, or all three messages.

    ``chosen`` and ``rejected`` hold the continuations alone, without the prompt. The loader always
    makes the prompt explicit (``implicit.py``); ``prompt=None`` is left for rows made by hand
    whose prompt is the common prefix of the two in token space. ``margin`` (0 when the row has
    none) is how much better, in the units of the data.
    """

    prompt: Text | None
    chosen: Text
    rejected: Text
    margin: float = 0.0


@dataclass(frozen=True, kw_only=True)
class RankedExample(Example):
    """One prompt, K >= 2 continuations, and their order: ranks (1 = best, ties allowed) or scores.

    Both have one finite number per response, and not all are equal. Where a row has both, the
    ranks decide who won and the scores say by how much.
    """

    prompt: Text
    responses: list[Text]
    ranks: list[float] | None = None
    scores: list[float] | None = None


def kind_of(example: Example) -> Kind:
    """The kind of ``example``, as in the table above."""
    match example:
        case TextExample():
            return "text"
        case LabelledExample():
            return "labelled"
        case ChatExample():
            return "chat"
        case PromptExample():
            return "prompt"
        case CompletionExample(label=None):
            return "completion"
        case CompletionExample():
            return "unpaired"
        case PreferenceExample():
            return "preference"
        case RankedExample():
            return "ranked"
        case _:
            raise AssertionError(f"no kind for {type(example).__name__}")
