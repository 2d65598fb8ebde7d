"""Answers to prompts, sampled from a model or read from a file of outputs, side by side.

A file of outputs is AlpacaEval's JSON (instruction, output, generator), rows of prompt and
completion, or what ``trimtab sample`` writes (prompt, responses). Two sides are matched by the text
of the prompt, the k-th row of a prompt with the k-th.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trimtab.data.inspect import FileSource
from trimtab.data.rows import CompletionExample, Example, PromptExample, RankedExample, Text
from trimtab.data.sources import load_examples
from trimtab.errors import DataError, RunError
from trimtab.rewards.builtin import text_of

DATA_FILES = (".jsonl", ".json", ".csv", ".parquet", ".gz", ".zst")


@dataclasses.dataclass(frozen=True)
class Row:
    """One prompt with its answers.

    key      text of the prompt, and which of its rows this is
    texts    the answers as text; ``answers`` as the rows have them (text or messages)
    ended    whether each came to its stop token; None where that is not known
    tokens   of each, the stop token included; None where they are not known
    columns  the row's other columns
    """

    key: tuple[str, int]
    prompt: Text
    answers: list[Text]
    ended: list[bool] | None
    tokens: list[int] | None
    columns: dict[str, Any]

    @property
    def texts(self) -> list[str]:
        """The answers as text."""
        return [text_of(answer) for answer in self.answers]


@dataclasses.dataclass(frozen=True)
class Side:
    """All rows of a model or of a file; ``where`` is the file that they lie in."""

    name: str
    rows: list[Row]
    where: Path
    sampled: bool


def is_file(name: str) -> bool:
    """Whether a name is a file of rows, and no model."""
    path = Path(name).expanduser()
    return path.is_file() and path.suffix in DATA_FILES


def from_samples(name: str, path: Path) -> Side:
    """What ``rollout.sample_file`` wrote, with the tokens of every response."""
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: cannot be read: {error}; give --restart to answer anew") from None
    own = ("prompt", "responses", "ended", "tokens")
    rows = [
        (
            line["prompt"],
            line["responses"],
            line["ended"],
            line["tokens"],
            {k: v for k, v in line.items() if k not in own},
        )
        for line in lines
    ]
    return Side(name, _keyed(rows), path, sampled=True)


def from_file(name: str, columns: Mapping[str, str], split: str, max_bad_rows: float) -> Side:
    """The answers of a file; DataError where it has none."""
    kinds = frozenset(("completion", "prompt", "ranked"))
    loaded = load_examples(
        [FileSource(name, columns, None, split=split)], kinds, max_bad_rows=max_bad_rows
    )
    rows = [row for row in map(_outputs, loaded.examples[0]) if row is not None]
    if not rows:
        raise DataError(
            f"{name}: no answers in it; wanted instruction + output, prompt + completion, or "
            "prompt + responses"
        )
    generators = {str(row[4].get("generator") or "") for row in rows}
    called = generators.pop() if len(generators) == 1 else ""
    return Side(called or Path(name).stem, _keyed(rows), Path(name), sampled=False)


def _outputs(example: Example) -> tuple[Text, list[Text], Any, Any, dict[str, Any]] | None:
    match example:
        case CompletionExample():
            answers: list[Text] = [example.completion]
        case RankedExample():
            answers = list(example.responses)
        case PromptExample() if isinstance(example.extras.get("responses"), list):
            answers = list(example.extras["responses"])
        case _:
            return None
    if not answers or not all(isinstance(answer, (str, list)) for answer in answers):
        place = example.origin
        raise DataError(f"{place.source}:{place.row}: responses: not a list of texts")
    extras = {k: v for k, v in example.extras.items() if k != "responses"}
    ended = extras.pop("ended", None)
    known = isinstance(ended, list) and len(ended) == len(answers)
    prompt = example.prompt
    return prompt, answers, ended if known else None, None, extras


def _keyed(rows: Sequence[tuple[Text, list[Text], Any, Any, dict[str, Any]]]) -> list[Row]:
    seen: Counter[str] = Counter()
    found: list[Row] = []
    for prompt, answers, ended, tokens, columns in rows:
        text = told(prompt)
        found.append(Row((text, seen[text]), prompt, answers, ended, tokens, columns))
        seen[text] += 1
    return found


def told(prompt: Text) -> str:
    """A prompt as one text, for a judge and to tell prompts apart: of a chat with one turn of the

    user that turn, otherwise every turn after its role.
    """
    if isinstance(prompt, str):
        return prompt
    if len(prompt) == 1 and prompt[0].get("role") == "user":
        return str(prompt[0].get("content") or "")
    return "\n\n".join(f"{turn.get('role')}: {turn.get('content') or ''}" for turn in prompt)


def matched(ours: Side, theirs: Side) -> list[tuple[Row, Row]]:
    """Rows of both sides with the same prompt; DataError where there is none."""
    others = {row.key: row for row in theirs.rows}
    both = [(row, others[row.key]) for row in ours.rows if row.key in others]
    if not both:
        raise DataError(
            f"baseline={theirs.name}: none of its {len(theirs.rows)} prompts is one of the model's "
            f"{len(ours.rows)}; answer the same file of prompts"
        )
    return both
