"""How a model wants to be asked: through its chat template, or by plain text that it continues.

A tokenizer has a template more often than its model has seen one (the demo's models are trained on
plain prompts), so the rows that a run was trained on are looked at, where they are still there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, NamedTuple

from trimtab.config.data_keys import DatasetSpec
from trimtab.config.resolved import RESOLVED_NAME, load_resolved
from trimtab.data.rows import ChatExample, Example, LabelledExample, TextExample
from trimtab.data.sources import load_examples
from trimtab.errors import DataError, RecipeError

Style = Literal["chat", "plain"]

ROWS = 20  # that are looked at


class Manner(NamedTuple):
    """``newline``: a plain prompt ends with a line break; ``reason`` says why, for people."""

    style: Style
    newline: bool
    reason: str


def manner_of(folder: Path, *, template: bool) -> Manner:
    """The manner for a model's folder; ``template`` says whether its tokenizer has one."""
    if not template:
        found = _of_run(folder)
        newline = found is not None and found.newline
        return Manner("plain", newline, "its tokenizer has no chat template")
    return _of_run(folder) or Manner("chat", False, "its tokenizer has a chat template")


def _of_run(folder: Path) -> Manner | None:
    """What the run's own rows say; None where there is no run, or its rows are gone."""
    if not (folder / RESOLVED_NAME).is_file():
        return None
    try:
        resolved = load_resolved(folder)
    except RecipeError:  # of another version
        return None
    if resolved.verb == "pretrain":
        return Manner("plain", False, "it was pretrained on text")
    spec = resolved.recipe.train_specs()[0]
    path = _where(spec.path, folder)
    if path is None:
        return None
    try:
        rows = load_examples(
            [DatasetSpec(path=str(path), split=spec.split, columns=spec.columns, kind=spec.kind)],
            max_rows=ROWS,
            max_bad_rows=ROWS,
        ).examples[0]
    except DataError:
        return None
    prompts = [_prompt(row) for row in rows]
    if any(prompt is None for prompt in prompts):
        return Manner("chat", False, "it was trained on conversations")
    newline = all(prompt.endswith("\n") for prompt in prompts if prompt is not None)
    told = " that end with a line break" if newline else ""
    return Manner("plain", newline, f"it was trained on plain prompts{told}")


def _prompt(row: Example) -> str | None:
    """A plain row's prompt; None for a conversation."""
    if isinstance(row, (TextExample, LabelledExample)):
        return ""
    if isinstance(row, ChatExample):
        return None
    prompt = getattr(row, "prompt", None)
    return prompt if isinstance(prompt, str) else None


def _where(path: str, folder: Path) -> Path | None:
    """A recipe's path: from here, or from the folder that the run was started in."""
    given = Path(path).expanduser()
    for base in (Path.cwd(), *folder.resolve().parents):
        if (base / given).exists():
            return base / given
    return None
