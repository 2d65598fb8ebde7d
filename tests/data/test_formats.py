"""Every kind of row: recognised, checked field by field, renamed, refused with the remedy."""

from __future__ import annotations

import pytest
from tests.data.format_rows import PAIR, bot, user

from trimtab.data.rows import (
    ChatExample,
    CompletionExample,
    LabelledExample,
    PreferenceExample,
    PromptExample,
    RankedExample,
    TextExample,
    kind_of,
)
from trimtab.errors import DataError

CHAT = [user("hi"), bot("hello")]

FOREIGN = {"question": "q", "good": "a", "bad": "b"}

RANKED = {"prompt": "p", "responses": ["a", "b", "c"], "ranks": [2, 1, 2]}


# ---- types of rows -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ({"text": "a"}, "text"),
        ({"messages": CHAT}, "chat"),
        ({"prompt": "a"}, "prompt"),
        ({"prompt": [user("a")], "solution": "4"}, "prompt"),
        ({"prompt": "a", "completion": "b"}, "completion"),
        ({"prompt": "a", "completion": "b", "label": True}, "unpaired"),
        (PAIR, "preference"),
        ({"chosen": "a b", "rejected": "a c"}, "preference"),
        (RANKED, "ranked"),
        ({"prompt": "p", "responses": ["a", "b"], "scores": [0.5, -1]}, "ranked"),
        ({"text": "a", "label": 1, "source": "x"}, "labelled"),
        ({"text": "a", "messages": CHAT, "label": "x"}, "chat"),
        ({"text": "t", "prompt": "a", "completion": "b", "label": True}, "unpaired"),
        ({**PAIR, "messages": CHAT, "text": "t"}, "preference"),
        ({"prompt": "a", "responses": ["x"], "correct": [True]}, "prompt"),
    ],
)
def test_the_type_is_recognised_from_the_columns(one, row, kind):
    assert kind_of(one(row)) == kind


def test_values_of_each_kind(one):
    text = one({"text": " a\n", "id": 7, "weight": 2, "source": "s"})
    assert text == TextExample(
        origin=text.origin, extras={"id": 7, "source": "s"}, weight=2.0, text=" a\n"
    )
    assert (text.origin.row, text.origin.part) == (1, 0)
    assert text.origin.source.endswith("rows.jsonl")
    labelled = one({"text": "a", "label": "good", "id": 7})
    assert labelled == LabelledExample(
        origin=labelled.origin, extras={"id": 7}, text="a", label="good"
    )
    chat = one({"messages": CHAT, "tools": [{"type": "function"}]})
    assert chat == ChatExample(origin=chat.origin, tools=[{"type": "function"}], messages=CHAT)
    prompt = one({"prompt": "p", "answer": "4"})
    assert prompt == PromptExample(origin=prompt.origin, extras={"answer": "4"}, prompt="p")
    unpaired = one({"prompt": "p", "completion": "c", "label": False})
    assert unpaired == CompletionExample(
        origin=unpaired.origin, prompt="p", completion="c", label=False
    )
    pair = one({**PAIR, "margin": 0.5, "weight": None})
    assert pair == PreferenceExample(
        origin=pair.origin, prompt="p", chosen="good", rejected="bad", margin=0.5
    )
    assert one({**PAIR, "margin": None}).margin == 0.0
    ranked = one({**RANKED, "scores": [0.1, True, 3]})
    assert ranked == RankedExample(
        origin=ranked.origin,
        prompt="p",
        responses=["a", "b", "c"],
        ranks=[2.0, 1.0, 2.0],
        scores=[0.1, 1.0, 3.0],
    )


def test_tools_as_json_text(one):
    assert one({"messages": CHAT, "tools": '[{"name": "f"}]'}).tools == [{"name": "f"}]
    assert one({"messages": CHAT, "tools": ""}).tools is None
    assert one({"messages": CHAT, "tools": []}).tools is None


