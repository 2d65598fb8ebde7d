"""Foreign formats: recognised, converted, said so; and the prompts that pairs only imply."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.data.implicit import split_messages, split_text
from trimtab.data.quarantine import BadRow
from trimtab.data.rows import kind_of
from trimtab.errors import DataError


def user(content):
    return {"role": "user", "content": content}


def bot(content):
    return {"role": "assistant", "content": content}


def turn(speaker, value):
    return {"from": speaker, "value": value}


def notice(loaded):
    assert len(loaded.report.notices) == 1
    return loaded.report.notices[0].split(": ", 1)[1]


# ---- ShareGPT --------------------------------------------------------------------------------


def test_sharegpt(load):
    row = {
        "conversations": [
            turn("human", "a"),
            turn("gpt", "b"),
            turn("human", "c"),
            turn("gpt", "d"),
        ],
        "system": "be brief",
        "id": "x",
    }
    loaded = load([row, {**row, "system": ""}])
    first, second = loaded.examples[0]
    assert first.messages == [
        {"role": "system", "content": "be brief"},
        *[user("a"), bot("b"), user("c"), bot("d")],
    ]
    assert second.messages == first.messages[1:]
    assert first.extras == {"id": "x"}
    assert notice(loaded) == "converted from ShareGPT (conversations, from, value)"


def test_sharegpt_preferences_have_the_dialogue_as_prompt(one):
    turns = [turn("human", "a")]
    pair = one({"conversations": turns, "chosen": turn("gpt", "b"), "rejected": turn("gpt", "c")})
    assert (pair.prompt, pair.chosen, pair.rejected) == ([user("a")], [bot("b")], [bot("c")])


def test_sharegpt_tools(one):
    turns = [
        turn("human", "a"),
        turn("function_call", '{"name": "f", "arguments": {"x": 1}}'),
        turn("observation", "7"),
        turn("gpt", "it is 7"),
    ]
    messages = one({"conversations": turns, "tools": '[{"name": "f"}]'}).messages
    call = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
    assert messages[1] == {"role": "assistant", "content": "", "tool_calls": [call]}
    assert messages[2] == {"role": "tool", "content": "7"}


def test_conversations_that_are_messages_already(one):
    assert one({"conversations": [user("a"), bot("b")]}).messages == [user("a"), bot("b")]


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        ([turn("human", "a"), turn("alien", "b")], "conversations[1].from: unknown role: 'alien'"),
        ([turn("human", "a"), turn("gpt", "")], "messages[1].content: empty"),
        ([turn("human", "a"), {"from": "gpt"}], "messages[1].content: is null"),
        ([turn("function_call", "{")], "conversations[0].value: not a JSON function call"),
        ([turn("human", "a")], "messages: no assistant message"),
    ],
)
def test_bad_sharegpt_rows(load, jsonl, turns, reason):
    good = {"conversations": [turn("human", "a"), turn("gpt", "b")]}
    path = jsonl([good, good, {"conversations": turns}])
    with pytest.raises(DataError, match="^" + re.escape(f"{path}:3: {reason}")):
        load(path)


# ---- Alpaca ----------------------------------------------------------------------------------


def test_alpaca(load):
    rows = [
        {"instruction": "add", "input": "1 2", "output": "3", "text": "all of it"},
        {"instruction": "hi", "input": "", "output": "hello", "system": "s", "history": None},
        {"instruction": "c", "output": "d", "history": [["a", "b"]]},
    ]
    loaded = load(rows, {"text", "chat", "completion"})
    first, second, third = loaded.examples[0]
    assert (first.prompt, first.completion) == ([user("add\n1 2")], [bot("3")])
    assert second.prompt == [{"role": "system", "content": "s"}, user("hi")]
    assert third.prompt == [user("a"), bot("b"), user("c")]
    assert first.extras == {"text": "all of it"}
    assert notice(loaded) == "converted from Alpaca (instruction, input, output)"


def test_alpaca_pairs_and_labels(one):
    pair = one({"instruction": "i", "input": None, "chosen": "a", "rejected": "b"})
    assert (pair.prompt, pair.chosen, pair.rejected) == ([user("i")], [bot("a")], [bot("b")])
    unpaired = one({"instruction": "i", "output": "a", "kto_tag": False})
    assert (kind_of(unpaired), unpaired.label) == ("unpaired", False)


def test_alpaca_text_where_the_stage_wants_text(load):
    loaded = load([{"instruction": "i", "output": "o", "text": "all of it"}], {"text"})
    assert loaded.examples[0][0].text == "all of it"


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"instruction": "", "output": "b"}, "instruction: empty"),
        ({"instruction": "a"}, "output: missing"),
        ({"instruction": "a", "output": ""}, "output: empty"),
        ({"instruction": "a", "output": "b", "input": 3}, "input: not text: found the number 3"),
        ({"instruction": "a", "output": "b", "system": 3}, "system: not text"),
        ({"instruction": "a", "output": "b", "history": [["x"]]}, "history[0]: not a pair"),
        ({"instruction": "a", "output": "b", "history": 3}, "history: not a list"),
        ({"instruction": "a", "output": "b", "history": [["x", ""]]}, "prompt[1].content: empty"),
    ],
)
def test_bad_alpaca_rows(load, jsonl, row, reason):
    good = {"instruction": "a", "output": "b"}
    path = jsonl([good, good, row])
    with pytest.raises(DataError, match="^" + re.escape(f"{path}:3: {reason}")):
        load(path)


# ---- Anthropic HH ----------------------------------------------------------------------------

HH = "\n\nHuman: hi\n\nAssistant: hello\n\nHuman: how?\nreally\n\nAssistant:"


def test_hh(load):
    loaded = load([{"chosen": HH + " so", "rejected": HH + " not so\n\nHuman: ok"}])
    pair = loaded.examples[0][0]
    assert pair.prompt == [user("hi"), bot("hello"), user("how?\nreally")]
    assert pair.chosen == [bot("so")]
    assert pair.rejected == [bot("not so"), user("ok")]
    assert notice(loaded) == "converted from Anthropic HH text (Human: ... Assistant: ...)"


def test_hh_with_the_dialogue_in_prompt(one):
    pair = one({"prompt": HH, "chosen": " so", "rejected": " not so"})
    assert pair.prompt == [user("hi"), bot("hello"), user("how?\nreally")]
    assert (pair.chosen, pair.rejected) == ([bot("so")], [bot("not so")])


def test_hh_stays_text_where_the_kind_is_named(one):
    pair = one({"chosen": HH + " so", "rejected": HH + " not"}, kind="preference")
    assert (pair.prompt, pair.chosen, pair.rejected) == (HH, " so", " not")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"chosen": HH + " a", "rejected": HH + " a"}, "chosen equals rejected"),
        ({"chosen": HH + " a", "rejected": HH}, "rejected[3].content: empty"),
        ({"chosen": HH + " a", "rejected": "x"}, "rejected: not of the form Human: ... Assistant"),
        ({"chosen": HH + " a"}, "rejected: missing"),
        (
            {"chosen": HH + " a", "rejected": "\n\nHuman: other\n\nAssistant: b"},
            "chosen[0]: chosen and rejected part at a message of the user",
        ),
    ],
)
def test_bad_hh_rows(load, jsonl, row, reason):
    good = {"chosen": HH + " so", "rejected": HH + " not"}
    path = jsonl([good, good, row])
    with pytest.raises(DataError, match="^" + re.escape(f"{path}:3: {reason}")):
        load(path)


# ---- UltraFeedback-binarised -----------------------------------------------------------------


def test_a_prompt_that_is_repeated_in_the_answers(load):
    row = {"prompt": "hi", "chosen": [user("hi"), bot("a")], "rejected": [user("hi"), bot("b")]}
    listed = {**row, "prompt": [user("hi")]}
    loaded = load([row, listed, {**row, "messages": row["chosen"], "score_chosen": 8.5}])
    for pair in loaded.examples[0]:
        assert (pair.prompt, pair.chosen, pair.rejected) == ([user("hi")], [bot("a")], [bot("b")])
    assert loaded.examples[0][2].extras == {"messages": row["chosen"], "score_chosen": 8.5}
    assert "UltraFeedback-binarised" in notice(loaded)


def test_a_prompt_that_is_another_one_is_not_thrown_away(load, jsonl):
    row = {"prompt": "hi", "chosen": [user("hi"), bot("a")], "rejected": [user("hi"), bot("b")]}
    path = jsonl([row, {**row, "prompt": "something else"}])
    with pytest.raises(DataError, match=r":2: prompt: not the start of chosen"):
        load(path)


def test_answers_without_the_prompt_are_left_alone(load):
    loaded = load([{"prompt": "hi", "chosen": [bot("a")], "rejected": [bot("b")]}])
    assert loaded.examples[0][0].prompt == [user("hi")]
    assert loaded.report.notices == []


# ---- implicit prompts ------------------------------------------------------------------------


def test_conversations_are_split_by_whole_messages():
    start = [user("a"), bot("b"), user("c")]
    assert split_messages([*start, bot("x")], [*start, bot("y")]) == (start, [bot("x")], [bot("y")])
    # A reply that is the start of the other stays a reply.
    assert split_messages([*start, bot("x")], [*start, bot("x"), user("u"), bot("y")]) == (
        start,
        [bot("x")],
        [bot("x"), user("u"), bot("y")],
    )
    with pytest.raises(BadRow, match="prompt"):
        split_messages([bot("x")], [bot("y")])


@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt"),
    [
        ("The sky is blue.", "The sky is green.", "The sky is"),
        ("The sky is blue.", "The sky is black.", "The sky is"),
        ("Q: 12 + 30?\nA: 42", "Q: 12 + 30?\nA: 43", "Q: 12 + 30?\nA:"),
        ("Q\nyes", "Q\nno", "Q\n"),
        ("Q\n\nyes", "Q\n\nno", "Q\n\n"),
        ("Q\nyes", "Q\n\nno", "Q"),
        ("a b", "a b c", "a"),
        ("a b c ", "a b c  ", "a b"),
        ("one", "one two", ""),
        ("cat", "car", ""),
        ("cat.", "cat!", "cat"),
        ("wait..", "wait.!", "wait"),
        ("I don't", "I don", "I"),
        ("I can't", "I can'd", "I"),
        ("I don't", "I don.", "I"),
        ("x=3.14", "x=3.15", "x="),
        ("x=3.14", "x=3", "x="),
        ("x: 3, 4", "x: 3, 5", "x: 3,"),
        ("cafe\u0301 x", "cafe y", ""),
        (
            "<|user|>\nQ<|end|>\n<|bot|>A",
            "<|user|>\nQ<|end|>\n<|bot|>B",
            "<|user|>\nQ<|end|>\n<|bot|>",
        ),
        ("Q <|im_end|> a", "Q <|im_stop|> a", "Q"),
        ("Q<|im_end|> a", "Q<|eot|> a", "Q"),
        ("say [INST] a", "say [INSX] a", "say"),
        ("<b>x", "<i>x", ""),
        ("你好吗？很好", "你好吗？不好", "你好吗？"),
        ("天地玄黄", "天地人和", "天地"),
        ("", "a", ""),
    ],
)
def test_plain_text_is_split_where_nothing_is_torn(chosen, rejected, prompt):
    for first, second in ((chosen, rejected), (rejected, chosen)):
        found, left, right = split_text(first, second)
        assert found == prompt
        assert (found + left, found + right) == (first, second)


def cut_by_characters(chosen, rejected):
    """TRL's way: the longest common prefix, less one space."""
    place = next(i for i, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b)
    return place - 1 if chosen[place - 1] == " " else place


