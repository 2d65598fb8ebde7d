"""The pinned rows: line numbers of files, and a hash of what stood on those lines.

The texts themselves are not kept here: their licences do not all allow it. A data file that has
changed is refused, because its figures would not compare with earlier ones.

    python -m benchmarks.rows --data FOLDER     draw the rows anew and write inputs/rows.json
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

INPUTS = Path(__file__).parent / "inputs"
PINNED = INPUTS / "rows.json"
FIELDS = ("text", "prompt", "completion", "chosen", "rejected", "messages")

# Longest text of a row, prompt and longer response together: no tokenizer here makes more than
# max_length tokens of it, so that neither side cuts anything.
LONGEST = 2400


class RowsChanged(Exception):
    """A data file is not the one that the rows were drawn from."""


def pinned() -> dict[str, Any]:
    """The pins by name: {"files": [{"file", "lines" | "first"}], "sha256", ...}."""
    return json.loads(PINNED.read_text())


def fields_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """What of a row is trained on; its source, its margin and so on are left out."""
    return {name: row[name] for name in FIELDS if name in row}


def digest(rows: Iterable[Mapping[str, Any]]) -> str:
    """SHA-256 of the rows in their order, independent of how the file spells its JSON."""
    found = hashlib.sha256()
    for row in rows:
        text = json.dumps(fields_of(row), sort_keys=True, ensure_ascii=True)
        found.update(text.encode() + b"\n")
    return found.hexdigest()


def read(name: str, pin: Mapping[str, Any], data: Path) -> list[dict[str, Any]]:
    """The rows of a pin, in its order; ``RowsChanged`` if they are not what was pinned."""
    rows: list[dict[str, Any]] = []
    for part in pin["files"]:
        lines = _lines(data / part["file"])
        wanted = part.get("lines") or range(1, part["first"] + 1)
        if max(wanted) > len(lines):
            raise RowsChanged(
                f"rows {name}: {data / part['file']} has {len(lines)} lines, and line "
                f"{max(wanted)} is pinned"
            )
        rows += [fields_of(json.loads(lines[number - 1])) for number in wanted]
    found = digest(rows)
    if found != pin["sha256"]:
        raise RowsChanged(
            f"rows {name}: SHA-256 {found[:16]}…, pinned is {pin['sha256'][:16]}…; the data in "
            f"{data} are not those that the rows were drawn from"
        )
    return rows


def _lines(path: Path) -> list[str]:
    # Not splitlines(), which also splits at what JSON strings may hold as it is (U+2028).
    return path.read_text(encoding="utf-8").rstrip("\n").split("\n")


def as_kind(rows: Sequence[Mapping[str, Any]], kind: str) -> list[dict[str, Any]]:
    """Rows as a stage takes them: ``as_is``, or the chosen response of a pair as ``completion``."""
    if kind == "as_is":
        return [dict(row) for row in rows]
    assert kind == "completion", kind
    return [{"prompt": row["prompt"], "completion": row["chosen"]} for row in rows]


def write(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """One row a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8")
    return path


# ---------------------------------------------------------------------- drawing


def _length(row: Mapping[str, Any]) -> int:
    def size(value: Any) -> int:
        if isinstance(value, str):
            return len(value)
        # 20 for what a chat template puts around a message.
        return sum(len(message["content"]) + 20 for message in value)

    responses = [size(row[name]) for name in ("chosen", "rejected") if name in row]
    return sum(size(row[n]) for n in ("text", "prompt") if n in row) + max(responses, default=0)


def draw(
    data: Path, file: str, count: int, seed: int, keep: Callable[[dict[str, Any]], bool]
) -> dict[str, Any]:
    """Pin ``count`` rows of a file, drawn without replacement."""
    rows = [json.loads(line) for line in _lines(data / file)]
    fitting = [n for n, row in enumerate(rows, 1) if keep(row) and _length(row) <= LONGEST]
    chosen = random.Random(seed).sample(fitting, count)
    return {
        "files": [{"file": file, "lines": chosen}],
        "sha256": digest(rows[number - 1] for number in chosen),
    }


def first(data: Path, parts: Mapping[str, int]) -> dict[str, Any]:
    """Pin the first rows of files, whatever their length."""
    pin: dict[str, Any] = {"files": [{"file": f, "first": n} for f, n in parts.items()]}
    rows: list[dict[str, Any]] = []
    for file, count in parts.items():
        rows += [json.loads(line) for line in _lines(data / file)[:count]]
    return pin | {"sha256": digest(rows)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    data = parser.parse_args().data
    harmless = "hh_harmless_base"
    pins = {
        "hh": draw(data, "preference.jsonl", 256, 1, lambda row: row["source"] == harmless),
        "mix": draw(data, "preference.jsonl", 256, 2, lambda row: True),
        "documents": draw(data, "pretrain.jsonl", 256, 3, lambda row: True),
        "pairs-5000": first(data, {"preference.jsonl": 4920, "preference_eval.jsonl": 80}),
        "chats-5000": first(data, {"sft.jsonl": 5000}),
    }
    PINNED.write_text(json.dumps(pins, separators=(",", ":")).replace('},"', '},\n"') + "\n")


if __name__ == "__main__":
    main()
