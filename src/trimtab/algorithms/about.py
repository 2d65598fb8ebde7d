"""about.json: what a run leaves for its report beside its log: sizes, rows, one tokenised row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from trimtab.algorithms.build import Built
from trimtab.data.inspect import pieces, segment_names
from trimtab.data.trees import Branch, TokenTree

NAME = "about.json"
TOKENS = 200  # of a segment that are kept
BRANCHES = 2  # chosen and rejected, say


def write_about(folder: Path, built: Built, steps: int) -> None:
    """Write about.json of a run that has done so many steps."""
    text = json.dumps(about(built, steps), ensure_ascii=False, indent=1) + "\n"
    (folder / NAME).write_text(text, encoding="utf-8")


def about(built: Built, steps: int) -> dict[str, Any]:
    """Weights, rows and an example; the same for every start of a run."""
    weights = list(built.stage.policy.model.parameters())  # a shared one counts once
    training = next(rows for rows in built.rows if rows.role == "training")
    tree = built.stage.example(steps)
    return {
        "parameters": sum(weight.numel() for weight in weights),
        "trained_parameters": sum(w.numel() for w in weights if w.requires_grad),
        "rows": sum(account.used for account in training.loaded.report.sources),
        "data": [rows.summary for rows in built.rows],
        "precision": built.precision.name,
        "layout": built.stage.policy.layout,
        "example": None if tree is None else example(tree, built.tokenizer),
    }


def example(tree: TokenTree, tokenizer: Any) -> dict[str, Any]:
    """A tree token by token, as much of it as a page has room for."""
    names = ["prompt", *segment_names(tree)]
    parts = [tree.trunk, *tree.branches][: 1 + BRANCHES]
    return {
        "origin": f"{tree.origin.source}:{tree.origin.row}",
        "branches": len(tree.branches),
        "segments": [
            _segment(name, part, tokenizer) for name, part in zip(names, parts, strict=False)
        ],
    }


def _segment(name: str, branch: Branch, tokenizer: Any) -> dict[str, Any]:
    kept = Branch(branch.ids[:TOKENS], branch.trained[:TOKENS])
    return {
        "name": name,
        "ids": list(kept.ids),
        "tokens": pieces(kept, tokenizer),
        "trained": [int(trained) for trained in kept.trained],
        "left_out": len(branch.ids) - len(kept.ids),
    }
