"""The demo's stages as recipes: what each one does in a sentence, its size and its keys."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple


@dataclasses.dataclass(frozen=True)
class Size:
    """How much of everything the demo takes; steps are optimizer steps."""

    documents: int
    pretrain_steps: int
    demonstrations: int
    sft_steps: int
    asked: int  # training requests that pairs are made from
    pairs_eval: int  # and held-out ones
    pair_steps: int  # dpo and simpo, 16 pairs a step
    orpo_steps: int  # 8 pairs a step
    pretrained_orpo_steps: int
    requests: int  # held-out requests that every model is asked at the end
    tellings: int  # stories on each of them
    logging_steps: int


FULL = Size(6000, 1500, 1000, 120, 512, 48, 64, 128, 160, 192, 2, 100)
FAST = Size(1000, 220, 240, 30, 40, 8, 8, 10, 12, 16, 1, 20)
SAMPLES = 4  # stories on each request that a pair is made of


class Stage(NamedTuple):
    """A training run of the demo: its folder's name, its verb, what it does, its keys."""

    name: str
    verb: str
    says: str
    keys: dict[str, Any]


PAIRS_SAY = (
    "the sft model tells {samples} stories on each of {asked} requests; an annotator, who errs now "
    "and then, picks the best and the worst"
)


def stages(folder: Path, size: Size, seed: int) -> list[Stage]:
    """The training runs in their order; pairs are made between the second and the third."""
    data = folder / "data"
    common: dict[str, Any] = {
        "seed": seed,
        "precision": "fp32",
        "eval_steps": None,
        "sample_prompts": 0,
        "save_total_limit": 1,
        "logging_steps": size.logging_steps,
        "cache_dir": str(folder / "cache"),
    }
    # A model learns to start and to end within what it is shown whole: no row is cut here.
    answers = {**common, "max_length": 256}
    pairs = {
        **answers,
        "dataset_name": str(data / "pairs.jsonl"),
        "eval_dataset_name": str(data / "pairs_eval.jsonl"),
        "logging_steps": max(1, size.logging_steps // 4),
    }
    # The papers' rates are for models of billions of weights; half a million need far more.
    sixteen = {
        **pairs,
        "model_name_or_path": str(folder / "sft"),
        "per_device_train_batch_size": 16,
        "learning_rate": 3e-4,
        "max_steps": size.pair_steps,
    }
    eight = {**pairs, "per_device_train_batch_size": 8, "lr_scheduler_type": "cosine"}
    return [
        Stage(
            "pretrain",
            "pretrain",
            "a new model of half a million weights learns to continue text, with a tokenizer made "
            "for it",
            {
                **common,
                "dataset_name": str(data / "text.jsonl"),
                "eval_dataset_name": str(data / "text_eval.jsonl"),
                "new_tokenizer": {"vocab_size": 1024, "max_rows": 2000},
                "new_model": {
                    "architecture": "qwen3",
                    "hidden_size": 128,
                    "num_hidden_layers": 2,
                    "max_position_embeddings": 256,
                    "initializer_range": 0.06,
                },
                "context_length": 160,
                # Small steps, many of them: copying from the request is found by step count.
                "per_device_train_batch_size": 4,
                "learning_rate": 4e-3,
                "max_steps": size.pretrain_steps,
                "sample_prompts": 1,
                "sample_max_new_tokens": 40,
                "output_dir": str(folder / "pretrain"),
            },
        ),
        Stage(
            "sft",
            "sft",
            "it learns to answer: only the story is trained, given the request",
            {
                **answers,
                "model_name_or_path": str(folder / "pretrain"),
                "dataset_name": str(data / "answers.jsonl"),
                "eval_dataset_name": str(data / "answers_eval.jsonl"),
                "per_device_train_batch_size": 8,
                "learning_rate": 1e-3,
                "max_steps": size.sft_steps,
                "logging_steps": max(1, size.logging_steps // 2),
                "output_dir": str(folder / "sft"),
            },
        ),
        Stage(
            "dpo",
            "dpo",
            "it learns to prefer the chosen story of each pair, and is held near the sft model",
            {**sixteen, "beta": 0.1, "output_dir": str(folder / "dpo")},
        ),
        Stage(
            "simpo",
            "simpo",
            "the same pairs without a reference model: log-probabilities per token, and a margin",
            {**sixteen, "beta": 2.0, "gamma": 1.0, "output_dir": str(folder / "simpo")},
        ),
        Stage(
            "orpo",
            "orpo",
            "the same pairs: likelihood of the chosen story and odds against the rejected, in one",
            {
                **eight,
                "model_name_or_path": str(folder / "sft"),
                "learning_rate": 1e-3,
                "beta": 0.1,
                "max_steps": size.orpo_steps,
                "output_dir": str(folder / "orpo"),
            },
        ),
        Stage(
            "orpo-pretrained",
            "orpo",
            "orpo straight from the pretrained model, which is its point: no sft before it",
            {
                **eight,
                "model_name_or_path": str(folder / "pretrain"),
                "learning_rate": 1.5e-3,
                "beta": 0.1,
                "max_steps": size.pretrained_orpo_steps,
                "output_dir": str(folder / "orpo-pretrained"),
            },
        ),
    ]
