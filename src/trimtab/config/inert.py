"""Values that would change nothing: refused, because whoever gave them expects something.

Only values that differ from their default count, so that a resolved recipe can be run again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from trimtab.config.recipes import PreferenceRecipe, TrainRecipe
from trimtab.errors import RecipeError


class _Rule(NamedTuple):
    keys: tuple[str, ...]
    is_inert: Callable[[TrainRecipe], bool]
    instead: str


def _no_adapters(recipe: TrainRecipe) -> bool:
    return not recipe.use_peft


def _no_adamw(recipe: TrainRecipe) -> bool:
    return recipe.optim != "adamw"


def _sgd(recipe: TrainRecipe) -> bool:
    return recipe.optim == "sgd"


def _never_skips(recipe: TrainRecipe) -> bool:
    return recipe.on_nonfinite != "skip"


def _no_warmup(recipe: TrainRecipe) -> bool:
    return recipe.lr_scheduler_type == "constant" and recipe.warmup_steps != 0


def _no_decay(recipe: TrainRecipe) -> bool:
    return recipe.lr_scheduler_type in ("constant", "constant_with_warmup")


def _no_held_out(recipe: TrainRecipe) -> bool:
    return not recipe.eval_specs()


def _never_evaluates(recipe: TrainRecipe) -> bool:
    return _no_held_out(recipe) and getattr(recipe, "eval_text_name", None) is None


def _no_best(recipe: TrainRecipe) -> bool:
    return recipe.metric_for_best_model is None


def _evaluates_at_the_end(recipe: TrainRecipe) -> bool:
    return recipe.eval_steps is None


def _no_samples(recipe: TrainRecipe) -> bool:
    return recipe.sample_prompts in (0, [])


def _whole_prompts(recipe: TrainRecipe) -> bool:
    return getattr(recipe, "max_prompt_length", None) is None


def _no_nll(recipe: TrainRecipe) -> bool:
    return isinstance(recipe, PreferenceRecipe) and recipe.nll_weight == 0


def _no_reference(recipe: TrainRecipe) -> bool:
    return isinstance(recipe, PreferenceRecipe) and not recipe.loss.schema_.needs_reference


def _several_sources(recipe: TrainRecipe) -> bool:
    return recipe.datasets is not None


def _own_columns(recipe: TrainRecipe) -> bool:
    return all(s.columns != recipe.columns for s in [*recipe.train_specs(), *recipe.eval_specs()])


def _several_held_out(recipe: TrainRecipe) -> bool:
    return recipe.eval_datasets is not None


def _split_of_nothing(recipe: TrainRecipe) -> bool:
    return recipe.datasets is not None and recipe.eval_dataset_name is None


def _fresh_model(recipe: TrainRecipe) -> bool:
    return recipe.model_name_or_path is None


_RULES = (
    _Rule(
        ("lora_r", "lora_alpha", "lora_dropout", "lora_target_modules"),
        _no_adapters,
        "has no effect without use_peft=true",
    ),
    _Rule(
        ("adam_beta1", "adam_beta2"),
        _no_adamw,
        "has no effect with optim={r.optim}; only adamw has it",
    ),
    _Rule(("adam_epsilon",), _sgd, "has no effect with optim=sgd; remove it"),
    _Rule(("max_skipped_steps",), _never_skips, "has no effect without on_nonfinite=skip"),
    _Rule(
        ("warmup_steps",),
        _no_warmup,
        "has no effect with lr_scheduler_type=constant; use constant_with_warmup",
    ),
    _Rule(
        ("min_lr_ratio",),
        _no_decay,
        "has no effect with lr_scheduler_type={r.lr_scheduler_type}; use linear or cosine",
    ),
    _Rule(
        ("eval_stride", "num_generations_eval"),
        _no_held_out,
        "there are no held-out rows to evaluate on; give eval_dataset_name",
    ),
    _Rule(
        ("eval_steps", "max_eval_rows", "metric_for_best_model"),
        _never_evaluates,
        "there are no held-out rows to evaluate on; give eval_dataset_name",
    ),
    _Rule(
        ("greater_is_better", "load_best_model_at_end", "early_stopping_patience"),
        _no_best,
        "has no effect without metric_for_best_model",
    ),
    _Rule(
        ("early_stopping_patience",),
        _evaluates_at_the_end,
        "evaluations are only at the start and the end; give eval_steps",
    ),
    _Rule(
        ("sample_steps", "sample_max_new_tokens"),
        _no_samples,
        "has no effect with sample_prompts=0",
    ),
    _Rule(
        ("truncation_mode",),
        _whole_prompts,
        "has no effect without max_prompt_length: prompts are kept whole, responses lose their end",
    ),
    _Rule(("nll_span",), _no_nll, "has no effect with nll_weight=0; give nll_weight"),
    _Rule(
        ("precompute_ref_log_probs",),
        _no_reference,
        "{r.loss.name} has no reference model; remove it",
    ),
    _Rule(
        ("dataset_config", "dataset_train_split"),
        _several_sources,
        "has no effect with datasets; give name or split of each of them",
    ),
    _Rule(
        ("columns",), _own_columns, "has no effect, because every data set has columns of its own"
    ),
    _Rule(
        ("dataset_test_split",),
        _several_held_out,
        "has no effect with eval_datasets; give split of each of them",
    ),
    _Rule(
        ("dataset_test_split",),
        _split_of_nothing,
        "is a split of dataset_name; with datasets give eval_datasets",
    ),
    _Rule(("model_revision",), _fresh_model, "has no effect without model_name_or_path"),
)


def refuse_inert(recipe: TrainRecipe, where: Mapping[str, str]) -> None:
    """RecipeError for a value that was given (``where``), is no default, and changes nothing."""
    fields = type(recipe).model_fields
    for rule in _RULES:
        for key in rule.keys:
            if key not in where or key not in fields:
                continue
            value = getattr(recipe, key)
            default = fields[key].get_default(call_default_factory=True)
            if value != default and rule.is_inert(recipe):
                message = rule.instead.format(r=recipe)
                raise RecipeError(f"{key}: {value!r}: {message} ({where[key]})")
