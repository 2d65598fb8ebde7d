"""Objectives as pure functions: log-probs of sequences or tokens in, unreduced losses out.

This package imports torch and nothing else of ours; copy the folder and it works elsewhere.
``PREFERENCE_LOSSES`` is the one registry: a new loss is one function and one entry. Its parameter
names say what it needs, its keyword-only parameters are its recipe keys (see ``contract.py``).
The dictionary stays a plain literal of imported symbols, and the symbols' defaults plain literals:
the configuration reads both from the source, without importing torch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from trimtab.losses.advantages import (
    explained_variance,
    gae,
    group_relative,
    leave_one_out,
    overlong_penalty,
    reinforce_pp,
    reinforce_pp_baseline,
    reward_to_go,
    token_rewards,
    whiten,
)
from trimtab.losses.beta_dpo import BetaDPO
from trimtab.losses.classification import classification_loss
from trimtab.losses.contract import LossSpec, bind, describe
from trimtab.losses.kl import KL_ESTIMATORS, kl_k1, kl_k2, kl_k3, weighted_kl
from trimtab.losses.language_model import nll
from trimtab.losses.listwise import plackett_luce_loss
from trimtab.losses.policy_gradient import (
    ClippedTerms,
    CorrectionWeights,
    aggregation_count,
    clipped_policy_loss,
    clipped_ratio_loss,
    clipped_value_loss,
    gspo_ratio,
    importance_loss,
    masked_weights,
    reinforce_loss,
    sequence_ratio,
    token_ratio,
    token_weights,
    truncated_weights,
)
from trimtab.losses.preference import dpo_loss, orpo_loss, simpo_loss, tdpo2_loss
from trimtab.losses.reward import centring_loss, plackett_luce_ranking_loss, ranking_loss
from trimtab.losses.stable import log1mexp, log_odds
from trimtab.losses.types import (
    Pair,
    PairValues,
    PreferenceTerms,
    Ranking,
    RankingTerms,
    SequenceLogprobs,
    UnpairedTerms,
)
from trimtab.losses.unpaired import KTO, kto_loss

PREFERENCE_LOSSES: dict[str, Callable[..., Any]] = {
    "dpo": dpo_loss,
    "simpo": simpo_loss,
    "orpo": orpo_loss,
    "tdpo2": tdpo2_loss,
    "kto": KTO,
    "beta_dpo": BetaDPO,
    "plackett_luce": plackett_luce_loss,
}

__all__ = [
    "KL_ESTIMATORS",
    "KTO",
    "PREFERENCE_LOSSES",
    "BetaDPO",
    "ClippedTerms",
    "CorrectionWeights",
    "LossSpec",
    "Pair",
    "PairValues",
    "PreferenceTerms",
    "Ranking",
    "RankingTerms",
    "SequenceLogprobs",
    "UnpairedTerms",
    "aggregation_count",
    "bind",
    "centring_loss",
    "classification_loss",
    "clipped_policy_loss",
    "clipped_ratio_loss",
    "clipped_value_loss",
    "describe",
    "dpo_loss",
    "explained_variance",
    "gae",
    "group_relative",
    "gspo_ratio",
    "importance_loss",
    "kl_k1",
    "kl_k2",
    "kl_k3",
    "kto_loss",
    "leave_one_out",
    "log1mexp",
    "log_odds",
    "masked_weights",
    "nll",
    "orpo_loss",
    "overlong_penalty",
    "plackett_luce_loss",
    "plackett_luce_ranking_loss",
    "ranking_loss",
    "reinforce_loss",
    "reinforce_pp",
    "reinforce_pp_baseline",
    "reward_to_go",
    "sequence_ratio",
    "simpo_loss",
    "tdpo2_loss",
    "token_ratio",
    "token_rewards",
    "token_weights",
    "truncated_weights",
    "weighted_kl",
    "whiten",
]
