"""From paths to examples: files, folders, splits, hub ids, fractions, fingerprints, accounts."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from trimtab.data.sources import load_examples
from trimtab.errors import DataError

PAIR = {"prompt": "p", "chosen": "a", "rejected": "b"}


def texts(count, start=0):
    return [{"text": f"t{index}"} for index in range(start, start + count)]


def content(loaded):
    return [[example.text for example in source] for source in loaded.examples]


@pytest.fixture
def folder(tmp_path):
    """Make a folder of JSONL files with one text each, the text being the file's name."""

    def make(*names, base="data"):
        for name in names:
            path = tmp_path / base / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({"text": name}) + "\n")
        return tmp_path / base

    return make


# ---- files and folders -----------------------------------------------------------------------


def test_origins_name_file_and_line_as_the_user_did(jsonl, spec, tmp_path, monkeypatch):
    jsonl(['{"text": "a"}', "", '{"text": "b"}'])
    monkeypatch.chdir(tmp_path)
    (source,) = load_examples([spec("rows.jsonl")]).examples
    assert [tuple(example.origin) for example in source] == [
        ("rows.jsonl", 1, 0),
        ("rows.jsonl", 3, 0),
    ]


def test_a_folder_is_read_in_the_order_of_its_names(load, folder):
    path = folder("b.jsonl", "a.json", "sub/c.jsonl", ".hidden.jsonl", "_tmp/x.jsonl", "notes.txt")
    (path / "dataset_info.json").write_text("{}")
    loaded = load(path)
    assert content(loaded) == [["a.json", "b.jsonl", "sub/c.jsonl"]]
    assert loaded.examples[0][2].origin.source == str(path / "sub" / "c.jsonl")
    assert loaded.report.notices == []


def test_a_relative_folder_names_relative_files(folder, spec, tmp_path, monkeypatch):
    folder("a.jsonl")
    monkeypatch.chdir(tmp_path)
    assert load_examples([spec("./data")]).examples[0][0].origin.source == "data/a.jsonl"


@pytest.mark.parametrize(
    ("names", "split", "chosen"),
    [
        (
            ["train-0.jsonl", "train-1.jsonl", "test.jsonl"],
            "train",
            ["train-0.jsonl", "train-1.jsonl"],
        ),
        (["train.jsonl", "test.jsonl"], "test", ["test.jsonl"]),
        (["train/a.jsonl", "test/a.jsonl"], "test", ["test/a.jsonl"]),
        (["prefs.jsonl", "prefs_eval.jsonl"], "train", ["prefs.jsonl"]),
        (["prefs.jsonl", "prefs_eval.jsonl"], "test", ["prefs_eval.jsonl"]),
        (["train.jsonl", "dev.jsonl"], "validation", ["dev.jsonl"]),
        (["train_sft.jsonl", "train_prefs.jsonl"], "train_prefs", ["train_prefs.jsonl"]),
        (["a.jsonl", "b.jsonl"], "train", ["a.jsonl", "b.jsonl"]),
        (["a.jsonl", "b.jsonl"], "test", ["a.jsonl", "b.jsonl"]),
        (["contest.jsonl", "x.jsonl"], "test", ["contest.jsonl", "x.jsonl"]),
    ],
)
def test_splits_of_a_folder(load, folder, names, split, chosen):
    loaded = load(folder(*names), split=split)
    assert content(loaded) == [chosen]
    assert bool(loaded.report.notices) == (len(chosen) < len(names))


def test_training_never_takes_the_test_files(load, folder):
    """The twin: reading all files of the folder would."""
    loaded = load(folder("train.jsonl", "test.jsonl"))
    assert "test.jsonl" not in content(loaded)[0]
    assert "split train: train.jsonl read, 1 of 2 files left" in loaded.report.notices[0]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"split": "validation"}, "no file of the split 'validation' here; it holds test.jsonl, "),
        ({"split": "train[:10]"}, "a part of a split is for the hub only; use fraction"),
        ({"data_files": "x*.jsonl"}, "data_files 'x*.jsonl' names no data file in this folder"),
        ({"name": "other"}, "no such file or folder"),
    ],
)
def test_what_a_folder_does_not_have(load, folder, keys, message):
    path = folder("train.jsonl", "test.jsonl")
    with pytest.raises(DataError) as error:
        load(path, **keys)
    assert str(error.value).startswith(f"{path}: ")
    assert message in str(error.value)


def test_data_files_and_name_choose_in_a_folder(load, folder):
    path = folder("en/a.jsonl", "en/b.jsonl", "de/a.jsonl")
    assert content(load(path, data_files=["*/b.jsonl", "de/*"])) == [["en/b.jsonl", "de/a.jsonl"]]
    loaded = load(path, name="de")
    assert content(loaded) == [["de/a.jsonl"]]
    assert loaded.examples[0][0].origin.source == str(path / "de" / "a.jsonl")


