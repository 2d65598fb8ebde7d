"""Formats of others for what was evaluated: AlpacaEval's model outputs, RewardBench's scores.

AlpacaEval reads a JSON list of {instruction, output, generator} and hands ``dataset`` on where it
is there (its ``evaluate`` takes it by --model_outputs). RewardBench's rows are prompt, chosen,
rejected, subset and id; its run_rm.py adds results, scores_chosen and scores_rejected. The second
RewardBench has lists of answers; its run_v2.py adds results and scores.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trimtab.data.rows import Example, PreferenceExample, RankedExample
from trimtab.errors import RecipeError, RunError
from trimtab.evaluation.answers import Side, told
from trimtab.evaluation.comparisons import ScoredRow
from trimtab.evaluation.rewardbench2 import TIES, credit, is_best_of
from trimtab.rewards.builtin import text_of
from trimtab.training import files


def alpaca_outputs(side: Side) -> list[dict[str, Any]]:
    """One object a prompt, with the first of its answers; RecipeError for what has more turns."""
    found: list[dict[str, Any]] = []
    for number, row in enumerate(side.rows, start=1):
        if not isinstance(row.prompt, str) and len(row.prompt) > 1:
            raise RecipeError(
                f"write_outputs=alpaca_eval: prompt {number} has {len(row.prompt)} turns, and that "
                "format one instruction; evaluate on prompts of one turn"
            )
        dataset = row.columns.get("dataset")
        found.append(
            ({} if dataset is None else {"dataset": dataset})
            | {"instruction": told(row.prompt), "output": row.texts[0], "generator": side.name}
        )
    return found


def rewardbench_rows(
    rows: Sequence[ScoredRow], examples: Sequence[Example]
) -> list[dict[str, Any]]:
    """The rows with their scores: of pairs, where a tie is no success, or of RewardBench 2."""
    by_place = {(e.origin.source, e.origin.row): e for e in examples}
    found: list[dict[str, Any]] = []
    for number, row in enumerate(rows):
        example = by_place[row.origin.source, row.origin.row]
        if isinstance(example, RankedExample) and is_best_of([row]):
            found.append(_best_of_row(row, example, number))
            continue
        if not isinstance(example, PreferenceExample):
            raise RecipeError(
                f"write_outputs=rewardbench: {row.origin.source}:{row.origin.row}: a ranking; that "
                "format has pairs of chosen and rejected, or lists of them"
            )
        chosen, rejected = row.scores
        extras = {k: v for k, v in example.extras.items() if k not in ("results",)}
        found.append(
            {
                "prompt": told(example.prompt or ""),
                "chosen": text_of(example.chosen),
                "rejected": text_of(example.rejected),
                "subset": extras.pop("subset", None),
                "id": extras.pop("id", number),
                **extras,
                "results": int(chosen > rejected),
                "scores_chosen": chosen,
                "scores_rejected": rejected,
            }
        )
    return found


def _best_of_row(row: ScoredRow, example: RankedExample, number: int) -> dict[str, Any]:
    """A row of RewardBench 2; those of Ties have no result of their own."""
    texts = list(map(text_of, example.responses))
    right = sum(rank == 1 for rank in row.ranks)
    extras = {k: v for k, v in example.extras.items() if k not in ("results", "scores")}
    subset = extras.pop("subset", None)
    return {
        "prompt": told(example.prompt),
        "chosen": texts[:right],
        "rejected": texts[right:],
        "subset": subset,
        "id": extras.pop("id", number),
        **extras,
        "results": None if str(subset).lower() == TIES else credit(row),
        "scores": list(row.scores),
    }


def check_target(path: str) -> None:
    """RecipeError for a name that says no format of file."""
    if Path(path).suffix not in (".json", ".jsonl"):
        raise RecipeError(f"write_outputs={path}: written as .json or .jsonl; name such a file")


def write_rows(path: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """A JSON list, or an object a line for .jsonl."""
    target = Path(path).expanduser()
    if target.suffix == ".jsonl":
        text = "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)
    else:
        text = json.dumps(rows, ensure_ascii=False, indent=2, default=str) + "\n"
    try:
        files.make_folder(target.parent)
        files.write_atomic(target, text.encode())
    except OSError as error:
        raise RunError(
            f"write_outputs={path}: cannot be written: {error.strerror or error}"
        ) from error
