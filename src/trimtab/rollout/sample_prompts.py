"""The prompts of a data file as token ids: which rows ``trimtab sample`` answers, and which not."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import Any

from trimtab.data.chat import ChatRenderer
from trimtab.data.chat_template import RowProblem
from trimtab.data.rows import (
    ChatExample,
    CompletionExample,
    Example,
    PreferenceExample,
    PromptExample,
    RankedExample,
    Text,
)
from trimtab.errors import DataError
from trimtab.models.hub import ModelSource, read_json
from trimtab.models.load import base_of


@dataclasses.dataclass(frozen=True)
class Asked:
    """A row to be answered: its number, its prompt as it was read and as ids."""

    number: int
    example: Example
    prompt: Text
    ids: list[int]

    @property
    def where(self) -> str:
        """File and line."""
        return f"{self.example.origin.source}:{self.example.origin.row}"


@dataclasses.dataclass
class Prompts:
    """Rows to be answered, and how many were left out: by reason, with the first one's place."""

    asked: list[Asked] = dataclasses.field(default_factory=list[Asked])
    left_out: Counter[str] = dataclasses.field(default_factory=Counter[str])
    first: dict[str, str] = dataclasses.field(default_factory=dict[str, str])

    def lines(self) -> list[str]:
        """The account of what was left out."""
        return [
            f"left out    {rows} rows: {reason} (first {self.first[reason]})"
            for reason, rows in self.left_out.most_common()
        ]

    def add(self, asked: Asked, problem: str | None) -> None:
        """Take a row, or leave it out."""
        if problem is None:
            self.asked.append(asked)
            return
        self.left_out[problem] += 1
        self.first.setdefault(problem, asked.where)


def read_prompts(
    examples: Sequence[Example], renderer: ChatRenderer, context: int | None
) -> Prompts:
    """The prompts of rows that a model with ``context`` positions can answer.

    Raises DataError where there is none, or conversations and no chat template.
    """
    found = Prompts()
    for number, example in enumerate(examples):
        prompt = prompt_of(example)
        if not isinstance(prompt, str) and not renderer.template.source:
            renderer.require_template()  # says what is missing
        try:
            ids = renderer.prompt_ids(prompt, example.tools)
            problem = None if ids else "the prompt has no token"
            if context is not None and len(ids) >= context:
                problem = f"the prompt fills the model's context of {context} tokens"
        except RowProblem as error:
            ids, problem = [], error.reason
        found.add(Asked(number, example, prompt, ids), problem)
    if not found.asked:
        why = ", ".join(f"{reason} ({where})" for reason, where in found.first.items())
        raise DataError(f"no row can be answered: {why}")
    return found


def prompt_of(example: Example) -> Text:
    """The part of a row that is to be answered: of a chat, all before its last assistant turn."""
    match example:
        case PromptExample() | CompletionExample() | RankedExample():
            return example.prompt
        case PreferenceExample():
            assert example.prompt is not None, "a loaded pair has its prompt"
            return example.prompt
        case ChatExample():
            roles = [message["role"] for message in example.messages]
            last = len(roles) - 1 - roles[::-1].index("assistant")
            return example.messages[:last]
        case _:
            raise AssertionError(f"no prompt in {type(example).__name__}")


def config_of(model: ModelSource) -> dict[str, Any]:
    """The model's config.json, text part on top: what can be known before weights are loaded."""
    config = read_json(base_of(model).folder / "config.json")
    return {**config, **config.get("text_config", {})}


def context_of(config: dict[str, Any]) -> int | None:
    """How many tokens the model can read, if its config says so."""
    found = config.get("max_position_embeddings") or config.get("n_positions")
    return None if found is None else int(found)