def test_messages_are_normalised(one):
    call = {"type": "function", "function": {"name": "f", "arguments": {}}}
    messages = [
        {"role": "system", "content": ""},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "", "name": "f", "tool_call_id": None},
        {"role": "assistant", "content": "c", "thinking": "hm"},
    ]
    assert one({"messages": messages}).messages == [
        {"role": "system", "content": ""},
        {"role": "user", "content": "ab"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "", "name": "f"},
        {"role": "assistant", "content": "c", "thinking": "hm"},
    ]


def test_plain_text_beside_messages_is_wrapped(one):
    pair = one({"prompt": "p", "chosen": [bot("a")], "rejected": "b"})
    assert (pair.prompt, pair.chosen, pair.rejected) == ([user("p")], [bot("a")], [bot("b")])
    ranked = one(
        {"prompt": [user("p")], "responses": ["a", bot("b"), [bot("c")]], "ranks": [1, 2, 3]}
    )
    assert ranked.responses == [[bot("a")], [bot("b")], [bot("c")]]
    completion = one({"prompt": [user("p")], "completion": "c"})
    assert (completion.prompt, completion.completion) == ([user("p")], [bot("c")])


# ---- bad rows ------------------------------------------------------------------------------

LONE = "a\ud800"

BAD = [
    ({"text": ""}, "text: empty"),
    ({"text": " \n\t"}, "text: empty"),
    ({"text": None}, "text: is null"),
    ({}, "text: missing"),
    ({"text": 5}, "text: not text: found the number 5"),
    ({"text": ["a"]}, "text: not text: found a list"),
    ({"text": LONE}, "text: not valid Unicode: lone surrogate \\ud800 at character 2"),
    ({"text": "a", "weight": -1}, "weight: negative: -1"),
    ({"text": "a", "weight": float("nan")}, "weight: not a finite number: NaN"),
    ({"text": "a", "weight": "1"}, "weight: not a number: found the text '1'"),
    ({"text": "a", "weight": 10**400}, "weight: not a finite number: infinite"),
    ({"text": "a", "tools": "{"}, "tools: not a JSON list: found '{'"),
    ({"text": "a", "tools": [1]}, "tools[0]: not a JSON schema: found the number 1"),
    ({"text": "", "label": 1}, "text: empty"),
    ({"text": "a", "label": 0.5}, "label: not a whole number or text: found the number 0.5"),
    ({"text": "a", "label": float("nan")}, "label: not a whole number or text: found the number"),
    ({"text": "a", "label": [1]}, "label: not a whole number or text: found a list"),
    ({"text": "a", "label": " "}, "label: empty"),
    ({"text": "a", "label": LONE}, "label: not valid Unicode"),
    ({"label": 1}, "text: missing"),
    ({"messages": []}, "messages: empty"),
    ({"messages": "hi"}, "messages: not a list of messages: found the text 'hi'"),
    ({"messages": ["hi"]}, "messages[0]: not a message: found the text 'hi'"),
    ({"messages": [{"content": "a"}]}, "messages[0].role: missing: keys content"),
    ({"messages": [{"role": "robot", "content": "a"}]}, "messages[0].role: unknown role: 'robot'"),
    ({"messages": [user("a"), bot("")]}, "messages[1].content: empty"),
    ({"messages": [user(" "), bot("a")]}, "messages[0].content: empty"),
    ({"messages": [user(None), bot("a")]}, "messages[0].content: is null"),
    ({"messages": [{"role": "user"}, bot("a")]}, "messages[0].content: missing"),
    ({"messages": [user(3), bot("a")]}, "messages[0].content: not text: found the number 3"),
    ({"messages": [user(LONE), bot("a")]}, "messages[0].content: not valid Unicode"),
    ({"messages": [user([{"type": "image"}])]}, "messages[0].content: a part is not text"),
    ({"messages": [user("a")]}, "messages: no assistant message"),
    ({"messages": [{**bot("a"), "tool_calls": [1]}]}, "messages[0].tool_calls: not a list of obj"),
    ({"messages": [{**bot("a"), "thinking": LONE}]}, "messages[0].thinking: not valid Unicode"),
    ({"messages": CHAT, "tools": [{"a": LONE}]}, "tools: not valid Unicode"),
    ({"prompt": ""}, "prompt: empty"),
    ({"prompt": {}}, "prompt[0].role: missing: keys none"),
    ({"prompt": "a", "completion": ""}, "completion: empty"),
    ({"prompt": None, "completion": "b"}, "prompt: is null"),
    ({"prompt": "a", "completion": [user("b")]}, "completion[0]: not an assistant message"),
    (
        {"prompt": "a", "completion": "b", "label": 1},
        "label: not true or false: found the number 1",
    ),
    ({"prompt": "a", "completion": "b", "label": None}, "label: is null"),
    ({**PAIR, "chosen": ""}, "chosen: empty"),
    ({**PAIR, "rejected": None}, "rejected: is null"),
    ({**PAIR, "rejected": "good"}, "chosen equals rejected"),
    ({**PAIR, "prompt": [user("p")], "chosen": [bot("bad")]}, "chosen equals rejected"),
    ({**PAIR, "margin": float("nan")}, "margin: not a finite number: NaN"),
    ({**PAIR, "chosen": [bot("a"), user("")]}, "chosen[1].content: empty"),
    ({"chosen": "a b", "rejected": [bot("x")]}, "prompt: missing: and chosen and rejected"),
    ({"chosen": [bot("a")], "rejected": [bot("b")]}, "prompt: missing: chosen and rejected have"),
    (
        {"chosen": [user("a"), bot("b")], "rejected": [user("c"), bot("b")]},
        "chosen[0]: chosen and rejected part at a message of the user",
    ),
    ({**RANKED, "responses": ["a"], "ranks": [1]}, "responses: fewer than two: found 1"),
    ({**RANKED, "responses": "abc"}, "responses: not a list: found the text 'abc'"),
    ({**RANKED, "responses": ["a", "", "c"]}, "responses[1]: empty"),
    ({**RANKED, "responses": ["a", "a", "a"]}, "responses: all are the same"),
    ({**RANKED, "ranks": [1, 2]}, "ranks: wrong length: 2 for 3 responses"),
    ({**RANKED, "ranks": [1, 1, 1]}, "ranks: all are tied: so there is nothing to compare"),
    ({**RANKED, "ranks": [1, "2", 3]}, "ranks[1]: not a number: found the text '2'"),
    ({**RANKED, "ranks": [True, False, True]}, "ranks: not a list of numbers: a rank is a number"),
    ({**RANKED, "ranks": 1}, "ranks: not a list of numbers: found the number 1"),
    ({**RANKED, "ranks": None}, "ranks: missing: and there are no scores"),
    ({**RANKED, "scores": [1, 2, float("nan")]}, "scores[2]: not a finite number: NaN"),
]


