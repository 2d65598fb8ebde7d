"""What ``trimtab compare`` is told: one model, one budget, several methods, who judges them."""

from __future__ import annotations

import re
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from trimtab.config.data_keys import Keys
from trimtab.config.values import (
    Label,
    Location,
    Number,
    NumberList,
    TextList,
    Whole,
    as_list,
    as_mapping,
    conflict,
    refuse,
)

BASE = "sft"  # what tables and charts call the model that everything starts from


def _seeds(value: Any) -> Any:
    if isinstance(value, str):
        value = [part for part in value.split(",") if part.strip()]
    return [value] if isinstance(value, int) else value


def _distinct(value: list[int]) -> list[int]:
    if not value:
        refuse("is empty; give one seed or more")
    for seed in value:
        if seed < 0:
            refuse(f"holds {seed}; seeds are 0 or more")
        if value.count(seed) > 1:
            refuse(f"holds {seed} twice")
    return value


def _names(value: dict[str, Any]) -> dict[str, Any]:
    if not value:
        refuse("is empty; name one method or more")
    for name in value:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9 _.+-]{0,39}", name):
            refuse(f"names a method {name!r}; letters, digits, spaces and _ . + - make a name")
        if name == BASE:
            refuse(f"names a method {BASE!r}, which is what the model at the start is called")
    return value


def _group(value: Any) -> Any:
    return {} if value is None else value


Seeds = Annotated[list[Whole], BeforeValidator(_seeds), AfterValidator(_distinct), Label("0,1,...")]
Group = Annotated[dict[str, Any], BeforeValidator(_group), Label("keys of training verbs")]


class JudgeSpec(Keys):
    """Who judges responses: a reward model, reward functions, or both with weights."""

    reward_model: Location | None = Field(
        default=None, description="Reward model: a folder, an ensemble's, or a hub id."
    )
    reward_funcs: TextList = Field(
        default_factory=list,
        description="Reward functions: built-in names, module:function or file.py:function.",
    )
    reward_weights: NumberList | None = Field(
        default=None,
        description="Factors of the reward model and then of the functions; null: 1 each.",
    )

    @property
    def count(self) -> int:
        """How many rewards there are."""
        return (self.reward_model is not None) + len(self.reward_funcs)

    def check(self, key: str) -> None:
        """Refuse weights that do not fit; ``key`` is the group's name, empty at the top."""
        prefix = f"{key}." if key else ""
        if self.reward_weights is not None and len(self.reward_weights) != self.count:
            conflict(
                f"{prefix}reward_weights",
                f"{len(self.reward_weights)} for {self.count} rewards; give one each, the reward "
                "model's first",
            )


class BudgetSpec(Keys):
    """What every method may spend."""

    unit: Literal["prompts", "preferences", "tokens", "seconds"] = Field(
        description="prompts: rows that are trained on, of pairs or of prompts to sample for. "
        "preferences: pairs that are read, or that two judged samples make. tokens: through the "
        "optimizer, seconds: of training and sampling, both as the first steps of each method "
        "spend them."
    )
    amount: Number = Field(gt=0, description="How many.")


class CompareRecipe(JudgeSpec):
    """One model and one budget, several methods over a grid each, examined alike."""

    TITLE: ClassVar[str] = "Comparison"

    reward_model: Location | None = Field(
        default=None,
        description="The proxy, which on-policy methods are trained on and the best of n is chosen "
        "by: a reward model's folder, an ensemble's, or a hub id.",
    )
    reward_funcs: TextList = Field(
        default_factory=list,
        description="Reward functions of the proxy: built-in names, module:function or "
        "file.py:function.",
    )
    name: str | None = Field(default=None, description="Title; null: the recipe file's name.")
    model_name_or_path: Location = Field(
        description="The model that every method starts from: sft's, say."
    )
    preferences: Location | None = Field(
        default=None, description="Pairs that offline methods learn from (dpo, kto, orpo, ...)."
    )
    prompts: Location | None = Field(
        default=None, description="Prompts that on-policy methods sample for (ppo, grpo, ...)."
    )
    judge: JudgeSpec = Field(
        description="Who judges the result: a gold function, or a reward model that no method saw."
    )
    eval_prompts: Location = Field(
        description="Held-out prompts. One part chooses each method's settings, the other one "
        "examines what was chosen."
    )
    max_eval_prompts: Whole | None = Field(
        default=None, ge=4, description="Use at most so many of them, from the start."
    )
    choose_share: Number = Field(
        default=0.25,
        gt=0,
        lt=1,
        description="Share of the held-out prompts on which settings are chosen.",
    )
    samples: Whole = Field(default=2, ge=1, description="Responses to each held-out prompt.")
    max_completion_length: Whole = Field(
        default=256, ge=1, description="Longest response in tokens, in training and examination."
    )
    eval_text: Location | None = Field(
        default=None,
        description="Held-out text: what alignment costs is the rise of its loss (the tax).",
    )
    max_eval_texts: Whole | None = Field(
        default=None, ge=1, description="Use at most so many rows of it, from the start."
    )
    budget: BudgetSpec = Field(description="What every method may spend.")
    seeds: Seeds = Field(
        default_factory=lambda: [0], description="Every setting is trained with each of them."
    )
    checkpoints: Whole = Field(
        default=3, ge=1, description="Checkpoints of a run that are examined, the last included."
    )
    keep_checkpoints: bool = Field(
        default=False,
        description="Keep all checkpoints; otherwise the model at the end of each run alone.",
    )
    common: Group = Field(default_factory=dict, description="Keys of every training run.")
    offline: Group = Field(default_factory=dict, description="Keys of methods that read pairs.")
    on_policy: Group = Field(default_factory=dict, description="Keys of methods that sample.")
    methods: Annotated[dict[str, Any], AfterValidator(_names), Label("name: {verb, ...}")] = Field(
        description="Name -> {verb: ppo, keys of that verb, grid: {key: [values]}}, or "
        "{best_of_n: {n: [1, 4, 16]}}. A grid that is a list of {key: value} sets several keys "
        "together."
    )
    kl_levels: NumberList = Field(
        default_factory=lambda: [1.0, 2.0, 4.0, 8.0],
        description="Nats to the model at the start at which methods are compared.",
    )
    output_dir: Location | None = Field(
        default=None, description="Folder of the comparison; null: runs/compare-NAME."
    )
    parts_dir: Location | None = Field(
        default=None,
        description="Runs and examinations; comparisons with the same one share what they have in "
        "common. null: output_dir.",
    )
    cache_dir: Location | None = Field(
        default=None, description="Tokenised rows and log-probs; null: cache in parts_dir."
    )

    @model_validator(mode="before")
    @classmethod
    def _method_groups(cls, value: Any) -> Any:
        given = as_mapping(value) or {}
        methods = as_mapping(given.get("methods"))
        for name, method in (methods or {}).items():
            if as_mapping(method) is None and as_list(method) is None and method is not None:
                conflict(f"methods.{name}", f"{method!r} is not a group of keys; write verb: ppo")
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> CompareRecipe:
        self.check("")
        self.judge.check("judge")
        if not self.judge.count:
            conflict(
                "judge",
                "judges nothing; give judge.reward_model FOLDER, or judge.reward_funcs",
            )
        if self.eval_text is None and self.max_eval_texts is not None:
            conflict("max_eval_texts", "has no effect without eval_text")
        for level in self.kl_levels:
            if level <= 0:
                conflict("kl_levels", f"holds {level:g}; levels are above 0")
        return self

    @property
    def title(self) -> str:
        """The comparison's name."""
        return self.name or "comparison"
