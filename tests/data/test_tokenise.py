"""Rows of every kind to trees, one at a time."""

from __future__ import annotations

import pytest
from tests.data.fixtures_tokenizers import KINDS, LOSSLESS, make_tokenizer, real_template
from tests.data.mask_checks import assistant, shown, user
from tests.data.test_chat import CHATML, CONTROL
from tests.data.tokenised import HI, NO, NO_LIMIT, YES, at, renderer, trees

from trimtab.data.chat import ChatRenderer
from trimtab.data.rows import (
    ChatExample,
    CompletionExample,
    Example,
    LabelledExample,
    PreferenceExample,
    PromptExample,
    RankedExample,
    TextExample,
)
from trimtab.data.tokenise import Drop, TokeniseOptions, tokenise, tokenise_all
from trimtab.data.trees import Branch, Comparison, Origin
from trimtab.errors import DataError


def text_of(branch: Branch, kind: str = "bytes, no bos") -> str:
    return shown(renderer(kind), list(branch.ids))


def trained_text(branch: Branch, kind: str = "bytes, no bos") -> str:
    kept = [i for i, trained in zip(branch.ids, branch.trained, strict=True) if trained]
    return shown(renderer(kind), kept)


# One row


def test_preference_messages_are_one_tree_with_the_whole_prompt_as_trunk() -> None:
    (tree,) = trees(
        PreferenceExample(origin=at(), prompt=HI, chosen=YES, rejected=NO, margin=0.5, weight=2.0)
    )
    assert text_of(tree.trunk) == "<|im_start|>user\nHi?<|im_end|>\n<|im_start|>assistant\n"
    assert [text_of(b) for b in tree.branches] == ["yes<|im_end|>", "no way<|im_end|>"]
    assert all(all(b.trained) for b in tree.branches) and not any(tree.trunk.trained)
    assert tree.comparisons == (Comparison(0, 1, 2.0, 0.5),)
    assert tree.ranks == (1.0, 2.0) and tree.labels == () and tree.weight == 2.0


def test_unpaired_preferences_have_labels() -> None:
    row = PreferenceExample(origin=at(), prompt=HI, chosen=YES, rejected=NO)
    (tree,) = trees(row, TokeniseOptions(unpaired=True))
    assert tree.labels == (True, False)


@pytest.mark.parametrize("label", [True, False])
def test_unpaired_rows_have_their_label(label: bool) -> None:
    row = CompletionExample(origin=at(), prompt=HI, completion=YES, label=label)
    (tree,) = trees(row)
    assert tree.labels == (label,) and tree.comparisons == ()


@pytest.mark.parametrize("kind", LOSSLESS)
def test_plain_pairs(kind: str) -> None:
    """Prompt and responses tokenised apart, EOS behind the response where there is one (A5)."""
    row = PreferenceExample(
        origin=at(), prompt="What is 12 + 3", chosen="45?", rejected=" more, thank you"
    )
    (tree,) = trees(row, kind=kind)
    made = renderer(kind)
    assert list(tree.trunk.ids) == made.prompt_ids("What is 12 + 3")
    eos = KINDS[kind].eos or ""
    path = [shown(made, [*tree.trunk.ids, *b.ids]) for b in tree.branches]
    before = shown(made, list(tree.trunk.ids))
    assert path == [f"{before}45?{eos}", f"{before} more, thank you{eos}"]
    bos = made.encoder.bos
    assert [*tree.trunk.ids, *tree.branches[0].ids][:2].count(bos) <= 1 or bos is None