@pytest.mark.parametrize(("row", "reason"), BAD, ids=[reason for _, reason in BAD])
def test_a_bad_row_is_named_by_line_and_field(load, jsonl, row, reason):
    kinds = [{"text": "t"}, {"messages": CHAT}, PAIR, RANKED]
    kinds += [{"prompt": "a", "completion": "b", "label": True}, {"prompt": "a", "completion": "b"}]
    kinds += [{"prompt": "q"}, {"text": "t", "label": 1}]
    if reason.startswith("prompt: missing") or "part at" in reason:
        kinds = [{"chosen": "a b", "rejected": "a c"}]
    optional = {"weight", "tools", "margin", "scores"}
    good = min((good for good in kinds if set(row) <= {*good, *optional}), key=len)
    path = jsonl([good, row, good, good])
    loaded = load(path, max_bad_rows=1)
    report = loaded.report.sources[0]
    assert (report.rows_in, report.used, report.bad_rows) == (4, 3, 1)
    with pytest.raises(DataError) as error:
        load(path)
    assert str(error.value).startswith(f"{path}:2: {reason}")
    assert "1 of 4 rows is bad; the limit is 0.01 of the rows" in str(error.value)
    assert "\n" not in str(error.value)


def test_ranks_that_run_against_the_scores_are_refused(load, jsonl):
    """1 is best: most pairs of the source the other way round is a mistake, one row is noise."""
    good = {**RANKED, "ranks": [1, 2, 2], "scores": [2, 1, 3]}  # 1 of 2 pairs is opposed
    swapped = {**RANKED, "ranks": [1, 2, 3], "scores": [1, 2, 3]}
    assert load(jsonl([good, {**RANKED, "scores": [0, 0, 0]}])).report.sources[0].used == 2
    path = jsonl([good, {**swapped, "scores": [3, 2, 1]}, swapped])
    assert load(path).report.sources[0].used == 3, "4 of 8 pairs"
    path = jsonl([{**RANKED, "ranks": [1, 2, 2], "scores": [2, 1, 1]}, swapped])
    with pytest.raises(DataError) as error:
        load(path)
    assert str(error.value).startswith(f"{path}:2: ranks: the better rank has the lower score")
    assert "in 3 of the 5 pairs" in str(error.value) and "\n" not in str(error.value)


