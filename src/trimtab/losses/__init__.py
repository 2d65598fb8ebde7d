"""Objectives as pure functions: per-sequence log-probs in, unreduced losses out.

This package imports torch and nothing else of ours; copy the folder and it works elsewhere.
``PREFERENCE_LOSSES`` is the one registry: a new loss is one function and one entry. Its parameter
names say what it needs, its keyword-only parameters are its recipe keys (see ``contract.py``).
The dictionary stays a plain literal of imported symbols, and the symbols' defaults plain literals:
the configuration reads both from the source, without importing torch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from trimtab.losses.beta_dpo import BetaDPO
from trimtab.losses.contract import LossSpec, bind, describe
from trimtab.losses.language_model import nll
from trimtab.losses.listwise import plackett_luce_loss
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
    "KTO",
    "PREFERENCE_LOSSES",
    "BetaDPO",
    "LossSpec",
    "Pair",
    "PairValues",
    "PreferenceTerms",
    "Ranking",
    "RankingTerms",
    "SequenceLogprobs",
    "UnpairedTerms",
    "bind",
    "centring_loss",
    "describe",
    "dpo_loss",
    "kto_loss",
    "log1mexp",
    "log_odds",
    "nll",
    "orpo_loss",
    "plackett_luce_loss",
    "plackett_luce_ranking_loss",
    "ranking_loss",
    "simpo_loss",
    "tdpo2_loss",
]