def test_an_empty_file_among_others_is_said(load, folder):
    path = folder("a.jsonl")
    (path / "b.jsonl").write_text("")
    assert load(path).report.notices == [f"{path}: {path / 'b.jsonl'} is empty"]


@pytest.mark.parametrize("name", ["x.jsonl", "x.json", "x.csv"])
def test_an_empty_file_is_refused(load, tmp_path, name):
    path = tmp_path / name
    path.write_text("a,b\n" if name == "x.csv" else "\n")
    with pytest.raises(DataError, match=r"x\.\w+: empty: there are no rows in it"):
        load(path)


def test_missing_files_name_what_is_there(load, jsonl, tmp_path):
    there = jsonl(texts(1), "preferences.jsonl")
    jsonl(texts(1), "role.jsonl")
    cases = {
        "preference.jsonl": f"no such file or folder; did you mean {there}?",
        "preferences.json": f"no such file or folder; did you mean {there}?",
        "pref": f"no such file or folder; did you mean {there}?",
        "other.csv": "no such file or folder; there is preferences.jsonl, role.jsonl",
        "nothere.jsonl": "no such file or folder; there is preferences.jsonl, role.jsonl",
        "nowhere/a.jsonl": f"no such file: there is no folder {tmp_path / 'nowhere'}",
    }
    for name, message in cases.items():
        with pytest.raises(DataError) as error:
            load(tmp_path / name)
        assert str(error.value) == f"{tmp_path / name}: {message}"


def test_other_things_that_are_no_files_of_rows(load, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "rows.txt").write_text("a")
    for path, message in [
        (tmp_path / "empty", "no data file in this folder"),
        (tmp_path / "rows.txt", "unknown kind of file; known endings"),
        (tmp_path / ("x" * 5000), "cannot be read"),
    ]:
        with pytest.raises(DataError, match=message):
            load(path)
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}')
    with pytest.raises(DataError, match="a file, so data_files has nothing to name"):
        load(path, data_files="x")


# ---- the hub ---------------------------------------------------------------------------------


class Package(SimpleNamespace):
    """A stand-in for the package ``datasets``."""


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """Put a stand-in where ``import datasets`` finds it; record what it is asked for."""
    monkeypatch.chdir(tmp_path)
    calls = []

    def load_dataset(*args, **keys):
        calls.append((args, keys))
        return texts(3)

    package = Package(load_dataset=load_dataset, calls=calls)
    monkeypatch.setitem(sys.modules, "datasets", package)
    return package


def test_a_hub_id_is_loaded_through_datasets(hub, spec):
    source = spec("org/name", name="en", split="train[:3]", data_files=("a", "b"))
    loaded = load_examples([source])
    keys = {"data_files": ["a", "b"], "split": "train[:3]"}
    assert hub.calls == [(("org/name", "en"), keys)]
    assert content(loaded) == [["t0", "t1", "t2"]]
    assert [tuple(e.origin) for e in loaded.examples[0]][2] == ("org/name", 3, 0)
    assert load_examples([source]).fingerprint == loaded.fingerprint


def test_a_local_folder_wins_over_the_hub_and_says_so(hub, spec, folder, tmp_path):
    folder("a.jsonl", base="org/name")
    loaded = load_examples([spec("org/name")])
    assert (content(loaded), hub.calls) == ([["a.jsonl"]], [])
    assert loaded.report.notices == [
        "org/name: the folder org/name is read, not the hub's data set of that name"
    ]


@pytest.mark.parametrize("path", ["x.jsonl", "org/x.csv", "./x", "a/b/c", "../x", "local/missing"])
def test_paths_of_this_machine_never_reach_the_hub(hub, spec, tmp_path, path):
    (tmp_path / "local").mkdir()
    with pytest.raises(DataError, match=f"^{path}: no such file"):
        load_examples([spec(path)])
    assert hub.calls == []


def test_a_hub_failure_is_one_line(hub, spec, monkeypatch):
    def fail(*args, **keys):
        raise ConnectionError("\ncould not reach the hub\nat all")

    monkeypatch.setattr(hub, "load_dataset", fail)
    with pytest.raises(DataError) as error:
        load_examples([spec("org/name")])
    assert str(error.value) == (
        "org/name: no such file: there is no folder org; as a hub id it could not be loaded: "
        "ConnectionError: could not reach the hub"
    )


def test_a_row_that_the_package_cannot_decode(hub, spec, monkeypatch):
    def rows():
        yield {"text": "a"}
        raise RuntimeError("no decoder\nfor images")

    monkeypatch.setattr(hub, "load_dataset", lambda *a, **k: rows())
    with pytest.raises(DataError, match=r"^org/name:2: cannot be read: RuntimeError: no decoder$"):
        load_examples([spec("org/name")])


