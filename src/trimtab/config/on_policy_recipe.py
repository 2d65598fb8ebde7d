"""What ``trimtab ppo`` and the other on-policy verbs are told."""

from __future__ import annotations

from functools import partial
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field, model_validator

from trimtab.config.data_keys import Keys
from trimtab.config.diagnoses import ON_POLICY, check_names
from trimtab.config.keys import BatchSize, Epochs, LearningRate, Schedule
from trimtab.config.recipes import TrainRecipe
from trimtab.config.values import (
    Location,
    Number,
    NumberList,
    TextList,
    Whole,
    conflict,
)

KlEstimator = Literal["k1", "k2", "k3"]


VALUE_KEYS = (
    "value_model",
    "value_learning_rate",
    "vf_coef",
    "lam",
    "cliprange_value",
    "truncated_value",
)


class RolloutKeys(Keys):
    """What is sampled, and how it is judged."""

    TITLE: ClassVar[str] = "Rollouts and rewards"

    reward_model: Location | None = Field(
        default=None,
        description="Reward model: a folder of trimtab reward, an ensemble's, or a hub id.",
    )
    reward_funcs: TextList = Field(
        default_factory=list,
        description="Reward functions: built-in names, module:function or file.py:function.",
    )
    reward_weights: NumberList | None = Field(
        default=None,
        description="Factors of the reward model and then of the functions; null: 1 each.",
    )
    watch_model: Location | None = Field(
        default=None,
        description="A reward model that is measured on the same responses and never optimised: a "
        "larger one, or one from other rows, that tells whether reward_model is being gamed.",
    )
    watch_funcs: TextList = Field(
        default_factory=list,
        description="Reward functions that are measured and never optimised, named as in "
        "reward_funcs.",
    )
    stop_when: Annotated[TextList, AfterValidator(partial(check_names, known=ON_POLICY))] = Field(
        default_factory=list,
        description="Diagnoses that end the run: "
        f"{', '.join(ON_POLICY)}; empty: they are only told.",
    )
    on_bad_reward: Literal["stop", "drop"] = Field(
        default="stop",
        description="When a reward function fails, or a reward is NaN or infinite: stop, or leave "
        "the sample out.",
    )
    reward_time_limit: Number = Field(
        default=60.0, gt=0, description="Seconds that a reward function may take for a rollout."
    )
    reward_isolate: bool = Field(
        default=False, description="Run reward functions in a process of their own, with limits."
    )
    max_prompt_length: Whole | None = Field(
        default=None, ge=1, description="Longest prompt in tokens; null: prompts stay whole."
    )
    truncation_mode: Literal["keep_end", "keep_start"] = Field(
        default="keep_end",
        description="Which end of a prompt longer than max_prompt_length is kept.",
    )
    max_completion_length: Whole = Field(
        default=256, ge=1, description="Longest sampled response in tokens."
    )
    temperature: Number = Field(
        default=1.0, gt=0, description="Of sampling; log-probs and ratios are at it, too."
    )
    rollout_slots: Whole = Field(
        default=64, ge=1, description="Responses that are sampled beside each other."
    )
    missing_eos_penalty: Number | None = Field(
        default=None, description="Taken off the score of a response that was cut off."
    )
    num_generations_eval: Whole = Field(
        default=1, ge=1, description="Responses to every held-out prompt at an evaluation."
    )
    ref_model_name_or_path: Location | None = Field(
        default=None,
        description="Reference of the KL; null: the policy as it is at the start of the stage.",
    )
    eval_text_name: Location | None = Field(
        default=None,
        description="Held-out text: its language-model loss is measured at every evaluation (the "
        "alignment tax).",
    )


