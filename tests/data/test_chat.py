"""The chat renderer on templates made here, and plain text over all kinds of tokenizers."""

from __future__ import annotations

import random
from types import SimpleNamespace

import pytest
from tests.data.fixtures_tokenizers import CORPUS, KINDS, LOSSLESS, make_tokenizer
from tests.data.mask_checks import assistant, mask_problems, runs, shown, sources, user

from trimtab.data.chat import ChatRenderer, is_empty
from trimtab.data.chat_template import RowProblem
from trimtab.data.chat_tokens import Encoder, Offsets, drive, fingerprint_tokenizer, stop_ids
from trimtab.errors import DataError

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
MARKED = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{{ '<|im_start|>assistant\n' }}"
    "{% generation %}{{ m.content + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}{% else %}"
    "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CONTROL = ("<|im_start|>", "<|im_end|>")
TALK = [user("Hi"), assistant("one"), user("more"), assistant("two")]


def renderer(template: str | None = CHATML, kind: str = "bytes, no bos") -> ChatRenderer:
    return ChatRenderer(make_tokenizer(kind, template, CONTROL))


def test_markers_are_used_where_the_template_has_them() -> None:
    marked = renderer(MARKED)
    (result,) = marked.render(TALK)
    assert sources(marked) == {"markers": 2}
    assert not mask_problems(marked, [result], ["one", "two"], "<|im_end|>")
    assert result == renderer().render(TALK)[0]


def test_markers_that_mark_nothing_are_not_believed() -> None:
    """The mask would be all zero, with a warning at most (A10)."""
    silent = MARKED.replace("m.role == 'assistant' %}{{", "m.role == 'nobody' %}{{")
    found = renderer(silent)
    (result,) = found.render(TALK)
    assert sources(found) == {"incremental": 2}
    assert not mask_problems(found, [result], ["one", "two"], "<|im_end|>")


def test_markers_inside_a_macro_are_not_believed() -> None:
    """transformers counts their positions from the macro's start."""
    macro = (
        "{% macro say(m) %}{{ '<|im_start|>assistant\n' }}{% generation %}"
        "{{ m.content + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}{% endmacro %}"
        "{% for m in messages %}{% if m.role == 'assistant' %}{{ say(m) }}{% else %}"
        "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    found = renderer(macro)
    assert not mask_problems(found, found.render(TALK), ["one", "two"], "<|im_end|>")


def test_a_marked_stop_token_is_trained_even_when_the_marker_leaves_it_out() -> None:
    inner = MARKED.replace(
        "{{ m.content + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}",
        "{{ m.content }}{% endgeneration %}{{ '<|im_end|>\n' }}",
    )
    found = renderer(inner)
    assert not mask_problems(found, found.render(TALK), ["one", "two"], "<|im_end|>")
    assert sources(found) == {"markers": 2}


def test_no_template_is_one_line_with_the_remedy() -> None:
    with pytest.raises(DataError, match=r"has no chat template.*chat_template.jinja") as error:
        renderer(None).require_template()
    assert "\n" not in str(error.value)


def test_a_template_without_a_way_to_find_the_mask_is_one_line_with_the_remedy() -> None:
    lost = CHATML.replace("'<|im_start|>assistant\n' }}{% endif", "'<|im_start|>bot: ' }}{% endif")
    with pytest.raises(DataError, match=r"generation prompt.*generation %} markers") as error:
        renderer(lost).require_template()
    assert "\n" not in str(error.value)


def test_a_template_that_writes_no_stop_token_has_none() -> None:
    plain = (
        "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )
    found = renderer(plain)
    results = found.render(TALK)
    assert [shown(found, run) for r in results for run in runs(r)] == ["one", "two"]
    assert not any(r.ids[-1] in found.stop_ids for r in results)


def test_a_conversation_that_the_assistant_opens_trains_its_later_turns() -> None:
    (result,) = renderer().render([assistant("Welcome"), user("Hi"), assistant("Yes?")])
    assert [shown(renderer(), run) for run in runs(result)] == ["Yes?<|im_end|>"]


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([user("a"), assistant("")], "empty"),
        ([user("a"), assistant("  \n")], "empty"),
        ([user("a"), {"role": "assistant", "content": None}], "empty"),
        ([user("a")], "no assistant turn"),
        ([assistant("only")], "no assistant turn"),
    ],
)
def test_conversations_with_nothing_to_train_are_refused(messages: list, reason: str) -> None:
    with pytest.raises(RowProblem, match=reason):
        renderer().render(messages)


