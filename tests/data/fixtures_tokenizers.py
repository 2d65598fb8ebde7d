"""Tokenizers of different kinds, trained here in a second, and the chat templates of real models.

Each kind stands for a family whose quirks broke somebody's masks: spaces put before every text,
BOS added or missing, one id for EOS and padding, control tokens that swallow the space behind them.
"""

from __future__ import annotations

import functools
import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

CORPUS = [
    "Hello there, how are you today? I am fine, thank you very much.\n\nWhat is 12 + 345?\n",
    "The quick brown fox jumps over the lazy dog.  Two spaces,\ttabs, and\nnew lines.\r\n",
    "naïve café, Zürich, 日本語のテキスト, emoji 🙂🙃, Ωμέγα, Привет! “quotes” — dashes…\n",
    "assistant user system model tool User: Assistant: [INST] [/INST] <think> {}[]()\"'`\n",
    "def f(x):\n    return x ** 2  # a comment\n\n\n<b>markup</b> a<|b|>c 01234 56789 %$#@!^&*_\n",
    "ABCDEFGHIJKLMNOPQRSTUVWXYZ abcdefghijklmnopqrstuvwxyz +=~;:/\\|?.,-\n",
] * 4

_LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _byte_level(pattern: str | None = None) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    if pattern is None:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    else:
        split = pre_tokenizers.Split(Regex(pattern), "isolated")
        bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, bytes_])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    _train(tokenizer, trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet))
    return tokenizer


def _train(tokenizer: Tokenizer, trainer: Any) -> None:
    trainer.show_progress = False
    tokenizer.train_from_iterator(CORPUS, trainer)


def _alphabet() -> list[str]:
    return sorted(set("".join(CORPUS)) - set(" "))


def _metaspace(scheme: str) -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=True)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme=scheme)
    trainer = trainers.UnigramTrainer(
        vocab_size=500, initial_alphabet=["▁", *_alphabet()], unk_token="<unk>",
        special_tokens=["<unk>"],
    )  # fmt: skip
    _train(tokenizer, trainer)
    return tokenizer