@pytest.mark.parametrize("kind", LOSSLESS)
def test_labelled_texts_end_in_an_end_token_of_their_own(kind: str) -> None:
    """The tree of a text, with the class beside it; an end token stands behind any text."""
    options = TokeniseOptions(max_length=None, classes=("bad", "good"))
    row = LabelledExample(origin=at(), text="What is 12 + 3", label="good", weight=2.0)
    made = renderer(kind)
    if made.encoder.eos is None:
        with pytest.raises(DataError, match=r"it has no end token \(eos_token\), at which"):
            tokenise(row, made, options)
        return
    (tree,) = trees(row, options, kind=kind)
    (text,) = trees(TextExample(origin=at(), text=row.text, weight=2.0), options, kind=kind)
    assert tree == text._replace(classes=(1,))
    assert tree.branches[0].ids[-1] == made.encoder.eos and tree.branches[0].trained[-1]
    # A text that spells the end token out has its own behind it all the same.
    eos = made.tokenizer.eos_token
    (tree,) = trees(row.__class__(origin=at(), text=f"a{eos}", label="bad"), options, kind=kind)
    assert tree.branches[0].ids[-2:] == (made.encoder.eos,) * 2 and tree.classes == (0,)


def test_a_long_labelled_text_is_cut_before_its_end_token() -> None:
    row = LabelledExample(origin=at(), text="one two three four five six", label=3)
    whole = renderer().encoder.ids(row.text)
    eos = renderer().encoder.eos
    options = TokeniseOptions(max_length=5, classes=(2, 3))
    store, report = tokenise_all([row], renderer(), options)
    tree = store[0]
    assert list(tree.trunk.ids + tree.branches[0].ids) == [*whole[:4], eos]
    assert tree.branches[0].trained == (True,) * 4 and tree.classes == (1,)
    assert report.responses_cut == 1 and report.branches_stopped == 1
    # The twin: a text of sft loses its end first.
    (text,) = trees(TextExample(origin=at(), text=row.text), options)
    assert list(text.trunk.ids + text.branches[0].ids) == whole[:5]
    exact = TokeniseOptions(max_length=len(whole) + 1, classes=(2, 3))
    (tree,) = trees(row, exact)
    assert (
        len(tree.branches[0].ids) == len(whole)
        and tokenise_all([row], renderer(), exact)[1].responses_cut == 0
    )


def test_no_text_left_of_a_labelled_row_is_a_drop() -> None:
    """An end token alone says nothing of the text."""
    row = LabelledExample(origin=at(), text="one two three", label=3)
    made = renderer("bytes, bos added")
    found = tokenise(row, made, TokeniseOptions(max_length=2, classes=(2, 3)))
    assert found == Drop("the prompt leaves no room for a response", "1 tokens, max_length 2")


def test_labelled_rows_without_a_language_model_loss_train_nothing() -> None:
    row = LabelledExample(origin=at(), text="one two three", label=3)
    (tree,) = trees(row, TokeniseOptions(classes=(2, 3), scored=True))
    (trained,) = trees(row, TokeniseOptions(classes=(2, 3)))
    assert tree.trained_count == 0 < trained.trained_count
    assert tree.classes == (1,) and tree.branches[0].ids == trained.branches[0].ids


def test_ranked_rows_keep_the_order_of_their_responses() -> None:
    row = RankedExample(
        origin=at(), prompt="a ", responses=["x", "y", "z"], ranks=[2.0, 1.0, 2.0], weight=3.0
    )
    (tree,) = trees(row)
    assert [text_of(b)[0] for b in tree.branches] == ["x", "y", "z"]
    assert tree.ranks == (2.0, 1.0, 2.0)
    assert tree.comparisons == (Comparison(1, 0, 3.0), Comparison(1, 2, 3.0))
    scored = RankedExample(origin=at(), prompt="a ", responses=["x", "y"], scores=[0.5, 4.0])
    (tree,) = trees(scored)
    assert tree.ranks == (2.0, 1.0) and tree.scores == (0.5, 4.0)


def test_implicit_prompts_are_the_common_tokens() -> None:
    """In token space: text that parts inside a token or a control token stays whole (A8)."""
    row = PreferenceExample(
        origin=at(), prompt=None, chosen="Q: <|im_start|>a b", rejected="Q: <|im_end|>a c"
    )
    (tree,) = trees(row)
    assert text_of(tree.trunk) == "Q: "
    assert [text_of(b) for b in tree.branches] == [
        "<|im_start|>a b<|im_end|>",
        "<|im_end|>a c<|im_end|>",
    ]
    nested = PreferenceExample(origin=at(), prompt=None, chosen="same", rejected="same and more")
    (tree,) = trees(nested)
    assert tree.branches[0].ids == (renderer().encoder.eos,), "EOS is what differs"
    same = PreferenceExample(origin=at(), prompt=None, chosen="same", rejected="same")
    found = tokenise(same, renderer(), NO_LIMIT)
    assert found == Drop("chosen and rejected are the same")


