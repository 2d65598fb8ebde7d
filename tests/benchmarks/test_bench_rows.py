"""Pinned rows: what has changed is refused, what is only spelt differently is not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import rows


def pair(number: int, **more: Any) -> dict[str, Any]:
    return {"prompt": f"p{number}", "chosen": "a\u2028b", "rejected": "c", **more}


def write(folder: Path, found: list[dict[str, Any]], **options: Any) -> None:
    text = "".join(json.dumps(row, **options) + "\n" for row in found)
    (folder / "pairs.jsonl").write_text(text, encoding="utf-8")


def draw(folder: Path) -> dict[str, Any]:
    return rows.draw(folder, "pairs.jsonl", 3, 7, lambda row: row["prompt"] != "p2")


def test_rows_come_back_in_the_pinned_order(tmp_path: Path) -> None:
    write(tmp_path, [pair(n, source="s") for n in range(8)])
    pin = draw(tmp_path)
    assert pin == draw(tmp_path)
    lines = pin["files"][0]["lines"]
    assert len(set(lines)) == 3 and 3 not in lines
    assert rows.read("x", pin, tmp_path) == [pair(line - 1) for line in lines]


def test_spelling_and_other_columns_do_not_matter(tmp_path: Path) -> None:
    write(tmp_path, [pair(n, source="s") for n in range(8)])
    pin = draw(tmp_path)
    write(tmp_path, [{"margin": 1, **pair(n)} for n in range(8)], ensure_ascii=False)
    assert len(rows.read("x", pin, tmp_path)) == 3


def test_a_changed_text_is_refused(tmp_path: Path) -> None:
    write(tmp_path, [pair(n) for n in range(8)])
    pin = draw(tmp_path)
    changed = [pair(n) for n in range(8)]
    changed[pin["files"][0]["lines"][1] - 1]["rejected"] = "d"
    write(tmp_path, changed)
    with pytest.raises(rows.RowsChanged, match="rows x: SHA-256"):
        rows.read("x", pin, tmp_path)


def test_a_shorter_file_is_refused(tmp_path: Path) -> None:
    write(tmp_path, [pair(n) for n in range(8)])
    pin = rows.first(tmp_path, {"pairs.jsonl": 6})
    assert [row["prompt"] for row in rows.read("x", pin, tmp_path)] == [f"p{n}" for n in range(6)]
    write(tmp_path, [pair(n) for n in range(5)])
    with pytest.raises(rows.RowsChanged, match="has 5 lines, and line 6 is pinned"):
        rows.read("x", pin, tmp_path)


def test_long_rows_are_not_drawn(tmp_path: Path) -> None:
    found = [pair(n) for n in range(8)]
    for number in range(0, 8, 2):
        found[number]["chosen"] = "x" * rows.LONGEST
    write(tmp_path, found)
    assert all(line % 2 == 0 for line in draw(tmp_path)["files"][0]["lines"])


def test_the_checked_in_pins_are_whole() -> None:
    for name, pin in rows.pinned().items():
        assert len(pin["sha256"]) == 64, name
        for part in pin["files"]:
            lines = part.get("lines")
            assert part["first"] >= 1 if lines is None else len(set(lines)) == len(lines), name


def test_completions_are_the_chosen_responses() -> None:
    assert rows.as_kind([pair(0)], "completion") == [{"prompt": "p0", "completion": "a\u2028b"}]
