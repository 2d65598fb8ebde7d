"""How reward functions are named and found, what is wrong with a name, and sums of several."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tests.rewards.called import (
    FILE,
    reward_files,  # noqa: F401
)

from trimtab.errors import RecipeError, RunError
from trimtab.rewards.combine import RewardSum, weighted_sum
from trimtab.rewards.functions import (
    call,
    check_columns,
    resolve,
)
from trimtab.rewards.spec import names_a_model, parse

# ---------------------------------------------------------------------- names and signatures


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("acuracy_reward", "no built-in reward of that name .*Did you mean accuracy_reward"),
        ("nothing.py:f", "nothing.py: no such file"),
        ("mime.py:f", "mime.py: no such file. Did you mean mine.py"),
        ("mine.py", "which function of the file.*it defines everything, named, .* and 4 more"),
        ("mine.py:nmed", "mine.py: no function 'nmed'; it defines .*Did you mean named"),
        ("mine.py:", "not of the form"),
        ("mine.py:Judge", "mine.py: Judge is a class, not a function"),
        ("mine.py:constant", "mine.py: constant is a int, not a function"),
        ("mine.py:prompts_only", "it takes prompts, and so no completions; it is called as f"),
        ("mine.py:positional", "its parameters have no names to be called by"),
        ("mine.py:waits(scale=2)", "waits has no option 'scale'; it takes none"),
        ("mine.py:named(mising=2)", "it takes solution, missing. Did you mean missing"),
        ("mine.py:scaled(completions=2)", "completions cannot be an option"),
        ("mine.py:scaled(3)", "its options are not of the form"),
        ("mine.py:scaled(scale=x)", "option scale=x is not a number"),
        ("no_such_module:f", "no module named 'no_such_module', installed or in the working"),
        ("a_package.nothing:f", "no module named 'a_package.nothing'"),
        ("no.such.f", "no module named 'no'"),
        ("broken.py:f", r"broken.py:2: SyntaxError: "),
        ("broken:f", r"broken.py:2: SyntaxError: "),
        ("imports.py:f", r"imports.py:1: ModuleNotFoundError: No module named 'no_such_thing'"),
        ("imports:f", r"imports.py:1: ModuleNotFoundError: No module named 'no_such_thing'"),
        ("leaves.py:f", r"leaves.py:2: SystemExit: 3"),
        ("two words", "not of the form"),
        ("format(pattern='(')", "pattern='\\(' is no regular expression"),
        ("length", "length takes one of target and cap"),
        ("length(target=0)", "target=0 is no whole number from 1 on"),
        ("length(cap=5, buffer=6)", "buffer=6 is more than cap=5"),
        ("length(words=5)", "length has no option 'words'; it takes target, cap, buffer"),
        ("repetition(ngram_size=0)", "ngram_size=0 is no whole number"),
        ("repetition(max_penalty=1)", "max_penalty=1 is no number of at most 0"),
        ("math_answer(tolerance=2)", "tolerance=2 is no share"),
    ],
)
def test_one_line_for_what_is_wrong(here: Path, spec: str, expected: str) -> None:
    (here / "broken.py").write_text("x = 1\ndef f(:\n")
    (here / "imports.py").write_text("import no_such_thing\n")
    (here / "leaves.py").write_text("import sys\nsys.exit(3)\n")
    with pytest.raises(RecipeError, match=expected) as error:
        resolve(spec)
    assert str(error.value).startswith(f"reward_funcs={spec!r}: ")
    assert "\n" not in str(error.value)


def test_a_specs_parts() -> None:
    spec = parse("some dir (1)/my.py:f(a=1, b='x,y(', c=[1, 2])")
    assert spec[1:] == ("file", "some dir (1)/my.py", "f", {"a": 1, "b": "x,y(", "c": [1, 2]})
    assert parse("a.b.c")[1:4] == ("module", "a.b", "c")
    assert parse("C:\\rewards\\my.py:f")[1:4] == ("file", "C:\\rewards\\my.py", "f")


def test_what_names_a_reward_model(here: Path) -> None:
    assert names_a_model("a_package") and names_a_model("org/reward-model")
    assert not any(map(names_a_model, ("a/b.py:f", "a.b:f", "length", "length(target=1/2)")))


@pytest.mark.parametrize(
    ("spec", "names", "ids", "expected"),
    [
        ("mine.py:named", {"other"}, True, "asks for column 'solution'; the rows' other columns "),
        ("mine.py:named", set(), True, "asks for column 'solution'; there are none"),
        ("mine.py:needs_ids", {"a"}, False, "asks for completion_ids, and only sampled"),
        ("math_answer", {"other"}, True, "needs column 'answer' or 'solution'"),
    ],
)
def test_columns_that_are_not_there(
    here: Path, spec: str, names: set[str], ids: bool, expected: str
) -> None:
    with (here / "mine.py").open("a") as file:
        file.write(
            "\ndef needs_ids(completion_ids):\n    return [len(x) for x in completion_ids]\n"
        )
    function = resolve(spec)
    with pytest.raises(RecipeError, match=expected):
        check_columns(function, names, ids=ids)
    check_columns(function, {"solution"}, ids=True)
    with pytest.raises(RecipeError):  # and at the call itself, whatever on_bad says
        call(function, ["p"], ["c"], {name: [1] for name in names}, on_bad="drop")


def test_another_file_has_another_digest(here: Path) -> None:
    one = resolve("mine.py:named").digest
    assert one == resolve("mine.py:ids").digest
    (here / "mine.py").write_text(FILE + "\n# changed\n")
    assert resolve("mine.py:named").digest != one


# ---------------------------------------------------------------------- sums


def test_weighted_sums_are_nansums() -> None:
    parts = [[1.0, None, None, 0.0], [10.0, 20.0, None, None]]
    assert weighted_sum(parts, [2.0, -1.0]) == [-8.0, -20.0, None, 0.0]
    # Wrong variants: a missing reward is not 0 with the weights renormalised, and TRL's nansum of
    # nothing, 0, would be a reward.
    assert weighted_sum(parts, [2.0, -1.0])[1] != -20.0 * (2.0 - 1.0) / -1.0
    assert weighted_sum([[None]], [1.0]) != [0.0]


def test_reward_sum(here: Path) -> None:
    functions = [resolve("mine.py:gives"), resolve("length(cap=1)"), resolve("length(cap=3)")]
    reward = RewardSum(functions, [1.0, 10.0, 100.0], on_bad="drop", on_bad_key="on_bad_reward")
    assert reward.names == ["gives", "length", "length_2"]
    found = reward(["p"] * 3, ["a", "a b", "a b c d"], {"value": [0.5, None, "x"]})
    assert found.parts == {
        "gives": [0.5, None, None],
        "length": [0.0, -1.0, -1.0],
        "length_2": [0.0, 0.0, -1.0],
    }
    assert found.values == [0.5, -10.0, -110.0]
    (problem,) = found.problems
    assert problem.index == 2 and problem.text.startswith("gives: sample 2 ('a b c d'): gave 'x'")
    reward.on_bad = "stop"
    with pytest.raises(RunError, match="on_bad_reward=drop"):
        reward(["p"], ["a"], {"value": ["x"]})
    for weights in ([1.0], [1.0, 1.0, float("nan")]):
        with pytest.raises(RecipeError, match="reward_weights"):
            RewardSum(functions, weights)


def test_close_ends_all() -> None:
    closed: list[str] = []

    def closing(name: str) -> Callable[[], None]:
        return lambda: closed.append(name)

    functions = [resolve("repetition"), resolve("think_format_reward")]
    for function in functions:
        function.close = closing(function.name)  # type: ignore[method-assign]
    RewardSum(functions).close()
    assert closed == ["repetition", "think_format_reward"]