def test_a_conversation_is_one_tree_with_later_user_turns_untrained() -> None:
    row = ChatExample(origin=at(), messages=[*HI, *YES, user("More?"), *NO])
    (tree,) = trees(row)
    (branch,) = tree.branches
    assert text_of(tree.trunk).endswith("<|im_start|>assistant\n")
    assert trained_text(branch) == "yes<|im_end|>no way<|im_end|>"
    middle = "\n<|im_start|>user\nMore?<|im_end|>\n<|im_start|>assistant\n"
    assert text_of(branch) == f"yes<|im_end|>{middle}no way<|im_end|>"


def test_a_conversation_can_be_trained_whole() -> None:
    row = ChatExample(origin=at(), messages=[*HI, *YES])
    (tree,) = trees(row, TokeniseOptions(assistant_only=False))
    assert len(tree.trunk.ids) == 1 and all(tree.branches[0].trained)
    whole = text_of(tree.trunk) + text_of(tree.branches[0])
    assert whole == "<|im_start|>user\nHi?<|im_end|>\n<|im_start|>assistant\nyes<|im_end|>\n"


def test_a_template_that_rewrites_turns_gives_a_tree_a_turn() -> None:
    template = real_template("qwen3")
    tokenizer = make_tokenizer("bytes, no bos", template, (*CONTROL, "<think>", "</think>"))
    row = ChatExample(origin=at(4), messages=[*HI, *YES, user("More?"), *NO])
    found = tokenise(row, ChatRenderer(tokenizer), NO_LIMIT)
    assert not isinstance(found, Drop)
    assert [tree.origin for tree in found] == [
        Origin("rows.jsonl", 4, 0),
        Origin("rows.jsonl", 4, 1),
    ]


def test_reasoning_in_one_response_only_keeps_one_trunk() -> None:
    """The other branch has its empty reasoning block untrained before the answer."""
    template = real_template("qwen3")
    tokenizer = make_tokenizer("bytes, no bos", template, (*CONTROL, "<think>", "</think>"))
    row = PreferenceExample(
        origin=at(), prompt=HI, chosen=[assistant("yes", reasoning_content="hm")], rejected=NO
    )
    made = ChatRenderer(tokenizer)
    found = tokenise(row, made, NO_LIMIT)
    assert not isinstance(found, Drop)
    (tree,) = found
    assert list(tree.trunk.ids) == made.prompt_ids(HI)
    chosen, rejected = tree.branches
    assert all(chosen.trained)
    kept = [i for i, t in zip(rejected.ids, rejected.trained, strict=True) if t]
    assert shown(made, kept) == "no way<|im_end|>"
    assert shown(made, list(rejected.ids)) == "<think>\n\n</think>\n\nno way<|im_end|>"


def test_a_template_whose_prompt_depends_on_the_response_is_dropped() -> None:
    template = "{{ messages[-1].content if messages[-1].role == 'assistant' }}" + CHATML
    marked = template.replace(
        "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}",
        "{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}{% generation %}"
        "{{ m.content + '<|im_end|>' }}{% endgeneration %}{% else %}"
        "{{ m.content + '<|im_end|>\n' }}{% endif %}",
    )
    row = PreferenceExample(origin=at(), prompt=HI, chosen=YES, rejected=NO)
    found = tokenise(row, renderer(template=marked), NO_LIMIT)
    assert isinstance(found, Drop) and "differently for each response" in found.reason


