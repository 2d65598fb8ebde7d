"""Corrupted files: every row is used or named, and no file is refused without a place.

Mutations are functions of a number, so that a failure can be run again by that number alone.
"""

from __future__ import annotations

import csv
import io
import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trimtab.data.rows import kind_of
from trimtab.errors import DataError


def user(content):
    return {"role": "user", "content": content}


def bot(content):
    return {"role": "assistant", "content": content}


def turns(number):
    return [{"from": "human", "value": f"q {number}"}, {"from": "gpt", "value": f"a {number}"}]


HH = "\n\nHuman: hi {0}\n\nAssistant: hello\n\nHuman: how?\n\nAssistant:"

KINDS: dict[str, Callable[[int], dict[str, Any]]] = {
    "text": lambda n: {"text": f"some text {n}\nü", "id": n},
    "chat": lambda n: {"messages": [user(f"q {n}"), bot("a"), user("b"), bot("c")], "weight": 0.5},
    "prompt": lambda n: {"prompt": f"question {n}", "answer": "4"},
    "completion": lambda n: {"prompt": [user(f"q {n}")], "completion": [bot("é")]},
    "unpaired": lambda n: {"prompt": f"q {n}", "completion": "a", "label": n % 2 == 0},
    "preference": lambda n: {"prompt": f"q {n}", "chosen": "a", "rejected": "b", "margin": 0.5},
    "implicit": lambda n: {
        "chosen": [user(f"q {n}"), bot("a")],
        "rejected": [user(f"q {n}"), bot("b")],
    },
    "ranked": lambda n: {"prompt": f"q {n}", "responses": ["a", "b", "c"], "ranks": [1, 2, 2]},
    "sharegpt": lambda n: {"conversations": turns(n), "system": "s", "tools": "[]"},
    "alpaca": lambda n: {
        "instruction": f"q {n}",
        "input": "x",
        "output": "y",
        "history": [["a", "b"]],
    },
    "hh": lambda n: {"chosen": HH.format(n) + " a", "rejected": HH.format(n) + " b"},
    "repeated": lambda n: {
        "prompt": f"q {n}",
        "chosen": [user(f"q {n}"), bot("a")],
        "rejected": [user(f"q {n}"), bot("b")],
    },
}


def written(rows: list[dict[str, Any]], ending: str) -> bytes:
    if ending == "jsonl":
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    if ending == "json":
        return json.dumps(rows, indent=1).encode()
    if ending == "csv":
        stream = io.StringIO(newline="")
        writer = csv.writer(stream)
        writer.writerow(rows[0])
        for row in rows:
            values = row.values()
            writer.writerow([v if isinstance(v, str) else json.dumps(v) for v in values])
        return stream.getvalue().encode()
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return sink.getvalue()


SPICE = [
    b"\x00",
    b"\xff",
    b"\xed\xa0\x80",
    b"\xef\xbb\xbf",
    b'"',
    b"\\",
    b"\\ud800",
    b"NaN",
    b"null",
]
SPICE += [
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b"\n",
    b"\r",
    b"\n\n",
    b"1e999",
    b"-",
    b"true",
    b"\xc3",
    b"'",
]


def corrupted(data: bytes, chance: random.Random) -> bytes:
    for _ in range(chance.choice([1, 1, 1, 2, 5])):
        start = chance.randrange(len(data) + 1)
        end = min(len(data), start + chance.choice([0, 1, 1, 3, 20, 200]))
        lines = data.split(b"\n")
        match chance.randrange(6):
            case 0:
                data = data[:start] + data[end:]
            case 1:
                data = data[:start] + chance.choice(SPICE) + data[start:]
            case 2:
                data = data[:start] + chance.choice(SPICE) + data[end:]
            case 3:
                data = data[:start] + bytes(chance.randrange(256) for _ in range(3)) + data[end:]
            case 4:
                data = data[:start]
            case _:
                lines.insert(chance.randrange(len(lines) + 1), chance.choice(lines))
                data = b"\n".join(lines)
    return data


