"""Conversions between kinds of rows, and the same rows in every file format."""

from __future__ import annotations

import csv
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.data.format_rows import PAIR, bot, user

from trimtab.errors import DataError

# ---- conversions between kinds ---------------------------------------------------------------


def test_pairs_become_two_unpaired_rows(load):
    loaded = load([{**PAIR, "weight": 2, "id": 9}], {"unpaired"})
    wanted, unwanted = loaded.examples[0]
    assert (wanted.prompt, wanted.completion, wanted.label) == ("p", "good", True)
    assert (unwanted.prompt, unwanted.completion, unwanted.label) == ("p", "bad", False)
    assert [e.origin.part for e in (wanted, unwanted)] == [0, 1]
    assert [e.weight for e in (wanted, unwanted)] == [2.0, 2.0]
    report = loaded.report.sources[0]
    assert (report.rows_in, report.used, report.examples, report.kind) == (1, 1, 2, "unpaired")
    assert "two rows, wanted and unwanted" in report.notices[0]


def test_pairs_stay_pairs_where_they_are_wanted(load):
    assert load([PAIR], {"preference", "unpaired"}).report.notices == []


def test_prompts_are_taken_from_richer_rows(load):
    loaded = load([PAIR], {"prompt"})
    assert loaded.examples[0][0].extras == {"chosen": "good", "rejected": "bad"}
    assert "preference rows, read as prompt rows: only prompt" in loaded.report.notices[0]


# ---- the same rows in every file format ------------------------------------------------------

ROWS = [
    {**PAIR, "margin": 1.5, "weight": 0.5},
    {"prompt": [user("ü")], "chosen": [bot("x")], "rejected": [bot("y\nz")]},
]

PAIRS = [
    ("p", "good", "bad", 1.5, 0.5),
    ([user("ü")], [bot("x")], [bot("y\nz")], 0.0, 1.0),
]


def cells(row):
    return {
        key: value if isinstance(value, str) else json.dumps(value) for key, value in row.items()
    }


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "tsv", "parquet"])
def test_all_file_formats_give_the_same_examples(load, tmp_path, ending):
    path = tmp_path / f"rows.{ending}"
    names = ["prompt", "chosen", "rejected", "margin", "weight"]
    if ending == "parquet":  # one type a column: the second row only
        rows, expected = ROWS[1:], PAIRS[1:]
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif ending in ("csv", "tsv"):
        expected = PAIRS
        with path.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, names, delimiter="," if ending == "csv" else "\t")
            writer.writeheader()
            writer.writerows(cells(row) for row in ROWS)
    else:
        expected = PAIRS
        text = json.dumps(ROWS) if ending == "json" else "\n".join(json.dumps(r) for r in ROWS)
        path.write_text(text, encoding="utf-8")
    found = load(path).examples[0]
    assert [(e.prompt, e.chosen, e.rejected, e.margin, e.weight) for e in found] == expected


def test_csv_cells_are_typed(load, tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text(
        "prompt,responses,scores,weight\n"
        'p,"[""a"", ""b""]","[1, 0.5]",2\n'
        'p,a b,"[1, 2]",\n'
        'p,"[""a"", ""b""]","[1, 0.5]",x\n'
    )
    loaded = load(path, max_bad_rows=2)
    ranked = loaded.examples[0][0]
    assert (ranked.responses, ranked.scores, ranked.weight) == (["a", "b"], [1.0, 0.5], 2.0)
    assert loaded.report.bad == {"responses: not a JSON list": 1, "weight: not a number": 1}


def test_csv_labels(load, tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("prompt,completion,label\na,b,true\na,b,False\na,b,1\na,b,0\na,b,yes\n")
    loaded = load(path, max_bad_rows=1)
    assert [e.label for e in loaded.examples[0]] == [True, False, True, False]
    assert loaded.report.bad == {"label: not true or false": 1}


def test_classes_in_a_table_of_text(load, tmp_path):
    """A cell that is written as a whole number is one; "007" and "1.5" are names."""
    path = tmp_path / "rows.csv"
    path.write_text("text,label\na,10\na,-1\na, 0 \na,007\na,1.5\na,true\na,\n")
    loaded = load(path, max_bad_rows=1)
    assert [e.label for e in loaded.examples[0]] == [10, -1, 0, "007", "1.5", "true"]
    assert loaded.report.bad == {"label: is null": 1}


def test_classes_of_json_rows(load):
    rows = [{"text": "a", "label": label} for label in (3, "3", True, False, 4.0)]
    assert [e.label for e in load(rows).examples[0]] == [3, "3", "true", "false", 4]


def test_labelled_rows_are_texts_where_those_are_wanted(load):
    loaded = load([{"text": "a", "label": [0.5]}], {"text", "chat"})
    assert loaded.report.sources[0].kind == "text"
    assert "labelled rows, read as text rows: only text" in loaded.report.notices[0]
    assert loaded.examples[0][0].extras == {"label": [0.5]}


def test_wanted_and_unwanted_completions_are_no_labelled_rows(load):
    with pytest.raises(DataError, match=r"these are unpaired rows, but this stage takes labelled"):
        load([{"prompt": "a", "completion": "b", "label": True}], {"labelled"})


def test_parquet_messages_lose_the_nulls_that_the_format_fills_in(load, tmp_path):
    path = tmp_path / "rows.parquet"
    rows = [{"messages": [user("a"), {**bot("b"), "name": "x"}]}]
    pq.write_table(pa.Table.from_pylist(rows), path)
    assert load(path).examples[0][0].messages == rows[0]["messages"]
