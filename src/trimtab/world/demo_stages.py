"""The demo's stages as recipes: what each one does in a sentence, its size and its keys."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

from trimtab.world import demo_stories
from trimtab.world.demo_frontier import interval_of


@dataclasses.dataclass(frozen=True)
class Size:
    """How much of everything the demo takes; steps are optimizer steps."""

    documents: int
    pretrain_steps: int
    demonstrations: int
    sft_steps: int
    asked: int  # training requests that rankings and pairs are made from
    pairs_eval: int  # and held-out ones
    pair_steps: int  # dpo and simpo, 16 pairs a step
    orpo_steps: int  # 8 pairs a step
    pretrained_orpo_steps: int
    reward_epochs: int  # passes over the rankings, 16 a step
    ppo_rollouts: int  # PASSES steps on each
    ppo_stories: int  # of a rollout, each on a request of its own
    requests: int  # held-out requests that every model is asked at the end
    tellings: int  # stories on each of them
    logging_steps: int

    @property
    def ppo_prompts(self) -> int:
        """Requests that ppo tells stories on, each of them once."""
        return self.ppo_rollouts * self.ppo_stories


FULL = Size(6000, 1500, 1000, 120, 512, 48, 64, 128, 160, 2, 12, 64, 192, 2, 100)
FAST = Size(1000, 220, 240, 30, 40, 8, 8, 10, 12, 1, 2, 16, 16, 1, 20)
SAMPLES = 4  # stories on each request that is ranked
PASSES = 4  # over a rollout

# The papers' rates are for models of billions of weights; half a million need far more.
PAIR_RATE = 3e-4
REWARD_RATE = 1e-3
ON_POLICY_RATE = 3e-4
VALUE_RATE = 1e-3  # a head that begins at nothing has far to go in 48 steps


class Stage(NamedTuple):
    """A training run of the demo: its folder's name, its verb, what it does, its keys."""

    name: str
    verb: str
    says: str
    keys: dict[str, Any]


RANKED_SAY = (
    "the sft model tells {samples} stories on each of {asked} requests, and an annotator, who errs "
    "now and then, ranks them; the best and the worst make a pair"
)


def stages(folder: Path, size: Size, seed: int) -> list[Stage]:
    """The training runs in their order; rankings are made between the second and the third."""
    common: dict[str, Any] = {
        "seed": seed,
        "precision": "fp32",
        "eval_steps": None,
        "sample_prompts": 0,
        "save_total_limit": 1,
        "logging_steps": size.logging_steps,
        "cache_dir": str(folder / "cache"),
    }
    return [
        _pretrain(folder, size, common),
        _sft(folder, size, common),
        _reward(folder, size, common),
        *map(_kept, [_ppo(folder, size, common), *_preferences(folder, size, common)]),
    ]


ALIGNED = ("ppo", "dpo", "simpo", "orpo")  # from the sft model, whose frontier is drawn


def _kept(stage: Stage) -> Stage:
    """With the checkpoints of a frontier, where it has one."""
    if stage.name not in ALIGNED:
        return stage
    kept = {"save_steps": interval_of(stage.keys["max_steps"]), "save_total_limit": None}
    return stage._replace(keys={**stage.keys, **kept})


