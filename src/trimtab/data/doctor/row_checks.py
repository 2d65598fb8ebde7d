"""Checks of one row: each takes a row and gives what is wrong with it in a few words, or None."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from trimtab.data.doctor.shape import Shape, Turn, Turns, loosened
from trimtab.data.rows import Example, PreferenceExample, RankedExample

# Control tokens of the families whose templates are in use: ChatML and all <|...|>, DeepSeek (whose
# bars are full width), Llama 2, Mistral, Gemma; and Alpaca's headings. <s> and </s> are also HTML's
# strike-through, and count where a tokenizer would have put them.
_MARKER = re.compile(
    r"<\|[A-Za-z][A-Za-z0-9_]{0,40}\|>|<｜[^\s<>｜]{1,40}｜>|\[/?INST\]|<</?SYS>>"
    r"|<(?:start|end)_of_turn>|<(?:bos|eos|pad|unk)>|\A\s*<s>|</s>\s*\Z|</s>\s*<s>"
    r"|\[/?(?:SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS)\]|^### (?:Instruction|Response):",
    re.MULTILINE,
)
# What corpora of plain text have as words of their own (WikiText's <unk>).
_PLAIN = ("<unk>", "<pad>", "<bos>", "<eos>", "<s>", "</s>")
_SPEAKERS = r"(?:Human|Assistant|User)"
# At the start of a line behind an empty one, as HH's text has its turns.
_NEXT_TURN = re.compile(rf"\n\s*\n\s*({_SPEAKERS}):\s", re.IGNORECASE)
_OWN_LABEL = re.compile(rf"\A\s*({_SPEAKERS}:)\s", re.IGNORECASE)
_REPEATED = 20  # a prompt of fewer characters may well begin its answer: "Paris", "Yes or no?"
# Other columns that say how good chosen and rejected are, as published data sets call them.
_SCORES = (
    ("score_chosen", "score_rejected"),
    ("chosen_score", "rejected_score"),
    ("chosen_rating", "rejected_rating"),
    ("chosen-rating", "rejected-rating"),
)


def template_marker(shape: Shape, example: Example) -> str | None:
    """Another template's markers, or special tokens, within the text."""
    for turn in shape.turns:
        if "<" in turn.content or "[" in turn.content or "###" in turn.content:
            for found in _MARKER.finditer(turn.content):
                marker = found.group().strip()
                if not shape.document:
                    return f"{marker} in {_who(turn)}"
                if marker not in _PLAIN:
                    return f"{marker} in the text"
    return None


def speaker_label(shape: Shape, example: Example) -> str | None:
    """A turn within the assistant's. Prompts and documents may well be dialogues as text."""
    if shape.document:
        return None
    for turn in shape.turns:
        if turn.role != "assistant" or ":" not in turn.content:
            continue
        found = _NEXT_TURN.search(turn.content) or _OWN_LABEL.search(turn.content)
        if found:
            return f"{found.group().strip()} in {_who(turn)}"
    return None


def roles_out_of_order(shape: Shape, example: Example) -> str | None:
    """Turns that do not alternate between user and assistant (tools answer the assistant)."""
    if not shape.messages:
        return None
    for response in shape.responses or ((),):
        problem = _disorder(shape.prompt, response)
        if problem:
            return problem
    return None


def _disorder(prompt: Turns, response: Turns) -> str | None:
    roles = [turn.role for turn in (*prompt, *response)]
    while roles and roles[0] in ("system", "developer"):
        roles = roles[1:]
    if not roles or roles[0] != "user":
        return f"the first turn is the {roles[0] if roles else 'system'}'s"
    for before, role in itertools.pairwise(roles):
        if role in ("system", "developer"):
            return f"{role} behind {before}"
        if role == before and role != "tool":
            return f"{role} behind {role}"
        if (role == "tool" and before == "user") or (role == "user" and before == "tool"):
            return f"{role} behind {before}"
    if not response and roles[-1] == "assistant":
        return "the prompt ends with the assistant"
    return "the last turn is not the assistant's" if response and roles[-1] == "user" else None