class OnPolicyRecipe(TrainRecipe, RolloutKeys):
    """Keys that every on-policy algorithm has."""

    learning_rate: LearningRate = 1e-6
    lr_scheduler_type: Schedule = "constant"
    num_train_epochs: Epochs = 1.0
    per_device_train_batch_size: BatchSize = 64

    @model_validator(mode="after")
    def _is_judged(self) -> OnPolicyRecipe:
        if self.reward_model is None and not self.reward_funcs:
            conflict(
                "reward_model",
                "missing; give --reward-model FOLDER (trimtab reward makes one), --reward-funcs, "
                "or both",
            )
        count = (self.reward_model is not None) + len(self.reward_funcs)
        if self.reward_weights is not None and len(self.reward_weights) != count:
            conflict(
                "reward_weights",
                f"{len(self.reward_weights)} for {count} rewards; give one each, the reward "
                "model's first",
            )
        if not self.reward_funcs and not self.watch_funcs:
            for key in ("reward_time_limit", "reward_isolate"):
                if getattr(self, key) != type(self).model_fields[key].default:
                    conflict(key, "is about reward functions; give reward_funcs, or remove it")
        if self.lora_dropout:
            conflict(
                "lora_dropout",
                "the ratio of a response to the policy that sampled it would be noise; set 0",
            )
        if "watched" in self.stop_when and self.watch_model is None and not self.watch_funcs:
            conflict("stop_when", "watched: nothing is watched; give watch_model or watch_funcs")
        return self


class PolicyGradientRecipe(OnPolicyRecipe):
    """Keys of the algorithms with importance ratios."""

    TITLE: ClassVar[str] = "Policy gradient"

    old_logprobs: Literal["sampler", "trainer"] = Field(
        default="sampler",
        description="Log-probs of the policy that sampled: as the sampler recorded them (the gap "
        "to the trainer's is logged), or computed again by the trainer.",
    )


