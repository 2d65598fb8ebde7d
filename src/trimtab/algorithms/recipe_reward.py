"""What a reward recipe adds to building a stage: backbone, head, pad token, offset."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from trimtab.algorithms.recipe_rows import ACCEPT, RecipeRows
from trimtab.algorithms.reward import RewardModelling, best_responses, centre
from trimtab.config.data_keys import DatasetSpec
from trimtab.config.reward_recipe import RewardRecipe
from trimtab.data.chat import ChatRenderer
from trimtab.data.store import TreeStore
from trimtab.data.tokenise import TokeniseOptions
from trimtab.data.trees import TokenTree
from trimtab.errors import RecipeError
from trimtab.models import cut
from trimtab.models.attention import unwrap
from trimtab.models.score_head import ScoreHead, attach_head, head_of, without_output_head
from trimtab.training.seeds import derive

Note = Callable[[str], None]
PAD = "<|pad|>"


def reward_model(recipe: RewardRecipe, model: Any, note: Note) -> Any:
    """A language model cut to the recipe's size, with a fresh scalar head; may be a new object.

    A model that has scores already goes on with them, whole unless sizes are named.
    """
    sizes = recipe.backbone.sizes()
    fresh = head_of(model) is None
    whole = cut.parameter_count(model)
    if not sizes and (fresh or recipe.backbone.share is not None):
        depth, sizes = cut.fit(model, recipe.share)
        sizes = {"num_hidden_layers": depth, **sizes}
    depth = sizes.pop("num_hidden_layers", None)
    layers = model.config.get_text_config().num_hidden_layers
    if depth is not None and depth != layers:
        model = cut.keep_first_layers(model, depth)
    if sizes:
        head = head_of(model)
        model = cut.narrow(model, sizes)
        if head is not None:
            unwrap(model)._trimtab_score_head = head
    if depth is not None or sizes:
        kept = cut.parameter_count(cut.backbone(model))
        wide = "".join(f", {name} {size}" for name, size in sizes.items())
        note(
            f"backbone: {depth or layers} of {layers} layers{wide}; {kept:,} of {whole:,} weights "
            "(backbone.share)"
        )
    if fresh:
        width = model.config.get_text_config().hidden_size
        seed = derive(recipe.seed, "score head") % 2**32
        model = attach_head(model, ScoreHead("reward"), std=(width + 1) ** -0.5, seed=seed)
    return model if recipe.mix else without_output_head(model)


def reward_score(model: Any, key: str, name: str) -> None:
    """Refuse a model that tells classes apart where one number is wanted."""
    head = head_of(model)
    if head is not None and head.kind != "reward":
        raise RecipeError(
            f"{key}={name!r}: it has {head.count} labels and so gives no single number; give a "
            "language model or a reward model"
        )


def choose_pad(
    model: Any, renderer: ChatRenderer, stores: Iterable[TreeStore], *, adapter: bool, note: Note
) -> None:
    """Give the model a pad id that ends no text: what plain transformers skips to find the end.

    The tokenizer's own pad token, unless it also ends texts (pad = eos is common); else a special
    token that no row holds; else a new token, for which an adapter's base has no room.
    """
    tokenizer = renderer.tokenizer
    head = head_of(model)
    assert head is not None
    vocabulary = model.get_input_embeddings().num_embeddings
    used = {i for store in stores for i in np.unique(store.columns["ids"]).tolist()}
    busy = used | renderer.stop_ids | {tokenizer.eos_token_id, tokenizer.bos_token_id}
    own = tokenizer.pad_token_id
    if own is None or own in busy or own >= vocabulary:
        special = sorted(set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder))
        free = [i for i in special if i not in busy and i < vocabulary]
        if free:
            tokenizer.pad_token = tokenizer.convert_ids_to_tokens(free[0])
        elif len(tokenizer) >= vocabulary and adapter:
            raise RecipeError(
                "tokenizer_name_or_path: every special token ends or fills texts, and an adapter's "
                "base has no room for a pad token of its own; train without use_peft"
            )
        else:
            tokenizer.add_special_tokens({"pad_token": PAD})
            if len(tokenizer) > vocabulary:
                model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        note(f"pad token: {tokenizer.pad_token!r}, because {_why(own, busy)}")
    head.pad_token_id = tokenizer.pad_token_id


def _why(own: int | None, busy: set[int]) -> str:
    if own is None:
        return "the tokenizer has none"
    return "the tokenizer's also ends texts" if own in busy else "the model has no such token"


def centring(
    recipe: RewardRecipe, rows: RecipeRows, stage: RewardModelling, note: Note
) -> Callable[[], None]:
    """What sets, after training, the offset under which the reference responses average 0.

    Their rows are read now: what is wrong with them is found before the training.
    """
    name = recipe.reference_dataset_name
    named = _reference_trees(recipe, rows) if name else None

    def centre_rewards() -> None:
        trees = named or best_responses(stage.stream, recipe.reference_rows)
        offset = centre(stage.policy, trees, recipe.token_budget)
        count = sum(len(tree.branches) for tree in trees)
        whose = f"responses of {name}" if name else "best-ranked training responses"
        note(f"reward offset {offset:.4f}: the rewards of {count} {whose} average 0")

    return centre_rewards


def _reference_trees(recipe: RewardRecipe, rows: RecipeRows) -> list[TokenTree]:
    spec = DatasetSpec(path=str(recipe.reference_dataset_name), columns=recipe.columns)
    options = TokeniseOptions(
        max_length=rows.longest_text(),
        max_prompt_length=recipe.max_prompt_length,
        truncation_mode=recipe.truncation_mode,
        scored=True,
    )
    found = rows.load("reference", [spec], options, ACCEPT["reference"], recipe.reference_rows)
    return [store[i] for store in found.stores for i in range(len(store))]
