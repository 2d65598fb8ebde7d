"""Rows to findings in few words, for the tests of the data doctor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from trimtab.data.doctor.check import CheckOptions, Diagnosis, diagnose


def write(folder: Path, rows: list[Any], name: str = "rows.jsonl") -> str:
    path = folder / name
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def check(folder: Path, rows: list[Any], **options: Any) -> Diagnosis:
    return diagnose(CheckOptions(files=[write(folder, rows)], **options))


def lines(found: Diagnosis) -> dict[str, list[int]]:
    """Fault -> lines."""
    return {
        finding.fault.name: [found.rows.place(at.row)[1] for at in finding.rows]
        for finding in found.findings
    }


def _append(where: str, text: str) -> Any:
    def change(row: dict[str, Any]) -> None:
        row[where][-1]["content"] += text

    return change


def _long(where: str) -> Any:
    def change(row: dict[str, Any]) -> None:
        row[where][-1]["content"] = "word " * 400

    return change


def _same_start(row: dict[str, Any]) -> None:
    for name in ("chosen", "rejected"):
        row[name][-1]["content"] = "word " * 400 + name


def _trimmed(row: dict[str, Any]) -> None:
    row["chosen"][-1]["content"] = "Yes, do."
    row["rejected"][-1]["content"] = "Yes, do.\n"


MODEL_FAULTS: dict[str, Any] = {
    "control-token": _append("prompt", "<|im_start|> what"),
    "doubled-end": _append("rejected", "<|im_end|>"),
    "prompt-too-long": _long("prompt"),
    "identical-when-cut": _same_start,
    "identical-tokens": _trimmed,
    "response-cut": _long("rejected"),
    # Planted by templates and tokenizers, below.
    "doubled-bos": None,
    "missing-end": None,
    "template-unusable": None,
    "prompt-token-mismatch": None,
}
