"""Trees in columns give the same trees back; the cache on disk is whole, current or rebuilt."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.data import store_cache
from trimtab.data.store import TreeStore
from trimtab.data.store_cache import cache_key, cached, default_cache_dir, load, save
from trimtab.data.trees import Branch, Comparison, Origin, TokenTree


def branch(ids: list[int], trained: list[bool] | None = None) -> Branch:
    return Branch(tuple(ids), tuple(trained or [True] * len(ids)))


TREES = [
    TokenTree(
        branch([1, 2], [False, True]),
        (branch([3, 4, 5], [True, False, True]), branch([6])),
        (Comparison(0, 1, 0.1, -2.5),),
        Origin("a.jsonl", 3, 1),
        ranks=(1.0, 2.0),
        scores=(0.1, 0.2),
        labels=(True, False),
        weight=0.3,
        classes=(300, 0),
    ),
    TokenTree(branch([2**31 - 1]), (), (), Origin("b.jsonl", 2**40)),
    TokenTree(
        branch([]), (branch([]), branch([7])), (), Origin("a.jsonl", 4), labels=(False, True)
    ),
]

branches = st.lists(st.tuples(st.integers(0, 2**31 - 1), st.booleans()), max_size=6).map(
    lambda pairs: Branch(tuple(i for i, _ in pairs), tuple(t for _, t in pairs))
)


@st.composite
def token_trees(draw: Any) -> TokenTree:
    found = draw(st.lists(branches, max_size=4))
    count = len(found)
    numbers = st.floats(allow_nan=False)
    *columns, classes = [
        tuple(draw(st.lists(kind, min_size=count, max_size=count))) if draw(st.booleans()) else ()
        for kind in (numbers, numbers, st.booleans(), st.integers(0, 2**31 - 1))
    ]
    index = st.integers(0, max(0, count - 1))
    pairs = st.builds(Comparison, index, index, numbers, numbers)
    return TokenTree(
        draw(branches), tuple(found), tuple(draw(st.lists(pairs, max_size=3))),
        Origin(draw(st.sampled_from(["a", "b c", "日"])), draw(st.integers(1, 2**50)), 2),
        *columns, draw(numbers), classes,
    )  # fmt: skip


@given(st.lists(token_trees(), max_size=6))
def test_trees_come_back_as_they_were(trees: list[TokenTree]) -> None:
    store = TreeStore.of(trees)
    assert len(store) == len(trees)
    assert list(store) == trees
    assert [store[i] for i in range(len(trees))] == trees
    assert store.token_counts.tolist() == [tree.token_count for tree in trees]
    assert store.trained_counts.tolist() == [tree.trained_count for tree in trees]
    assert store.depths.tolist() == [tree.depth for tree in trees]


def test_indexing_is_that_of_a_sequence() -> None:
    store = TreeStore.of(TREES)
    assert store[-1] == TREES[-1] and store[np.int64(1)] == TREES[1]
    assert store[:2] == TREES[:2]
    for wrong in (3, -4):
        with pytest.raises(IndexError):
            store[wrong]


def test_row_keys_are_those_of_content() -> None:
    """Same ids and masks, same key, wherever the row stands; any change of them changes it."""
    store = TreeStore.of(TREES)
    moved = TreeStore.of([TREES[2], TREES[0]._replace(origin=Origin("c", 1), weight=9.0)])
    assert store.row_key(0) == moved.row_key(1) and store.row_key(2) == moved.row_key(0)
    tree = TREES[0]
    changed = [
        tree._replace(trunk=branch([1, 9], [False, True])),
        tree._replace(trunk=branch([1, 2], [False, False])),
        tree._replace(trunk=branch([1]), branches=(branch([2, 3, 4, 5]), branch([6]))),
        tree._replace(branches=tree.branches[::-1]),
        tree._replace(
            branches=tree.branches[:1], comparisons=(), ranks=(), scores=(), labels=(), classes=()
        ),
    ]
    keys = {TreeStore.of([one]).row_key(0) for one in [tree, *changed]}
    assert len(keys) == 6


def test_a_store_has_a_fingerprint_of_everything() -> None:
    prints = {
        TreeStore.of(trees).fingerprint()
        for trees in (
            TREES,
            TREES[::-1],
            TREES[:2],
            [TREES[0]._replace(weight=2.0), *TREES[1:]],
            [TREES[0]._replace(classes=(300, 1)), *TREES[1:]],
        )
    }
    assert len(prints) == 5
    assert TreeStore.of(TREES).fingerprint() == TreeStore.of(TREES).fingerprint()


def test_save_and_load(tmp_path: Path) -> None:
    store = TreeStore.of(TREES)
    save(tmp_path, "key", store, {"rows": 3})
    found = load(tmp_path, "key")
    assert found is not None
    assert found[0] == store and list(found[0]) == TREES and found[1] == {"rows": 3}
    assert load(tmp_path, "other") is None
    assert sorted(p.name for p in tmp_path.iterdir()) == ["key.json", "key.safetensors"]


def test_an_empty_store_is_saved_too(tmp_path: Path) -> None:
    save(tmp_path, "key", TreeStore.of([]), {})
    found = load(tmp_path, "key")
    assert found is not None and len(found[0]) == 0 and found[0].depths.tolist() == []


class Builds:
    """Counts how often the data had to be tokenised."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> tuple[TreeStore, dict[str, Any]]:
        self.count += 1
        return TreeStore.of(TREES), {"built": self.count}


