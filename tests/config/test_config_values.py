"""Text becomes a value by the type that the recipe declares, not by YAML's."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from pydantic import TypeAdapter, ValidationError

from trimtab.config.values import (
    ClassNames,
    Columns,
    CountOrShare,
    Device,
    Location,
    Number,
    Prompts,
    TextList,
    Whole,
)


def read(kind: Any, value: Any) -> Any:
    return TypeAdapter(kind).validate_python(value)


def message(kind: Any, value: Any) -> str:
    with pytest.raises(ValidationError) as caught:
        read(kind, value)
    return caught.value.errors()[0]["msg"]


@pytest.mark.parametrize(
    ("text", "value"), [("1e-5", 1e-5), (" 2 ", 2.0), ("-0.5", -0.5), (3, 3.0), ("1_000", 1000.0)]
)
def test_numbers(text: Any, value: float) -> None:
    assert read(Number, text) == value


@pytest.mark.parametrize(
    ("value", "names"),
    [
        ("bad, good", ["bad", "good"]),
        (["1", 0, " 2 "], [1, 0, 2]),
        (("yes", "no"), ["yes", "no"]),
        ("0,1,unknown", ["0", "1", "unknown"]),
        (["007", "8"], ["007", "8"]),
        (["a, b", "c"], ["a, b", "c"]),  # in a list a comma is a comma
    ],
)
def test_classes(value: Any, names: list[Any]) -> None:
    assert read(ClassNames, value) == names
    assert read(ClassNames, names) == names


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("good", "is not a list of classes: there must be two of them or more"),
        ([], "is not a list of classes: there must be two of them or more"),
        (["a", "b", "a"], "names 'a' twice"),
        ([1, "1"], "names '1' twice"),
        (["a", " "], "holds an empty class"),
    ],
)
def test_no_classes(value: Any, expected: str) -> None:
    assert message(ClassNames, value) == expected


def test_yaml_would_have_made_text_of_it() -> None:
    assert yaml.safe_load("1e-5") == "1e-5"
    assert read(Number, yaml.safe_load("1e-5")) == 1e-5


@pytest.mark.parametrize("value", ["fast", "", True, None, [1], "0x10"])
def test_no_numbers(value: Any) -> None:
    assert message(Number, value) == "is not a number"


@pytest.mark.parametrize("value", ["nan", "inf", float("nan"), "-Infinity", "1e999"])
def test_no_finite_numbers(value: Any) -> None:
    assert message(Number, value) == "is not a finite number"


@pytest.mark.parametrize(
    ("text", "value"),
    [("64", 64), ("1e3", 1000), ("64.0", 64), (7.0, 7), ("9007199254740993", 9007199254740993)],
)
def test_whole_numbers(text: Any, value: int) -> None:
    found = read(Whole, text)
    assert found == value and type(found) is int


@pytest.mark.parametrize("value", ["1.5", "ten", True, "nan", None])
def test_no_whole_numbers(value: Any) -> None:
    assert message(Whole, value) == "is not a whole number"


@pytest.mark.parametrize(
    ("text", "value"), [("0.1", 0.1), ("150", 150), ("0", 0), (0.5, 0.5), ("1", 1), ("1.0", 1)]
)
def test_counts_and_shares(text: Any, value: float) -> None:
    found = read(CountOrShare, text)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("1.5", "is neither a whole number nor a share below 1"),
        ("-1", "is negative; give a count, or a share below 1 such as 0.1"),
        ("half", "is not a number"),
    ],
)
def test_no_counts(value: Any, expected: str) -> None:
    assert message(CountOrShare, value) == expected


@pytest.mark.parametrize(
    "value", ["wandb,mlflow", "wandb, mlflow", ["wandb", "mlflow"], ("wandb,", "mlflow")]
)
def test_words(value: Any) -> None:
    assert read(TextList, value) == ["wandb", "mlflow"]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("3", 3),
        (3, 3),
        ("Hello, you", ["Hello, you"]),  # a comma is part of a prompt
        (("Hello", "you"), ["Hello", "you"]),
        (["3"], ["3"]),  # in a list it is a prompt
    ],
)
def test_prompts(value: Any, expected: Any) -> None:
    assert read(Prompts, value) == expected


def test_no_prompts() -> None:
    assert message(Prompts, True) == "is neither a number of prompts nor a list of prompts"
    assert message(Prompts, -1) == "is negative"


@pytest.mark.parametrize(
    "value",
    [
        "prompt=question,chosen=good",
        ["prompt=question", "chosen=good"],
        ("prompt=question,", "chosen=good"),
        {"prompt": "question", "chosen": "good"},
    ],
)
def test_columns(value: Any) -> None:
    if isinstance(value, tuple):
        value = tuple(part.rstrip(",") for part in value)
    assert read(Columns, value) == {"prompt": "question", "chosen": "good"}


def test_columns_the_wrong_way_round_are_noticed() -> None:
    found = message(Columns, "question=prompt")
    assert found.startswith("maps 'question'") and found.endswith("did you mean prompt=question?")


def test_columns_refused() -> None:
    assert message(Columns, "prompt").startswith("is not of the form ours=theirs")
    assert message(Columns, "prompt=a,prompt=b") == "names prompt twice"


def test_home_is_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/somewhere")
    monkeypatch.setenv("USERPROFILE", "/somewhere")
    assert read(Location, "~/data.jsonl") == "/somewhere/data.jsonl"
    assert read(Location, "a~b") == "a~b"
    assert message(Location, " ") == "is empty"


@pytest.mark.parametrize("value", ["auto", "cpu", "cuda", "cuda:1", "mps"])
def test_devices(value: str) -> None:
    assert read(Device, value) == value


@pytest.mark.parametrize("value", ["gpu", "cuda:", "cpu:0", "CUDA"])
def test_no_devices(value: str) -> None:
    assert message(Device, value) == "is not one of auto, cpu, cuda, cuda:N, mps"
