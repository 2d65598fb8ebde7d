"""The tokenizer and the rows that a recipe names, as trees; the untrainable is refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trimtab.algorithms.policy import Policy
from trimtab.algorithms.rows import Rows, RowSettings, load_rows
from trimtab.config.classify_recipe import ClassifyRecipe
from trimtab.config.on_policy_recipe import OnPolicyRecipe
from trimtab.config.recipes import PretrainRecipe, SftRecipe
from trimtab.config.resolved import Resolved
from trimtab.config.reward_recipe import RewardRecipe
from trimtab.data.chat import ChatRenderer
from trimtab.data.labels import Labels
from trimtab.data.rows import Kind, TextExample
from trimtab.data.sources import load_examples
from trimtab.data.store import TreeStore
from trimtab.data.tokenise import TokeniseOptions
from trimtab.data.trees import TokenTree
from trimtab.errors import DataError, RecipeError
from trimtab.losses.contract import LossSpec
from trimtab.models import load
from trimtab.models.hub import read_json
from trimtab.models.tokenizers import train_byte_level_bpe
from trimtab.training.progress import Progress

ACCEPT: dict[str, set[Kind]] = {
    "pretrain": {"text", "chat"},
    "mix": {"text", "chat"},
    "classify": {"labelled"},
    "sft": {"text", "chat", "completion"},
    "ppo": {"prompt"},
    "grpo": {"prompt"},
    "rloo": {"prompt"},
    "online_dpo": {"prompt"},
    "raft": {"prompt"},
    "reward": {"preference", "ranked"},
    "reference": {"chat", "completion"},
    "pair": {"preference", "ranked"},
    "ranking": {"ranked", "preference"},
    "unpaired": {"unpaired", "preference"},
}


class RecipeRows:
    """Reads what one recipe names; ``source`` is its model's folder, None for a fresh model."""

    def __init__(
        self,
        resolved: Resolved,
        spec: LossSpec | None,
        source: load.ModelSource | None,
        progress: Progress,
        *,
        folder: Path,
        cache_dir: Path,
    ) -> None:
        self.resolved = resolved
        self.recipe: Any = resolved.recipe
        self.spec = spec
        self.source = source
        self.note = progress.note
        self.labels: Labels | None = None
        if isinstance(self.recipe, ClassifyRecipe):
            self.labels = Labels(self.recipe.labels)
        self.settings = RowSettings(
            max_bad_rows=self.recipe.max_bad_rows,
            max_dropped_rows=self.recipe.max_dropped_rows,
            cache_dir=cache_dir,
            quarantine_folder=folder,
            seed=self.recipe.seed,
        )
        progress.stage("reading rows")
        self.tokenizer = self._tokenizer()
        self.renderer = ChatRenderer(self.tokenizer, generation_config=self._generation_config())

    def training(self) -> Rows:
        """The rows to train on, checked."""
        rows = self._rows("training", self.recipe.train_specs(), self.recipe.max_train_rows)
        self.check(rows)
        return self._check_trees(rows)

    def _generation_config(self) -> Any:
        if self.source is None:
            return None
        folder = load.base_of(self.source).folder
        if not (folder / "generation_config.json").is_file():
            return None
        from transformers import GenerationConfig

        return GenerationConfig.from_pretrained(folder)

    def _tokenizer(self) -> Any:
        recipe = self.recipe
        if isinstance(recipe, PretrainRecipe) and recipe.new_tokenizer is not None:
            return self._new_tokenizer(recipe)
        if recipe.tokenizer_name_or_path is not None:
            return load.load_tokenizer(recipe.tokenizer_name_or_path)
        assert self.source is not None
        return load.load_tokenizer(
            self.source, trust_remote_code=recipe.trust_remote_code, key="model_name_or_path"
        )

    def _new_tokenizer(self, recipe: PretrainRecipe) -> Any:
        """A byte-level BPE of the training texts."""

        assert recipe.new_tokenizer is not None
        loaded = load_examples(
            recipe.train_specs(),
            frozenset(ACCEPT["pretrain"]),
            max_rows=recipe.new_tokenizer.max_rows or recipe.max_train_rows,
            max_bad_rows=recipe.max_bad_rows,
            seed=recipe.seed,  # no quarantine: the same rows are read again to be trained on
        )
        texts = (
            text
            for examples in loaded.examples
            for example in examples
            for text in (
                [example.text]
                if isinstance(example, TextExample)
                else [str(m.get("content") or "") for m in getattr(example, "messages", ())]
            )
        )
        self.note(f"training a tokenizer of {recipe.new_tokenizer.vocab_size} tokens")
        return train_byte_level_bpe(texts, recipe.new_tokenizer.vocab_size)

    def _options(self) -> TokeniseOptions:
        recipe = self.recipe
        if isinstance(recipe, PretrainRecipe):
            return TokeniseOptions(max_length=None, context_length=recipe.context_length)
        if isinstance(recipe, ClassifyRecipe):
            return TokeniseOptions(max_length=self.longest_text())
        if isinstance(recipe, OnPolicyRecipe):
            return TokeniseOptions(
                max_length=None,
                max_prompt_length=recipe.max_prompt_length,
                truncation_mode=recipe.truncation_mode,
            )
        common: dict[str, Any] = {
            "max_length": self.longest_text(),
            "max_prompt_length": recipe.max_prompt_length,
            "truncation_mode": recipe.truncation_mode,
        }
        if isinstance(recipe, SftRecipe):
            return TokeniseOptions(
                **common,
                completion_only=recipe.completion_only_loss,
                assistant_only=recipe.assistant_only_loss is not False,
            )
        if isinstance(recipe, RewardRecipe):
            return TokeniseOptions(
                **common,
                group_by_prompt=recipe.grouped,
                scored=True,
                margins=recipe.margins,
                margin_scale=recipe.margin_scale,
            )
        assert self.spec is not None
        return TokeniseOptions(
            **common,
            train_trunk=recipe.nll_weight > 0 and recipe.nll_span == "prompt_and_completion",
            unpaired=self.spec.kind == "unpaired",
            group_by_prompt=recipe.group_by_prompt,
            group_by_weight=recipe.nll_weight > 0,
        )

    def longest_text(self) -> int | None:
        """Tokens of prompt and response together: the recipe's limit, or else the model's own."""
        return self.recipe.max_length or self.positions()

    def positions(self) -> int | None:
        """The model's own limit of a sequence's length, where it has one."""
        assert self.source is not None
        config = read_json(load.base_of(self.source).folder / "config.json")
        text = config.get("text_config", {})
        names = ("max_position_embeddings", "n_positions")
        return next((c[name] for c in (config, text) for name in names if c.get(name)), None)

    def _rows(self, role: str, specs: Sequence[Any], max_rows: int | None) -> Rows:
        accept = ACCEPT[self.spec.kind if self.spec else self.resolved.verb]
        options = self._options()
        if role == "held-out" and isinstance(self.recipe, PretrainRecipe):
            options = dataclasses.replace(options, stride=self.recipe.eval_stride)
        if role == "training" and isinstance(self.recipe, ClassifyRecipe):
            options = dataclasses.replace(options, scored=not self.recipe.alpha)
        return self.load(role, specs, options, accept, max_rows, self.labels)

    def load(
        self,
        role: str,
        specs: Sequence[Any],
        options: TokeniseOptions,
        accept: set[Kind],
        max_rows: int | None = None,
        labels: Labels | None = None,
    ) -> Rows:
        """Rows of these kinds as trees, under the recipe's limits."""
        return load_rows(
            role,
            specs,
            self.renderer,
            options,
            frozenset(accept),
            self.settings,
            self.note,
            max_rows=max_rows,
            labels=labels,
        )

    def held_out(self) -> Rows | None:
        """The rows to evaluate on, if the recipe names some."""
        specs = self.recipe.eval_specs()
        trained_on = {spec.path for spec in self.recipe.train_specs()}
        named = self.recipe.eval_dataset_name or self.recipe.eval_datasets
        for spec in specs:
            if spec.path not in trained_on or not Path(spec.path).is_file():
                continue
            if named:
                self.note(f"{spec.path} is held out and trained on: its metrics show memory")
            else:
                raise RecipeError(
                    f"dataset_test_split={spec.split}: {spec.path} is a single file, which has no "
                    "splits: its rows would be trained on and held out; give --eval-dataset-name "
                    "FILE, or --dataset-test-split null for no evaluation"
                )
        if not specs:
            return None
        return self._check_trees(self._rows("held-out", specs, self.recipe.max_eval_rows))

    def mix(self) -> Rows | None:
        """The rows of the mixed-in language-model term, if the recipe has one."""
        mix = self.recipe.mix
        if mix is None:
            return None
        if isinstance(self.recipe, PretrainRecipe) and mix.max_length is None:
            window: int | None = self.recipe.context_length
        else:
            length = mix.max_length or self._options().max_length
            window = None if length is None else length - 1  # and the token before it
        options = TokeniseOptions(max_length=None, context_length=window)
        return self.load("mix", mix.specs(), options, ACCEPT["mix"])

    def check(self, rows: Rows) -> None:
        """What would train on nonsense: no stop token in any target, tied or single rows."""
        branches = sum(report.branches for report in rows.reports)
        stopped = sum(report.branches_stopped for report in rows.reports)
        if self.resolved.verb == "sft" and branches and not stopped and self.renderer.stop_ids:
            raise DataError(
                f"{rows.loaded.report.sources[0].source}: none of {branches} responses ends in a "
                f"stop token ({sorted(self.renderer.stop_ids)}), so it would never stop; raise "
                "max_length, or mend the chat template"
            )
        mismatched = self.spec and "mismatched_policy" in self.spec.prepare_needs
        if self.spec and mismatched and self.recipe.rows_per_step < 2:
            raise RecipeError(
                f"per_device_train_batch_size={self.recipe.rows_per_step}: {self.spec.name} "
                "estimates its KL from responses after the prompts of other rows of the step; "
                "take at least 2 rows a step"
            )

    def _check_trees(self, rows: Rows) -> Rows:
        """Every tree has what the loss reads: a strict order, or a label for each response."""
        kind, name = self._reads()
        if kind not in ("ranking", "unpaired"):
            return rows
        for tree in (tree for store in rows.stores for tree in store):
            place = f"{tree.origin.source}:{tree.origin.row}"
            given = tree.ranks if kind == "ranking" else tree.labels
            if len(given) != len(tree.branches):
                what = "one ranking" if kind == "ranking" else "one label each"
                raise DataError(
                    f"{place}: group_by_prompt=true: rows of this prompt have no common scores, so "
                    f"its {len(tree.branches)} responses have not {what}; remove group_by_prompt"
                )
            if self.spec and "scores" in self.spec.needs:  # ties are no trouble for these
                _require_scores(tree, place, name)
                continue
            if kind == "ranking" and len(set(tree.ranks)) != len(tree.ranks):
                reward = isinstance(self.recipe, RewardRecipe)
                pairs = "--ranking-loss pairwise" if reward else "--loss dpo"
                raise DataError(
                    f"{place}: ranks: {list(tree.ranks)} holds a tie, which {name} cannot "
                    f"express; break it, or use {pairs}, which takes all ordered pairs"
                )
        return rows

    def _reads(self) -> tuple[str | None, str]:
        """What the loss reads of a tree (a kind of loss, None for text), and its name."""
        if isinstance(self.recipe, RewardRecipe):
            whole = self.recipe.ranking_loss == "plackett_luce"
            return ("ranking" if whole else "pair"), self.recipe.ranking_loss
        return (None, "") if self.spec is None else (self.spec.kind, self.spec.name)

    def longest(self, rows: Sequence[Rows], policy: Policy) -> TokenTree:
        """The tree with most tokens; refuses one deeper than the model's positions."""
        stores = [store for r in rows for store in r.stores]
        limit = getattr(policy.model.config, "max_position_embeddings", None)
        deepest = max((int(store.depths.max()), i) for i, store in enumerate(stores))
        if limit is not None and deepest[0] > limit:
            store = stores[deepest[1]]
            origin = store[int(store.depths.argmax())].origin
            pretrain = isinstance(self.recipe, PretrainRecipe)
            remedy = f"context_length to at most {limit - 1}" if pretrain else f"max_length {limit}"
            raise DataError(
                f"{origin.source}:{origin.row}: {deepest[0]} tokens are more than the model's "
                f"{limit} positions; set {remedy}"
            )
        return longest_of(rows[0].stores)


def longest_of(stores: Sequence[TreeStore]) -> TokenTree:
    """The tree with most tokens."""
    best = max(stores, key=lambda store: int(store.token_counts.max()))
    return best[int(best.token_counts.argmax())]


def _require_scores(tree: TokenTree, place: str, name: str) -> None:
    if len(tree.scores) != len(tree.branches):
        raise DataError(
            f"{place}: scores: missing, and {name} reads them: give rows of prompt, responses and "
            "scores, or use a loss of pairs or ranks (--loss nca, --loss plackett_luce)"
        )