def test_the_cache_builds_once(tmp_path: Path) -> None:
    build = Builds()
    first = cached({"rows": "x"}, build, tmp_path / "deep" / "er")
    second = cached({"rows": "x"}, build, tmp_path / "deep" / "er")
    assert (first.hit, second.hit, build.count) == (False, True, 1)
    assert first.store == second.store and second.notes == {"built": 1}


PARTS = {"rows": "sha", "tokenizer": "sha", "options": {"max_length": 9, "stride": None}}


@pytest.mark.parametrize(
    "change",
    [
        {"rows": "other"},
        {"tokenizer": "other"},
        {"options": {"max_length": 8, "stride": None}},
        {"options": {"max_length": 9, "stride": 1}},
    ],
)
def test_every_ingredient_is_part_of_the_key(tmp_path: Path, change: dict[str, Any]) -> None:
    build = Builds()
    cached(PARTS, build, tmp_path)
    assert not cached({**PARTS, **change}, build, tmp_path).hit
    assert build.count == 2
    assert cached(dict(reversed(PARTS.items())), build, tmp_path).hit, "their order is not"


def test_the_code_version_is_part_of_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    before = cache_key(PARTS)
    monkeypatch.setattr(store_cache, "CODE_VERSION", store_cache.CODE_VERSION + 1)
    assert cache_key(PARTS) != before


def test_an_entry_without_a_column_of_today_is_built_again(tmp_path: Path) -> None:
    """An older version's entry, whole by its own manifest, under a key of ours."""
    from safetensors.numpy import save as save_tensors

    columns = {k: v for k, v in TreeStore.of(TREES).columns.items() if k != "classes"}
    data = save_tensors(columns)
    (tmp_path / "key.safetensors").write_bytes(data)
    manifest = {"sha256": hashlib.sha256(data).hexdigest(), "sources": ["a"], "notes": {}}
    (tmp_path / "key.json").write_text(json.dumps(manifest))
    assert load(tmp_path, "key") is None


def damages() -> dict[str, Any]:
    def flip(data: bytes) -> bytes:
        return data[:-9] + bytes([data[-9] ^ 1]) + data[-8:]

    return {
        "cut columns": (".safetensors", lambda data: data[: len(data) // 2]),
        "one bit": (".safetensors", flip),
        "empty columns": (".safetensors", lambda data: b""),
        "cut manifest": (".json", lambda data: data[: len(data) // 2]),
        "no manifest": (".json", None),
        "no columns": (".safetensors", None),
        "other manifest": (".json", lambda data: b"[]"),
        "binary manifest": (".json", lambda data: b"\xff\xfe"),
        "missing field": (".json", lambda data: json.dumps(
            {k: v for k, v in json.loads(data).items() if k != "sources"}).encode()),
    }  # fmt: skip


@pytest.mark.parametrize("name", list(damages()))
def test_a_damaged_entry_is_built_again(tmp_path: Path, name: str) -> None:
    suffix, damage = damages()[name]
    build = Builds()
    cached(PARTS, build, tmp_path)
    path = tmp_path / f"{cache_key(PARTS)}{suffix}"
    if damage is None:
        path.unlink()
    else:
        path.write_bytes(damage(path.read_bytes()))
    again = cached(PARTS, build, tmp_path)
    assert (again.hit, build.count) == (False, 2) and list(again.store) == TREES
    assert cached(PARTS, build, tmp_path).hit, "and is whole again"


@pytest.mark.parametrize("dies_at", range(5))
def test_a_killed_writer_leaves_no_entry_that_is_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dies_at: int
) -> None:
    """Whatever write or rename it dies at: the next run finds a whole entry, or none."""

    class Killed(BaseException):
        pass

    steps = 0
    real_replace, real_fsync = os.replace, os.fsync

    def step() -> None:
        nonlocal steps
        steps += 1
        if steps > dies_at:
            raise Killed

    def replace(*arguments: Any) -> None:
        step()
        real_replace(*arguments)

    def fsync(descriptor: int) -> None:
        step()
        real_fsync(descriptor)

    monkeypatch.setattr(os, "replace", replace)
    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(Killed):
        save(tmp_path, "key", TreeStore.of(TREES), {})
    monkeypatch.undo()
    assert load(tmp_path, "key") is None
    save(tmp_path, "key", TreeStore.of(TREES), {})
    assert load(tmp_path, "key") is not None


def test_a_folder_that_cannot_be_written_costs_only_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    found = cached(PARTS, Builds(), blocked)
    assert list(found.store) == TREES and not found.hit
    assert "not cached" in capsys.readouterr().err


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TRIMTAB_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", lambda: Path("/home/u"))
    expected = {
        "linux": "/home/u/.cache/trimtab",
        "darwin": "/home/u/Library/Caches/trimtab",
        "win32": "/data/local/trimtab",
    }
    monkeypatch.setenv("LOCALAPPDATA", "/data/local")
    for platform, folder in expected.items():
        monkeypatch.setattr(sys, "platform", platform)
        assert default_cache_dir() == Path(folder)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert default_cache_dir() == Path("/xdg/trimtab")
    monkeypatch.setenv("TRIMTAB_CACHE", "/own")
    assert default_cache_dir() == Path("/own")
