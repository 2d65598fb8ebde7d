"""trimtab: language-model alignment, from raw text to a policy that does what people prefer.

The verbs of the command line are functions here, with the same keys:

    from trimtab import dpo
    run = dpo(model_name_or_path="runs/sft", dataset_name="pairs.jsonl", beta=0.1)
    run.results["eval_rewards/accuracies"]

Losses are pure functions in ``trimtab.losses``. Importing this package imports no torch; calling a
verb does.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

# Before torch's first allocation, which is when it reads this: large tensors then come in pages of
# 2 MB where Linux lets a process ask for them. A step makes all of its activations anew, and page
# by page of 4 KB that took a fifth of a step of a 135M model (docs/performance.md).
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

if TYPE_CHECKING:
    from trimtab.algorithms.run import RunResult

__version__ = "0.1.0"
__all__ = [
    "bco",
    "classify",
    "cpo",
    "dpo",
    "grpo",
    "ipo",
    "kto",
    "online_dpo",
    "orpo",
    "ppo",
    "pretrain",
    "raft",
    "reward",
    "rloo",
    "sft",
    "simpo",
]


def _run(verb: str, keys: dict[str, Any]) -> RunResult:
    from trimtab.algorithms.run import train
    from trimtab.config.resolve import recipe_from_kwargs

    command = [f"trimtab.{verb}(" + ", ".join(f"{k}={v!r}" for k, v in keys.items()) + ")"]
    return train(recipe_from_kwargs(verb, **keys), command=command)


def pretrain(**keys: Any) -> RunResult:
    """Maximise L_GPT over documents; keys as in ``trimtab pretrain --help``."""
    return _run("pretrain", keys)


def classify(**keys: Any) -> RunResult:
    """Classes of texts, GPT-1's fine-tune; keys as in ``trimtab classify --help``."""
    return _run("classify", keys)


def sft(**keys: Any) -> RunResult:
    """Supervised fine-tuning on responses; keys as in ``trimtab sft --help``."""
    return _run("sft", keys)


def reward(**keys: Any) -> RunResult:
    """A reward model from pairs and rankings; keys as in ``trimtab reward --help``."""
    return _run("reward", keys)


def ppo(**keys: Any) -> RunResult:
    """RLHF by PPO with a critic; keys as in ``trimtab ppo --help``."""
    return _run("ppo", keys)


def grpo(**keys: Any) -> RunResult:
    """GRPO and the other group algorithms; keys as in ``trimtab grpo --help``."""
    return _run("grpo", keys)


def rloo(**keys: Any) -> RunResult:
    """REINFORCE with a leave-one-out baseline; keys as in ``trimtab rloo --help``."""
    return _run("rloo", keys)


def online_dpo(**keys: Any) -> RunResult:
    """A preference loss on fresh samples; keys as in ``trimtab online_dpo --help``."""
    return _run("online_dpo", keys)


def raft(**keys: Any) -> RunResult:
    """Fine-tuning on the best of fresh samples; keys as in ``trimtab raft --help``."""
    return _run("raft", keys)


def dpo(**keys: Any) -> RunResult:
    """Direct preference optimisation (or ``loss="..."``); keys as in ``trimtab dpo --help``."""
    return _run("dpo", keys)


def simpo(**keys: Any) -> RunResult:
    """SimPO, reference-free; keys as in ``trimtab simpo --help``."""
    return _run("simpo", keys)


def orpo(**keys: Any) -> RunResult:
    """ORPO, likelihood and odds ratio in one stage; keys as in ``trimtab orpo --help``."""
    return _run("orpo", keys)


def kto(**keys: Any) -> RunResult:
    """KTO, on single labelled responses; keys as in ``trimtab kto --help``."""
    return _run("kto", keys)


def ipo(**keys: Any) -> RunResult:
    """IPO, preferences up to a margin; keys as in ``trimtab ipo --help``."""
    return _run("ipo", keys)


def cpo(**keys: Any) -> RunResult:
    """CPO, preferences and likelihood, reference-free; keys as in ``trimtab cpo --help``."""
    return _run("cpo", keys)


def bco(**keys: Any) -> RunResult:
    """BCO, on single labelled responses; keys as in ``trimtab bco --help``."""
    return _run("bco", keys)