class PpoRecipe(PolicyGradientRecipe):
    """PPO with a critic: E[r - beta log(pi/pi_SFT)] + gamma E_pretrain[log pi]."""

    TITLE: ClassVar[str] = "PPO"

    num_generations: Whole = Field(default=1, ge=1, description="Responses to every prompt.")
    objective: Literal["on_policy", "importance", "clip_reward", "clip_advantage"] = Field(
        default="clip_advantage",
        description="The line of PPO's derivation that is optimised: the expectation itself; the "
        "reward weighted by the ratio; that clipped; or the advantage in its place (PPO).",
    )
    ratio: Literal["token", "sequence"] = Field(
        default="token", description="Importance ratios of tokens, or of whole responses."
    )
    kl_coef: Number = Field(default=0.05, ge=0, description="Strength beta of the KL penalty.")
    kl_estimator: KlEstimator = Field(
        default="k1", description="Estimator of the KL in the reward; k1 = log(pi/pi_ref)."
    )
    kl_placement: Literal["reward", "literal"] = Field(
        default="reward",
        description="reward: -beta KL is part of the reward; literal: a term of its own at the "
        "policy that sampled, as the derivation writes it, which has no gradient (objectives "
        "importance and clip_reward).",
    )
    kl_controller: Literal["fixed", "adaptive"] = Field(
        default="fixed", description="adaptive: kl_coef follows kl_target (arXiv:1909.08593)."
    )
    kl_target: Number = Field(default=6.0, gt=0, description="KL per response, in nats.")
    kl_horizon: Whole = Field(
        default=10_000,
        ge=1,
        description="Responses over which the adaptive controller acts: a rollout of n changes "
        "kl_coef by at most the factor 1 +- 0.2 n / kl_horizon, and never to less than a tenth.",
    )
    num_ppo_epochs: Whole = Field(default=4, ge=1, description="Passes over every rollout.")
    num_mini_batches: Whole = Field(
        default=1, ge=1, description="Optimizer steps of a pass over a rollout."
    )
    cliprange: Number = Field(default=0.2, gt=0, lt=1, description="Ratios within 1 +- this.")
    cliprange_value: Number | None = Field(
        default=0.2, gt=0, description="Values within this of the old ones; null: no clipping."
    )
    vf_coef: Number = Field(default=0.1, ge=0, description="Weight of the value loss.")
    gamma: Number = Field(default=1.0, gt=0, le=1, description="Discount.")
    lam: Number = Field(
        default=1.0,
        ge=0,
        le=1,
        description="Lambda of the advantage estimate: below 1 less noise, and values that are "
        "wrong bias it.",
    )
    whiten_rewards: bool = Field(
        default=False, description="Divide token rewards by their standard deviation."
    )
    whiten_advantages: bool = Field(
        default=True, description="Advantages of a rollout get mean 0 and variance 1."
    )
    truncated_value: Literal["bootstrap", "zero"] = Field(
        default="zero",
        description="A response that was cut off: zero takes its score as final; bootstrap takes "
        "the value of its last state in the score's place, as if it went on.",
    )
    value_model: Location | None = Field(
        default=None,
        description="Where the value model starts: a model with the policy's tokenizer, or "
        "'shared' for a head on the policy's own backbone; null: with LoRA shared, else the reward "
        "model if it is a single one with that tokenizer, else a copy of the policy, each with a "
        "new head (the reward model's own has learned to read stop tokens; its path keeps it).",
    )

    learning_rate: LearningRate = 5e-6
    value_learning_rate: LearningRate | None = Field(
        default=None,
        description="Peak rate of the value model (of its head, where it is shared); null: "
        "learning_rate.",
    )

    @model_validator(mode="after")
    def _fits_together(self) -> PpoRecipe:
        if self.objective == "on_policy" and (self.num_ppo_epochs, self.num_mini_batches) != (1, 1):
            conflict(
                "objective",
                "on_policy takes one step a rollout: set num_ppo_epochs=1 and num_mini_batches=1",
            )
        if self.kl_placement == "literal" and self.objective not in ("importance", "clip_reward"):
            conflict("kl_placement", "literal belongs to the objectives importance and clip_reward")
        if self.objective != "clip_advantage":
            for key in VALUE_KEYS:
                if getattr(self, key) != type(self).model_fields[key].default:
                    conflict(key, f"objective={self.objective} has no value model; remove it")
        elif self.ratio == "sequence" and self.lam != type(self).model_fields["lam"].default:
            conflict("lam", "has no effect with ratio=sequence, where a response is one action")
        if self.kl_controller == "fixed":
            for key in ("kl_target", "kl_horizon"):
                if getattr(self, key) != type(self).model_fields[key].default:
                    conflict(key, "has no effect with kl_controller=fixed; use adaptive")
        elif self.kl_coef == 0:
            conflict("kl_controller", "adaptive multiplies kl_coef, and 0 stays 0; give kl_coef")
        if self.num_mini_batches > self.rows_per_step:
            conflict(
                "num_mini_batches",
                f"{self.num_mini_batches} for {self.rows_per_step} prompts a rollout; at most one "
                "a prompt",
            )
        return self

    @property
    def passes(self) -> int:
        """Passes over a rollout."""
        return self.num_ppo_epochs


