from __future__ import annotations

import json
from collections import Counter

import pytest

from trimtab.data.quarantine import BadRow, Quarantine, RowReport, SourceReport, reasons
from trimtab.errors import DataError

PAIR = {"prompt": "p", "chosen": "a", "rejected": "b"}
SAME = {**PAIR, "rejected": "a"}


def entries(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_bad_rows_are_written_down(load, jsonl, tmp_path):
    path = jsonl([PAIR] * 4 + [SAME, '{"prompt": ', {**PAIR, "chosen": "é\ud800"}])
    bad = tmp_path / "deep" / "bad_rows.jsonl"
    report = load(path, max_bad_rows=3, quarantine_path=bad).report
    assert entries(bad) == [
        {
            "file": str(path),
            "line": 5,
            "field": "",
            "reason": "chosen equals rejected",
            "row": SAME,
        },
        {
            "file": str(path),
            "line": 6,
            "field": "",
            "reason": "not valid JSON: Expecting value at column 12",
            "row": '{"prompt": ',
        },
        {
            "file": str(path),
            "line": 7,
            "field": "chosen",
            "reason": "not valid Unicode: lone surrogate \\ud800 at character 2",
            "row": {**PAIR, "chosen": "é\ud800"},
        },
    ]
    assert (report.rows_in, report.used, report.left_out) == (7, 4, 0)
    assert report.bad == {
        "chosen equals rejected": 1,
        "not valid JSON": 1,
        "chosen: not valid Unicode": 1,
    }
    assert report.quarantine == str(bad)
    assert report.lines()[-2:] == [
        f"{path}: 7 preference rows, 4 used, 3 bad (chosen equals rejected 1, not valid JSON 1, "
        "chosen: not valid Unicode 1)",
        f"bad rows are in {bad}",
    ]


def test_no_file_without_bad_rows_and_no_stale_one(load, tmp_path):
    bad = tmp_path / "bad_rows.jsonl"
    bad.write_text("from an earlier run\n")
    report = load([PAIR], quarantine_path=bad).report
    assert not bad.exists()
    assert report.quarantine is None


def test_values_that_json_does_not_know_are_written_as_text(tmp_path):
    bad = tmp_path / "bad.jsonl"
    with Quarantine(bad, 1) as quarantine:
        quarantine.add(SourceReport("s"), "f", 1, BadRow("a", "empty"), {"a": b"\x00", "b": {1}})
    assert entries(bad)[0]["row"] == {"a": "b'\\x00'", "b": "{1}"}


def test_a_quarantine_file_that_cannot_be_written(load, tmp_path):
    (tmp_path / "file").write_text("")
    target = tmp_path / "file" / "bad.jsonl"
    with pytest.raises(DataError, match="cannot write the bad rows there"):
        load([PAIR, SAME], max_bad_rows=1, quarantine_path=target)


# ---- the limit -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("good", "bad", "limit", "fine"),
    [
        (99, 1, 0.01, True),
        (98, 1, 0.01, False),
        (6, 1, 0.01, False),
        (199, 2, 0.01, True),
        (6, 1, 1, True),
        (600, 2, 1, False),
        (6, 2, 2, True),
        (1, 1, 0.5, True),
        (600, 1, 0, False),
        (600, 0, 0, True),
        (0, 2, 5, False),
    ],
)
def test_the_limit_is_a_share_below_one_and_a_count_from_one_on(load, good, bad, limit, fine):
    rows = [PAIR] * good + [SAME] * bad
    if fine:
        assert load(rows, max_bad_rows=limit).report.used == good
    else:
        with pytest.raises(DataError):
            load(rows, max_bad_rows=limit)


def test_the_limit_is_per_source(load, jsonl, spec):
    """A large clean file does not make room for a small bad one."""
    from trimtab.data.sources import load_examples

    clean, bad = jsonl([PAIR] * 500, "clean.jsonl"), jsonl([PAIR, SAME], "bad.jsonl")
    with pytest.raises(DataError, match=r"bad\.jsonl:2: chosen equals rejected; 1 of 2 rows"):
        load_examples([spec(str(clean)), spec(str(bad))])


def test_the_refusal_is_one_line_with_everything_in_it(load, jsonl, tmp_path):
    bad = tmp_path / "bad.jsonl"
    path = jsonl([PAIR] * 6 + ['{"prompt": "p"'] + [PAIR] * 3 + [SAME] * 2)
    with pytest.raises(DataError) as error:
        load(path, quarantine_path=bad)
    assert str(error.value) == (
        f"{path}:7: not valid JSON: Expecting ',' delimiter at column 15; 3 of 12 rows are bad "
        "(chosen equals rejected 2, not valid JSON 1); the limit is 0.01 of the rows: mend them, "
        f"or raise max_bad_rows to leave them out; all bad rows are in {bad}"
    )
    assert len(entries(bad)) == 3


def test_chosen_equals_rejected_everywhere(load, jsonl):
    path = jsonl([SAME] * 20)
    with pytest.raises(DataError) as error:
        load(path, max_bad_rows=1000)
    assert str(error.value) == (
        f"{path}:1: chosen equals rejected; 20 of 20 rows are bad (chosen equals rejected 20); "
        "there is no good row to use"
    )


def test_no_row_of_the_file_can_be_parsed(load, jsonl):
    path = jsonl(["nonsense"] * 3)
    with pytest.raises(DataError, match=r"rows\.jsonl:1: not valid JSON: .* 3 of 3 rows are bad"):
        load(path, max_bad_rows=1000)


@pytest.mark.parametrize("limit", [-1, float("nan")])
def test_a_limit_that_is_none(limit):
    with pytest.raises(DataError, match="max_bad_rows"):
        Quarantine(None, limit)


# ---- counts ----------------------------------------------------------------------------------


def test_reasons_are_counted_without_their_details():
    one = BadRow("messages[3].content", "not text", "found the number 5\nof two lines")
    other = BadRow("messages[0].role", "missing")
    assert one.category == other.category.replace("missing", "not text") == "messages: not text"
    assert one.text == "messages[3].content: not text: found the number 5 of two lines"
    assert reasons(Counter(a=4, b=3, c=2, d=1, e=1)) == "a 4, b 3, c 2, 2 other reasons"


def test_totals_over_sources():
    sources = [
        SourceReport("a", "text", 5, 3, 0, 3, Counter(x=1, y=1), ["a: n"]),
        SourceReport("b", "text", 4, 2, 1, 2, Counter(x=1)),
    ]
    report = RowReport(sources)
    assert (report.rows_in, report.used, report.left_out) == (9, 5, 1)
    assert report.bad == {"x": 2, "y": 1}
    assert report.lines() == [
        "a: n",
        "a: 5 text rows, 3 used, 2 bad (x 1, y 1)",
        "b: 4 text rows, 2 used, 1 left out (fraction), 1 bad (x 1)",
    ]
