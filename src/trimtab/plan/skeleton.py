"""A recipe's models without their weights: what there would be to hold, and to run in thought."""

from __future__ import annotations

import copy
import dataclasses
import functools
from typing import Any

import torch
from torch import nn
from transformers.initialization import no_init_weights

from trimtab.config.classify_recipe import ClassifyRecipe
from trimtab.config.reward_recipe import RewardRecipe
from trimtab.models import cut, lora
from trimtab.models.attention import unwrap
from trimtab.models.load import disable_dropout
from trimtab.plan.shapes import with_layers

_TILE = 1_000_003  # numbers: no multiple of a row


@dataclasses.dataclass(frozen=True)
class Skeleton:
    """A model of ``config`` as a recipe would train or use it, on the meta device.

    lora      rank and target modules, None for whole weights
    scores    columns of a ``score`` head, 0 for a language model
    trained   False for a frozen one
    """

    config: Any
    dtype: torch.dtype
    lora: tuple[int, tuple[str, ...]] | None = None
    scores: int = 0
    trained: bool = True

    @property
    def layers(self) -> int:
        """Its layers."""
        return self.config.get_text_config(decoder=True).num_hidden_layers

    @property
    def width(self) -> int:
        """Width of its hidden states."""
        return self.config.get_text_config(decoder=True).hidden_size

    @property
    def vocabulary(self) -> int:
        """Rows of its output head."""
        return self.config.get_text_config(decoder=True).vocab_size

    def model(self, layers: int | None = None) -> nn.Module:
        """The model on the meta device, with all layers or so many."""
        with torch.device("meta"):
            return self._built(layers)

    def drawn(self, layers: int, device: torch.device) -> nn.Module:
        """A model of so many layers with random weights, on a device."""
        with torch.device(device), no_init_weights():
            made = self._built(layers, adapters=False)
        # A tile of random numbers, over and over: to draw every weight would take seconds.
        generator = torch.Generator().manual_seed(0)
        tile = (0.02 * torch.randn(_TILE, generator=generator)).to(device, self.dtype)
        for parameter in made.parameters():
            if parameter.ndim == 1:
                parameter.data.fill_(1.0)
                continue
            for part in parameter.data.view(-1).split(_TILE):
                part.copy_(tile[: part.numel()])
        return self._adapted(made).train()

    def _built(self, layers: int | None, *, adapters: bool = True) -> nn.Module:
        from transformers import AutoModelForCausalLM

        config = self.config if layers is None else with_layers(self.config, layers)
        made: Any = AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=self.dtype)
        if self.scores:
            made.score = nn.Linear(self.width, self.scores, bias=False, dtype=self.dtype)
        disable_dropout(made)  # as for every model that is loaded
        return self._adapted(made).train() if adapters else made

    def _adapted(self, made: Any) -> Any:
        """With its adapters, and without gradients where none are wanted."""
        if self.lora is None:
            made.requires_grad_(self.trained)
            head = made.get_output_embeddings()
            if self.scores and head is not None and head.weight is not _words(made):
                head.requires_grad_(False)  # nothing reads it
            return made
        rank, targets = self.lora
        save = ["score"] if self.scores else []
        return lora.attach(made, r=rank, target_modules=list(targets), modules_to_save=save, seed=0)

    @functools.cached_property
    def counts(self) -> tuple[int, int]:
        """Weights, and those that are trained; tied ones once."""
        every = list(self.model().parameters())
        return sum(p.numel() for p in every), sum(p.numel() for p in every if p.requires_grad)

    @functools.cached_property
    def trains_head(self) -> bool:
        """Whether the output head gets a gradient."""
        head: Any = unwrap(self.model(1)).get_output_embeddings()
        return bool(head.weight.requires_grad)


def _words(model: Any) -> Any:
    return model.get_input_embeddings().weight


def skeleton_of(recipe: Any, config: Any, dtype: torch.dtype, labels: int = 2) -> Skeleton:
    """The policy of a recipe; of a reward recipe, cut to its size."""
    scores = 1 if isinstance(recipe, RewardRecipe) else 0
    if isinstance(recipe, ClassifyRecipe):
        scores = labels
    if isinstance(recipe, RewardRecipe):
        config = _cut(config, recipe, dtype)
    adapters = (recipe.lora_r, tuple(recipe.lora_target_modules)) if recipe.use_peft else None
    return Skeleton(config, dtype, adapters, scores)


def _cut(config: Any, recipe: RewardRecipe, dtype: torch.dtype) -> Any:
    """The configuration of a reward model's backbone, as ``algorithms/recipe_reward`` cuts it."""
    sizes = dict(recipe.backbone.sizes())
    if not sizes:
        depth, sizes = cut.fit(Skeleton(config, dtype).model(), recipe.share)
        sizes = {"num_hidden_layers": depth, **sizes}
    made = with_layers(config, sizes.pop("num_hidden_layers", config.num_hidden_layers))
    if sizes:
        made.head_dim = cut.head_dim(config)
        per_group = config.num_attention_heads // config.num_key_value_heads
        for name, size in sizes.items():
            setattr(made, name, size)
        made.num_key_value_heads = made.num_attention_heads // per_group
    return made
