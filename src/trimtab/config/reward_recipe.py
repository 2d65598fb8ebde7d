"""What ``trimtab reward`` is told."""

from __future__ import annotations

from functools import partial
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field, model_validator

from trimtab.config.data_keys import Keys, LengthKeys
from trimtab.config.diagnoses import REWARD_MODEL, check_names
from trimtab.config.keys import BatchSize, Epochs, LearningRate, Schedule, WarmupSteps
from trimtab.config.recipes import TrainRecipe
from trimtab.config.values import Location, Number, Prompts, TextList, Whole, conflict


class BackboneSpec(Keys):
    """How much of the model the reward model keeps."""

    share: Number | None = Field(
        default=None,
        gt=0,
        le=1,
        description="At most this share of the model's weights: its first layers, and narrower "
        "ones where embeddings are most of it; null: 0.5, or 1 with use_peft.",
    )
    num_hidden_layers: Whole | None = Field(
        default=None, ge=1, description="Keep the first so many layers, whatever the share."
    )
    hidden_size: Whole | None = Field(
        default=None, ge=8, description="Keep so many channels (the largest) of the width."
    )
    intermediate_size: Whole | None = Field(
        default=None, ge=8, description="Keep so many neurons of every MLP."
    )
    num_attention_heads: Whole | None = Field(
        default=None, ge=1, description="Keep so many attention heads of every layer."
    )

    @model_validator(mode="after")
    def _one_way(self) -> BackboneSpec:
        if self.share is not None and self.sizes():
            conflict("backbone.share", f"give the share or {', '.join(self.sizes())}, not both")
        return self

    def sizes(self) -> dict[str, int]:
        """The sizes that were named."""
        names = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads")
        return {n: v for n in names if (v := getattr(self, n)) is not None}


class RewardRecipe(TrainRecipe, LengthKeys):
    """A reward model: a language model with one scalar in place of its logits."""

    TITLE: ClassVar[str] = "Reward model"

    backbone: BackboneSpec = Field(
        default_factory=BackboneSpec, description="How much of the model is kept."
    )
    ranking_loss: Literal["pairwise", "plackett_luce"] = Field(
        default="pairwise",
        description="pairwise: -log sigmoid(r_w - r_l), mean over a row's ordered pairs (ties "
        "leave it); plackett_luce: the likelihood of the whole order (no ties).",
    )
    margins: Literal["column", "scores", "none"] = Field(
        default="column",
        description="How far apart two rewards should be at least: the margin column of pairs, "
        "the difference of a ranking's scores, or nothing.",
    )
    margin_scale: Number = Field(default=1.0, gt=0, description="Factor of the margins.")
    center_rewards_coefficient: Number = Field(
        default=0.0, ge=0, description="Adds this times (r_w + r_l)^2, which keeps rewards near 0."
    )
    group_by_prompt: bool | None = Field(
        default=None,
        description="All rows with the same prompt form one tree: the prompt is read once. null: "
        "yes, unless ranking_loss is plackett_luce.",
    )
    reference_dataset_name: Location | None = Field(
        default=None,
        description="Responses (prompt + completion rows, chats) whose mean reward becomes 0; "
        "null: the best-ranked responses of the training rows.",
    )
    reference_rows: Whole = Field(
        default=256, ge=1, description="How many of those responses are scored for it."
    )
    ensemble: Whole = Field(
        default=1,
        ge=1,
        description="Train so many models that differ by their seed, each in a folder of its own.",
    )
    stop_when: Annotated[TextList, AfterValidator(partial(check_names, known=REWARD_MODEL))] = (
        Field(
            default_factory=list,
            description="Diagnoses that end the run: "
            f"{', '.join(REWARD_MODEL)}; empty: they are only told.",
        )
    )

    sample_prompts: Prompts = Field(
        default=0, description="Only 0: a reward model writes no text to sample."
    )
    learning_rate: LearningRate = 9e-6
    lr_scheduler_type: Schedule = "cosine"
    min_lr_ratio: Number = Field(
        default=0.1, ge=0, le=1, description="Floor of the schedule, as a share of learning_rate."
    )
    warmup_steps: WarmupSteps = 0.03
    num_train_epochs: Epochs = 1.0
    per_device_train_batch_size: BatchSize = 64

    @model_validator(mode="after")
    def _fits_together(self) -> RewardRecipe:
        if self.use_peft and (self.backbone.sizes() or (self.backbone.share or 1.0) < 1):
            conflict(
                "backbone",
                "an adapter needs the whole model below it; remove backbone, or use_peft",
            )
        if self.sample_prompts not in (0, []):
            conflict("sample_prompts", "a reward model writes no text; remove it")
        if self.ranking_loss == "plackett_luce":
            if self.group_by_prompt:
                conflict(
                    "group_by_prompt",
                    "rankings of different rows have no common order for plackett_luce; remove it",
                )
            for key in ("center_rewards_coefficient", "margin_scale"):
                if getattr(self, key) != type(self).model_fields[key].default:
                    conflict(key, "plackett_luce has no pairs; use ranking_loss=pairwise")
            if self.margins == "scores":
                conflict("margins", "plackett_luce has no margins; use ranking_loss=pairwise")
        elif self.margins == "none" and self.margin_scale != 1.0:
            conflict("margin_scale", "has no effect with margins=none; remove it")
        return self

    @property
    def grouped(self) -> bool:
        """Whether rows with the same prompt are joined."""
        if self.group_by_prompt is None:
            return self.ranking_loss == "pairwise"
        return self.group_by_prompt

    @property
    def share(self) -> float:
        """The share of the model that is kept where no size is named."""
        return self.backbone.share or (1.0 if self.use_peft else 0.5)