def prompt_repeated(shape: Shape, example: Example) -> str | None:
    """Every response begins with the prompt's last turn."""
    if not shape.prompt or not shape.responses:
        return None
    asked = shape.prompt[-1].content.strip()
    if len(asked) < _REPEATED:
        return None
    answers = [response[0].content.lstrip() for response in shape.responses]
    if not all(answer.startswith(asked) and len(answer) > len(asked) for answer in answers):
        return None
    return f"{asked[:_REPEATED]!r} ..."


def nearly_identical_pair(shape: Shape, example: Example) -> str | None:
    """All responses of a comparison are one text but for spaces and case."""
    if not shape.ranks:
        return None
    texts = {tuple((t.role, loosened(t.content), t.rest) for t in r) for r in shape.responses}
    return None if len(texts) > 1 else f"{len(shape.responses)} responses"


def no_shared_prompt(shape: Shape, example: Example) -> str | None:
    """A pair of plain texts with no start in common, and so with an empty prompt."""
    if isinstance(example, PreferenceExample) and not shape.prompt:
        return "the prompt is empty"
    return None


def repeated_response(shape: Shape, example: Example) -> str | None:
    """Equal responses with equal ranks."""
    return _twice(shape, same_rank=True)


def outranks_itself(shape: Shape, example: Example) -> str | None:
    """Equal responses with different ranks."""
    return _twice(shape, same_rank=False)


def _twice(shape: Shape, *, same_rank: bool) -> str | None:
    first: dict[Turns, int] = {}
    for place, (response, rank) in enumerate(zip(shape.responses, shape.ranks, strict=False)):
        earlier = first.setdefault(response, place)
        if earlier < place and (shape.ranks[earlier] == rank) is same_rank:
            return f"responses {earlier + 1} and {place + 1}"
    return None


def order_against_scores(shape: Shape, example: Example) -> str | None:
    """Scores, ratings or a margin beside the order that say the opposite."""
    if isinstance(example, RankedExample) and example.ranks and example.scores:
        return _ranks_against_scores(example.ranks, example.scores)
    if not isinstance(example, PreferenceExample):
        return None
    if example.margin < 0:
        return f"margin {example.margin:g}"
    for chosen, rejected in _score_columns(example.extras):
        if chosen < rejected:
            return f"chosen scores {chosen:g}, rejected {rejected:g}"
    return None


def _ranks_against_scores(ranks: Sequence[float], scores: Sequence[float]) -> str | None:
    for a, b in itertools.combinations(range(len(ranks)), 2):
        # The better rank is the smaller one, the better score the larger.
        if (ranks[a] - ranks[b]) * (scores[a] - scores[b]) > 0:
            values = f"ranks {ranks[a]:g} and {ranks[b]:g}, scores {scores[a]:g} and {scores[b]:g}"
            return f"responses {a + 1} and {b + 1}: {values}"
    return None


def _score_columns(extras: Mapping[str, Any]) -> Iterator[tuple[float, float]]:
    for names in _SCORES:
        chosen, rejected = (extras.get(name) for name in names)
        if isinstance(chosen, (int, float)) and isinstance(rejected, (int, float)):
            yield chosen, rejected


def _who(turn: Turn) -> str:
    return f"a turn of the {turn.role}"


ROW_CHECKS: dict[str, Callable[[Shape, Example], str | None]] = {
    "no-shared-prompt": no_shared_prompt,
    "outranks-itself": outranks_itself,
    "order-against-scores": order_against_scores,
    "repeated-response": repeated_response,
    "nearly-identical-pair": nearly_identical_pair,
    "template-marker": template_marker,
    "speaker-label": speaker_label,
    "roles-out-of-order": roles_out_of_order,
    "prompt-repeated": prompt_repeated,
}
