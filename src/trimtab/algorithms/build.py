"""From a recipe to a stage that can be trained: tokenizer, rows, model, reference, samples."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trimtab.algorithms.classify import Classification
from trimtab.algorithms.language_model import LanguageModelling
from trimtab.algorithms.policy import Policy
from trimtab.algorithms.preference import PreferenceOptimisation
from trimtab.algorithms.recipe_loss import RecipeLoss, recipe_loss
from trimtab.algorithms.recipe_model import RecipeModel
from trimtab.algorithms.recipe_reference import EVALUATION_BUDGET, RecipeReference
from trimtab.algorithms.recipe_reward import centring, choose_pad
from trimtab.algorithms.recipe_rows import RecipeRows
from trimtab.algorithms.reward import RewardModelling
from trimtab.algorithms.rows import Rows
from trimtab.algorithms.samples import Rewards, SamplePrompt, Samples, prompts_of_trees
from trimtab.algorithms.stage import Mix, Stage
from trimtab.algorithms.stream import TreeStream
from trimtab.config.classify_recipe import ClassifyRecipe
from trimtab.config.on_policy_recipe import OnPolicyRecipe
from trimtab.config.recipes import LossKeys
from trimtab.config.resolved import Resolved
from trimtab.config.reward_recipe import RewardRecipe
from trimtab.data.store_cache import default_cache_dir
from trimtab.data.trees import TokenTree
from trimtab.errors import RecipeError
from trimtab.losses.contract import LossSpec
from trimtab.models import load
from trimtab.models.fingerprint import fingerprint
from trimtab.models.hub import quiet
from trimtab.models.save import save_model, verify_saved
from trimtab.rewards.manifest import model_folders
from trimtab.training.precision import PrecisionChoice
from trimtab.training.progress import Progress
from trimtab.training.seeds import derive

OTHER_MODELS = {
    "ref_model_name_or_path": "reference",
    "reward_model": "reward model",
    "watch_model": "watched reward model",
    "value_model": "value model",
}
DOCUMENT_OPENING = 16  # tokens of a document that a sample goes on from


@dataclasses.dataclass(frozen=True)
class Built:
    """A stage and all that the run around it needs."""

    stage: Stage
    tokenizer: Any
    stop_ids: tuple[int, ...]
    precision: PrecisionChoice
    samples: Samples | None
    longest: TokenTree
    source: str | None
    rows: tuple[Rows, ...]
    identities: dict[str, str]
    conclude: Callable[[], None] | None = None  # what is left to do between training and saving

    def save(self, folder: Path) -> None:
        """Write the model and its tokenizer as a Hugging Face folder."""
        save_model(self.stage.policy.model, self.tokenizer, folder, stop_ids=self.stop_ids)

    def save_and_verify(self, folder: Path) -> None:
        """Save, read back and compare."""
        self.save(folder)
        verify_saved(folder, self.stage.policy.model, self.tokenizer)


def build(resolved: Resolved, folder: Path, progress: Progress, *, precision: str | None) -> Built:
    """Build the stage of a recipe. Rows come before weights: what is wrong with them is cheap.

    ``precision`` is what an earlier start of this run chose; None chooses.
    """
    return _Builder(resolved, folder, progress).build(precision)


class _Builder:
    def __init__(self, resolved: Resolved, folder: Path, progress: Progress) -> None:
        self.resolved = resolved
        self.recipe: Any = resolved.recipe
        self.progress = progress
        self.note = progress.note
        self.cache_dir = Path(self.recipe.cache_dir or default_cache_dir())
        self.folder = folder
        self.spec: LossSpec | None = None
        self.loss: RecipeLoss | None = None
        if isinstance(self.recipe, LossKeys):
            self.loss = recipe_loss(self.recipe.loss)
            self.spec = self.loss.spec
        self.source = self._locate()

    def build(self, precision: str | None) -> Built:
        recipe, source = self.recipe, self.source
        quiet()
        rows = RecipeRows(
            self.resolved,
            None if isinstance(recipe, OnPolicyRecipe) else self.spec,
            source,
            self.progress,
            folder=self.folder,
            cache_dir=self.cache_dir,
        )
        self.tokenizer, self.renderer = rows.tokenizer, rows.renderer
        train, held_out, mix = rows.training(), rows.held_out(), rows.mix()
        self.rows, self.train = rows, train
        stream = self._stream(train, recipe.rows_per_step, "main")
        total = self._total_steps(stream)
        self.labels = rows.labels.names or () if rows.labels else ()
        maker = RecipeModel(recipe, source, self.renderer, self.progress, self.labels)
        policy, chosen = maker.policy(precision)
        every = tuple(r for r in (train, held_out, mix) if r is not None)
        if isinstance(recipe, OnPolicyRecipe):
            from trimtab.algorithms.build_on_policy import longest_rollout

            longest = longest_rollout(rows, train, held_out, policy, recipe)
        else:
            longest = rows.longest(every, policy)
        conclude = None
        if isinstance(recipe, (RewardRecipe, ClassifyRecipe)):
            stores = [store for r in every for store in r.stores]
            adapter = recipe.use_peft
            choose_pad(policy.model, self.renderer, stores, adapter=adapter, note=self.note)
        stage = self._stage(policy, stream, held_out, mix, total)
        if isinstance(stage, RewardModelling):
            conclude = centring(self.recipe, rows, stage, self.note)
        return Built(
            stage=stage,
            tokenizer=self.tokenizer,
            stop_ids=tuple(sorted(self.renderer.stop_ids)),
            precision=chosen,
            samples=self._samples(policy, train, held_out, getattr(stage, "rewards_of", None)),
            longest=longest,
            source=recipe.model_name_or_path,
            rows=every,
            identities=self._identities(),
            conclude=conclude,
        )

    # ------------------------------------------------------------------ tokenizer and rows

    def _locate(self) -> load.ModelSource | None:
        """Find the model's folder before anything else is read; nothing is loaded yet."""
        recipe = self.recipe
        if recipe.model_name_or_path is None:
            return None
        try:
            source = load.locate(recipe.model_name_or_path, revision=recipe.model_revision)
        except RecipeError as error:
            raise self.resolved.placed(error, "model_name_or_path") from None
        self.note(source.notice)
        return source

    def _identities(self) -> dict[str, str]:
        """Fingerprints of what a run starts from: models, and a loss of the user's own."""
        found: dict[str, str] = {} if self.loss is None else {**self.loss.identities}
        if self.source is not None:
            found["model"] = _identity(self.source)
        for key, role in OTHER_MODELS.items():
            name = getattr(self.recipe, key, None)
            if name is not None and name != "shared":
                found[role] = ":".join(
                    _identity(load.locate(one, key=key)) for one in model_folders(name, key)
                )
        return found

    # ------------------------------------------------------------------ streams and stages

    def _stream(self, rows: Rows, per_step: int, name: str, budget: int = 1) -> TreeStream:
        return TreeStream(
            rows.stores,
            rows_per_step=per_step,
            token_budget=self.recipe.token_budget * budget,
            seed=derive(self.recipe.seed, f"order of {name}"),
            weights=rows.weights,
            shuffle=self.recipe.shuffle,
            name=name,
        )

    def _total_steps(self, stream: TreeStream) -> int:
        if self.recipe.max_steps > 0:
            return self.recipe.max_steps
        rounds = max(1, round(self.recipe.num_train_epochs * stream.steps_per_epoch))
        if isinstance(self.recipe, OnPolicyRecipe):  # a round is a rollout, trained on for a while
            return rounds * self.recipe.passes * self.recipe.num_mini_batches  # type: ignore[attr-defined]
        return rounds

    def _stage(
        self,
        policy: Policy,
        stream: TreeStream,
        held_out: Rows | None,
        mix_rows: Rows | None,
        total: int,
    ) -> Stage:
        mix = None
        if mix_rows is not None:
            settings = self.recipe.mix
            per_step = settings.batch_size or self.recipe.rows_per_step
            mix_stream = self._stream(mix_rows, per_step, "mix")
            mix = Mix(mix_stream, settings.weight, settings.reduction)
        held = self._stream(held_out, 1, "eval", EVALUATION_BUDGET) if held_out else None
        if isinstance(self.recipe, OnPolicyRecipe):
            from trimtab.algorithms.build_on_policy import OnPolicyBuilder, prompt_rows

            reference = RecipeReference(
                self.recipe, self.spec, self.source, self.tokenizer, self.progress, self.cache_dir
            )
            builder = OnPolicyBuilder(
                self.recipe, self.rows, policy, reference, self.progress, self.folder, self.loss
            )
            return builder.stage(stream, held, prompt_rows(self.train, held_out), mix, total)
        if isinstance(self.recipe, RewardRecipe):
            return RewardModelling(
                policy,
                stream,
                total_steps=total,
                loss=self.recipe.ranking_loss,
                centring=self.recipe.center_rewards_coefficient,
                mix=mix,
                held_out=held,
            )
        if isinstance(self.recipe, ClassifyRecipe):
            return Classification(
                policy,
                stream,
                labels=self.labels,
                total_steps=total,
                alpha=self.recipe.alpha,
                mix=mix,
                held_out=held,
            )
        if self.spec is None or self.loss is None:
            return LanguageModelling(
                policy,
                stream,
                total_steps=total,
                mix=mix,
                held_out=held,
                held_out_bytes=self._bytes(held) if held else None,
            )
        reference = RecipeReference(
            self.recipe, self.spec, self.source, self.tokenizer, self.progress, self.cache_dir
        )
        return PreferenceOptimisation(
            policy,
            stream,
            spec=self.spec,
            make_loss=self.loss.make,
            references=reference.references(policy, stream, held, total),
            seed=self.recipe.seed,
            total_steps=total,
            nll_weight=self.recipe.nll_weight,
            mix=mix,
            held_out=held,
        )

    def _bytes(self, stream: TreeStream) -> int:
        """UTF-8 length of the held-out targets, for bits per byte."""
        total = 0
        for number in range(len(stream)):
            tree = stream.tree(number)
            for branch in tree.branches:
                ids = [i for i, t in zip(branch.ids, branch.trained, strict=True) if t]
                total += len(self.tokenizer.decode(ids, skip_special_tokens=True).encode())
        return total

    # ------------------------------------------------------------------ samples

    def _samples(
        self, policy: Policy, train: Rows, held_out: Rows | None, rewards: Rewards | None
    ) -> Samples | None:
        wanted = self.recipe.sample_prompts
        if not wanted:
            return None
        if isinstance(wanted, int):
            store = (held_out or train).stores[0]
            whole = [i for i in range(min(len(store), 50 * wanted)) if store[i].origin.part == 0]
            opening = DOCUMENT_OPENING if self.resolved.verb == "pretrain" else 0
            trees = [store[i] for i in whole[:wanted]]
            prompts = prompts_of_trees(self.tokenizer, trees, opening)
        else:
            prompts = [self._prompt(text) for text in wanted]
        return Samples(
            policy,
            self.tokenizer,
            prompts,
            stop_ids=sorted(self.renderer.stop_ids),
            max_new_tokens=self.recipe.sample_max_new_tokens,
            folder=self.folder / "completions",
            seed=self.recipe.seed,
            rewards=rewards,
        )

    def _prompt(self, text: str) -> SamplePrompt:
        """A prompt of the recipe: a user message where the tokenizer has a chat template."""
        chat = self.renderer.template.source and self.resolved.verb != "pretrain"
        prompt: Any = [{"role": "user", "content": text}] if chat else text
        return SamplePrompt(tuple(self.renderer.prompt_ids(prompt)), text)


def _identity(source: load.ModelSource) -> str:
    """Fingerprint of a model folder; of an adapter's and its base's."""
    folders = dict.fromkeys([source.folder, load.base_of(source).folder])
    return ":".join(fingerprint(folder) for folder in folders)
