"""The policy that a recipe names: device, precision, weights or a fresh model, adapters, layout."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from trimtab.algorithms.policy import Policy
from trimtab.algorithms.recipe_classify import classifier
from trimtab.algorithms.recipe_reward import reward_model
from trimtab.config.classify_recipe import ClassifyRecipe
from trimtab.config.reward_recipe import RewardRecipe
from trimtab.data.chat import ChatRenderer
from trimtab.errors import RecipeError
from trimtab.models import load, lora
from trimtab.models.device import best_device
from trimtab.models.forward import choose_layout
from trimtab.models.hub import is_scored, read_json
from trimtab.models.save import ADAPTER, merge_adapter
from trimtab.models.score_head import head_of
from trimtab.models.scored import load_scored
from trimtab.training.precision import PrecisionChoice, choose_precision
from trimtab.training.progress import Progress
from trimtab.training.seeds import derive


class RecipeModel:
    """Makes the policy of one recipe."""

    def __init__(
        self,
        recipe: Any,
        source: load.ModelSource | None,
        renderer: ChatRenderer,
        progress: Progress,
        labels: Sequence[str | int] = (),
    ) -> None:
        self.recipe = recipe
        self.source = source
        self.labels = labels
        self.renderer = renderer
        self.tokenizer = renderer.tokenizer
        self.progress = progress
        self.note = progress.note
        self.device = choose_device(recipe.device)

    def policy(self, precision: str | None) -> tuple[Policy, PrecisionChoice]:
        """The policy, ready to train, and the precision it has (``precision`` if that is given)."""
        recipe = self.recipe
        self.progress.stage("loading the model")
        width = self._width()
        chosen = choose_precision(precision or recipe.precision, self.device, width)
        if precision is not None:
            chosen = chosen._replace(reason="as this run began")
        self.note(f"precision: {chosen.name} ({chosen.reason}); device: {self.device}")
        if self.source is not None:
            model: Any = self._load(
                self.source,
                dtype=chosen.dtype,
                device=self.device,
                trust_remote_code=recipe.trust_remote_code,
            )
        else:
            model = self._new_model(chosen.dtype)
        model = self._adapters(model)
        if recipe.gradient_checkpointing:
            load.checkpoint_activations(model)
        model.train()
        choice = choose_layout(model, recipe.attn_layout)
        trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
        every = sum(p.numel() for p in model.parameters())
        self.note(
            f"layout: {choice.layout} ({choice.reason}); {trainable:,} of {every:,} weights trained"
        )
        return Policy(model, choice.layout, self.device), chosen

    def _load(self, source: load.ModelSource, **options: Any) -> Any:
        """The policy's weights; for a reward model also those of one that has scores already."""
        if isinstance(self.recipe, RewardRecipe) and is_scored(source):
            if self.recipe.use_peft and source.kind != "adapter":
                raise RecipeError(
                    f"use_peft: model_name_or_path={source.name!r} has scores, and an adapter "
                    "with scores of its own needs a language model below it; remove use_peft, or "
                    "start from the language model"
                )
            model = load_scored(source, key="model_name_or_path", **options)
            head = head_of(model)
            if head is None or head.kind != "reward":
                raise RecipeError(
                    f"model_name_or_path={source.name!r}: it tells classes apart and gives no "
                    "reward; start from a language model or a reward model"
                )
            return model
        return load.load_model(source, **options)

    def _width(self) -> int:
        if self.source is None:
            return self.recipe.new_model.hidden_size
        config = read_json(load.base_of(self.source).folder / "config.json")
        found = config.get("hidden_size") or config.get("n_embd")
        return int(found or config.get("text_config", {}).get("hidden_size", 1024))

    def _new_model(self, dtype: torch.dtype) -> Any:
        spec = self.recipe.new_model
        model: Any = load.model_from_config(
            spec.architecture,
            spec.config(self.recipe.context_length + 1),  # the token before a window is in it
            vocab_size=len(self.tokenizer),
            seed=derive(self.recipe.seed, "weights") % 2**32,
            dtype=dtype,
            bos_token_id=self.tokenizer.bos_token_id,
            eos_token_id=self.tokenizer.eos_token_id,
            pad_token_id=self.tokenizer.pad_token_id,
        )
        return model.to(self.device)

    def _adapters(self, model: Any) -> Any:
        """LoRA on a plain model; an adapter folder goes on as LoRA, or merged into full weights."""
        recipe = self.recipe
        is_adapter = self.source is not None and self.source.kind == "adapter"
        scored = isinstance(recipe, (RewardRecipe, ClassifyRecipe))
        if scored and is_adapter and (recipe.use_peft or head_of(model) is not None):
            raise RecipeError(
                f"model_name_or_path={recipe.model_name_or_path!r}: this is an adapter; a model "
                "with scores starts from whole weights, or from a language model's adapter without "
                "use_peft, which is merged"
            )
        if not recipe.use_peft:
            if is_adapter:
                ids = self.renderer.prompt_ids("The quick brown fox jumps over the lazy dog.")
                model = merge_adapter(model, torch.tensor(ids, device=self.device))
            model.requires_grad_(True)
            return self._scored(model)
        if is_adapter:
            self._check_adapter(model.peft_config[ADAPTER])
            return lora.continue_adapter(model, dropout=recipe.lora_dropout)
        return lora.attach(
            self._scored(model),
            r=recipe.lora_r,
            alpha=recipe.lora_alpha,
            dropout=recipe.lora_dropout,
            target_modules=recipe.lora_target_modules,
            modules_to_save=["score"] if scored else [],
            seed=derive(recipe.seed, "adapters") % 2**32,
        )

    def _scored(self, model: Any) -> Any:
        """The model with the head that the recipe's stage reads, if it reads one."""
        if isinstance(self.recipe, ClassifyRecipe):
            return classifier(self.recipe, model, self.labels)
        if isinstance(self.recipe, RewardRecipe):
            return reward_model(self.recipe, model, self.note)
        return model

    def _check_adapter(self, config: Any) -> None:
        """An adapter that is trained further keeps its shape: refuse keys that ask for another."""
        fields = type(self.recipe).model_fields
        for key, has in (("lora_r", config.r), ("lora_alpha", config.lora_alpha)):
            value = getattr(self.recipe, key)
            if value not in (fields[key].default, has):
                raise RecipeError(
                    f"{key}={value:g}: the adapter in {self.recipe.model_name_or_path} has {has:g} "
                    "and is trained further as it is; remove the key, or train a new adapter on a "
                    "merged model"
                )
        self.note(f"training goes on with the adapter: rank {config.r}, alpha {config.lora_alpha}")


def choose_device(requested: str) -> torch.device:
    """``auto`` takes cuda, else mps, else the cpu; a device that is not there is refused."""
    if requested == "auto":
        return best_device()
    has = {
        "cpu": lambda: True,
        "cuda": torch.cuda.is_available,
        "mps": torch.backends.mps.is_available,
    }
    device = torch.device(requested)
    if not has[device.type]():
        raise RecipeError(f"device={requested}: torch finds none here; use auto or cpu")
    return device