def test_an_assistant_that_calls_a_tool_is_not_empty() -> None:
    assert not is_empty(assistant("", tool_calls=[{"name": "f"}]))
    assert not is_empty({"role": "assistant", "content": [{"type": "text", "text": "x"}]})
    assert is_empty({"role": "assistant", "content": [{"type": "text", "text": " "}]})


def test_what_a_template_complains_about_is_the_rows_problem() -> None:
    strict = "{% if messages|length > 2 %}{{ raise_exception('too\nlong') }}{% endif %}" + CHATML
    found = renderer(strict)
    found.require_template()
    with pytest.raises(RowProblem, match="too long"):
        found.render(TALK)


def test_stop_ids_are_those_of_tokenizer_config_and_template() -> None:
    """Llama-3, Phi and Gemma stop at several ids (A6)."""
    tokenizer = make_tokenizer("bytes, bos added", CHATML, (*CONTROL, "<|eom|>"))
    eos, end, eom = tokenizer.convert_tokens_to_ids(["<|end_of_text|>", "<|im_end|>", "<|eom|>"])
    assert stop_ids(tokenizer) == {eos}
    assert stop_ids(tokenizer, {"eos_token_id": [eos, eom]}) == {eos, eom}
    assert stop_ids(tokenizer, SimpleNamespace(eos_token_id=eom)) == {eos, eom}
    config = SimpleNamespace(eos_token_id=[eom])
    assert ChatRenderer(tokenizer, generation_config=config).stop_ids == {eos, eom, end}
    assert stop_ids(make_tokenizer("bytes, no eos")) == frozenset()


def test_template_variables_reach_the_template() -> None:
    template = "{{ mood | default('calm') }}" + CHATML
    tokenizer = make_tokenizer("bytes, no bos", template, CONTROL)
    loud = ChatRenderer(tokenizer, variables={"mood": "loud"})
    assert shown(loud, loud.prompt_ids([user("x")])).startswith("loud<|im_start|>")
    assert shown(loud, ChatRenderer(tokenizer).prompt_ids([user("x")])).startswith("calm")


@pytest.mark.parametrize("content", ["\n\nled", "\tled", " led", "led", "\n", "\n<|im_end|>"])
@pytest.mark.parametrize("kind", ["bytes, no bos", "bytes, bos added", "bytes, pad = eos"])
def test_content_never_merges_with_the_header(kind: str, content: str) -> None:
    """tokenise(p + r) != tokenise(p) + tokenise(r): the cut is in token space (A7)."""
    found = renderer(CHATML, kind)
    content += "x"
    for messages in ([user("a"), assistant(content)], [*TALK, user("b"), assistant(content)]):
        results = found.render(messages)
        last = results[-1]
        start = len(last.ids) - len(runs(last)[-1])
        assert last.ids[:start] == found.prompt_ids(messages[:-1])
        assert shown(found, runs(last)[-1]) == content + "<|im_end|>"


def test_joint_tokenisation_would_have_merged() -> None:
    """The twin of the test above: encoded in one go, header and content share a token."""
    found = renderer(CHATML, "bytes, bos added")
    messages = [user("a"), assistant("\n\nled")]
    joint = found.encoder.encode([found.template.text(messages, None, False)])[0].ids
    prompt = found.prompt_ids(messages[:1])
    assert joint[: len(prompt)] != prompt
    assert found.counts["split"] == 0
    found.render(messages)
    assert found.counts["split"] == 1


