"""A tiny model folder and tiny data files, for tests that run whole stages."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.tiny_models import tiny_model

from trimtab.models.hub import quiet
from trimtab.models.save import save_model
from trimtab.models.tokenizers import train_byte_level_bpe

VOCABULARY = 290
WORDS = ("the", "a", "red", "blue", "old", "young", "cat", "dog", "bird", "tree", "sees", "eats")


def sentence(rng: random.Random, words: int) -> str:
    """That many words in any order, and a full stop."""
    return " ".join(rng.choice(WORDS) for _ in range(words)) + "."


def make_tokenizer(**options: Any) -> Any:
    """A byte-level BPE of the words; without a chat template by default."""
    rng = random.Random(0)
    texts = [sentence(rng, 8) for _ in range(60)]
    return train_byte_level_bpe(texts, VOCABULARY, **{"chat_template": None, **options})


def save_tiny_model(
    folder: Path, *, seed: int = 0, name: str = "llama", width: int = 32, **options: Any
) -> Path:
    """A random model of two layers with its tokenizer; ``options`` are the tokenizer's."""
    quiet()
    tokenizer = make_tokenizer(**options)
    settings: dict[str, Any] = {
        ("n_embd" if name == "gpt2" else "hidden_size"): width,
        ("n_layer" if name == "gpt2" else "num_hidden_layers"): 2,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    model = tiny_model(name, seed=seed, vocab_size=len(tokenizer), **settings)
    save_model(model, tokenizer, folder)
    return folder


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """One row a line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def texts(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Rows for pretrain and mix, of unequal lengths."""
    rng = random.Random(seed)
    return [{"text": sentence(rng, rng.randint(2, 14))} for _ in range(count)]


def answers(count: int, seed: int = 1) -> list[dict[str, Any]]:
    """Rows for sft."""
    rng = random.Random(seed)
    return [
        {"prompt": sentence(rng, 3) + "\n", "completion": sentence(rng, rng.randint(1, 8))}
        for _ in range(count)
    ]


def pairs(count: int, seed: int = 2) -> list[dict[str, Any]]:
    """Rows for dpo and its family."""
    rng = random.Random(seed)
    return [
        {
            "prompt": sentence(rng, rng.randint(2, 5)) + "\n",
            "chosen": sentence(rng, rng.randint(1, 6)),
            "rejected": sentence(rng, rng.randint(1, 6)),
        }
        for _ in range(count)
    ]


def labelled(count: int, seed: int = 3) -> list[dict[str, Any]]:
    """Rows for kto."""
    return [{**row, "label": i % 3 > 0} for i, row in enumerate(answers(count, seed))]


def reviews(count: int, seed: int = 5) -> list[dict[str, Any]]:
    """Rows for classify: three classes, told apart by a word somewhere in the text."""
    rng = random.Random(seed)
    rows: list[dict[str, Any]] = []
    for i in range(count):
        label, mark = (("good", "red"), ("bad", "old"), ("odd", "tree"))[i % 3]
        text = f"{sentence(rng, rng.randint(1, 6))} {mark} {sentence(rng, rng.randint(1, 6))}"
        rows.append({"text": text, "label": label})
    return rows


def rankings(count: int, seed: int = 4) -> list[dict[str, Any]]:
    """Rows of three ranked responses."""
    rng = random.Random(seed)
    return [
        {
            "prompt": sentence(rng, 3) + "\n",
            "responses": [sentence(rng, rng.randint(1, 6)) for _ in range(3)],
            "ranks": rng.sample([1, 2, 3], 3),
        }
        for _ in range(count)
    ]


def scored(count: int, seed: int = 6) -> list[dict[str, Any]]:
    """Rows of two to four scored responses, with ties."""
    rng = random.Random(seed)
    rows: list[dict[str, Any]] = []
    for _ in range(count):
        size = rng.randint(2, 4)
        responses = [sentence(rng, rng.randint(1, 6)) for _ in range(size)]
        scores = [3.0, *(rng.choice([0.5, 1.0]) for _ in range(size - 1))]
        rng.shuffle(scores)
        rows.append({"prompt": sentence(rng, 3) + "\n", "responses": responses, "scores": scores})
    return rows
