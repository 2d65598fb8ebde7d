"""Training a tokenizer: byte-level BPE (GPT-2's kind), the same from the same texts every time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from trimtab.errors import RecipeError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}"
    "{{ message['content'] + '<|im_end|>' }}"
    "{% endif %}"
    "{{ '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""ChatML with the first token in front and the trained part marked, stop token included."""

BYTES = 256


def train_byte_level_bpe(
    texts: Iterable[str],
    vocab_size: int,
    *,
    bos_token: str = "<|bos|>",
    eos_token: str = "<|im_end|>",
    pad_token: str = "<|pad|>",
    extra_special_tokens: Sequence[str] = ("<|im_start|>",),
    chat_template: str | None = CHAT_TEMPLATE,
    model_max_length: int | None = None,
) -> PreTrainedTokenizerFast:
    """Train a tokenizer of at most ``vocab_size`` tokens, special ones and all 256 bytes included.

    Every text can be encoded and decoded to itself. First, last and padding token are three
    different ones (ids 0, 1, 2), and none is added by the tokenizer itself. Fewer tokens come out
    where the texts do not give more. Raises RecipeError if ``vocab_size`` cannot hold the bytes.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    special = [bos_token, eos_token, pad_token, *extra_special_tokens]
    assert len(set(special)) == len(special), f"special tokens must differ: {special}"
    least = BYTES + len(special)
    if vocab_size < least:
        raise RecipeError(
            f"new_tokenizer.vocab_size={vocab_size}: {BYTES} bytes and {len(special)} special "
            f"tokens need at least {least}"
        )
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=bos_token,
        eos_token=eos_token,
        pad_token=pad_token,
        additional_special_tokens=list(extra_special_tokens),
        chat_template=chat_template,
        clean_up_tokenization_spaces=False,
        **({} if model_max_length is None else {"model_max_length": model_max_length}),
    )
