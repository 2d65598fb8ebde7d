"""A row with our columns to an example of a given kind, every field checked.

Where one text of a row is plain and another is a list of messages, the plain one is wrapped: a
prompt as a user message, a continuation as an assistant message.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypedDict, cast

from trimtab.data import fields, implicit
from trimtab.data.quarantine import BadRow
from trimtab.data.rows import (
    ChatExample,
    CompletionExample,
    Example,
    Kind,
    LabelledExample,
    Message,
    PreferenceExample,
    PromptExample,
    RankedExample,
    Text,
    TextExample,
)
from trimtab.data.trees import Origin

Row = dict[str, Any]

# The columns a kind reads; all others of a row become extras.
FIELDS: dict[Kind, tuple[str, ...]] = {
    "text": ("text",),
    "labelled": ("text", "label"),
    "chat": ("messages",),
    "prompt": ("prompt",),
    "completion": ("prompt", "completion"),
    "unpaired": ("prompt", "completion", "label"),
    "preference": ("prompt", "chosen", "rejected", "margin"),
    "ranked": ("prompt", "responses", "ranks", "scores"),
}


# Most specific first: the first whose columns are there is what the rows are.
REQUIRED: tuple[tuple[Kind, tuple[str, ...]], ...] = (
    ("ranked", ("prompt", "responses", "ranks")),
    ("ranked", ("prompt", "responses", "scores")),
    ("preference", ("chosen", "rejected")),
    ("unpaired", ("prompt", "completion", "label")),
    ("completion", ("prompt", "completion")),
    ("chat", ("messages",)),
    ("labelled", ("text", "label")),
    ("text", ("text",)),
    ("prompt", ("prompt",)),
)


def needed(kind: Kind) -> tuple[str, ...]:
    """The columns that rows of ``kind`` must have (for ranked rows, scores do instead of ranks)."""
    return next(needs for name, needs in REQUIRED if name == kind)


class Common(TypedDict):
    """The fields that every example has."""

    origin: Origin
    extras: dict[str, Any]
    weight: float
    tools: list[dict[str, Any]] | None


def build(row: Row, kind: Kind, origin: Origin) -> Example:
    """The row as an example of ``kind``.

    Raises:
        BadRow: names the field that cannot be used, and why.
    """
    used = {*FIELDS[kind], "weight", "tools"}
    common = Common(
        origin=origin,
        extras={name: value for name, value in row.items() if name not in used},
        weight=fields.weight(row),
        tools=fields.tools(row),
    )
    return _BUILDERS[kind](row, common)


def unpaired_of(pair: PreferenceExample) -> tuple[CompletionExample, CompletionExample]:
    """The two statements that a pair makes: chosen is wanted, rejected is not (for KTO)."""
    assert pair.prompt is not None, "a loaded pair has its prompt"
    return tuple(
        CompletionExample(
            origin=pair.origin._replace(part=part),
            extras=pair.extras,
            weight=pair.weight,
            tools=pair.tools,
            prompt=pair.prompt,
            completion=completion,
            label=label,
        )
        for part, (completion, label) in enumerate([(pair.chosen, True), (pair.rejected, False)])
    )  # pyright: ignore[reportReturnType] # the generator yields two


def _as_messages(value: Text, role: str) -> list[Message]:
    return [{"role": role, "content": value}] if isinstance(value, str) else value


def _alike(prompt: Text, replies: list[Text]) -> tuple[Text, list[Text]]:
    """All plain, or all messages."""
    if all(isinstance(part, str) for part in (prompt, *replies)):
        return prompt, replies
    turns: list[Text] = [_as_messages(reply, "assistant") for reply in replies]
    return _as_messages(prompt, "user"), turns


def _text(row: Row, common: Common) -> Example:
    return TextExample(**common, text=fields.plain(fields.required(row, "text"), "text"))


def _labelled(row: Row, common: Common) -> Example:
    text = fields.plain(fields.required(row, "text"), "text")
    label = fields.label(fields.required(row, "label"), "label")
    return LabelledExample(**common, text=text, label=label)


def _chat(row: Row, common: Common) -> Example:
    messages = fields.conversation(fields.required(row, "messages"), "messages")
    fields.needs_assistant(messages, "messages")
    return ChatExample(**common, messages=messages)


def _prompt_of(row: Row) -> Text:
    return fields.text(fields.required(row, "prompt"), "prompt")


def _prompt(row: Row, common: Common) -> Example:
    return PromptExample(**common, prompt=_prompt_of(row))


def _completion(row: Row, common: Common, label: bool | None = None) -> CompletionExample:
    completion = fields.reply(fields.required(row, "completion"), "completion")
    prompt, (completion,) = _alike(_prompt_of(row), [completion])
    return CompletionExample(**common, prompt=prompt, completion=completion, label=label)


def _unpaired(row: Row, common: Common) -> Example:
    return _completion(row, common, fields.flag(fields.required(row, "label"), "label"))


def _preference(row: Row, common: Common) -> Example:
    margin = fields.margin(row)
    given = [fields.required(row, name) for name in ("chosen", "rejected")]
    if row.get("prompt") is None:
        prompt, chosen, rejected = _implicit(*given)
    else:
        replies = [
            fields.reply(value, name)
            for value, name in zip(given, ("chosen", "rejected"), strict=True)
        ]
        prompt, (chosen, rejected) = _alike(_prompt_of(row), replies)
        _differ(chosen, rejected)
    return PreferenceExample(
        **common, prompt=prompt, chosen=chosen, rejected=rejected, margin=margin
    )


def _implicit(given_chosen: Any, given_rejected: Any) -> tuple[Text, Text, Text]:
    chosen = fields.text(given_chosen, "chosen")
    rejected = fields.text(given_rejected, "rejected")
    _differ(chosen, rejected)
    if isinstance(chosen, str) and isinstance(rejected, str):
        return implicit.split_text(chosen, rejected)
    if isinstance(chosen, str) or isinstance(rejected, str):
        raise BadRow("prompt", "missing", "and chosen and rejected are not of one form")
    prompt, chosen, rejected = implicit.split_messages(chosen, rejected)
    return prompt, chosen, rejected


def _differ(chosen: Text, rejected: Text) -> None:
    if chosen == rejected:
        raise BadRow("", "chosen equals rejected")


def _ranked(row: Row, common: Common) -> Example:
    given = fields.required(row, "responses")
    if not isinstance(given, list):
        raise BadRow("responses", "not a list", f"found {fields.found(given)}")
    items = cast("list[Any]", given)
    if len(items) < 2:
        raise BadRow("responses", "fewer than two", f"found {len(items)}")
    replies = [fields.reply(item, f"responses[{index}]") for index, item in enumerate(items)]
    prompt, replies = _alike(_prompt_of(row), replies)
    if all(reply == replies[0] for reply in replies):
        raise BadRow("responses", "all are the same")
    order: dict[str, list[float] | None] = {"ranks": None, "scores": None}
    for name in order:
        if row.get(name) is not None:
            order[name] = fields.numbers(row[name], name, len(replies))
    decisive = "scores" if order["ranks"] is None else "ranks"
    values = order[decisive]
    if values is None:
        raise BadRow("ranks", "missing", "and there are no scores")
    if len(set(values)) == 1:
        raise BadRow(decisive, "all are tied", "so there is nothing to compare")
    return RankedExample(
        **common, prompt=prompt, responses=replies, ranks=order["ranks"], scores=order["scores"]
    )


_BUILDERS: dict[Kind, Callable[[Row, Common], Example]] = {
    "text": _text,
    "labelled": _labelled,
    "chat": _chat,
    "prompt": _prompt,
    "completion": _completion,
    "unpaired": _unpaired,
    "preference": _preference,
    "ranked": _ranked,
}
