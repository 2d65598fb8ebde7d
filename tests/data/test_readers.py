from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trimtab.data.readers import data_suffix, read_file
from trimtab.errors import DataError


def records(path: Path, data: bytes | str | None = None):
    if data is not None:
        path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return list(read_file(path, path.name))


def summary(path: Path, data: bytes | str | None = None):
    """Line -> row, or the text of the problem."""
    found = records(path, data)
    assert all((r.row is None) != (r.problem is None) for r in found)
    return {r.line: r.problem.text if r.problem else r.row for r in found}


# ---- JSON lines ----------------------------------------------------------------------------


def test_jsonl_names_the_line_of_what_is_wrong(tmp_path):
    lines = ['{"a": 1}', '{"a": }', "", "  ", '{"a": 2', "[1]", "null", "3", '{"a": 4}']
    found = summary(tmp_path / "x.jsonl", "\n".join(lines))
    assert found == {
        1: {"a": 1},
        2: "not valid JSON: Expecting value at column 7",
        5: "not valid JSON: Expecting ',' delimiter at column 8",
        6: 'not an object: wanted {"column": value, ...}, found a list',
        7: 'not an object: wanted {"column": value, ...}, found null',
        8: 'not an object: wanted {"column": value, ...}, found 3',
        9: {"a": 4},
    }


def test_jsonl_numbering_counts_blank_lines(tmp_path):
    """The twin: numbering rows instead of lines would say 2 here."""
    assert list(summary(tmp_path / "x.jsonl", '{"a": 1}\n\n\n{"a": 2}\n')) == [1, 4]


def test_jsonl_byte_order_mark_crlf_and_no_last_line_end(tmp_path):
    data = b'\xef\xbb\xbf{"a": "\xc3\xa9"}\r\n\r\n{"a": 2}'
    assert summary(tmp_path / "x.jsonl", data) == {1: {"a": "é"}, 3: {"a": 2}}


def test_jsonl_line_separators_of_unicode_are_no_line_ends(tmp_path):
    row = {"a": "one\u2028two\x85three\x0cfour"}
    assert summary(tmp_path / "x.jsonl", json.dumps(row, ensure_ascii=False)) == {1: row}


def test_jsonl_bytes_that_are_not_utf8(tmp_path):
    found = records(tmp_path / "x.jsonl", b'{"a": "\xff"}\n{"a": 1}\n')
    assert found[0].problem is not None
    assert found[0].problem.text == "not valid UTF-8: byte 0xff at byte 8 of it"
    assert found[0].raw == '{"a": "\\xff"}'
    assert found[1].row == {"a": 1}


def test_utf16_is_refused_with_the_remedy(tmp_path):
    with pytest.raises(DataError, match=r"^x\.jsonl:1: the file is UTF-16; save it as UTF-8$"):
        records(tmp_path / "x.jsonl", '{"a": 1}\n'.encode("utf-16"))


def test_jsonl_what_breaks_parsers(tmp_path):
    deep = "[" * 100_000
    digits = '{"a": ' + "9" * 5000 + "}"
    found = summary(tmp_path / "x.jsonl", f'{deep}\n{digits}\n{{"a": NaN}}\n{{"a": 1e999}}\n')
    assert found[1] == "not valid JSON: nested too deeply"
    assert str(found[2]).startswith("not valid JSON: Exceeds the limit (4300 digits)")
    assert found[3]["a"] != found[3]["a"]  # the checks of fields see it where it matters
    assert found[4] == {"a": float("inf")}


def test_gzip(tmp_path):
    path = tmp_path / "x.jsonl.gz"
    assert summary(path, gzip.compress(b'{"a": 1}\n{"a": 2}\n')) == {1: {"a": 1}, 2: {"a": 2}}
    with pytest.raises(DataError, match=r"^x\.jsonl\.gz: not a readable gzip file: "):
        records(path, b'{"a": 1}\n')
    with pytest.raises(DataError, match=r"^x\.jsonl\.gz: not a readable gzip file: "):
        records(path, gzip.compress(b'{"a": 1}\n')[:-6])


# ---- JSON ----------------------------------------------------------------------------------


def test_json_array_has_the_line_of_each_row(tmp_path):
    data = '\n[ {"a": 1},\n  {"a":\n     2},\n\n  7, {"a": 3}\n]\n'
    found = records(tmp_path / "x.json", data)
    assert [(r.line, r.row) for r in found] == [
        (2, {"a": 1}),
        (3, {"a": 2}),
        (6, None),
        (6, {"a": 3}),
    ]


def test_json_compact_array_is_on_line_one(tmp_path):
    assert [r.line for r in records(tmp_path / "x.json", '[{"a":1},{"a":2}]')] == [1, 1]