JUNK: list[Any] = [None, "", " ", 0, -1, True, float("nan"), float("inf"), 10**400, [], {}, [[]]]
JUNK += ["\ud800", "x", [None], [{}], [{"role": "user"}], {"role": 5, "content": []}, "[", "{}"]
JUNK += [[user("a")], [bot("a")], [user(None)], [{"from": "gpt"}], [[1, 2]], ["a", "b", "c"]]


def junked(row: Any, chance: random.Random) -> Any:
    """A copy with one value, at any depth, replaced, removed, or given another key."""
    if not isinstance(row, (dict, list)) or not row or chance.random() < 0.15:
        return chance.choice(JUNK)
    copy: Any = dict(row) if isinstance(row, dict) else list(row)
    key = chance.choice(list(copy) if isinstance(copy, dict) else range(len(copy)))
    if chance.random() < 0.2:
        del copy[key]
    elif isinstance(copy, dict) and chance.random() < 0.1:
        copy[chance.choice(["text", "label", "chosen", "weight", "tools", ""])] = copy.pop(key)
    else:
        copy[key] = junked(copy[key], chance)
    return copy


def check(load: Callable[..., Any], path: Path, bad_rows: float, accept: Any = None) -> str:
    """Load, and hold the result to the promise; say what came of it."""
    bad = path.with_suffix(".bad")
    try:
        loaded = load(path, accept, max_bad_rows=bad_rows, quarantine_path=bad)
    except DataError as error:
        message = str(error)
        assert "\n" not in message
        assert message.startswith(f"{path}:")
        placed = re.match(re.escape(str(path)) + r":\d+: .", message)
        assert placed or message == f"{path}: empty: there are no rows in it", message
        return "refused"
    report = loaded.report.sources[0]
    assert report.rows_in == report.used + report.bad_rows
    assert report.used == len({example.origin.row for example in loaded.examples[0]}) or (
        path.suffix == ".json"  # several rows on one line
    )
    assert {kind_of(example) for example in loaded.examples[0]} == {report.kind}
    lines = bad.read_text(encoding="utf-8").splitlines() if bad.exists() else []
    assert len(lines) == report.bad_rows
    for line in lines:
        entry = json.loads(line)
        assert entry["file"] == str(path)
        assert entry["line"] >= 1
        assert entry["reason"]
    bad.unlink(missing_ok=True)
    return "bad rows" if lines else "clean"


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "parquet"])
def test_corrupted_bytes(load, tmp_path, ending):
    path = tmp_path / f"rows.{ending}"
    outcomes = dict.fromkeys(["clean", "bad rows", "refused"], 0)
    for number in range(360):
        chance = random.Random(number)
        name = list(KINDS)[number % len(KINDS)]
        rows = [KINDS[name](n) for n in range(1 + number % 7)]
        path.write_bytes(corrupted(written(rows, ending), chance))
        outcomes[check(load, path, chance.choice([0.01, 10**9]))] += 1
    assert outcomes["refused"] > 20
    if ending in ("jsonl", "csv"):
        assert outcomes["bad rows"] > 20


@pytest.mark.parametrize("name", list(KINDS))
def test_corrupted_values(load, tmp_path, name):
    path = tmp_path / "rows.jsonl"
    outcomes = dict.fromkeys(["clean", "bad rows", "refused"], 0)
    for number in range(80):
        chance = random.Random(1000 + number)
        rows: list[Any] = [KINDS[name](n) for n in range(4)]
        for _ in range(chance.choice([1, 1, 3])):
            place = chance.randrange(4)
            rows[place] = junked(rows[place], chance)
        path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
        accept = chance.choice([None, None, {"preference", "ranked"}, {"unpaired"}, {"prompt"}])
        outcomes[check(load, path, 10**9, accept)] += 1
    assert outcomes["bad rows"] > 5


def test_the_check_itself_catches_a_row_that_is_lost(load, tmp_path, monkeypatch):
    """The twin: a loader that drops rows silently does not pass."""
    path = tmp_path / "rows.jsonl"
    path.write_bytes(written([KINDS["text"](n) for n in range(4)], "jsonl") + b"nonsense\n")

    def silent(*args, **keys):
        loaded = load(*args, **keys)
        loaded.report.sources[0].bad.clear()
        return loaded

    assert check(load, path, 10**9) == "bad rows"
    with pytest.raises(AssertionError):
        check(silent, path, 10**9)