def _byte_fallback() -> Tokenizer:
    """Llama-2's tokenizer.json: a normalizer puts a space before every run of text."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    ascii_only = [c for c in _alphabet() if c.isascii()]
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=["<unk>", *fallback], limit_alphabet=110,
        initial_alphabet=["▁", *ascii_only],
    )  # fmt: skip
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("▁"), "merged_with_next")
    _train(tokenizer, trainer)
    tokenizer.pre_tokenizer = None  # type: ignore[assignment]
    # Fallback bytes are ordinary tokens of the model, not control tokens.
    state = json.loads(tokenizer.to_str())
    state["added_tokens"] = [t for t in state["added_tokens"] if t["content"] == "<unk>"]
    return Tokenizer.from_str(json.dumps(state))


def _word_piece() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))  # type: ignore[call-arg]
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    specials = ["[UNK]", "[CLS]", "[SEP]", "[PAD]"]
    _train(tokenizer, trainers.WordPieceTrainer(vocab_size=500, special_tokens=specials))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        special_tokens=[(t, tokenizer.token_to_id(t)) for t in ("[CLS]", "[SEP]")],
    )
    return tokenizer


def _word_level() -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel(unk_token="[UNK]"))  # type: ignore[call-arg]
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    _train(tokenizer, trainers.WordLevelTrainer(special_tokens=["[UNK]"]))
    return tokenizer


def _prepend(tokenizer: Tokenizer, bos: str) -> None:
    tokenizer.add_special_tokens([bos])
    template = processors.TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
    )
    if isinstance(tokenizer.post_processor, processors.ByteLevel):
        tokenizer.post_processor = processors.Sequence([tokenizer.post_processor, template])
    else:
        tokenizer.post_processor = template


class Kind:
    """A kind of tokenizer: how its backend is made, its special tokens, whether BOS is added.

    ``lossless``: decoding gives the text back, so that masks can be compared as text.
    """

    def __init__(
        self,
        backend: Callable[[], Tokenizer],
        *,
        bos: str | None = None,
        eos: str | None = None,
        pad: str | None = None,
        adds_bos: bool = False,
        swallows: bool = False,
        lossless: bool = True,
    ) -> None:
        self.backend = functools.cache(lambda: backend().to_str())
        self.bos, self.eos, self.pad = bos, eos, pad
        self.adds_bos, self.swallows, self.lossless = adds_bos, swallows, lossless


KINDS: dict[str, Kind] = {
    "bytes, no bos": Kind(_byte_level, eos="<|im_end|>", pad="<|endoftext|>"),
    "bytes, bos added": Kind(
        lambda: _byte_level(_LLAMA3_SPLIT),
        bos="<|begin_of_text|>", eos="<|end_of_text|>", adds_bos=True,
    ),
    "bytes, pad = eos = bos": Kind(
        _byte_level, bos="<|endoftext|>", eos="<|endoftext|>", pad="<|endoftext|>"
    ),
    "bytes, pad = eos": Kind(_byte_level, bos="<s>", eos="</s>", pad="</s>", adds_bos=True),
    "bytes, no eos": Kind(_byte_level),
    "bytes, control tokens swallow spaces": Kind(
        _byte_level, bos="<s>", eos="<|endoftext|>", swallows=True
    ),
    "unigram, space before the first word": Kind(
        lambda: _metaspace("first"), bos="<bos>", eos="<eos>", pad="<pad>", adds_bos=True
    ),
    "unigram, space before every run": Kind(
        lambda: _metaspace("always"), bos="<s>", eos="</s>", adds_bos=True
    ),
    "bpe with byte fallback": Kind(
        _byte_fallback, bos="<s>", eos="</s>", pad="</s>", adds_bos=True
    ),
    "word piece": Kind(
        _word_piece, bos="[CLS]", eos="[SEP]", pad="[PAD]", adds_bos=False, lossless=False
    ),
    "word level": Kind(_word_level, eos="<eos>", lossless=False),
}  # fmt: skip
LOSSLESS = [name for name, kind in KINDS.items() if kind.lossless]


def make_tokenizer(
    name: str, template: str | None = None, control: tuple[str, ...] = ()
) -> PreTrainedTokenizerFast:
    """A tokenizer of the kind ``name`` with ``control`` tokens and a chat template."""
    kind = KINDS[name]
    backend = Tokenizer.from_str(kind.backend())
    if kind.adds_bos and kind.bos:
        _prepend(backend, kind.bos)
    named = {
        key: token
        for key, token in (
            ("bos_token", kind.bos),
            ("eos_token", kind.eos),
            ("pad_token", kind.pad),
        )
        if token is not None
    }
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **named)
    added = [
        AddedToken(token, rstrip=kind.swallows, normalized=False, special=True) for token in control
    ]
    tokenizer.add_tokens(added, special_tokens=True)
    tokenizer.chat_template = template
    return tokenizer


_CONTROL = re.compile(r"<[|｜/]?[A-Za-z_|｜▁]+[|｜]?>|\[/?(?:INST|gMASK|TOOL_CALLS)\]|<sop>")
_NOT_CONTROL = {"<b>", "<think>", "</think>", "<function-name>", "<tools>", "</tools>"}


def control_tokens(template: str) -> tuple[str, ...]:
    """What looks like a control token in a template: in the real tokenizers these are tokens."""
    extra = {"<think>", "</think>"} if "think" in template else set[str]()
    if "turn|>" in template:
        extra |= {"<|turn>", "<turn|>", "<|channel>", "<channel|>"}
    return tuple(sorted((set(_CONTROL.findall(template)) - _NOT_CONTROL) | extra))


def templates_folder() -> Path | None:
    """Where ``tests/fixtures/fetch_templates.py`` put the real templates, or None."""
    own = os.environ.get("TRIMTAB_TEMPLATES")
    folder = Path(own) if own else Path(sys.prefix) / "share" / "chat_templates"
    return folder if (folder / "FROM.txt").is_file() else None


def real_template(name: str) -> str:
    """A real model's template; skips the test where they were not fetched."""
    folder = templates_folder()
    if folder is None:
        pytest.skip("no chat templates: run tests/fixtures/fetch_templates.py")
    return (folder / f"{name}.jinja").read_text(encoding="utf-8")
