"""The training verbs: the recipe of each, and the defaults that come with a loss."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from trimtab.config.classify_recipe import ClassifyRecipe
from trimtab.config.loss_sum import LossSumError, is_sum, parse_sum
from trimtab.config.on_policy_recipe import GroupRecipe, PpoRecipe, RlooRecipe
from trimtab.config.online_recipe import OnlineRecipe, RaftRecipe
from trimtab.config.recipes import PreferenceRecipe, PretrainRecipe, SftRecipe, TrainRecipe
from trimtab.config.reward_recipe import RewardRecipe


class Verb(NamedTuple):
    """``loss``: the one that the verb stands for; None where --loss chooses, or there is none."""

    name: str
    recipe: type[TrainRecipe]
    loss: str | None = None


VERBS: Mapping[str, Verb] = MappingProxyType(
    {
        verb.name: verb
        for verb in (
            Verb("pretrain", PretrainRecipe),
            Verb("classify", ClassifyRecipe),
            Verb("sft", SftRecipe),
            Verb("reward", RewardRecipe),
            Verb("ppo", PpoRecipe),
            Verb("grpo", GroupRecipe),
            Verb("rloo", RlooRecipe),
            Verb("online_dpo", OnlineRecipe),
            Verb("raft", RaftRecipe),
            Verb("dpo", PreferenceRecipe),
            Verb("simpo", PreferenceRecipe, loss="simpo"),
            Verb("orpo", PreferenceRecipe, loss="orpo"),
            Verb("kto", PreferenceRecipe, loss="kto"),
            Verb("ipo", PreferenceRecipe, loss="ipo"),
            Verb("cpo", PreferenceRecipe, loss="cpo"),
            Verb("bco", PreferenceRecipe, loss="bco"),
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
        "ipo": {"max_grad_norm": 1.0},
        "cpo": {"nll_weight": 1.0},
        "bco": {
            "learning_rate": 5e-7,
            "per_device_train_batch_size": 128,
            "max_grad_norm": 1.0,
        },
        "simpo_ratio": {
            "per_device_train_batch_size": 128,
            "lr_scheduler_type": "cosine",
            "max_grad_norm": 1.0,
        },
        "alphapo": {
            "learning_rate": 7e-7,
            "per_device_train_batch_size": 128,
            "lr_scheduler_type": "cosine",
            "max_grad_norm": 1.0,
        },
        "robust": {"per_device_train_batch_size": 16},
        "apo_zero": {"learning_rate": 2e-7},
        "apo_down": {"learning_rate": 2e-7},
        "nca": {"learning_rate": 5e-6, "per_device_train_batch_size": 32},
        "nca_rewards": {"learning_rate": 5e-6, "per_device_train_batch_size": 32},
        "infonca": {"learning_rate": 5e-6, "per_device_train_batch_size": 32},
        "bco_pair": {
            "learning_rate": 5e-7,
            "per_device_train_batch_size": 128,
            "max_grad_norm": 1.0,
        },
        "sppo": {"learning_rate": 5e-7},
        "ln_dpo": {"learning_rate": 5e-7, "max_grad_norm": 1.0},
        "discopop": {"learning_rate": 5e-7},
    }
)


def loss_defaults(verb: Verb, loss: str) -> Mapping[str, Any]:
    """What comes with a loss in a verb: on samples of the policy's own only the loss's other term.

    Batches, epochs and rates of the papers are those of rows that somebody has written.
    """
    found = _defaults_of_sum(loss) if is_sum(loss) else LOSS_DEFAULTS.get(loss, {})
    if not issubclass(verb.recipe, OnlineRecipe):
        return found
    return {key: value for key, value in found.items() if key == "nll_weight"}


def _defaults_of_sum(text: str) -> Mapping[str, Any]:
    """The likelihood that belongs to its members (ORPO's, CPO's), weighted as they are."""
    try:
        weights = parse_sum(text)
    except LossSumError:  # the recipe's own check says what is wrong with it
        return {}
    members = [(weight, LOSS_DEFAULTS.get(name, {})) for name, weight in weights.items()]
    likelihood = sum(weight * own.get("nll_weight", 0.0) for weight, own in members)
    if not likelihood:
        return {}
    spans = [own["nll_span"] for _, own in members if "nll_span" in own]
    return {"nll_weight": likelihood, **({"nll_span": spans[0]} if spans else {})}
