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
from trimtab.losses.anchored import (
    apo_down_loss,
    apo_zero_loss,
    bco_pair_loss,
    dpop_loss,
    irpo_loss,
    nca_loss,
    rpo_loss,
    sppo_loss,
)
from trimtab.losses.bco import BCO, bco_loss
from trimtab.losses.beta_dpo import BetaDPO
from trimtab.losses.classification import classification_loss
from trimtab.losses.contract import LossSpec, bind, describe
from trimtab.losses.kl import KL_ESTIMATORS, kl_k1, kl_k2, kl_k3, weighted_kl
from trimtab.losses.language_model import nll
from trimtab.losses.lengths import ld_dpo_loss, ln_dpo_loss, r_dpo_loss
from trimtab.losses.listwise import (
    exo_rewards_loss,
    infonca_loss,
    nca_rewards_loss,
    plackett_luce_loss,
)
from trimtab.losses.margins import hinge_loss, ipo_loss, ipo_sum_loss, slic_hf_loss
from trimtab.losses.noise import cdpo_loss, exo_authors_loss, exo_loss, robust_loss
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
from trimtab.losses.preference import (
    cpo_loss,
    dpo_loss,
    orpo_loss,
    simpo_loss,
    simpo_ratio_loss,
    tdpo1_loss,
    tdpo2_loss,
)
from trimtab.losses.reward import centring_loss, plackett_luce_ranking_loss, ranking_loss
from trimtab.losses.shaped import (
    alphapo_loss,
    discopop_loss,
    fdpo_alpha_loss,
    fdpo_forward_loss,
    fdpo_js_loss,
)
from trimtab.losses.stable import log1mexp, log_odds
from trimtab.losses.sums import WeightedSum, bind_sum, describe_sum
from trimtab.losses.types import (
    Pair,
    PairTokens,
    PairValues,
    PreferenceTerms,
    Ranking,
    RankingTerms,
    SequenceLogprobs,
    TokenLogprobs,
    UnpairedTerms,
)
from trimtab.losses.unpaired import KTO, apo_zero_unpaired_loss, kto_loss
from trimtab.losses.weighted import wpo_clamped_loss, wpo_loss

PREFERENCE_LOSSES: dict[str, Callable[..., Any]] = {
    "dpo": dpo_loss,
    "cdpo": cdpo_loss,
    "robust": robust_loss,
    "ipo": ipo_loss,
    "ipo_sum": ipo_sum_loss,
    "hinge": hinge_loss,
    "slic_hf": slic_hf_loss,
    "simpo": simpo_loss,
    "simpo_ratio": simpo_ratio_loss,
    "alphapo": alphapo_loss,
    "cpo": cpo_loss,
    "orpo": orpo_loss,
    "apo_zero": apo_zero_loss,
    "apo_down": apo_down_loss,
    "exo": exo_loss,
    "exo_authors": exo_authors_loss,
    "nca": nca_loss,
    "bco_pair": bco_pair_loss,
    "sppo": sppo_loss,
    "dpop": dpop_loss,
    "irpo": irpo_loss,
    "rpo": rpo_loss,
    "tdpo1": tdpo1_loss,
    "tdpo2": tdpo2_loss,
    "wpo": wpo_loss,
    "wpo_clamped": wpo_clamped_loss,
    "r_dpo": r_dpo_loss,
    "ln_dpo": ln_dpo_loss,
    "ld_dpo": ld_dpo_loss,
    "discopop": discopop_loss,
    "fdpo_forward": fdpo_forward_loss,
    "fdpo_js": fdpo_js_loss,
    "fdpo_alpha": fdpo_alpha_loss,
    "beta_dpo": BetaDPO,
    "kto": KTO,
    "bco": BCO,
    "apo_zero_unpaired": apo_zero_unpaired_loss,
    "plackett_luce": plackett_luce_loss,
    "infonca": infonca_loss,
    "nca_rewards": nca_rewards_loss,
    "exo_rewards": exo_rewards_loss,
}

__all__ = [
    "BCO",
    "KL_ESTIMATORS",
    "KTO",
    "PREFERENCE_LOSSES",
    "BetaDPO",
    "ClippedTerms",
    "CorrectionWeights",
    "LossSpec",
    "Pair",
    "PairTokens",
    "PairValues",
    "PreferenceTerms",
    "Ranking",
    "RankingTerms",
    "SequenceLogprobs",
    "TokenLogprobs",
    "UnpairedTerms",
    "WeightedSum",
    "aggregation_count",
    "alphapo_loss",
    "apo_down_loss",
    "apo_zero_loss",
    "apo_zero_unpaired_loss",
    "bco_loss",
    "bco_pair_loss",
    "bind",
    "bind_sum",
    "cdpo_loss",
    "centring_loss",
    "classification_loss",
    "clipped_policy_loss",
    "clipped_ratio_loss",
    "clipped_value_loss",
    "cpo_loss",
    "describe",
    "describe_sum",
    "discopop_loss",
    "dpo_loss",
    "dpop_loss",
    "exo_authors_loss",
    "exo_loss",
    "exo_rewards_loss",
    "explained_variance",
    "fdpo_alpha_loss",
    "fdpo_forward_loss",
    "fdpo_js_loss",
    "gae",
    "group_relative",
    "gspo_ratio",
    "hinge_loss",
    "importance_loss",
    "infonca_loss",
    "ipo_loss",
    "ipo_sum_loss",
    "irpo_loss",
    "kl_k1",
    "kl_k2",
    "kl_k3",
    "kto_loss",
    "ld_dpo_loss",
    "leave_one_out",
    "ln_dpo_loss",
    "log1mexp",
    "log_odds",
    "masked_weights",
    "nca_loss",
    "nca_rewards_loss",
    "nll",
    "orpo_loss",
    "overlong_penalty",
    "plackett_luce_loss",
    "plackett_luce_ranking_loss",
    "r_dpo_loss",
    "ranking_loss",
    "reinforce_loss",
    "reinforce_pp",
    "reinforce_pp_baseline",
    "reward_to_go",
    "robust_loss",
    "rpo_loss",
    "sequence_ratio",
    "simpo_loss",
    "simpo_ratio_loss",
    "slic_hf_loss",
    "sppo_loss",
    "tdpo1_loss",
    "tdpo2_loss",
    "token_ratio",
    "token_rewards",
    "token_weights",
    "truncated_weights",
    "weighted_kl",
    "whiten",
    "wpo_clamped_loss",
    "wpo_loss",
]