def test_splitting_by_characters_tears_words_and_special_tokens():
    """The twin: the cases above are such that the plain rule fails on them."""
    assert cut_by_characters("The sky is blue.", "The sky is black.") == len("The sky is bl")
    assert cut_by_characters("Q<|im_end|> a", "Q<|eot|> a") == len("Q<|")


PIECES = ["a", "b", "ab", " ", "\n", ".", "'", "<|x|>", "<|", "[A]", "1", "é", "e\u0301", "中", "_"]


@given(*(st.lists(st.sampled_from(PIECES), max_size=8).map("".join) for _ in range(3)))
def test_splitting_loses_nothing_and_leaves_something(start, one_end, other_end):
    chosen, rejected = start + one_end, start + other_end
    prompt, left, right = split_text(chosen, rejected)
    assert (prompt + left, prompt + right) == (chosen, rejected)
    for text, rest in ((chosen, left), (rejected, right)):
        assert rest.strip() or not text.strip()
        if prompt and rest:
            place = len(prompt)
            assert not (
                text[place - 1].isascii() and re.search(r"\w\w", text[place - 1 : place + 1], re.A)
            )
            spans = [m.span() for m in re.finditer(r"<\|x\|>|\[A\]", text)]
            assert not any(first < place < last for first, last in spans)
            assert text[place - 1] != " "


