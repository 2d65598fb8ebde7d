"""What ``trimtab classify`` is told."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field, model_validator

from trimtab.config.keys import BatchSize, Epochs, LearningRate, Schedule, WarmupSteps, WeightDecay
from trimtab.config.recipes import TrainRecipe
from trimtab.config.values import ClassNames, Number, Prompts, Whole, conflict


class ClassifyRecipe(TrainRecipe):
    """GPT-1's fine-tune: classes of texts, with the language-model loss kept on beside them."""

    TITLE: ClassVar[str] = "Classification"

    alpha: Number = Field(
        default=0.5,
        ge=0,
        description="Weight of the language-model loss on the same texts; 0: none. (On other text: "
        "mix.)",
    )
    labels: ClassNames | None = Field(
        default=None,
        description="The classes, in their order; null: those of the training rows, numbers by "
        "size and names by the alphabet. A row of another class is a bad row.",
    )
    max_length: Whole | None = Field(
        default=512,
        ge=2,
        description="Longest text in tokens, end token included: a longer one loses what is before "
        "its end token; null: the model's own limit.",
    )

    sample_prompts: Prompts = Field(
        default=0, description="Only 0: a classifier writes no text to sample."
    )
    learning_rate: LearningRate = 6.25e-5
    lr_scheduler_type: Schedule = "linear"
    warmup_steps: WarmupSteps = 0.002
    weight_decay: WeightDecay = 0.01
    num_train_epochs: Epochs = 3.0
    per_device_train_batch_size: BatchSize = 32

    @model_validator(mode="after")
    def _writes_nothing(self) -> ClassifyRecipe:
        if self.sample_prompts not in (0, []):
            conflict("sample_prompts", "a classifier writes no text; remove it")
        return self