def test_without_the_package(spec, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "datasets", None)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prefs.jsonl").write_text("")
    with pytest.raises(DataError) as error:
        load_examples([spec("prefs")])
    assert str(error.value) == (
        "prefs: no such file or folder; did you mean prefs.jsonl?; as a hub id it needs the "
        'package datasets: pip install "trimtab[hub]"'
    )


def test_folders_that_datasets_saved(hub, spec, tmp_path, monkeypatch):
    for name, files in {
        "one": ["dataset_info.json", "state.json"],
        "two": ["dataset_dict.json"],
    }.items():
        (tmp_path / name).mkdir()
        for file in files:
            (tmp_path / name / file).write_text("{}")
    saved = {"one": texts(2), "two": {"train": texts(1), "test": texts(1, 5)}}
    monkeypatch.setattr(hub, "load_from_disk", lambda path: saved[Path(path).name], raising=False)
    assert content(load_examples([spec("one")])) == [["t0", "t1"]]
    assert content(load_examples([spec("two", split="test")])) == [["t5"]]
    with pytest.raises(DataError, match=r"two: no split 'dev' here; there is train, test"):
        load_examples([spec("two", split="dev")])
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match="one: a folder saved by the package datasets needs"):
        load_examples([spec("one")])


# ---- fractions, limits, mixtures, fingerprints -------------------------------------------------


def test_a_fraction_is_a_fixed_subset_in_the_order_of_the_file(load):
    rows = texts(40)
    half = load(rows, fraction=0.5)
    again = load(rows, fraction=0.5)
    other = load(rows, fraction=0.5, seed=1)
    quarter = load(rows, fraction=0.25)
    assert content(half) == content(again) != content(other)
    assert set(content(quarter)[0]) < set(content(half)[0])
    positions = [example.origin.row for example in half.examples[0]]
    assert positions == sorted(positions)
    report = half.report.sources[0]
    assert (report.rows_in, report.used, report.left_out) == (40, 20, 20)
    assert half.fingerprint == quarter.fingerprint


def test_a_fraction_is_not_the_start_of_the_file(load):
    """The twin: taking the first rows would pass everything above but this."""
    rows = [example.origin.row for example in load(texts(100), fraction=0.5).examples[0]]
    assert rows != list(range(1, 51))
    assert 30 < sum(rows) / 50 < 71


def test_a_fraction_keeps_a_row_and_takes_pairs_whole(load):
    assert load(texts(5), fraction=0.01).report.used == 1
    loaded = load([{**PAIR, "id": index} for index in range(10)], {"unpaired"}, fraction=0.5)
    assert (loaded.report.used, len(loaded.examples[0])) == (5, 10)
    assert len({example.extras["id"] for example in loaded.examples[0]}) == 5
    with pytest.raises(DataError, match=r"fraction 0: wanted a number above 0 and at most 1"):
        load(texts(5), fraction=0.0)


def test_max_rows_stops_reading(load, jsonl):
    path = jsonl([*texts(5), "nonsense"])
    loaded = load(path, max_rows=5)
    assert (loaded.report.rows_in, loaded.report.used) == (5, 5)
    assert loaded.fingerprint == load(path, max_bad_rows=1).fingerprint


def test_mixtures(jsonl, spec):
    a, b = jsonl(texts(3), "a.jsonl"), jsonl(texts(2, 3), "b.jsonl")
    plain = load_examples([spec(str(a)), spec(str(b))])
    assert (content(plain), plain.weights) == ([["t0", "t1", "t2"], ["t3", "t4"]], None)
    weighted = load_examples([spec(str(a), weight=2), spec(str(b), weight=1)])
    assert weighted.weights == [2.0, 1.0]
    assert [source.used for source in weighted.report.sources] == [3, 2]
    for weight in (None, 0.0, -1.0, float("nan")):
        with pytest.raises(DataError, match=r"b\.jsonl: weight "):
            load_examples([spec(str(a), weight=2), spec(str(b), weight=weight)])


def test_the_fingerprint_is_of_bytes(jsonl, spec, tmp_path):
    a, b = jsonl(texts(2), "a.jsonl"), jsonl(texts(2, 2), "b.jsonl")
    both = load_examples([spec(str(a)), spec(str(b))]).fingerprint
    moved = tmp_path / "elsewhere.jsonl"
    moved.write_bytes(a.read_bytes())
    assert load_examples([spec(str(moved)), spec(str(b))]).fingerprint == both
    assert load_examples([spec(str(b)), spec(str(a))]).fingerprint != both
    a.write_bytes(a.read_bytes() + b"\n")
    assert load_examples([spec(str(a)), spec(str(b))]).fingerprint != both


def test_the_kind_is_found_behind_many_rows_that_cannot_be_parsed(load):
    rows = ["nonsense"] * 1001 + texts(2) + ["nonsense"]
    loaded = load(rows, max_bad_rows=2000)
    report = loaded.report.sources[0]
    assert (report.kind, report.rows_in, report.used, report.bad_rows) == ("text", 1004, 2, 1002)
