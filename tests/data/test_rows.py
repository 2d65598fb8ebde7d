from __future__ import annotations

from dataclasses import FrozenInstanceError

import pytest

from trimtab.data.rows import (
    KINDS,
    ChatExample,
    CompletionExample,
    Example,
    LabelledExample,
    PreferenceExample,
    PromptExample,
    RankedExample,
    TextExample,
    kind_of,
)
from trimtab.data.trees import Origin

HERE = Origin("rows.jsonl", 3)
MESSAGES = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]

EXAMPLES = {
    "text": TextExample(origin=HERE, text="a"),
    "labelled": LabelledExample(origin=HERE, text="a", label="good"),
    "chat": ChatExample(origin=HERE, messages=MESSAGES),
    "prompt": PromptExample(origin=HERE, prompt="a"),
    "completion": CompletionExample(origin=HERE, prompt="a", completion="b"),
    "unpaired": CompletionExample(origin=HERE, prompt="a", completion="b", label=False),
    "preference": PreferenceExample(origin=HERE, prompt="a", chosen="b", rejected="c"),
    "ranked": RankedExample(origin=HERE, prompt="a", responses=["b", "c"], ranks=[1.0, 2.0]),
}


def test_every_kind_has_a_class():
    assert tuple(EXAMPLES) == KINDS
    assert {kind: kind_of(example) for kind, example in EXAMPLES.items()} == {k: k for k in KINDS}


def test_a_label_of_false_is_a_label():
    """The twin: testing the label for truth would call an unwanted completion a plain one."""
    assert kind_of(EXAMPLES["unpaired"]) == "unpaired"
    assert kind_of(CompletionExample(origin=HERE, prompt="a", completion="b", label=None)) == (
        "completion"
    )


@pytest.mark.parametrize("example", EXAMPLES.values(), ids=EXAMPLES)
def test_examples_are_frozen_and_have_defaults(example):
    assert (example.extras, example.weight, example.tools) == ({}, 1.0, None)
    with pytest.raises(FrozenInstanceError):
        example.weight = 2.0


def test_a_bare_example_has_no_kind():
    with pytest.raises(AssertionError, match="Example"):
        kind_of(Example(origin=HERE))
