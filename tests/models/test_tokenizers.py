"""The tokenizer that we train: complete, reproducible, its special tokens apart, its mask exact."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from tests.models.small_models import TEXTS, VOCABULARY, tokenizer

from trimtab.data.chat_tokens import fingerprint_tokenizer
from trimtab.errors import RecipeError
from trimtab.models.tokenizers import train_byte_level_bpe

CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "the cat"},
    {"role": "user", "content": "and?"},
    {"role": "assistant", "content": "the mat"},
]


def test_special_tokens_differ_and_none_is_added() -> None:
    made = tokenizer()
    assert [made.bos_token_id, made.eos_token_id, made.pad_token_id] == [0, 1, 2]
    assert made.convert_tokens_to_ids("<|im_start|>") == 3
    assert not set(made("the cat").input_ids) & {0, 1, 2, 3}


@pytest.mark.parametrize("text", [*TEXTS[:3], "\x00\x7f", "日本語 🙂", " lead", "tail  ", "a\r\nb"])
def test_round_trip(text: str) -> None:
    made = tokenizer()
    assert made.decode(made(text).input_ids) == text


def test_merges_are_learnt_up_to_the_size() -> None:
    made = tokenizer()
    assert len(made) == VOCABULARY
    assert len(made("the cat sat on the mat").input_ids) < len("the cat sat on the mat") - 5
    assert len(train_byte_level_bpe(["ab"], 1000)) < 1000


def test_same_texts_same_tokenizer() -> None:
    """Also in a process with other string hashes: sets must not decide anything."""
    assert fingerprint_tokenizer(tokenizer()) == fingerprint_tokenizer(tokenizer())
    other = train_byte_level_bpe(TEXTS[:2], VOCABULARY)
    assert fingerprint_tokenizer(other) != fingerprint_tokenizer(tokenizer())
    code = (
        "from tests.models.small_models import tokenizer\n"
        "from trimtab.data.chat_tokens import fingerprint_tokenizer\n"
        "print(fingerprint_tokenizer(tokenizer()))"
    )
    paths = os.pathsep.join(p for p in sys.path if p)
    environment = {**os.environ, "PYTHONHASHSEED": "77", "PYTHONPATH": paths}
    run = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == fingerprint_tokenizer(tokenizer())


def test_fingerprint_sees_template_and_special_tokens_but_not_use() -> None:
    made = tokenizer()
    before = fingerprint_tokenizer(made)
    made(["a", "b c d"], padding=True, truncation=True, max_length=2)
    assert fingerprint_tokenizer(made) == before
    made.chat_template = "{{ messages }}"
    assert fingerprint_tokenizer(made) != before
    made = tokenizer()
    made.pad_token = "<|bos|>"
    assert fingerprint_tokenizer(made) != before


def test_template_marks_answers_and_their_stop_token() -> None:
    made = tokenizer()
    encoded = made.apply_chat_template(CHAT, return_dict=True, return_assistant_tokens_mask=True)
    ids, mask = encoded["input_ids"], encoded["assistant_masks"]
    trained = made.decode([i for i, m in zip(ids, mask, strict=True) if m])
    assert trained == "the cat<|im_end|>the mat<|im_end|>"
    assert ids.count(made.bos_token_id) == 1
    prompt = made.apply_chat_template(CHAT[:2], add_generation_prompt=True, tokenize=False)
    whole = made.apply_chat_template(CHAT[:3], tokenize=False)
    assert whole == prompt + "the cat<|im_end|>\n"


def test_too_small_a_vocabulary() -> None:
    with pytest.raises(RecipeError, match=r"vocab_size=200: 256 bytes and 4 .* at least 260"):
        train_byte_level_bpe(TEXTS, 200)
    assert len(train_byte_level_bpe(TEXTS, 260)) == 260