def test_ties_are_good(one):
    assert one({**RANKED, "ranks": [1, 1, 2]}).ranks == [1.0, 1.0, 2.0]


def test_a_missing_field_makes_a_bad_row_and_no_other_kind(load):
    """A pair without "rejected" is not a prompt."""
    rows = [PAIR] * 3 + [{"prompt": "p", "chosen": "good"}]
    loaded = load(rows, max_bad_rows=1)
    assert {kind_of(example) for example in loaded.examples[0]} == {"preference"}
    assert loaded.report.bad == {"rejected: missing": 1}


def test_a_column_of_few_rows_does_not_decide(load):
    rows = [{"prompt": "a", "completion": "b"}] * 5 + [
        {"prompt": "a", "completion": "b", "label": 3}
    ]
    loaded = load(rows)
    assert loaded.report.sources[0].kind == "completion"
    assert loaded.examples[0][5].extras == {"label": 3}


# ---- columns and kinds that are named --------------------------------------------------------


def test_columns_are_renamed(load):
    rows = [{"question": "q", "good": "a", "bad": "b", "prompt": "other"}]
    columns = {"prompt": "question", "chosen": "good", "rejected": "bad"}
    pair = load(rows, columns=columns).examples[0][0]
    assert (pair.prompt, pair.chosen, pair.rejected, pair.extras) == ("q", "a", "b", {})


def test_columns_can_be_swapped(one):
    """Renames all act at once; one after the other they would make both columns the same."""
    pair = one(PAIR, columns={"chosen": "rejected", "rejected": "chosen"})
    assert (pair.chosen, pair.rejected) == ("bad", "good")


def test_chosen_answers_as_completions(one):
    example = one(PAIR, {"chat", "completion"}, columns={"completion": "chosen"})
    assert kind_of(example) == "completion"
    assert (example.completion, example.extras) == ("good", {"rejected": "bad"})


