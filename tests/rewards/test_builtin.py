"""Built-in rewards against values worked out by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from trimtab.rewards.builtin import text_of
from trimtab.rewards.functions import call, resolve
from trimtab.rewards.math_answers import agree, final_answer
from trimtab.rewards.math_values import value

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"


def rewards(spec: str, completions: list[Any], **columns: list[Any]) -> list[float | None]:
    ids = columns.pop("completion_ids", None)
    prompts = ["p"] * len(completions)
    return call(resolve(spec), prompts, completions, columns, completion_ids=ids).values


# ---------------------------------------------------------------------- answers in texts


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("so 3 + 4 = 7\n#### 7", "7"),
        ("#### 12\nand then #### 1,234 apples\nor 5", "1,234 apples"),
        (r"\boxed{3} is wrong, so \boxed{\frac{1}{2}}. Done in 7 steps", r"\frac{1}{2}"),
        (r"\boxed{\text{a {b} c}}", r"\text{a {b} c}"),
        (r"\boxed 5.", "5"),
        (r"\boxed{5", "5"),
        ("The answer is 12 dollars, in 2 parts.", "12"),
        ("**Answer:** 7\nbecause 3 < 8", "7"),
        ("The final answer is:\n42", "42"),
        ("The answer is yes.", "yes"),
        ("first 3, then $4.50.", "$4.50"),
        ("it costs 1,234,567.5 in all", "1,234,567.5"),
        ("10-3=7 and 10-3", "3"),
        ("it fell to -3", "-3"),
        ("- 3", "3"),
        (r"so $\frac{3}{4}$.", r"$\frac{3}{4}"),
        ("about 1 1/2 cups", "1 1/2"),
        ("3/4 of it", "3/4"),
        ("25% more", "25%"),
        ("<think>it is 5</think> 6", "6"),
        ("<think>it is 5</think>", None),
        ("no number", None),
    ],
)
def test_the_answer_of_a_text(text: str, found: str | None) -> None:
    assert final_answer(text) == found


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("42", 42),
        ("-1,234.50", -1234.5),
        ("12{,}345", 12345),
        (r"1\,234", 1234),
        ("$12.50", 12.5),
        (r"\$3", 3),
        ("3/4", 0.75),
        (r"\frac{3}{4}", 0.75),
        (r"-\dfrac{3}{4}", -0.75),
        (r"\frac12", 0.5),
        (r"1\frac{1}{2}", 1.5),
        (r"-1\frac{1}{2}", -1.5),
        ("-1 1/2", -1.5),
        ("2^{10}", 1024),
        (r"1.5 \times 10^{-3}", 0.0015),
        ("1e3", 1000),
        (r"\sqrt{16}", 4),
        (r"\sqrt[3]{27}", 3),
        (r"2\sqrt{3}", 3.4641016151377544),
        (r"\frac{\pi}{2}", 1.5707963267948966),
        (r"3(4+1)-2^3", 7),
        ("x = 5", 5),
        (r"5\text{ cm}^2", 5),
        ("5 cm^2", 5),
        ("15 dollars.", 15),
        (r"90^\circ", 90),
        ("25%", 25),
        ("−7", -7),
        ("x + 1", None),
        ("3 or 4", None),
        ("1/0", None),
        ("9^9^9^9", None),
        ("(-8)^{1/2}", None),
        ("1e999", None),
        ("(" * 150, None),
        ("1" * 201, None),
        ("", None),
        ("__import__('os')", None),
    ],
)
def test_written_numbers(text: str, number: float | None) -> None:
    found = value(text)
    if number is None:
        assert found is None
    else:
        assert found is not None and float(found.number) == pytest.approx(number, rel=1e-12)


@pytest.mark.parametrize(
    ("text", "gold", "same"),
    [
        (r"\boxed{\frac{1}{2}}", "0.5", True),
        ("#### 1,234", "1234", True),
        ("#### 42.0", "42", True),
        ("0.67", "2/3", True),
        ("0.66", "2/3", False),  # cut off, not rounded
        ("0.7", "2/3", False),  # one decimal is too coarse
        ("3", "2.5", False),
        ("59.999", "60", False),
        ("0.00", "0.004", False),  # rounded, but all of it
        ("1234567", "1234568", False),  # one in a million, and another number all the same
        ("60%", "60", True),
        ("60%", "0.6", True),
        ("0.6", "60", False),
        ("60", "60%", True),
        (r"\boxed{3.464}", r"2\sqrt{3}", True),
        (r"\boxed{x^2 + 1}", "x^2+1", True),
        (r"\boxed{(B)}", "b", True),
        ("The answer is Yes.", "yes", True),
        ("12", "She has 3 + 9 = 12 apples.\n#### 12", True),
        ("12", "She has twelve apples, that is 12 of them.", True),
        ("nothing", "3", False),
        ("3", "", None),
        ("3", "   ", None),
        ("3", "#### ", None),
    ],
)
def test_answers_agree(text: str, gold: str, same: bool | None) -> None:
    assert agree(text, gold) is same


def test_math_answer() -> None:
    completions = ["#### 5", "#### 6", "#### 7", [{"role": "assistant", "content": "it is 8"}]]
    columns = {"answer": ["5", 5, None, "8"], "solution": ["1", "1", "...\n#### 7", None]}
    assert rewards("math_answer", completions, **columns) == [1.0, 0.0, 1.0, 1.0]
    assert rewards("accuracy_reward", ["5", "5"], answer=[None, ""]) == [None, None]
    assert rewards("math_answer(tolerance=0)", ["0.67"], answer=["2/3"]) == [0.0]
    assert rewards("math_answer(tolerance=0)", ["0.5"], answer=["1/2"]) == [1.0]


@pytest.mark.skipif(not (SHARED / "math_labeled.jsonl").exists(), reason="no shared data here")
def test_agreement_with_labelled_solutions() -> None:
    """Solutions of four models, marked by GSM8K's own check, every eighth row; gold solutions.

    Over all 3,265 solutions the agreement is 3,265, and 3,265 without the marks.
    """
    same = total = without = 0
    for line in (SHARED / "math_labeled.jsonl").read_text().splitlines()[::8]:
        row = json.loads(line)
        for text, correct in zip(row["responses"], row["correct"], strict=True):
            total += 1
            same += agree(text, row["answer"]) is bool(correct)
            # The same without its mark: the last number is what is left.
            without += agree(text.replace("####", ""), row["answer"]) is bool(correct)
    assert same / total == 1.0
    assert without / total > 0.99
    for line in (SHARED / "math.jsonl").read_text().splitlines()[::8]:
        row = json.loads(line)
        assert agree(row["solution"], row["answer"]) and agree(row["answer"], row["solution"])


# ---------------------------------------------------------------------- form, length, repetition


def test_think_format() -> None:
    """TRL's examples, and what its pattern refuses."""
    completions = [
        [{"role": "assistant", "content": "<think>\nReasoning.\n</think>\nAnswer."}],
        [{"role": "assistant", "content": "<think>\nReasoning.\nAnswer."}],
        "<think>a<think>b</think>c",
        "first <think>a</think>",
        "<think></think>",
    ]
    expected = [1.0, 0.0, 0.0, 0.0, 1.0]
    assert rewards("think_format_reward", completions) == expected
    assert rewards("format", completions) == expected


