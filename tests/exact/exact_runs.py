"""Runs of the verbs on the enumerable language, as the files of this folder need them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import trimtab
from trimtab.models.hub import quiet
from trimtab.proof.language import Language
from trimtab.proof.transformer import save_transformer

LANGUAGE = Language(prompts="xy")
PROMPT = "xy"  # two tokens: after one, a model could not tell x from xx, which have one state
WORDS = (*LANGUAGE.letters, "", *LANGUAGE.prompts)
"""What each token id is in a completion's text; the stop token is nothing."""
_REWARD = """
import random

def reward(completions, **_):
    return [random.Random("r" + text).gauss(0, 1) for text in completions]
"""


def rewards_of(texts: Sequence[str]) -> Tensor:
    """[len(texts)] float64: what the reward function of ``prepare`` gives."""
    names: dict[str, Any] = {}
    exec(_REWARD, names)
    return torch.tensor(names["reward"](texts), dtype=torch.float64)


def prepare(root: Path) -> Path:
    """One prompt, a reward function and the reference, whose folder is returned."""
    quiet()
    (root / "reward.py").write_text(_REWARD)
    (root / "prompts.jsonl").write_text(json.dumps({"prompt": PROMPT}) + "\n")
    return save_transformer(root / "reference", LANGUAGE, seed=3, spread=0.08)


def sampled(root: Path, verb: str, name: str, **keys: Any) -> Path:
    """The folder of an on-policy run from what ``prepare`` left; a key that is ... is left out."""
    common: dict[str, Any] = {
        "model_name_or_path": str(root / "reference"),
        "dataset_name": str(root / "prompts.jsonl"),
        "reward_funcs": [f"{root / 'reward.py'}:reward"],
        "per_device_train_batch_size": 1,
        "num_generations": 256,
        "rollout_slots": 256,
        "max_grad_norm": 1.0,
        "learning_rate": 1e-2,
        # 256 branches of a token or two: a rectangle is quicker, and layouts are equal elsewhere.
        "attn_layout": "padded",
        "lr_scheduler_type": "linear",
        "token_budget": 4096,
        **_PLAIN,
        "output_dir": str(root / name),
    }
    given = {key: value for key, value in {**common, **keys}.items() if value is not ...}
    return getattr(trimtab, verb)(**given).output_dir


def full_batch(
    root: Path, verb: str, name: str, rows: Sequence[dict[str, Any]], **keys: Any
) -> Path:
    """The folder of a run from ``root / "model"`` on rows, all of them in every step."""
    data = root / f"{name}.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    common: dict[str, Any] = {
        "model_name_or_path": str(root / "model"),
        "dataset_name": str(data),
        "output_dir": str(root / name),
        "cache_dir": str(root / "cache"),
        "per_device_train_batch_size": len(rows),
        "learning_rate": 1e-2,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 10,
        "adam_beta2": 0.95,
        "max_grad_norm": 0,
        **_PLAIN,
    }
    given = {key: value for key, value in {**common, **keys}.items() if value is not ...}
    return getattr(trimtab, verb)(**given).output_dir


_PLAIN: dict[str, Any] = {
    "precision": "fp32",
    "device": "cpu",
    "logging_steps": 1000,
    "save_steps": None,
    "sample_prompts": 0,
    "self_check": False,
    "quiet": True,
}
