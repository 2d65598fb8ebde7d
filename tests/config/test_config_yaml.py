"""YAML as text with line numbers."""

from __future__ import annotations

from pathlib import Path

import pytest

from trimtab.config.yaml_text import parse, read_file
from trimtab.errors import RecipeError


def refused(text: str) -> str:
    with pytest.raises(RecipeError) as caught:
        parse(text, "x.yaml")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_scalars_stay_text() -> None:
    found = parse(
        "a: 1e-5\nb: no\nc: 'null'\nd: null\ne: ~\nf:\ng: 2020-01-01\nh: [1, true]\n", "x"
    )
    assert found.value == {
        "a": "1e-5",
        "b": "no",
        "c": "null",
        "d": None,
        "e": None,
        "f": None,
        "g": "2020-01-01",
        "h": ["1", "true"],
    }


def test_lines() -> None:
    text = "# comment\n\na: 1\nmix:\n  weight: 2\nlist:\n  - path: x\n    split: y\n  - z\n"
    assert parse(text, "x").lines == {
        "": 3,
        "a": 3,
        "mix": 4,
        "mix.weight": 5,
        "list": 6,
        "list.0": 7,
        "list.0.path": 7,
        "list.0.split": 8,
        "list.1": 9,
    }


def test_a_key_has_its_own_line_where_its_value_begins_below() -> None:
    assert parse("a:\n\n  - 1\n", "x").lines["a"] == 1


def test_duplicate_keys() -> None:
    assert refused("a: 1\nb: 2\na: 3\n") == "x.yaml:3: a is given twice, first in line 1"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: [1, 2\n", "x.yaml:2: not valid YAML"),
        ("a: b: c\n", "x.yaml:1: not valid YAML"),
        ("\ta: 1\n", "x.yaml:1: not valid YAML"),
        ("a: !!python/object:os.system {}\n", "x.yaml:1: tag python/object:os.system"),
        ("a: !env HOME\n", "x.yaml:1: tag !env is not allowed"),
        ("b: &b {c: 1}\na:\n  <<: *b\n", "x.yaml:3: merge keys"),
        ("? [1, 2]\n: 3\n", "x.yaml:1: a key has to be a word"),
        ("a: &a [*a]\n", "x.yaml:1: too many values, or a value that contains itself"),
        ("a: 1\n--- \nb: 2\n", "x.yaml:2: not valid YAML"),
        ("a: \x07\n", "x.yaml: not valid YAML"),
    ],
)
def test_refused(text: str, expected: str) -> None:
    assert refused(text).startswith(expected)


def test_aliases_that_multiply_are_refused() -> None:
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    assert "too many values" in refused("\n".join(lines))


def test_deep_nesting_is_refused() -> None:
    assert refused("[" * 5000).startswith("x.yaml")


def test_files(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"nothing\.yaml: no such recipe file$"):
        read_file(tmp_path / "nothing.yaml")
    with pytest.raises(RecipeError, match="is a folder"):
        read_file(tmp_path)
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match="is not UTF-8 text"):
        read_file(binary)
    marked = tmp_path / "marked.yaml"
    marked.write_bytes(b"\xef\xbb\xbfa: 1\n")
    assert read_file(marked).value == {"a": "1"}
    empty = tmp_path / "empty.yaml"
    empty.write_text("# nothing\n")
    assert read_file(empty).value is None