class GroupRecipe(PolicyGradientRecipe):
    """Critic-free policy gradients: a response is compared with the others of its group."""

    TITLE: ClassVar[str] = "Groups"

    algorithm: Literal[
        "grpo", "dr_grpo", "dapo", "gspo", "rloo", "reinforce_pp", "reinforce_pp_baseline"
    ] = Field(default="grpo", description="How advantages, ratios and divisors are made.")
    num_generations: Whole = Field(
        default=8, ge=1, description="Responses to every prompt: the group."
    )
    kl_coef: Number | None = Field(
        default=None, ge=0, description="Strength beta of the KL term; null: the paper's."
    )
    kl_estimator: Literal["k1", "k2", "k3", "k3_weighted"] | None = Field(
        default=None,
        description="In the reward: k1. In the loss: k2 (gradient of the reverse KL), k3 (of the "
        "forward KL), k3 times the ratio. null: the paper's.",
    )
    kl_placement: Literal["reward", "loss"] | None = Field(
        default=None, description="Where the KL term is; null: the paper's."
    )
    num_iterations: Whole = Field(default=1, ge=1, description="Passes over every rollout.")
    num_mini_batches: Whole = Field(
        default=1, ge=1, description="Optimizer steps of a pass over a rollout."
    )
    epsilon: Number | None = Field(
        default=None, gt=0, le=1, description="Ratios at least 1 - this; null: the paper's."
    )
    epsilon_high: Number | None = Field(
        default=None, gt=0, description="Ratios at most 1 + this; null: the paper's, or epsilon."
    )
    scale_rewards: Literal["group", "batch", "none"] | None = Field(
        default=None,
        description="Divide advantages by which standard deviation; null: the paper's.",
    )
    dynamic_sampling: bool | None = Field(
        default=None,
        description="Sample again for prompts whose responses all have the same reward; null: only "
        "in dapo.",
    )
    overlong_cache: Whole = Field(
        default=0,
        ge=0,
        description="Soft penalty over the last so many tokens of max_completion_length, to -1.",
    )

    @model_validator(mode="after")
    def _has_a_group(self) -> GroupRecipe:
        alone = self.algorithm == "reinforce_pp"
        if self.num_generations < 2 and not alone:
            conflict(
                "num_generations",
                f"{self.num_generations}: {self.algorithm} compares responses to one prompt, and "
                "one alone gives no signal; take at least 2",
            )
        if self.overlong_cache > self.max_completion_length:
            conflict(
                "overlong_cache",
                f"{self.overlong_cache} is more than max_completion_length "
                f"{self.max_completion_length}",
            )
        if self.num_mini_batches > self.rows_per_step:
            conflict(
                "num_mini_batches",
                f"{self.num_mini_batches} for {self.rows_per_step} prompts a rollout; at most one "
                "a prompt",
            )
        self._refuse_inert()
        if self.kl_placement == "reward" and self.kl_estimator not in (None, "k1"):
            conflict("kl_estimator", "in the reward the estimator is k1; set kl_placement=loss")
        if self.kl_placement == "loss" and self.kl_estimator == "k1":
            conflict(
                "kl_estimator",
                "k1 in the loss has an expected gradient of 0: the reference would be ignored; "
                "use k2, k3 or k3_weighted, or kl_placement=reward",
            )
        return self

    def _refuse_inert(self) -> None:
        """Keys that the algorithm does not read."""
        name = self.algorithm
        if self.scale_rewards is not None and name not in ("grpo", "dr_grpo", "dapo", "gspo"):
            conflict("scale_rewards", f"{name} has a normalisation of its own; remove it")
        if name == "rloo" and self.epsilon is None:
            if self.epsilon_high is not None:
                conflict("epsilon_high", "rloo clips nothing unless epsilon is given; give both")
            if self.num_iterations > 1:
                conflict(
                    "num_iterations",
                    f"{self.num_iterations}: rloo has no ratios, and samples are stale after one "
                    "pass; set 1, or give epsilon for clipped ratios",
                )
        if self.dynamic_sampling and self.num_generations == 1:
            conflict("dynamic_sampling", "a group of one always has one reward; remove it")
        if self.kl_coef == 0:
            for key in ("kl_estimator", "kl_placement"):
                if getattr(self, key) is not None:
                    conflict(key, "has no effect with kl_coef=0")

    @property
    def passes(self) -> int:
        """Passes over a rollout."""
        return self.num_iterations


class RlooRecipe(GroupRecipe):
    """RLOO (arXiv:2402.14740), as a verb of its own."""

    TITLE: ClassVar[str] = "RLOO"

    algorithm: Literal["rloo"] = Field(  # pyright: ignore[reportIncompatibleVariableOverride]
        default="rloo", description="Leave-one-out baseline, rewards with the KL inside."
    )
    num_generations: Whole = Field(
        default=4, ge=1, description="Responses to every prompt: the group."
    )
