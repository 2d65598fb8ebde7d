"""The training verbs: the recipe of each, and the defaults that come with a loss."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from trimtab.config.recipes import PreferenceRecipe, PretrainRecipe, SftRecipe, TrainRecipe


class Verb(NamedTuple):
    """``loss``: the one that the verb stands for; None for dpo, where --loss chooses."""

    name: str
    recipe: type[TrainRecipe]
    summary: str
    objective: str
    example: str
    loss: str | None = None


_PAIRS = "--dataset-name pairs.jsonl"

VERBS: Mapping[str, Verb] = MappingProxyType(
    {
        verb.name: verb
        for verb in (
            Verb(
                "pretrain",
                PretrainRecipe,
                "Train a language model on raw text, from nothing or further.",
                "maximise L_GPT = sum of log P(x_i | x_(i-k) ... x_(i-1))",
                "trimtab pretrain --new-model.hidden-size 128 --new-tokenizer.vocab-size 2048 "
                "--dataset-name texts.jsonl",
            ),
            Verb(
                "sft",
                SftRecipe,
                "Fine-tune on prompts with responses, or on chats.",
                "maximise the log-probability of the response tokens given the prompt",
                "trimtab sft --model-name-or-path runs/pretrain --dataset-name answers.jsonl",
            ),
            Verb(
                "dpo",
                PreferenceRecipe,
                "Align on preferences: DPO, or any loss of the family with --loss.",
                "-log sigmoid(beta log(pi/pi_ref)(y_w) - beta log(pi/pi_ref)(y_l))",
                f"trimtab dpo --model-name-or-path runs/sft {_PAIRS} --beta 0.1",
            ),
            Verb(
                "simpo",
                PreferenceRecipe,
                "Align on preferences without a reference model, length-normalised.",
                "-log sigmoid(beta (mean log pi(y_w) - mean log pi(y_l)) - gamma)",
                f"trimtab simpo --model-name-or-path runs/sft {_PAIRS}",
                "simpo",
            ),
            Verb(
                "orpo",
                PreferenceRecipe,
                "Fine-tune and align in one stage, without a reference model.",
                "NLL(y_w) - beta log sigmoid(log odds(y_w) - log odds(y_l))",
                f"trimtab orpo --model-name-or-path runs/pretrain {_PAIRS}",
                "orpo",
            ),
            Verb(
                "kto",
                PreferenceRecipe,
                "Align on single responses labelled good or bad.",
                "1 - sigmoid(beta (log(pi/pi_ref)(y) - z0)), mirrored for bad ones",
                "trimtab kto --model-name-or-path runs/sft --dataset-name labelled.jsonl",
                "kto",
            ),
        )
    }
)

# What a loss's paper uses where it differs from PreferenceRecipe; docs/defaults.md has the sources.
LOSS_DEFAULTS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "simpo": {
            "per_device_train_batch_size": 128,
            "lr_scheduler_type": "cosine",
            "max_grad_norm": 1.0,
        },
        "orpo": {
            "learning_rate": 5e-6,
            "lr_scheduler_type": "inverse_sqrt",
            "num_train_epochs": 5.0,
            "per_device_train_batch_size": 8,
            "max_grad_norm": 1.0,
            "nll_weight": 1.0,
            "nll_span": "prompt_and_completion",
        },
        "kto": {"max_grad_norm": 1.0},
    }
)