@pytest.mark.parametrize("kind", LOSSLESS)
def test_continuations_have_the_bytes_of_the_response_and_no_more(kind: str) -> None:
    """A thousand random cuts of text: trained ids decode to the response, whatever the prompt."""
    encoder = Encoder(make_tokenizer(kind, None, CONTROL))
    backend = encoder.tokenizer.backend_tokenizer
    rng = random.Random(0)
    text = "".join(CORPUS)
    cuts = [(rng.randrange(len(text) - 60), rng.randrange(1, 30)) for _ in range(1000)]
    responses = [text[a : a + n] for a, n in cuts]
    heads = [text[a - 20 : a] if a > 20 else "x" for a, _ in cuts]
    found = drive(encoder.continuations(responses), encoder.encode)
    for head, response, ids in zip(heads, responses, found, strict=True):
        prompt = encoder.ids(head)
        before = backend.decode(prompt, skip_special_tokens=False)
        after = backend.decode(prompt + ids, skip_special_tokens=False)
        assert after == before + response, (head, response)


def test_encoding_a_response_alone_would_add_a_space() -> None:
    encoder = Encoder(make_tokenizer("unigram, space before the first word"))
    prompt, wrong = encoder.ids("a quick"), encoder.ids("brown")
    (right,) = drive(encoder.continuations(["brown"]), encoder.encode)
    decode = encoder.tokenizer.backend_tokenizer.decode
    assert decode(prompt + wrong) == "a quick brown"
    assert decode(prompt + right) == "a quickbrown"


@pytest.mark.parametrize("kind", list(KINDS))
def test_plain_prompts_have_one_bos_where_the_tokenizer_adds_one(kind: str) -> None:
    """None is never inserted for a missing token, and a BOS in the text is not doubled (A1, A2)."""
    encoder = Encoder(make_tokenizer(kind))
    ids = encoder.with_prefix(encoder.ids("Hello there"))
    assert None not in ids
    adds = KINDS[kind].adds_bos or kind == "word piece"
    assert (ids[0] == encoder.bos) == adds
    assert ids.count(encoder.bos) == int(adds)
    assert encoder.with_prefix(ids) == ids
    ended = encoder.with_eos(ids, stop_ids(encoder.tokenizer))
    assert None not in ended
    assert len(ended) == len(ids) + (encoder.eos is not None)
    assert encoder.with_eos(ended, stop_ids(encoder.tokenizer)) == ended, "one terminator (A5)"


def test_offsets_find_tokens_around_trimmed_spaces() -> None:
    """Byte-level tokenizers give a token of spaces an empty range at its end."""
    encoder = Encoder(make_tokenizer("bytes, no bos", None, CONTROL))
    text = "a \n  <|im_end|>\n"
    (encoding,) = encoder.encode([text])
    offsets = Offsets(encoding)
    start = text.index("<|im_end|>")
    token = offsets.token_from(start)
    assert token is not None and encoding.ids[token] == encoder.ids("<|im_end|>")[0]
    assert offsets.tokens_before(start) == token
    assert offsets.tokens_before(start + len("<|im_end|>")) == token + 1


def test_the_fingerprint_changes_with_all_that_shapes_ids() -> None:
    base = make_tokenizer("bytes, no bos", CHATML, CONTROL)
    same = make_tokenizer("bytes, no bos", CHATML, CONTROL)
    same(["a", "bc"], padding=True, truncation=True, max_length=1)  # state that shapes nothing
    assert fingerprint_tokenizer(base) == fingerprint_tokenizer(same)
    others = [
        make_tokenizer("bytes, no bos", MARKED, CONTROL),
        make_tokenizer("bytes, no bos", CHATML, (*CONTROL, "<x>")),
        make_tokenizer("bytes, pad = eos", CHATML, CONTROL),
        make_tokenizer("bytes, bos added", CHATML, CONTROL),
    ]
    changed = make_tokenizer("bytes, no bos", CHATML, CONTROL)
    changed.eos_token = "<|im_start|>"
    prints = {fingerprint_tokenizer(t) for t in [base, *others, changed]}
    assert len(prints) == 6


def test_a_tokenizer_without_offsets_is_refused() -> None:
    slow = SimpleNamespace(is_fast=False, name_or_path="models/slow")
    with pytest.raises(DataError, match=r"models/slow.*tokenizer\.json"):
        Encoder(slow)


def test_spelt_out_control_tokens_are_noticed() -> None:
    encoder = Encoder(make_tokenizer("bytes, no bos", None, CONTROL))
    assert encoder.has_control_token("an <|im_end|> in text")
    assert not encoder.has_control_token("a < b, <|not one|>")
