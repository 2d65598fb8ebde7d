"""Whatever a user writes: a recipe, or one line that says what is wrong."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from trimtab.config import VERBS, load_text, resolve, to_yaml
from trimtab.config.schema import recipe_keys
from trimtab.errors import RecipeError

KEYS = sorted({key for verb in VERBS.values() for key in recipe_keys(verb.recipe)})
VALUES = st.one_of(
    st.text(max_size=12),
    st.sampled_from(["1", "0", "-1", "1e-5", "0.5", "null", "true", "no", "{}", "[]", "[1, 2]"]),
    st.sampled_from(["{a: 1}", "[{path: x}]", "{name: simpo, gamma: 1}", "prompt=q", "1e400", "~"]),
    st.integers().map(str),
    st.floats().map(repr),
)
OPTIONS = st.tuples(
    st.sampled_from([*KEYS, "beta", "gamma", "loss_type", "bf16", "no_shuffle", "resume", "json"])
    | st.text(st.characters(categories=["L", "N", "P"]), max_size=8),
    st.none() | VALUES,
)


def check_message(error: RecipeError) -> None:
    text = str(error)
    assert text and "\n" not in text, text
    assert "Traceback" not in text and "pydantic" not in text


@settings(max_examples=300, deadline=None)
@given(verb=st.sampled_from(sorted(VERBS)), options=st.lists(OPTIONS, max_size=3))
@example(verb="dpo", options=[("loss", "{name: {a: 1}}")])
@example(verb="dpo", options=[("loss", "{name: null}")])
@example(verb="dpo", options=[("loss", "[simpo]")])
@example(verb="dpo", options=[("loss.name", None), ("loss", "dpo")])
@example(verb="sft", options=[("columns", "{prompt: [1]}")])
@example(verb="sft", options=[("columns", "{prompt: q}"), ("columns.chosen", "{}")])
@example(verb="sft", options=[("datasets", "[[]]")])
@example(verb="sft", options=[("mix", "null"), ("mix.weight", "1")])
def test_any_command_line(verb: str, options: list[tuple[str, str | None]]) -> None:
    tokens = ["--model", "m", "--dataset", "d"]
    for key, value in options:
        tokens += [f"--{key}"] if value is None else [f"--{key}={value}"]
    try:
        found = resolve(verb, tokens, env={})
    except RecipeError as error:
        check_message(error)
    else:
        assert load_text(to_yaml(found)).recipe == found.recipe


LINES = st.lists(
    st.tuples(st.sampled_from(KEYS) | st.text(max_size=6), VALUES).map(lambda p: f"{p[0]}: {p[1]}")
    | st.text(max_size=20),
    max_size=4,
)


@settings(max_examples=200, deadline=None)
@given(verb=st.sampled_from(sorted(VERBS)), lines=LINES)
@example(verb="sft", lines=["? a", "b: [c"])
@example(verb="sft", lines=["{}: 1"])
@example(verb="sft", lines=["a: *b"])
@example(verb="dpo", lines=["loss: {loss: {loss: x}}"])
@example(verb="dpo", lines=["mix: {mix: 1}", "1: 2", ": 3"])
def test_any_file(verb: str, lines: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "x.yaml")
        file.write_bytes("\n".join(lines).encode("utf-8", "surrogatepass"))
        try:
            resolve(verb, [str(file), "--model", "m", "--dataset", "d"], env={})
        except RecipeError as error:
            check_message(error)


def test_a_traceback_would_be_seen() -> None:
    with pytest.raises(AssertionError), contextlib.suppress(RecipeError):
        check_message(RecipeError("a\nb"))
