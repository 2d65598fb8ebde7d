"""What ``trimtab online_dpo`` and ``trimtab raft`` are told: fresh samples, judged, trained on."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from trimtab.config.keys import LearningRate, MaxGradNorm
from trimtab.config.on_policy_recipe import OnPolicyRecipe
from trimtab.config.recipes import LossKeys
from trimtab.config.values import Location, Number, Whole, conflict


class FreshRecipe(OnPolicyRecipe):
    """Keys of the stages that train on their own samples as if they were rows."""

    TITLE: ClassVar[str] = "Fresh samples"

    num_generations: Whole = Field(default=2, ge=1, description="Responses to every prompt.")
    num_iterations: Whole = Field(default=1, ge=1, description="Passes over every rollout.")
    num_mini_batches: Whole = Field(
        default=1, ge=1, description="Optimizer steps of a pass over a rollout."
    )
    temperature: Number = Field(
        default=1.0, gt=0, description="Of sampling alone: the loss is of the model as it is."
    )
    learning_rate: LearningRate = 5e-7

    @model_validator(mode="after")
    def _can_be_cut(self) -> FreshRecipe:
        if self.num_mini_batches > self.rows_per_step:
            conflict(
                "num_mini_batches",
                f"{self.num_mini_batches} for {self.rows_per_step} prompts a rollout; at most one "
                "a prompt",
            )
        if "entropy" in self.stop_when:
            conflict(
                "stop_when",
                "entropy: these steps compute none, and it would never be told; take variety",
            )
        return self

    @property
    def passes(self) -> int:
        """Passes over a rollout."""
        return self.num_iterations


class OnlineRecipe(LossKeys, FreshRecipe):
    """Online DPO (arXiv:2402.04792), and any preference loss on samples judged by a reward."""

    TITLE: ClassVar[str] = "Online preferences"

    pairs: Literal["best_worst", "all"] = Field(
        default="best_worst",
        description="Of the responses to a prompt: the best against the worst, or every two with "
        "different scores. A loss over rankings takes them all.",
    )
    annotator: Literal["exact", "bradley_terry"] = Field(
        default="exact",
        description="exact: the higher score wins. bradley_terry: it wins with probability "
        "sigmoid(difference of the scores), as people do whom a reward model was trained on.",
    )
    ref_model_name_or_path: Location | None = Field(
        default=None,
        description="Reference of the loss and of the KL that is logged; null: the policy as it is "
        "at the start of the stage.",
    )
    ref_model_sync_steps: Whole | None = Field(
        default=None,
        ge=1,
        description="The policy becomes the reference every so many steps, a multiple of those of "
        "a rollout (iterative DPO); null: never.",
    )
    max_grad_norm: MaxGradNorm = 10.0

    @model_validator(mode="after")
    def _compares(self) -> OnlineRecipe:
        loss = self.loss.schema_
        if self.num_generations < 2:
            conflict(
                "num_generations",
                f"{self.num_generations}: one response to a prompt has nothing to be compared "
                "with; take at least 2",
            )
        if self.pairs == "all" and loss.kind != "pair":
            conflict(
                "pairs",
                f"all: {loss.name} compares "
                + (
                    "no pairs but whole rankings, which take all responses; remove it"
                    if loss.kind == "ranking"
                    else "no pairs: it takes the best response as wanted and the worst as not; "
                    "remove it, or choose a loss over pairs (dpo)"
                ),
            )
        if "mismatched_policy" in loss.needs and self.rows_per_step < 2 * self.num_mini_batches:
            conflict(
                "per_device_train_batch_size",
                f"{self.rows_per_step} prompts for {self.num_mini_batches} steps: {loss.name} "
                "estimates its KL from responses after the prompts of other rows of the step; "
                "take at least 2 a step",
            )
        self._check_sync()
        return self

    def _check_sync(self) -> None:
        every = self.ref_model_sync_steps
        if every is None:
            return
        if not self.loss.schema_.needs_reference:
            conflict(
                "ref_model_sync_steps",
                f"{self.loss.name} has no reference model; remove it, or choose a loss with one",
            )
        steps = self.num_iterations * self.num_mini_batches
        if every % steps:
            conflict(
                "ref_model_sync_steps",
                f"{every} falls inside a rollout, which is trained on for {steps} steps "
                "(num_iterations x num_mini_batches); take a multiple of that",
            )


class RaftRecipe(FreshRecipe):
    """RAFT (arXiv:2304.06767): sft on the best of the policy's own samples."""

    TITLE: ClassVar[str] = "Best samples"

    num_generations: Whole = Field(default=8, ge=1, description="Responses to every prompt.")
    keep_top: Whole = Field(
        default=1, ge=1, description="Best responses of a prompt that are trained on, at most."
    )
    min_score: Number | None = Field(
        default=None, description="Only responses with at least this score are trained on."
    )
    ref_model_name_or_path: Location | None = Field(
        default=None,
        description="Model that the logged KL is measured from; null: the policy as it is at the "
        "start of the stage.",
    )
    learning_rate: LearningRate = 2e-5

    @model_validator(mode="after")
    def _chooses(self) -> RaftRecipe:
        if self.keep_top > self.num_generations:
            conflict(
                "keep_top", f"{self.keep_top} of num_generations={self.num_generations} responses"
            )
        if self.keep_top == self.num_generations and self.min_score is None:
            conflict(
                "keep_top",
                f"{self.keep_top} of {self.num_generations} responses chooses nothing: the policy "
                "would be trained on all that it says; keep fewer, or give min_score",
            )
        return self
