"""What a run is told: one class per kind of stage, validated before any weight is loaded."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field, model_validator

from trimtab.config.data_keys import DataKeys, DatasetSpec, Keys, LengthKeys, MixSpec
from trimtab.config.diagnoses import PREFERENCE, SATURATING, check_names
from trimtab.config.keys import (
    AdapterKeys,
    BatchSize,
    Epochs,
    LearningRate,
    MaxGradNorm,
    MixKeys,
    ModelKeys,
    OptimiserKeys,
    RunKeys,
    Schedule,
    WarmupSteps,
    WeightDecay,
)
from trimtab.config.loss_keys import LossChoice
from trimtab.config.values import Location, Number, TextList, Whole, conflict

__all__ = [
    "DatasetSpec",
    "LossChoice",
    "LossKeys",
    "MixSpec",
    "NewModelSpec",
    "NewTokenizerSpec",
    "PreferenceRecipe",
    "PretrainRecipe",
    "SftRecipe",
    "TrainRecipe",
]


class TrainRecipe(ModelKeys, DataKeys, OptimiserKeys, AdapterKeys, MixKeys, RunKeys):
    """The keys of every training stage."""

    @model_validator(mode="after")
    def _has_model(self) -> TrainRecipe:
        if self.model_name_or_path is None and not self._makes_model():
            conflict(
                "model_name_or_path",
                "missing; give --model-name-or-path MODEL (a folder or a hub id), or a line in "
                "the recipe",
            )
        return self

    def _makes_model(self) -> bool:
        return False


class NewModelSpec(Keys):
    """A fresh model, randomly initialised; the keys are those of transformers' configurations."""

    architecture: Literal["llama", "qwen3", "gemma3", "gpt2"] = Field(
        default="llama", description="Family of the model."
    )
    hidden_size: Whole = Field(default=256, ge=8, description="Width.")
    num_hidden_layers: Whole = Field(default=6, ge=1, description="Layers.")
    num_attention_heads: Whole = Field(default=4, ge=1, description="Attention heads.")
    num_key_value_heads: Whole | None = Field(
        default=None, ge=1, description="Key/value heads (not gpt2); null: as many as heads."
    )
    head_dim: Whole | None = Field(
        default=None, ge=2, description="Width of a head (not gpt2); null: hidden_size / heads."
    )
    intermediate_size: Whole | None = Field(
        default=None,
        ge=8,
        description="Width inside the MLP; null: 4 x hidden_size (gpt2), else 8/3.",
    )
    max_position_embeddings: Whole | None = Field(
        default=None, ge=8, description="Longest sequence of the model; null: context_length."
    )
    sliding_window: Whole | None = Field(
        default=None, ge=2, description="Window of gemma3's local layers; null: its own default."
    )
    tie_word_embeddings: bool = Field(
        default=True, description="One matrix for input and output tokens."
    )
    initializer_range: Number = Field(
        default=0.02,
        gt=0,
        description="Standard deviation of the fresh weights. Narrow models that train for "
        "minutes learn sooner with more, such as 0.06.",
    )

    @model_validator(mode="after")
    def _fits(self) -> NewModelSpec:
        if self.head_dim is None and self.hidden_size % self.num_attention_heads:
            conflict(
                "new_model.hidden_size",
                f"{self.hidden_size} is no multiple of num_attention_heads "
                f"{self.num_attention_heads}",
            )
        if self.num_key_value_heads and self.num_attention_heads % self.num_key_value_heads:
            conflict(
                "new_model.num_key_value_heads",
                f"{self.num_key_value_heads} does not divide num_attention_heads "
                f"{self.num_attention_heads}",
            )
        if self.architecture == "gpt2":
            for key in ("num_key_value_heads", "head_dim"):
                if getattr(self, key) is not None:
                    conflict(f"new_model.{key}", "gpt2 has no such key; remove it")
        if self.architecture != "gemma3" and self.sliding_window is not None:
            conflict("new_model.sliding_window", "only gemma3 has one; remove it")
        return self

    def config(self, context_length: int) -> dict[str, Any]:
        """Keys for the family's configuration class in transformers, all but the vocabulary."""
        width = self.intermediate_size
        if width is None:
            # 8/3 for gated MLPs, so that they have as many weights as plain ones of width 4.
            plain = self.architecture == "gpt2"
            width = 4 * self.hidden_size if plain else -(-8 * self.hidden_size // 3 // 8) * 8
        found: dict[str, Any] = {
            "hidden_size": self.hidden_size,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "max_position_embeddings": self.max_position_embeddings or context_length,
            "tie_word_embeddings": self.tie_word_embeddings,
            "initializer_range": self.initializer_range,
        }
        if self.architecture == "gpt2":
            return found | {"n_inner": width}
        found["intermediate_size"] = width
        found["num_key_value_heads"] = self.num_key_value_heads or self.num_attention_heads
        found["head_dim"] = self.head_dim or self.hidden_size // self.num_attention_heads
        if self.sliding_window is not None:
            found["sliding_window"] = self.sliding_window
        return found


class NewTokenizerSpec(Keys):
    """A byte-level BPE tokenizer, trained on the training rows."""

    vocab_size: Whole = Field(default=8192, ge=258, description="Tokens, special ones included.")
    max_rows: Whole | None = Field(
        default=None, ge=1, description="Train it on at most so many rows; null: on all."
    )


class PretrainRecipe(TrainRecipe):
    """Maximise L_GPT = sum of log P(x_i | up to context_length tokens before it)."""

    TITLE: ClassVar[str] = "Pretraining"

    new_model: NewModelSpec | None = Field(
        default=None, description="Make a fresh model instead of loading model_name_or_path."
    )
    new_tokenizer: NewTokenizerSpec | None = Field(
        default=None, description="Train a tokenizer instead of loading one."
    )
    context_length: Whole = Field(
        default=512,
        ge=2,
        description="Tokens of a window (k). Longer documents are cut so that every token is "
        "scored exactly once.",
    )
    eval_stride: Whole | None = Field(
        default=None,
        ge=1,
        description="Perplexity: tokens by which the window moves on; null: context_length (no "
        "overlap). Smaller is slower and gives each token more context.",
    )

    learning_rate: LearningRate = 2.5e-4
    lr_scheduler_type: Schedule = "cosine"
    warmup_steps: WarmupSteps = 0.05
    weight_decay: WeightDecay = 0.01
    num_train_epochs: Epochs = 1.0
    per_device_train_batch_size: BatchSize = 64

    def _makes_model(self) -> bool:
        return self.new_model is not None

    @model_validator(mode="after")
    def _fresh_or_loaded(self) -> PretrainRecipe:
        if self.model_name_or_path is not None and self.new_model is not None:
            conflict("new_model", "give model_name_or_path or new_model, not both")
        if self.new_tokenizer is not None:
            if self.tokenizer_name_or_path is not None:
                conflict("new_tokenizer", "give tokenizer_name_or_path or new_tokenizer, not both")
            if self.new_model is None:
                conflict(
                    "new_tokenizer",
                    "a loaded model knows only its own tokenizer; use new_model with it",
                )
        if self.new_model is not None:
            if self.tokenizer_name_or_path is None and self.new_tokenizer is None:
                conflict(
                    "tokenizer_name_or_path",
                    "missing; a fresh model needs a tokenizer: give tokenizer_name_or_path, or "
                    "new_tokenizer.vocab_size to train one",
                )
            if self.use_peft:
                conflict("use_peft", "a fresh model has nothing to adapt; remove it")
        if self.eval_stride is not None and self.eval_stride > self.context_length:
            conflict(
                "eval_stride",
                f"{self.eval_stride} is more than context_length {self.context_length} and would "
                "skip tokens",
            )
        return self


class SftRecipe(TrainRecipe, LengthKeys):
    """Maximise the log-probability of responses, given their prompts."""

    TITLE: ClassVar[str] = "Supervised fine-tuning"

    completion_only_loss: bool | None = Field(
        default=None,
        description="prompt + completion rows: train on the completion only; null: yes. false "
        "trains on the prompt, too.",
    )
    assistant_only_loss: bool | None = Field(
        default=None,
        description="messages rows: train on the assistant's turns only; null: yes. false trains "
        "on all turns.",
    )


class LossKeys(Keys):
    """Which preference loss, and the likelihood term beside it."""

    TITLE: ClassVar[str] = "Preference loss"

    loss: LossChoice = Field(
        default_factory=lambda: LossChoice(name="dpo"),
        description="The loss: a name, {name, hyper-parameters}, or a weighted sum such as "
        "{dpo: 0.8, bco_pair: 0.2, sft: 1} or 'dpo + 0.1 sft'. --loss.beta and --beta are the "
        "same.",
    )
    nll_weight: Number = Field(
        default=0.0,
        ge=0,
        description="Adds weight x (negative log-likelihood of the chosen response, per token) "
        "(ORPO's first term; rpo_alpha).",
    )


class PreferenceRecipe(LossKeys, TrainRecipe, LengthKeys):
    """Preference optimisation, with a reference model or without, by any of the losses."""

    TITLE: ClassVar[str] = LossKeys.TITLE

    ref_model_name_or_path: Location | None = Field(
        default=None,
        description="Reference model; null: the policy as it is at the start of the stage.",
    )
    precompute_ref_log_probs: bool = Field(
        default=True,
        description="Compute the reference's log-probs once, before training, and cache them on "
        "disk.",
    )
    nll_span: Literal["completion", "prompt_and_completion"] = Field(
        default="completion", description="Tokens that the nll_weight term is over."
    )
    group_by_prompt: bool = Field(
        default=False,
        description="All rows with the same prompt form one tree: the prompt is read once.",
    )
    stop_when: Annotated[TextList, AfterValidator(partial(check_names, known=PREFERENCE))] = Field(
        default_factory=list,
        description="Diagnoses that end the run: "
        f"{', '.join(PREFERENCE)}; empty: they are only told.",
    )

    learning_rate: LearningRate = 1e-6
    lr_scheduler_type: Schedule = "linear"
    warmup_steps: WarmupSteps = 0.1
    max_grad_norm: MaxGradNorm = 10.0
    num_train_epochs: Epochs = 1.0
    per_device_train_batch_size: BatchSize = 64

    @model_validator(mode="after")
    def _reference_is_used(self) -> PreferenceRecipe:
        if self.ref_model_name_or_path is not None and not self.loss.schema_.needs_reference:
            conflict(
                "ref_model_name_or_path",
                f"{self.loss.name} has no reference model; remove it, or choose a loss with one "
                "(dpo)",
            )
        return self

    @model_validator(mode="after")
    def _can_be_diagnosed(self) -> PreferenceRecipe:
        for name in sorted({"stuck", "small_beta"} & set(self.stop_when)):
            if not self.loss.schema_.needs_reference or self.ref_model_name_or_path is not None:
                conflict(
                    "stop_when",
                    f"{name}: is told where the reference is the policy at the start, and "
                    "would never be told here; remove it",
                )
        if "saturated" in self.stop_when and self.loss.name not in SATURATING:
            conflict(
                "stop_when",
                f"saturated: is told of {', '.join(SATURATING)}, and would never be told of "
                f"{self.loss.name}; remove it",
            )
        return self
