"""Names of what can be found of a run, by the family of stages that it is looked for in.

``algorithms/diagnosis`` has the checks and says when each is told, ``trimtab explain NAME`` too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from trimtab.config.suggest import did_you_mean
from trimtab.config.values import refuse

HACKING = ("watched", "length", "variety", "entropy", "disagreement", "kl")
SAMPLED = ("no_value", "impossible_kl")
PREFERENCE = ("displacement", "stuck", "saturated", "small_beta", "below_chance", "by_length")
# -log sigmoid(margin - target) with the logged margin: only of these is it known what is left.
SATURATING = ("dpo", "simpo", "simpo_ratio", "cpo", "ln_dpo", "wpo", "wpo_clamped")
REWARD_MODEL = ("at_chance", "too_good", "below_chance", "by_length")

ON_POLICY = (*HACKING, *SAMPLED)
# Family -> its names; a name of two families means the same in both.
FAMILIES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "reward hacking": HACKING,
        "on-policy training": SAMPLED,
        "preference training": PREFERENCE,
        "reward model": REWARD_MODEL,
    }
)


def check_names(value: list[str], known: Sequence[str]) -> list[str]:
    """``value``, where all of it are names of ``known``."""
    for name in value:
        if name not in known:
            hint = did_you_mean(name, known)
            refuse(f"holds {name!r}; diagnoses are {', '.join(known)}{hint}")
    return value