@pytest.mark.parametrize(
    ("row", "keys", "message"),
    [
        (
            {"question": "q", "good": "a", "bad": "b"},
            {},
            "columns found: question, good, bad; the type of the rows is not known from them (",
        ),
        (
            {"question": "q", "good": "a", "bad": "b"},
            {"accept": {"preference", "ranked"}},
            "(preference: chosen, rejected; ranked: prompt, responses, ranks or scores); "
            "write --columns prompt=question,chosen=good,rejected=bad",
        ),
        ({"question": "q", "x": 1}, {"accept": {"prompt"}}, "; write --columns prompt=question"),
        ({"promt": "q"}, {"accept": {"prompt"}}, "; write --columns prompt=promt"),
        ({"foo": "q"}, {"accept": {"text"}}, "; name yours: --columns text=YOUR_COLUMN"),
        (
            {"messages": CHAT},
            {"accept": {"preference", "ranked"}},
            "these are chat rows, but this stage takes preference or ranked rows",
        ),
        (
            PAIR,
            {"accept": {"text", "chat", "completion"}},
            "these are preference rows, but this stage takes text, chat or completion rows "
            "(text: text; chat: messages; completion: prompt, completion); "
            "write --columns completion=chosen",
        ),
        (
            PAIR,
            {"columns": {"prompt": "prompts"}},
            "no column 'prompts' (--columns prompt=prompts); columns found: prompt, chosen, "
            "rejected; did you mean --columns prompt=prompt?",
        ),
        (
            PAIR,
            {"kind": "pairs"},
            "kind 'pairs' is none of text, labelled, chat, prompt, completion",
        ),
        (PAIR, {"kind": "ranked"}, "kind 'ranked' needs prompt, responses, ranks or scores"),
        (PAIR, {"kind": "preference", "accept": {"chat"}}, "but this stage takes chat rows"),
        (
            {"prompt": "a", "completion": "b", "label": False},
            {"accept": {"completion"}},
            "these are unpaired rows, but this stage takes completion rows (completion: prompt, "
            "completion); to read them as such, give the source kind: completion",
        ),
    ],
)
def test_columns_that_do_not_fit_are_refused_with_the_remedy(load, jsonl, row, keys, message):
    path = jsonl([row])
    with pytest.raises(DataError) as error:
        load(path, **keys)
    assert str(error.value).startswith(f"{path}:1: ")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("row", "accept", "given", "advised"),
    [
        (FOREIGN, ["preference", "ranked"], {}, "prompt=question,chosen=good,rejected=bad"),
        (FOREIGN, ["preference"], {"chosen": "good"}, "prompt=question,chosen=good,rejected=bad"),
        ({"good": "a b", "bad": "a c"}, ["preference"], {}, "chosen=good,rejected=bad"),
        ({"question": "q", "answer": "a"}, ["text", "chat", "completion"], {},
         "prompt=question,completion=answer"),
        ({"question": "q", "answer": "a", "liked": True}, ["unpaired", "completion"], {},
         "prompt=question,completion=answer,label=liked"),
        ({"question": "q", "answer": "a", "liked": 3}, ["unpaired", "completion"], {},
         "prompt=question,completion=answer"),
        ({"question": "q", "answers": ["a", "b"], "ranking": [1, 2]}, ["ranked"], {},
         "prompt=question,responses=answers,ranks=ranking"),
        ({"question": "q", "answers": ["a", "b"], "reward": [1, 2]}, ["preference", "ranked"], {},
         "prompt=question,responses=answers,scores=reward"),
    ],
)  # fmt: skip
def test_the_columns_that_are_advised_are_whole_and_work(load, jsonl, row, accept, given, advised):
    path = jsonl([row] * 3)
    with pytest.raises(DataError) as error:
        load(path, accept=accept, columns=given)
    assert str(error.value).endswith(f"; write --columns {advised}")
    columns = dict(pair.split("=") for pair in advised.split(","))
    assert load(path, accept=accept, columns=columns).report.sources[0].used == 3


def test_no_columns_are_advised_that_no_row_can_be_read_with(load, jsonl):
    """Pairs whose prompt is nowhere: neither a column, nor in both texts."""
    with pytest.raises(DataError, match=r"yours: --columns prompt=YOUR_COLUMN,chosen=good,rejec"):
        load(jsonl([{"good": "a", "bad": "b", "id": 1}]), accept=["preference"])


def test_a_kind_that_is_named_wins(one):
    row = {"prompt": "a", "completion": "b", "label": False}
    assert kind_of(one(row, {"completion"}, kind="completion")) == "completion"
    assert kind_of(one({**PAIR, "text": "t"}, kind="text")) == "text"
