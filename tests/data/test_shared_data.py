"""Real data, where it is present: every file loads whole, as the type it is, with its counts."""

from __future__ import annotations

from pathlib import Path

import pytest

from trimtab.data.rows import CompletionExample, PreferenceExample, RankedExample

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"

pytestmark = pytest.mark.skipif(
    not DATA.is_dir(), reason="the real data is not here (../shared/data)"
)

# As in SOURCES.md beside the files.
FILES = {
    "pretrain": (6720, "text", {"source"}),
    "sft": (5048, "chat", {"source"}),
    "preference": (4920, "preference", {"source", "annotator"}),
    "preference_eval": (500, "preference", {"source", "annotator"}),
    "preference_plain": (2500, "preference", {"source", "annotator"}),
    "preference_plain_eval": (300, "preference", {"source", "annotator"}),
    "kwise": (603, "ranked", {"source"}),
    "math": (1000, "prompt", {"source", "answer", "solution"}),
    "math_labeled": (819, "prompt", {"source", "answer", "responses", "correct"}),
    "sentiment": (6000, "labelled", {"source"}),
}


@pytest.mark.parametrize("name", FILES)
def test_every_row_of_every_file_is_used(load, name):
    rows, kind, extras = FILES[name]
    loaded = load(DATA / f"{name}.jsonl")
    report = loaded.report.sources[0]
    assert (report.rows_in, report.used, report.bad_rows, report.kind) == (rows, rows, 0, kind)
    assert loaded.report.notices == []
    for number, example in enumerate(loaded.examples[0], 1):
        assert example.origin.row == number
        assert extras <= example.extras.keys()


def test_no_file_of_the_folder_is_untested():
    assert {path.stem for path in DATA.glob("*.jsonl")} == set(FILES)


def test_preferences_are_messages_or_text(load):
    for example in load(DATA / "preference_eval.jsonl").examples[0]:
        assert isinstance(example, PreferenceExample)
        assert isinstance(example.prompt, list)
        assert example.prompt[-1]["role"] == "user"
    for example in load(DATA / "preference_plain_eval.jsonl").examples[0]:
        assert isinstance(example, PreferenceExample)
        assert isinstance(example.prompt, str)


def test_ranks_and_scores(load):
    examples = load(DATA / "kwise.jsonl").examples[0]
    for example in examples:
        assert isinstance(example, RankedExample)
        assert len(example.responses) >= 3
        assert example.ranks is not None
        assert min(example.ranks) == 1
    assert any(isinstance(e, RankedExample) and e.scores is not None for e in examples)


def test_pairs_as_unpaired_rows(load):
    examples = load(DATA / "preference_eval.jsonl", {"unpaired"}).examples[0]
    labels = [example.label for example in examples if isinstance(example, CompletionExample)]
    assert labels == [True, False] * 500


def test_verified_solutions_as_ranked_rows(load):
    """Rows whose solutions are all right or all wrong say nothing and are counted."""
    columns = {"scores": "correct"}
    report = load(DATA / "math_labeled.jsonl", columns=columns, max_bad_rows=0.9).report
    assert report.rows_in == 819
    assert set(report.bad) <= {"scores: all are tied", "responses: all are the same"}
    assert report.sources[0].kind == "ranked"
    assert report.used > 100
