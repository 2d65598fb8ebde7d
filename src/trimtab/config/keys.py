"""Recipe keys that every stage has, apart from data: model, optimisation, adapters, the run.

A class here is a group of ``--help``; a field's description is its help text. Names are those of
TRL and transformers wherever they have one. Types that a stage gives another default are named
(``LearningRate`` and so on), so that a stage repeats the name and not the description.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field, model_validator

from trimtab.config.data_keys import Keys, MixSpec
from trimtab.config.values import (
    CountOrShare,
    Device,
    Location,
    Number,
    Prompts,
    TextList,
    Whole,
    as_mapping,
    conflict,
    refuse,
)

Tracker = Literal["tensorboard", "trackio", "wandb", "mlflow"]
TRACKERS: tuple[str, ...] = ("tensorboard", "trackio", "wandb", "mlflow")

ScheduleName = Literal["linear", "cosine", "constant", "constant_with_warmup", "inverse_sqrt"]


def _trackers(value: list[str]) -> list[str]:
    if value == ["none"]:  # transformers' way to say "nobody"
        return []
    for name in value:
        if name not in TRACKERS:
            refuse(f"holds {name!r}; trackers are {', '.join(TRACKERS)}")
    return value


def _not_empty(value: list[str]) -> list[str]:
    if not value:
        refuse("is empty")
    return value


class ModelKeys(Keys):
    """Which model is trained, where and in which precision."""

    TITLE: ClassVar[str] = "Model"

    model_name_or_path: Location | None = Field(
        default=None,
        description="Model to train: a folder, a run folder, an adapter folder or a hub id "
        "(--model works too). A local folder wins over a hub id.",
    )
    model_revision: str | None = Field(
        default=None, description="Branch, tag or commit of a model from the hub."
    )
    tokenizer_name_or_path: Location | None = Field(
        default=None, description="Tokenizer, where it is not in the model's folder."
    )
    trust_remote_code: bool = Field(
        default=False,
        description="Run Python code that comes with the model; only for people you trust.",
    )
    attn_layout: Literal["auto", "shared", "packed", "padded"] = Field(
        default="auto",
        description="shared: a prompt is computed once for all its responses; packed: once per "
        "response, without padding; padded: a plain rectangle; auto: the first that the model can "
        "take.",
    )
    device: Device = Field(
        default="auto", description="Where to compute; auto: cuda, else mps, else cpu."
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(
        default="auto",
        description="Working precision; masters and gradients are fp32 always. auto: measures both "
        "and says what it chose.",
    )
    threads: Whole | None = Field(
        default=None, ge=1, description="CPU threads; null: torch's own choice."
    )
    gradient_checkpointing: bool = Field(
        default=False,
        description="Recompute activations in the backward pass: less memory, more time.",
    )


LearningRate = Annotated[Number, Field(gt=0, description="Highest learning rate of the schedule.")]
Schedule = Annotated[
    ScheduleName, Field(description="Learning rate as a function of the step, after the warm-up.")
]
WarmupSteps = Annotated[
    CountOrShare, Field(description="Steps of linear warm-up, or their share of all steps (0.1).")
]
WeightDecay = Annotated[
    Number, Field(ge=0, description="Decay of weight matrices; biases and norms do not decay.")
]
MaxGradNorm = Annotated[
    Number, Field(ge=0, description="Clip the gradient's global norm to this; 0: no clipping.")
]
Epochs = Annotated[Number, Field(gt=0, description="Passes over the training rows.")]
BatchSize = Annotated[
    Whole,
    Field(
        ge=1,
        description="Rows per device and accumulation step. An optimizer step takes this times "
        "gradient_accumulation_steps rows.",
    ),
]


class OptimiserKeys(Keys):
    """How far, how fast and in what steps."""

    TITLE: ClassVar[str] = "Optimisation"

    learning_rate: LearningRate = 2e-5
    lr_scheduler_type: Schedule = "linear"
    min_lr_ratio: Number = Field(
        default=0.0, ge=0, le=1, description="Floor of the schedule, as a share of learning_rate."
    )
    warmup_steps: WarmupSteps = 0
    weight_decay: WeightDecay = 0.0
    optim: Literal["adamw", "rmsprop", "sgd"] = Field(
        default="adamw", description="Optimizer (rmsprop and sgd without momentum)."
    )
    adam_beta1: Number = Field(
        default=0.9, ge=0, lt=1, description="AdamW's decay of the first moment."
    )
    adam_beta2: Number = Field(
        default=0.999, ge=0, lt=1, description="AdamW's decay of the second moment."
    )
    adam_epsilon: Number = Field(
        default=1e-8, gt=0, description="Added to the root of the second moment (adamw, rmsprop)."
    )
    max_grad_norm: MaxGradNorm = 1.0
    num_train_epochs: Epochs = 3.0
    max_steps: Whole = Field(
        default=-1, ge=-1, description="Optimizer steps; replaces num_train_epochs unless it is -1."
    )
    per_device_train_batch_size: BatchSize = 8
    gradient_accumulation_steps: Whole = Field(
        default=1,
        ge=1,
        description="Factor of the rows per optimizer step; memory is token_budget's job.",
    )
    token_budget: Whole = Field(
        default=4096,
        ge=16,
        description="Tokens of a micro-batch: sets memory use, and never what is learnt.",
    )
    seed: Whole = Field(
        default=42, ge=0, lt=2**63, description="Of the row order, of dropout and of sampling."
    )
    on_nonfinite: Literal["stop", "skip"] = Field(
        default="stop",
        description="After a loss or gradient that is not finite (which never reaches the "
        "weights): stop, or skip the step and count it.",
    )
    max_skipped_steps: Whole = Field(
        default=10,
        ge=0,
        description="With on_nonfinite=skip: stop after more skipped steps than this.",
    )

    @model_validator(mode="after")
    def _some_steps(self) -> OptimiserKeys:
        if self.max_steps == 0:
            conflict("max_steps", "0 steps train nothing; -1 leaves it to num_train_epochs")
        return self

    @property
    def rows_per_step(self) -> int:
        """Rows of one optimizer step on one device."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps


class AdapterKeys(Keys):
    """Low-rank adapters instead of all weights."""

    TITLE: ClassVar[str] = "Adapters (LoRA)"

    use_peft: bool = Field(
        default=False, description="Train low-rank adapters; the model stays frozen."
    )
    lora_r: Whole = Field(default=16, ge=1, description="Rank.")
    lora_alpha: Number = Field(
        default=32.0, gt=0, description="Scale: adapters act times alpha / r."
    )
    lora_dropout: Number = Field(
        default=0.0, ge=0, lt=1, description="Dropout before the adapters."
    )
    lora_target_modules: Annotated[TextList, AfterValidator(_not_empty)] = Field(
        default_factory=lambda: ["all-linear"],
        description="Modules that get adapters; all-linear: every linear layer but the head.",
    )


class RunKeys(Keys):
    """Where results go, and what is measured and kept on the way."""

    TITLE: ClassVar[str] = "Run"

    output_dir: Location | None = Field(
        default=None,
        description="Folder of the run; null: runs/<verb>-<model>-<data>. The same command on an "
        "unfinished folder continues it.",
    )
    run_name: str | None = Field(
        default=None, description="Name shown by trackers; null: the name of output_dir."
    )
    logging_steps: Whole = Field(default=10, ge=1, description="Log metrics every so many steps.")
    eval_steps: CountOrShare | None = Field(
        default=None,
        description="Evaluate every so many steps, or after this share of all steps; null: only at "
        "the end.",
    )
    eval_on_start: bool = Field(default=True, description="Evaluate before the first step, too.")
    save_steps: CountOrShare | None = Field(
        default=0.1,
        description="Write a checkpoint every so many steps, or after this share of all steps; "
        "null: only at the end and at Ctrl-C.",
    )
    save_total_limit: Whole | None = Field(
        default=2, ge=1, description="Checkpoints to keep, beside the best one; null: all of them."
    )
    metric_for_best_model: str | None = Field(
        default=None,
        description="Metric of the evaluations (eval_loss, eval_watch/gold/mean, ...): the best "
        "checkpoint by it is saved when it is measured, and kept.",
    )
    greater_is_better: bool | None = Field(
        default=None,
        description="Which way metric_for_best_model is better; null: smaller for losses, "
        "perplexity, bits per byte, KL, disagreement and repetition, to be given for length, "
        "greater for the rest.",
    )
    load_best_model_at_end: bool = Field(
        default=False, description="The result is the best checkpoint's model, not the last one's."
    )
    early_stopping_patience: Whole | None = Field(
        default=None,
        ge=1,
        description="End the run after so many evaluations without a better one.",
    )
    report_to: Annotated[TextList, AfterValidator(_trackers)] = Field(
        default_factory=list,
        description=f"Trackers besides metrics.jsonl: {', '.join(TRACKERS)} (extras to install).",
    )
    sample_prompts: Prompts = Field(
        default=3,
        description="Prompts to generate from during training: how many of the held-out rows (or "
        "else training rows), or the prompts themselves; 0: none.",
    )
    sample_steps: CountOrShare | None = Field(
        default=None,
        description="Generate every so many steps, or after this share of all steps; null: only "
        "before and after training.",
    )
    sample_max_new_tokens: Whole = Field(default=64, ge=1, description="Longest generated sample.")
    self_check: bool = Field(
        default=True,
        description="Before training, check the loss, the layouts, the gradients and saving on one "
        "real batch.",
    )

    @model_validator(mode="before")
    @classmethod
    def _zero_is_never(cls, value: Any) -> Any:
        given = as_mapping(value) or {}
        for key in ("eval_steps", "save_steps", "sample_steps"):
            if str(given.get(key)) in ("0", "0.0"):
                conflict(key, "0 steps apart is never; null means only at the end")
        return value


class MixKeys(Keys):
    """A language-model term on other text."""

    TITLE: ClassVar[str] = "A second stream of text"

    mix: MixSpec | None = Field(
        default=None,
        description="Adds weight x (language-model loss on other text) to the objective.",
    )
