"""A run's history and what has been found of it, told once and again when it doubles."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from trimtab.algorithms.diagnosis import hacking, preference, reward_model, sampled
from trimtab.algorithms.diagnosis.history import Facts, Finding, History
from trimtab.algorithms.stage import Stage
from trimtab.config.diagnoses import FAMILIES
from trimtab.config.on_policy_recipe import OnPolicyRecipe
from trimtab.config.recipes import PreferenceRecipe
from trimtab.config.reward_recipe import RewardRecipe

Check = Callable[[History, Facts], list[Finding]]
CHECKS: Mapping[str, Check] = {
    "reward hacking": hacking.diagnose,
    "on-policy training": sampled.diagnose,
    "preference training": preference.diagnose,
    "reward model": reward_model.diagnose,
}
assert CHECKS.keys() == FAMILIES.keys()
SAMPLING = ("reward hacking", "on-policy training")  # the families of on-policy runs
WORSE = 2.0  # times the severity that was told: it is told again


class Diagnoses:
    """What a run has logged, and what was found in it, by the checks of ``families``."""

    def __init__(
        self,
        stop_when: Sequence[str] = (),
        *,
        families: Sequence[str] = SAMPLING,
        facts: Facts | None = None,
    ) -> None:
        self.stop_when = tuple(stop_when)
        self.families = tuple(families)
        self.facts = facts or Facts()
        self.history = History(point="reward" if self.families == SAMPLING else "loss")
        self.found: list[Finding] = []

    def remember(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Take the records of a run that goes on; nothing is diagnosed anew."""
        for record in records:
            if "diagnosis" in record:
                self.found.append(Finding.of(record))
            else:
                self.history.add(record)

    def add(self, record: Mapping[str, Any]) -> list[Finding]:
        """What a new record of metrics.jsonl shows that was not told before, or is twice as bad."""
        if not self.history.add(record):
            return []
        told = {(one.name, one.about): one.severity for one in self.found}
        fresh = [
            one
            for one in self.now()
            if (key := (one.name, one.about)) not in told
            or (told[key] > 0 and one.severity >= WORSE * told[key])
        ]
        self.found += fresh
        return fresh

    def now(self) -> list[Finding]:
        """What can be said of the run as it stands."""
        return [one for name in self.families for one in CHECKS[name](self.history, self.facts)]

    def title(self, name: str) -> str:
        """The family of a diagnosis, as it stands before its name."""
        return next(family for family in self.families if name in FAMILIES[family])

    def summary(self) -> dict[str, Any]:
        """Everything found, and where each watched reward was highest; plain JSON.

        ``at_end``: the names of what is so at the end of the run.
        """
        return {
            "diagnoses": [one.record() for one in self.found],
            "at_end": sorted({one.name for one in self.now()}),
            "peaks": {
                name: [one._asdict() for one in hacking.peaks(self.history, name)]
                for name in self.history.watched
            },
        }


def of_run(recipe: Any, stage: Stage) -> Diagnoses | None:
    """The diagnoses of a recipe's verb; None where there are none to be made."""
    families: Mapping[type, tuple[str, ...]] = {
        OnPolicyRecipe: SAMPLING,
        PreferenceRecipe: ("preference training",),
        RewardRecipe: ("reward model",),
    }
    for kind, names in families.items():
        if isinstance(recipe, kind):
            return Diagnoses(recipe.stop_when, families=names, facts=facts_of(recipe, stage))
    return None


def facts_of(recipe: Any, stage: Any) -> Facts:
    """What the checks ask of a recipe and the stage that was built of it."""
    loss = getattr(recipe, "loss", None)
    if isinstance(recipe, PreferenceRecipe):
        needs = stage.spec.needs | stage.spec.prepare_needs
        fresh = "reference" in needs and not stage.references.named
    else:
        fresh = getattr(recipe, "ref_model_name_or_path", "") is None
    known = {} if loss is None else loss.parameters
    beta = known.get("beta")
    return Facts(
        total_steps=stage.total_steps,
        rows_per_step=recipe.rows_per_step,
        held_out=stage.held_out is not None,
        fresh_reference=fresh,
        beta=beta,
        loss="" if loss is None else loss.name,
        target=known.get("gamma", (beta or 0.0) * known.get("gamma_beta_ratio", 0.0)),
        learning_rate=recipe.learning_rate,
        steps_per_rollout=getattr(stage, "steps_per_rollout", 0),
    )