def test_format_with_tags_or_a_pattern() -> None:
    whole = "<think>a\nb</think>\n<answer>5</answer>\n"
    completions = [whole, whole + "more", "<think>a</think> 5"]
    assert rewards("format(tags='think_answer')", completions) == [1.0, 0.0, 0.0]
    spec = r"format(pattern='\\d+ apples')"
    assert rewards(spec, ["12 apples, yes", "has 12 apples", "12"]) == [1.0, 0.0, 0.0]
    assert rewards(r"format(pattern='a.*b$')", ["a\nb", "a\nbc"]) == [1.0, 0.0]


def test_length() -> None:
    words = ["", "a", "a b", "a b c d", "a b c d e f g h i"]
    assert rewards("length(target=4)", words) == [-1.0, -0.75, -0.5, 0.0, -1.0]
    assert rewards("length(cap=4)", words) == [0.0, 0.0, 0.0, 0.0, -1.0]
    # DAPO, equation 13, with cap 100 and cache 20: TRL's example has 90 tokens and -0.5.
    ids = [[1] * n for n in (80, 81, 90, 100, 101)]
    found = rewards("length(cap=100, buffer=20)", ["x"] * 5, completion_ids=ids)
    assert found == [0.0, -0.05, -0.5, -1.0, -1.0]


def test_repetition() -> None:
    """TRL's example in tokens, and the same in words."""
    ids = [[1, 2, 3, 4], [5, 5, 5, 5, 5], [5]]
    spec = "repetition(ngram_size=2)"
    assert rewards(spec, ["x"] * 3, completion_ids=ids) == [0.0, -0.75, 0.0]
    assert rewards(spec, ["a b c d", "Go go GO go  go", "go"]) == [0.0, -0.75, 0.0]
    assert rewards("repetition(ngram_size=1,max_penalty=-2)", ["a a b b"]) == [-1.0]
    assert rewards("repetition", ["a b c a b c a b c"]) == [pytest.approx(-4 / 7)]


def test_text_of_messages() -> None:
    turns = [
        {"role": "assistant", "content": "first"},
        {"role": "tool", "content": "3"},
        {"role": "assistant", "content": [{"type": "text", "text": "la"}, {"text": "st"}]},
    ]
    assert (text_of(turns), text_of("x"), text_of([])) == ("last", "x", "")
    assert text_of([{"role": "assistant", "content": None, "tool_calls": []}]) == ""
