"""Rows together to trees: equal to the rows one by one, what is dropped and refused, the report."""

from __future__ import annotations

from typing import Any

import pytest
from tests.data.mask_checks import assistant, user
from tests.data.test_chat import CHATML
from tests.data.tokenised import HI, NO, NO_LIMIT, YES, at, renderer, trees

from trimtab.data.chat import ChatRenderer
from trimtab.data.rows import (
    ChatExample,
    Example,
    PreferenceExample,
    RankedExample,
    TextExample,
)
from trimtab.data.store_cache import cache_key
from trimtab.data.tokenise import TokeniseOptions, cache_parts, tokenise_all
from trimtab.data.tokenise_report import TokeniseReport
from trimtab.errors import DataError, RecipeError

# Many rows


def many() -> list[Example]:
    rows: list[Example] = []
    for i in range(1, 40):
        say = f"answer number {i} is here"
        rows += [
            ChatExample(origin=at(i), messages=[user(f"q{i}"), assistant("\n" * (i % 3) + say)]),
            PreferenceExample(origin=at(100 + i), prompt=HI, chosen=[assistant(say)], rejected=NO),
            PreferenceExample(origin=at(200 + i), prompt=f"p {i}", chosen=say, rejected="no"),
            RankedExample(
                origin=at(300 + i), prompt="p", responses=[say, "b", "c"], ranks=[1, 2, 3]
            ),
            TextExample(origin=at(400 + i), text=say * i),
        ]
    return rows


@pytest.mark.parametrize("kind", ["bytes, no bos", "bytes, bos added", "bpe with byte fallback"])
def test_rows_together_are_the_rows_one_by_one(kind: str) -> None:
    store, report = tokenise_all(many(), renderer(kind), NO_LIMIT)
    alone = [tree for row in many() for tree in trees(row, kind=kind)]
    assert list(store) == alone
    assert report.rows == len(many()) and report.trees == len(alone)
    assert report.tokens == sum(tree.token_count for tree in alone)
    assert report.trained == sum(tree.trained_count for tree in alone)
    assert report.leading_bos <= 1


def test_a_prompt_is_rendered_and_encoded_once_for_all_its_responses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ours = renderer()
    ours.template.require()  # probes render, too
    rendered: list[str] = []
    encoded: list[str] = []
    render, encode = type(ours.template)._render, ours.encoder.encode

    def counted(self: Any, *rest: Any, **more: Any) -> str:
        rendered.append(render(self, *rest, **more))
        return rendered[-1]

    def noted(texts: list[str]) -> Any:
        encoded.extend(texts)
        return encode(texts)

    monkeypatch.setattr(type(ours.template), "_render", counted)
    monkeypatch.setattr(ours.encoder, "encode", noted)
    rows = [
        RankedExample(
            origin=at(row),
            prompt=[user(f"Hi {row}?")],
            responses=[[assistant(f"{row} {word}")] for word in "abc"],
            ranks=[1, 2, 3],
        )
        for row in range(4)
    ]
    store, _ = tokenise_all(rows, ours, NO_LIMIT)
    assert [len(tree.branches) for tree in store] == [3] * 4
    asked = [text for text in rendered if "Hi" in text and text.endswith("assistant\n")]
    assert len(asked) == len(set(asked)) == 4
    assert all(encoded.count(text) == 1 for text in asked)
    assert len([text for text in rendered if "Hi" in text and text not in asked]) == 12


def test_rows_in_are_rows_trained_plus_rows_dropped() -> None:
    rows = [
        *many(),
        *(
            PreferenceExample(origin=at(900 + i), prompt="a", chosen="b", rejected="b")
            for i in range(5)
        ),
    ]
    store, report = tokenise_all(rows, renderer(), NO_LIMIT)
    assert report.rows == len(rows)
    assert report.rows_dropped == 5 and report.rows == report.trees + report.rows_dropped
    dropped = report.dropped["chosen and rejected are the same"]
    assert dropped.count == 5 and dropped.first[0] == "rows.jsonl:900"
    assert len(store) == report.trees
    assert TokeniseReport.from_json(report.to_json()) == report


def refusal(rows: list[Any], options: TokeniseOptions = NO_LIMIT, **more: Any) -> str:
    with pytest.raises(DataError) as error:
        tokenise_all(rows, renderer(), options, **more)
    message = str(error.value)
    assert "\n" not in message and error.value.exit_code == 2
    return message


def test_chosen_equal_to_rejected_everywhere_is_one_line() -> None:
    same = [PreferenceExample(origin=at(i), prompt="a", chosen="b", rejected="b") for i in (3, 4)]
    message = refusal(same)
    assert message.startswith("rows.jsonl:3: chosen and rejected are the same (2 of 2 rows)")
    assert "no row is left" in message