@pytest.mark.parametrize("data", ["[]", "[ \n ]", "", " \n"])
def test_json_without_rows(tmp_path, data):
    assert records(tmp_path / "x.json", data) == []


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ('[\n{"a": 1},\n{"a": }\n]', "x.json:3: not valid JSON: Expecting value at column 7"),
        ('[\n{"a": 1}\n{"a": 2}]', "x.json:3: not valid JSON: wanted , or ] after an object"),
        ('[{"a": 1},\n]', "x.json:2: not valid JSON: Expecting value at column 1"),
        ('[{"a": 1}\n', "x.json:2: not valid JSON: wanted , or ] after an object"),
        ('[{"a": 1}]\n\n{', "x.json:3: not valid JSON: text after the array's end"),
        ("\n5", "x.json:2: not valid JSON: wanted an array of objects"),
        ('[\n{"a": "\udcff"}]', "x.json:2: not valid UTF-8: byte 0xff"),
        ('[\n{"a": ' + "[" * 99999, "x.json:2: not valid JSON: nested too deeply"),
        ('[\n{"a": ' + "1" * 5000, "x.json:2: not valid JSON: Exceeds the limit"),
    ],
)
def test_json_errors_name_the_line(tmp_path, data, message):
    with pytest.raises(DataError) as error:
        records(tmp_path / "x.json", data.encode("utf-8", "surrogateescape"))
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_json_file_that_holds_json_lines(tmp_path):
    data = '{"a": 1}\n\n{"a": \n{"a": 3}\n'
    found = summary(tmp_path / "x.json", data)
    assert found[1] == {"a": 1}
    assert found[4] == {"a": 3}
    assert str(found[3]).startswith("not valid JSON")


def test_json_rows_under_a_key_and_a_single_row(tmp_path):
    assert summary(tmp_path / "x.json", '{"v": 1, "data": [{"a": 1}, {"a": 2}]}') == {
        1: {"a": 1},
        2: {"a": 2},
    }
    assert summary(tmp_path / "x.json", '{"a": [1]}') == {1: {"a": [1]}}


# ---- CSV -----------------------------------------------------------------------------------


def test_csv_has_the_line_where_each_row_starts(tmp_path):
    data = 'a,b\r\n1,"two\nlines, quoted ""x"""\r\n\r\n3,\r\n4\r\n5,6,7\r\n'
    found = records(tmp_path / "x.csv", data)
    assert [(r.line, r.row) for r in found] == [
        (2, {"a": "1", "b": 'two\nlines, quoted "x"'}),
        (5, {"a": "3", "b": None}),
        (6, None),
        (7, None),
    ]
    assert [r.problem.text for r in found if r.problem] == [
        "wrong number of columns: the header has 2 columns, the row has 1",
        "wrong number of columns: the header has 2 columns, the row has 3",
    ]
    assert all(r.textual for r in found)


def test_csv_goes_on_after_a_row_that_cannot_be_read(tmp_path):
    data = b'a,b\n"1"x,2\n\xff,2\n3,4\n5,"never\nclosed\n'
    found = summary(tmp_path / "x.csv", data)
    assert found[4] == {"a": "3", "b": "4"}
    assert found[3] == "not valid UTF-8: byte 0xff"
    assert str(found[2]).startswith("not valid CSV")
    assert found[5] == "not valid CSV: a quote opened here is not closed by line 6"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("a,,b\n1,2,3\n", "x.csv:1: header: column 2 has no name"),
        ("a,b,a\n1,2,3\n", "x.csv:1: header: the column 'a' is there twice"),
        ('"a,b\n1,2\n', "x.csv:1: header: not valid CSV: a quote opened here"),
    ],
)
def test_csv_header(tmp_path, data, message):
    with pytest.raises(DataError) as error:
        records(tmp_path / "x.csv", data)
    assert str(error.value).startswith(message)


def test_csv_byte_order_mark_tabs_and_long_cells(tmp_path):
    text = "x" * 300_000
    assert summary(tmp_path / "x.tsv", f"\ufeffa\tb\n1\t{text}\n") == {2: {"a": "1", "b": text}}


# ---- Parquet -------------------------------------------------------------------------------


def test_parquet_rows_are_numbered(tmp_path):
    path = tmp_path / "x.parquet"
    rows = [{"a": index, "m": [{"role": "user", "content": str(index)}]} for index in range(1300)]
    pq.write_table(pa.Table.from_pylist(rows), path)
    found = records(path)
    assert [r.line for r in found] == list(range(1, 1301))
    assert [r.row for r in found] == rows


def test_parquet_bad_values_cost_their_row_only(tmp_path):
    path = tmp_path / "x.parquet"
    column = pa.array([b"one", b"\xff\xfe", b"three"]).view(pa.string())
    pq.write_table(pa.table({"a": column}), path)
    assert summary(path) == {1: {"a": "one"}, 2: "not valid UTF-8", 3: {"a": "three"}}


def test_parquet_that_is_none(tmp_path):
    with pytest.raises(DataError, match=r"^x\.parquet:1: not readable as Parquet: ") as error:
        records(tmp_path / "x.parquet", b"PAR1 nonsense")
    assert "\n" not in str(error.value)


# ---- all -----------------------------------------------------------------------------------


def test_endings():
    names = [
        "a.jsonl",
        "a.JSON",
        "b.csv.gz",
        "c.tsv",
        "d.ndjson",
        "e.parquet",
        "f.txt",
        "g",
        "h.gz",
    ]
    assert [data_suffix(Path(name)) for name in names] == [
        ".jsonl",
        ".json",
        ".csv",
        ".tsv",
        ".ndjson",
        ".parquet",
        None,
        None,
        None,
    ]


def test_unknown_ending_and_unreadable_file(tmp_path):
    with pytest.raises(DataError, match=r"x\.txt: unknown kind of file; known endings: \.jsonl, "):
        records(tmp_path / "x.txt", "a")
    (tmp_path / "x.jsonl").mkdir()
    with pytest.raises(DataError, match=r"^x\.jsonl: cannot be read: "):
        records(tmp_path / "x.jsonl")