def test_implicit_plain_pairs_are_loaded_with_their_prompt(one):
    pair = one({"chosen": "The sky is blue.", "rejected": "The sky is black."})
    assert (pair.prompt, pair.chosen, pair.rejected) == ("The sky is", " blue.", " black.")


# ---- RewardBench -----------------------------------------------------------------------------

BENCH = {"prompt": "a?", "chosen": "b", "rejected": "c", "subset": "math-prm", "id": 3,
         "chosen_model": "human", "rejected_model": "m"}  # fmt: skip
BENCH_2 = {"prompt": "a?", "chosen": ["b"], "rejected": ["c", "d", "e"], "num_correct": 1,
           "total_completions": 4, "subset": "Focus", "id": "7"}  # fmt: skip


def test_rewardbench_is_a_chat(load):
    loaded = load([BENCH])
    (example,) = loaded.examples[0]
    assert example.prompt == [user("a?")]
    assert (example.chosen, example.rejected) == ([bot("b")], [bot("c")])
    assert example.extras == {
        k: BENCH[k] for k in ("subset", "id", "chosen_model", "rejected_model")
    }
    assert notice(loaded) == "converted from RewardBench"
    # Plain text where the kind is named, and where the columns are not the benchmark's.
    for rows, options in (([BENCH], {"kind": "preference"}), ([{**BENCH, "id": None}], {})):
        plain = [{k: v for k, v in row.items() if v is not None} for row in rows]
        assert load(plain, **options).examples[0][0].prompt == "a?"


def test_lists_of_right_and_wrong_answers_are_a_ranking(load):
    ties = {**BENCH_2, "chosen": ["b", "x"], "num_correct": 2, "subset": "Ties", "id": "tied:1"}
    loaded = load([BENCH_2, ties])
    first, second = loaded.examples[0]
    assert first.prompt == [user("a?")]
    assert first.responses == [[bot(text)] for text in "bcde"] and first.ranks == [1, 2, 2, 2]
    assert second.responses == [[bot(text)] for text in "bxcde"] and second.ranks == [1, 1, 2, 2, 2]
    assert second.extras["id"] == "tied:1" and second.extras["num_correct"] == 2
    assert notice(loaded) == "converted from RewardBench 2 (lists in chosen and rejected)"


def test_lists_with_what_is_no_text(load):
    bad = [{**BENCH_2, "rejected": "c"}, {**BENCH_2, "chosen": [4]}, {**BENCH_2, "prompt": None}]
    loaded = load([*[BENCH_2] * 6, *bad], max_bad_rows=3)
    wanted = {"rejected: not a list", "chosen: not text", "prompt: is null"}
    assert set(loaded.report.bad) == wanted