def test_completions_train_the_completion_or_also_the_prompt() -> None:
    row = CompletionExample(origin=at(), prompt="one two", completion=" three")
    (tree,) = trees(row)
    assert tree.trunk.trained_count == 0
    (tree,) = trees(row, TokeniseOptions(completion_only=False))
    assert tree.trunk.trained == (False, *[True] * (len(tree.trunk.ids) - 1))
    (tree,) = trees(row, TokeniseOptions(train_trunk=True))
    assert tree.trunk.trained == (False, *[True] * (len(tree.trunk.ids) - 1))


def test_completion_only_is_refused_for_rows_without_a_prompt() -> None:
    found = tokenise(
        TextExample(origin=at(), text="a"), renderer(), TokeniseOptions(completion_only=True)
    )
    assert isinstance(found, Drop) and "no prompt" in found.reason


def test_texts_are_trained_but_for_what_starts_them() -> None:
    (tree,) = trees(TextExample(origin=at(), text="Hello there"), kind="bytes, bos added")
    made = renderer("bytes, bos added")
    assert tree.trunk.ids == (made.encoder.bos,)
    assert tree.branches[0].ids[-1] == made.encoder.eos and all(tree.branches[0].trained)
    (tree,) = trees(TextExample(origin=at(), text="Hello there"))
    assert len(tree.trunk.ids) == 1 and text_of(tree.branches[0]).endswith("<|im_end|>")


@pytest.mark.parametrize("kind", list(KINDS))
def test_documents_train_every_token_once(kind: str) -> None:
    made = renderer(kind)
    rows = [TextExample(origin=at(i), text="The quick brown fox jumps " * i) for i in range(1, 6)]
    store, report = tokenise_all(rows, made, TokeniseOptions(context_length=7))
    encoder = made.encoder
    separator = KINDS[kind].bos or KINDS[kind].eos
    count = sum(len(encoder.ids(row.text)) for row in rows) + len(rows) * (encoder.eos is not None)
    assert report.trained == count - (0 if separator else len(rows))
    assert report.unscored == (0 if separator else len(rows))
    assert all(tree.depth <= 8 for tree in store)
    firsts = [tree for tree in store if tree.origin.part == 0]
    assert len(firsts) == 5
    if separator:
        assert all(
            t.trunk.ids == (encoder.tokenizer.convert_tokens_to_ids(separator),) for t in firsts
        )


def test_conversations_can_be_pretrained_on() -> None:
    row = ChatExample(origin=at(), messages=[*HI, *YES])
    found = trees(row, TokeniseOptions(context_length=5))
    assert sum(tree.trained_count for tree in found) == sum(
        len(branch.ids) for tree in found for branch in tree.branches
    )


def test_prompts_have_no_branches() -> None:
    (tree,) = trees(PromptExample(origin=at(), prompt=HI))
    assert tree.branches == () and list(tree.trunk.ids) == renderer().prompt_ids(HI)


def test_several_assistant_messages_in_one_continuation() -> None:
    chosen = [assistant("one"), user("and"), assistant("two")]
    row = PreferenceExample(origin=at(), prompt=HI, chosen=chosen, rejected=NO)
    (tree,) = trees(row)
    assert trained_text(tree.branches[0]) == "one<|im_end|>two<|im_end|>"


@pytest.mark.parametrize(
    "row",
    [
        PreferenceExample(origin=at(), prompt=HI, chosen=[assistant("")], rejected=NO),
        PreferenceExample(origin=at(), prompt="a", chosen=" ", rejected="b"),
        ChatExample(origin=at(), messages=[user("x"), assistant(" ")]),
    ],
)
def test_empty_responses_are_dropped_by_name(row: Example) -> None:
    found = tokenise(row, renderer(), NO_LIMIT)
    assert isinstance(found, Drop) and "empty" in found.reason


def test_a_truncated_response_ends_without_a_stop_token() -> None:
    row = CompletionExample(origin=at(), prompt="one", completion=" and two and three")
    _, report = tokenise_all([row] * 2, renderer(), TokeniseOptions(max_length=6))
    assert report.responses_cut == 2 and report.stop_share == 0.0
    _, report = tokenise_all([row] * 2, renderer(), NO_LIMIT)
    assert report.responses_cut == 0 and report.stop_share == 1.0