def _pretrain(folder: Path, size: Size, common: dict[str, Any]) -> Stage:
    return Stage(
        "pretrain",
        "pretrain",
        "a new model of half a million weights learns to continue text, with a tokenizer made "
        "for it",
        {
            **common,
            "dataset_name": str(folder / "data" / "text.jsonl"),
            "eval_dataset_name": str(folder / "data" / "text_eval.jsonl"),
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
    )


def _sft(folder: Path, size: Size, common: dict[str, Any]) -> Stage:
    return Stage(
        "sft",
        "sft",
        "it learns to answer: only the story is trained, given the request",
        {
            **_whole(common),
            "model_name_or_path": str(folder / "pretrain"),
            "dataset_name": str(folder / "data" / "answers.jsonl"),
            "eval_dataset_name": str(folder / "data" / "answers_eval.jsonl"),
            "per_device_train_batch_size": 8,
            "learning_rate": 1e-3,
            "max_steps": size.sft_steps,
            "logging_steps": max(1, size.logging_steps // 2),
            "output_dir": str(folder / "sft"),
        },
    )


def _whole(common: dict[str, Any]) -> dict[str, Any]:
    # A model learns to start and to end within what it is shown whole: no row is cut here.
    return {**common, "max_length": 256}


def _preferences(folder: Path, size: Size, common: dict[str, Any]) -> list[Stage]:
    pairs = {
        **_whole(common),
        "dataset_name": str(folder / "data" / "pairs.jsonl"),
        "eval_dataset_name": str(folder / "data" / "pairs_eval.jsonl"),
        "logging_steps": max(1, size.logging_steps // 4),
    }
    sixteen = {
        **pairs,
        "model_name_or_path": str(folder / "sft"),
        "per_device_train_batch_size": 16,
        "learning_rate": PAIR_RATE,
        "max_steps": size.pair_steps,
    }
    eight = {
        **pairs,
        "per_device_train_batch_size": 8,
        "lr_scheduler_type": "cosine",
        "beta": 0.1,
    }
    return [
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
                "max_steps": size.pretrained_orpo_steps,
                "output_dir": str(folder / "orpo-pretrained"),
            },
        ),
    ]


def _reward(folder: Path, size: Size, common: dict[str, Any]) -> Stage:
    return Stage(
        "reward",
        "reward",
        "a model of half the size learns from the rankings to give a story one number",
        {
            **reward_keys(folder, size, common),
            "logging_steps": max(1, size.logging_steps // 5),
            "output_dir": str(folder / "reward"),
        },
    )


def reward_keys(folder: Path, size: Size, common: dict[str, Any]) -> dict[str, Any]:
    """How the demo trains a reward model from its sft model, on its own rankings."""
    return {
        **_whole(common),
        "model_name_or_path": str(folder / "sft"),
        "dataset_name": str(folder / "data" / "rankings.jsonl"),
        "eval_dataset_name": str(folder / "data" / "rankings_eval.jsonl"),
        "per_device_train_batch_size": 16,
        "learning_rate": REWARD_RATE,
        "num_train_epochs": size.reward_epochs,
    }


def _ppo(folder: Path, size: Size, common: dict[str, Any]) -> Stage:
    return Stage(
        "ppo",
        "ppo",
        "the sft model tells stories, the reward model judges them, and PPO makes the better ones "
        "likelier, held near the sft model and, by the ptx term, to the text of pretraining",
        {
            **on_policy(folder, common, size.ppo_stories),
            "value_learning_rate": VALUE_RATE,
            "mix": ptx(folder),
            "max_steps": size.ppo_rollouts * PASSES,
            "logging_steps": PASSES,
            "num_ppo_epochs": PASSES,
            "kl_coef": 0.05,
            "output_dir": str(folder / "ppo"),
        },
    )


def on_policy(folder: Path, common: dict[str, Any], prompts: int) -> dict[str, Any]:
    """What on-policy runs from the demo's sft model have in common; ``prompts`` a rollout.

    The gold reward is watched beside the learned one, and optimised by nobody.
    """
    return {
        **common,
        "model_name_or_path": str(folder / "sft"),
        "dataset_name": str(folder / "data" / "prompts.jsonl"),
        "reward_model": str(folder / "reward"),
        "watch_funcs": ["trimtab.world.reward:gold"],
        "max_completion_length": demo_stories.LONGEST,
        "learning_rate": ON_POLICY_RATE,
        "per_device_train_batch_size": prompts,
    }


def ptx(folder: Path) -> dict[str, Any]:
    """The language-model term: 8 documents of pretraining in every optimizer step."""
    return {"dataset_name": str(folder / "data" / "text.jsonl"), "weight": 0.2, "batch_size": 8}
