"""Recipe keys that name data: which rows, how they are read, how they are cut to length."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from trimtab.config.values import (
    Columns,
    CountOrShare,
    Label,
    Location,
    Number,
    Whole,
    as_tuple,
    conflict,
)

RowKind = Literal[
    "text", "labelled", "chat", "prompt", "completion", "unpaired", "preference", "ranked"
]


class Keys(BaseModel):
    """Base of everything in a recipe: unknown keys are refused, nothing changes after reading."""

    # Validators are built at the first use: --help reads fields and validates nothing.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, defer_build=True)


class DatasetSpec(Keys):
    """One source of rows: a file, a folder of files or a hub dataset."""

    path: Location = Field(description="File (.jsonl .json .csv .parquet), folder or hub id.")
    name: str | None = Field(default=None, description="Configuration of a hub dataset.")
    data_files: str | list[str] | None = Field(
        default=None, description="Files inside the folder or hub dataset; wildcards allowed."
    )
    split: str = Field(
        default="train", description="Split of a hub dataset or of a folder of splits."
    )
    columns: Columns = Field(
        default_factory=dict, description="Our column -> theirs, where the names differ."
    )
    fraction: Number = Field(default=1.0, gt=0, le=1, description="Share of the rows to use.")
    weight: Number | None = Field(
        default=None,
        gt=0,
        description="Relative number of rows drawn from it; null: as it has rows.",
    )
    kind: RowKind | None = Field(
        default=None, description="Type of its rows; null: recognised from the columns."
    )

    @model_validator(mode="before")
    @classmethod
    def _from_path(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str) else value


def _sources(value: Any) -> Any:
    """Paths alone, of a command line: ``--datasets a.jsonl b.jsonl``."""
    if isinstance(value, str):
        return [part for part in value.split(",") if part.strip()]
    words = as_tuple(value)
    return value if words is None else list(words)


Sources = Annotated[list[DatasetSpec], BeforeValidator(_sources), Label("list of sources")]


def check_sources(name_key: str, name: str | None, list_key: str, specs: Any) -> None:
    """One of the two keys, not both; weights for all sources or for none."""
    if name is not None and specs:
        conflict(list_key, f"give {name_key} or {list_key}, not both")
    weighted = [spec.weight is not None for spec in specs or ()]
    if any(weighted) and not all(weighted):
        conflict(list_key, "some sources have a weight and some have none; give all of them one")


class MixSpec(Keys):
    """A second stream of text, whose language-model loss is added with a weight.

    It is the alpha of GPT-1's fine-tuning, the gamma of PPO-ptx and the replay of SFT in one.
    """

    dataset_name: Location | None = Field(
        default=None, description="File, folder or hub id of the text."
    )
    datasets: Sources | None = Field(
        default=None, min_length=1, description="Several sources instead of dataset_name."
    )
    columns: Columns = Field(
        default_factory=dict, description="Our column -> theirs, where the names differ."
    )
    weight: Number = Field(
        gt=0, description="Factor of its loss (the alpha of GPT-1's fine-tuning; ptx_coef)."
    )
    reduction: Literal["token_mean", "sequence_sum"] = Field(
        default="token_mean",
        description="Mean over its tokens, or sum over tokens per sequence (ptx).",
    )
    batch_size: Whole | None = Field(
        default=None,
        ge=1,
        description="Its rows per optimizer step; null: as many as the main rows.",
    )
    max_length: Whole | None = Field(
        default=None, ge=2, description="Longest sequence in tokens; null: as in the main data."
    )

    @model_validator(mode="after")
    def _one_source(self) -> MixSpec:
        check_sources("mix.dataset_name", self.dataset_name, "mix.datasets", self.datasets)
        if self.dataset_name is None and not self.datasets:
            conflict("mix.dataset_name", "missing; name the text that mix adds to the loss")
        return self

    def specs(self) -> list[DatasetSpec]:
        """The sources of the text."""
        return gather(self.dataset_name, self.datasets, self.columns)


def gather(
    path: str | None,
    specs: list[DatasetSpec] | None,
    columns: dict[str, str],
    *,
    name: str | None = None,
    split: str = "train",
) -> list[DatasetSpec]:
    """Sources of either form, with ``columns`` where a source has none of its own."""
    if specs:
        return [
            spec if spec.columns else spec.model_copy(update={"columns": dict(columns)})
            for spec in specs
        ]
    if path is None:
        return []
    return [DatasetSpec(path=path, name=name, split=split, columns=dict(columns))]


class DataKeys(Keys):
    """Which rows are trained on and which are held out."""

    TITLE: ClassVar[str] = "Data"

    dataset_name: Location | None = Field(
        default=None,
        description="Rows to train on: a file, a folder or a hub id (--dataset works too).",
    )
    datasets: Sources | None = Field(
        default=None,
        min_length=1,
        description="Several sources: a list of {path, name, data_files, split, columns, "
        "fraction, weight, kind}.",
    )
    dataset_config: str | None = Field(
        default=None, description="Configuration of the hub dataset dataset_name."
    )
    dataset_train_split: str = Field(
        default="train", description="Split of dataset_name to train on."
    )
    columns: Columns = Field(
        default_factory=dict,
        description="Our column -> theirs, e.g. prompt=question,chosen=good.",
    )
    eval_dataset_name: Location | None = Field(
        default=None, description="Held-out rows to evaluate on: a file, a folder or a hub id."
    )
    eval_datasets: Sources | None = Field(
        default=None, min_length=1, description="Several held-out sources, as in datasets."
    )
    dataset_test_split: str | None = Field(
        default=None,
        description="Split to evaluate on, of eval_dataset_name (null: test) or, without one, "
        "of dataset_name (null: no evaluation).",
    )
    max_train_rows: Whole | None = Field(
        default=None, ge=1, description="Use at most so many training rows."
    )
    max_eval_rows: Whole | None = Field(
        default=None, ge=1, description="Use at most so many held-out rows."
    )
    max_bad_rows: CountOrShare = Field(
        default=0.01,
        description="Malformed rows (set aside in a quarantine file) above which the run refuses "
        "to start.",
    )
    max_dropped_rows: CountOrShare = Field(
        default=0.2,
        description="Rows that cannot be trained on (too long, chosen = rejected, ...) above "
        "which the run refuses to start.",
    )
    shuffle: bool = Field(default=True, description="Train in a new random order in every epoch.")
    cache_dir: Location | None = Field(
        default=None,
        description="Tokenised rows and reference log-probs are kept here; null: the folder "
        "'trimtab' in the user's cache folder.",
    )

    @field_validator("dataset_name", "eval_dataset_name", mode="after")
    @classmethod
    def _not_a_recipe(cls, value: str | None) -> str | None:
        if value is not None and value.endswith((".yaml", ".yml")):
            conflict("dataset_name", f"{value} is a recipe, not a data set")
        return value

    @model_validator(mode="after")
    def _sources(self) -> DataKeys:
        check_sources("dataset_name", self.dataset_name, "datasets", self.datasets)
        check_sources(
            "eval_dataset_name", self.eval_dataset_name, "eval_datasets", self.eval_datasets
        )
        if self.dataset_name is None and not self.datasets:
            conflict(
                "dataset_name",
                "missing; give --dataset-name FILE (a file, a folder or a hub id), or a line in "
                "the recipe",
            )
        return self

    def train_specs(self) -> list[DatasetSpec]:
        """The sources of the training rows."""
        return gather(
            self.dataset_name,
            self.datasets,
            self.columns,
            name=self.dataset_config,
            split=self.dataset_train_split,
        )

    def eval_specs(self) -> list[DatasetSpec]:
        """The sources of the held-out rows; empty where nothing is evaluated on."""
        if self.eval_dataset_name is not None or self.eval_datasets:
            split = self.dataset_test_split or "test"
            return gather(self.eval_dataset_name, self.eval_datasets, self.columns, split=split)
        if self.dataset_test_split is None or self.dataset_name is None:
            return []
        return gather(
            self.dataset_name,
            None,
            self.columns,
            name=self.dataset_config,
            split=self.dataset_test_split,
        )


class LengthKeys(Keys):
    """How prompt and response are cut to length."""

    TITLE: ClassVar[str] = "Length"

    max_length: Whole | None = Field(
        default=1024,
        ge=2,
        description="Longest prompt + response in tokens: a response loses its end, and a row "
        "whose prompt leaves no room is dropped; null: the model's own limit.",
    )
    max_prompt_length: Whole | None = Field(
        default=None,
        ge=1,
        description="Longest prompt in tokens, cut before anything else; null: prompts stay whole.",
    )
    truncation_mode: Literal["keep_end", "keep_start"] = Field(
        default="keep_end",
        description="Which end of a prompt longer than max_prompt_length is kept.",
    )

    @model_validator(mode="after")
    def _prompt_fits(self) -> LengthKeys:
        if (
            self.max_length is not None
            and self.max_prompt_length is not None
            and self.max_prompt_length >= self.max_length
        ):
            conflict(
                "max_prompt_length",
                f"{self.max_prompt_length} leaves no room for a response within max_length "
                f"{self.max_length}; make it smaller",
            )
        return self