def test_a_prompt_longer_than_max_length_is_one_line_with_the_remedy() -> None:
    long = [PreferenceExample(origin=at(9), prompt="word " * 50, chosen="b", rejected="c")]
    message = refusal(long, TokeniseOptions(max_length=20))
    assert "rows.jsonl:9" in message and "max_length 20" in message
    assert "raise max_length, or set max_prompt_length" in message
    kept = TokeniseOptions(max_length=20, max_prompt_length=10)
    store, report = tokenise_all(long, renderer(), kept)
    assert len(store[0].trunk.ids) == 10 and report.prompts_cut == 1


def test_more_drops_than_allowed_is_one_line() -> None:
    rows: list[Any] = [
        PreferenceExample(origin=at(i), prompt="a", chosen="b", rejected="b" if i < 3 else "c")
        for i in range(10)
    ]
    message = refusal(rows, max_dropped=0.2)
    assert "3 of 10 rows" in message and "max_dropped_rows allows 0.2 of the rows" in message
    store, _ = tokenise_all(rows, renderer(), NO_LIMIT, max_dropped=0.3)
    assert len(store) == 7


def test_no_rows_is_one_line() -> None:
    assert "no rows" in refusal([])


def test_conversations_without_a_template_are_refused_at_once() -> None:
    with pytest.raises(DataError, match="no chat template"):
        tokenise_all(
            [ChatExample(origin=at(), messages=[*HI, *YES])], renderer(template=None), NO_LIMIT
        )


def test_grouping_over_rows() -> None:
    rows = [
        PreferenceExample(origin=at(i), prompt="p ", chosen=w, rejected=l)
        for i, (w, l) in enumerate([("a", "b"), ("b", "c"), ("a", "c")])  # noqa: E741
    ]
    store, report = tokenise_all(rows, renderer(), TokeniseOptions(group_by_prompt=True))
    assert len(store) == 1 and report.trees == 1 and report.rows == 3
    assert len(store[0].branches) == 3 and len(store[0].comparisons) == 3
    assert report.tokens == store[0].token_count


def test_spelt_out_control_tokens_are_counted() -> None:
    rows = [
        TextExample(origin=at(1), text="plain"),
        TextExample(origin=at(2), text="an <|im_end|> inside"),
        ChatExample(origin=at(3), messages=[user("a <|im_start|>"), assistant("b")]),
    ]
    _, report = tokenise_all(rows, renderer(), NO_LIMIT)
    assert report.control_rows == 2


def test_a_template_with_todays_date_is_noticed() -> None:
    dated = "{{ strftime_now('%Y') }}" + CHATML
    _, report = tokenise_all(
        [ChatExample(origin=at(), messages=[*HI, *YES])], renderer(template=dated), NO_LIMIT
    )
    assert any("today's date" in notice for notice in report.notices)


def test_lost_reasoning_is_noticed() -> None:
    messages = [*HI, assistant("yes", reasoning_content="because")]
    _, report = tokenise_all([ChatExample(origin=at(), messages=messages)], renderer(), NO_LIMIT)
    assert any("leaves out the reasoning of 1 answers" in notice for notice in report.notices)


def test_masks_count_by_their_source() -> None:
    _, report = tokenise_all(many(), renderer(), NO_LIMIT)
    assert report.mask_sources == {"incremental": 39 + 2 * 39}
    assert report.boundary_splits == 13, "every third answer starts with two new lines"


@pytest.mark.parametrize(
    "options",
    [
        {"max_length": 0},
        {"max_prompt_length": -1},
        {"truncation_mode": "middle"},
        {"stride": 5},
        {"context_length": 4, "stride": 5},
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match="must be"):
        TokeniseOptions(**options)


def test_every_ingredient_is_part_of_the_cache_key() -> None:
    """Rows, how they are read, tokenizer, template, stop tokens, variables, options (A17)."""
    base = renderer()
    stopped = ChatRenderer(base.tokenizer, generation_config={"eos_token_id": [3]})
    varied = ChatRenderer(base.tokenizer, variables={"enable_thinking": False})
    parts = [
        cache_parts(base, NO_LIMIT, "rows", {"columns": None}),
        cache_parts(base, NO_LIMIT, "other rows", {"columns": None}),
        cache_parts(base, NO_LIMIT, "rows", {"columns": {"prompt": "q"}}),
        cache_parts(base, TokeniseOptions(), "rows", {"columns": None}),
        cache_parts(base, TokeniseOptions(classes=(1, 2)), "rows", {"columns": None}),
        cache_parts(base, TokeniseOptions(classes=("1", "2")), "rows", {"columns": None}),
        cache_parts(stopped, NO_LIMIT, "rows", {"columns": None}),
        cache_parts(varied, NO_LIMIT, "rows", {"columns": None}),
        cache_parts(renderer(template=CHATML + " "), NO_LIMIT, "rows", {"columns": None}),
        cache_parts(renderer(kind="bytes, pad = eos"), NO_LIMIT, "rows", {"columns": None}),
    ]
    assert len({cache_key(part) for part in parts}) == len(parts)
    assert cache_key(parts[0]) == cache_key(
        cache_parts(renderer(), NO_LIMIT, "rows", {"columns": None})
    )
