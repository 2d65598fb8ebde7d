"""From an on-policy recipe to its stage: sampler, judge, reference, critic."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from trimtab.algorithms.build_online import online_stage, raft_stage
from trimtab.algorithms.critic import Critic
from trimtab.algorithms.group import GroupPolicyGradient, group_settings
from trimtab.algorithms.judge import Judge, Score, by_function, by_reward_model, same_tokens
from trimtab.algorithms.on_policy import Cast, OnPolicy, PromptRow, RolloutSettings
from trimtab.algorithms.policy import Policy
from trimtab.algorithms.ppo import PPO, PpoSettings
from trimtab.algorithms.recipe_loss import RecipeLoss
from trimtab.algorithms.recipe_reference import EVALUATION_BUDGET, RecipeReference
from trimtab.algorithms.recipe_reward import reward_score
from trimtab.algorithms.recipe_rows import ACCEPT, RecipeRows, longest_of
from trimtab.algorithms.rows import Rows
from trimtab.algorithms.stage import Mix
from trimtab.algorithms.stream import TreeStream
from trimtab.config.data_keys import DatasetSpec
from trimtab.config.on_policy_recipe import GroupRecipe, OnPolicyRecipe, PpoRecipe
from trimtab.config.online_recipe import OnlineRecipe, RaftRecipe
from trimtab.data.tokenise import TokeniseOptions
from trimtab.data.trees import Branch, Origin, TokenTree
from trimtab.errors import DataError, RecipeError
from trimtab.models import load
from trimtab.models.attention import unwrap
from trimtab.models.forward import choose_layout
from trimtab.models.hub import is_scored
from trimtab.models.score_head import (
    ScoreHead,
    attach_head,
    head_of,
    scored_class,
    set_head,
    without_output_head,
)
from trimtab.models.scored import load_scored
from trimtab.rewards.combine import told_apart
from trimtab.rewards.functions import check_columns, resolve
from trimtab.rewards.isolated import IsolatedFunction
from trimtab.rewards.manifest import MANIFEST
from trimtab.rewards.reward_model import RewardModel
from trimtab.rollout import Sampler
from trimtab.training.progress import Progress

REWARD_MODEL = "the reward model, with a new head"


class OnPolicyBuilder:
    """Builds the stage around a policy that is ready to train."""

    def __init__(
        self,
        recipe: OnPolicyRecipe,
        rows: RecipeRows,
        policy: Policy,
        reference: RecipeReference,
        progress: Progress,
        folder: Path,
        loss: RecipeLoss | None = None,
    ) -> None:
        self.recipe: Any = recipe
        self.loss = loss
        self.rows = rows
        self.policy = policy
        self.reference = reference
        self.progress = progress
        self.note = progress.note
        self.folder = folder
        self.reward_model: RewardModel | None = None

    def stage(
        self,
        stream: TreeStream,
        held_out: TreeStream | None,
        every: Mapping[Origin, PromptRow],
        mix: Mix | None,
        total_steps: int,
    ) -> OnPolicy:
        """The stage of the recipe; ``every`` prompt's row by the origin of its tree."""
        recipe = self.recipe
        self.progress.stage("loading rewards, reference and values")
        judge = self._judge(every)
        self._can_be_diagnosed()
        sampler = Sampler(
            self.policy.model, stop_ids=self.rows.renderer.stop_ids, slots=recipe.rollout_slots
        )
        self.note(f"sampling: {sampler.way} ({sampler.reason})")
        cast = Cast(
            sampler=sampler,
            judge=judge,
            reference=self.reference.live(self.policy) if self._needs_reference() else None,
            tokenizer=self.rows.tokenizer,
            prompt_rows=every,
        )
        common: dict[str, Any] = {
            "total_steps": total_steps,
            "settings": self._settings(),
            "cast": cast,
            "mix": mix,
            "held_out": held_out,
            "eval_text": self._eval_text(),
        }
        if isinstance(recipe, PpoRecipe):
            return self._ppo(recipe, stream, common)
        if isinstance(recipe, OnlineRecipe):
            assert self.loss is not None
            return online_stage(recipe, self.loss, self.policy, stream, cast, common, self.note)
        if isinstance(recipe, RaftRecipe):
            return raft_stage(recipe, self.policy, stream, common, self.note)
        settings = group_settings(recipe)
        return GroupPolicyGradient(self.policy, stream, group=settings, **common)

    def _settings(self) -> RolloutSettings:
        recipe = self.recipe
        return RolloutSettings(
            per_prompt=recipe.num_generations,
            per_held_out=recipe.num_generations_eval,
            max_new_tokens=recipe.max_completion_length,
            temperature=recipe.temperature,
            passes=recipe.passes,
            mini_batches=recipe.num_mini_batches,
            missing_eos_penalty=recipe.missing_eos_penalty,
            trainer_logprobs=getattr(recipe, "old_logprobs", "sampler") == "trainer",
            seed=recipe.seed,
            folder=self.folder,
        )

    def _needs_reference(self) -> bool:
        """A group algorithm without a KL term need not know how far it went; the others say it."""
        recipe = self.recipe
        return not isinstance(recipe, GroupRecipe) or group_settings(recipe).kl_coef > 0

    # ------------------------------------------------------------------ rewards

    def _judge(self, every: Mapping[Origin, PromptRow]) -> Judge:
        recipe = self.recipe
        sources: list[tuple[str, Score]] = []
        if recipe.reward_model is not None:
            self.reward_model = self._loaded_reward(recipe.reward_model, "reward_model")
            sources.append(self._model(self.reward_model, "reward_model"))
        columns = {name for row in every.values() for name in row.columns}
        sources += self._functions(recipe.reward_funcs, columns)
        watched: list[tuple[str, Score]] = []
        if recipe.watch_model is not None:
            model = self._loaded_reward(recipe.watch_model, "watch_model")
            watched.append(self._model(model, "watch_model"))
        watched += self._functions(recipe.watch_funcs, columns)
        return Judge(_by_name(sources), recipe.reward_weights, _by_name(watched))

    def _model(self, model: RewardModel, key: str) -> tuple[str, Score]:
        """A reward model and its name."""
        score = by_reward_model(
            model, self.rows.tokenizer, on_bad=self.recipe.on_bad_reward, key=key
        )
        return Path(model.name).name, score

    def _can_be_diagnosed(self) -> None:
        """Refuse to wait for a diagnosis that cannot come."""
        stops, model = self.recipe.stop_when, self.reward_model
        if "disagreement" in stops and (model is None or len(model.members) == 1):
            raise RecipeError(
                "stop_when: disagreement: there is no ensemble; give reward_model the folder of "
                "trimtab reward --ensemble N"
            )
        for name in sorted({"kl", "impossible_kl"} & set(stops)):
            if not self._needs_reference():
                raise RecipeError(
                    f"stop_when: {name}: {self.recipe.algorithm} has no reference here; give "
                    "kl_coef"
                )
        critic = getattr(self.recipe, "objective", None) == "clip_advantage"
        if "no_value" in stops and not critic:
            raise RecipeError("stop_when: no_value: there is no value function here; remove it")

    def _loaded_reward(self, path: str, key: str) -> RewardModel:
        recipe = self.recipe
        model = RewardModel.load(
            path,
            device=self.policy.device,
            token_budget=recipe.token_budget * EVALUATION_BUDGET,
            trust_remote_code=recipe.trust_remote_code,
            key=key,
        )
        same = same_tokens(model.tokenizer, self.rows.tokenizer)
        how = "reads the sampled tokens" if same else "another tokenizer: text rendered anew"
        self.note(f"{key.replace('_', ' ')} {path}: {how}")
        return model

    def _functions(self, texts: Sequence[str], columns: set[str]) -> list[tuple[str, Score]]:
        """Reward functions and their names; they need columns that the rows have."""
        recipe = self.recipe
        functions = [resolve(text, isolate=recipe.reward_isolate) for text in texts]
        found: list[tuple[str, Score]] = []
        for function in functions:
            check_columns(function, columns, ids=True)
            if isinstance(function, IsolatedFunction):
                self.note(function.notice)
            score = by_function(
                function, time_limit=recipe.reward_time_limit, on_bad=recipe.on_bad_reward
            )
            found.append((function.name, score))
        return found

    # ------------------------------------------------------------------ PPO

    def _ppo(self, recipe: PpoRecipe, stream: TreeStream, common: dict[str, Any]) -> PPO:
        critic = self._critic(recipe) if recipe.objective == "clip_advantage" else None
        model: nn.Module = self.policy.model
        if critic is not None:
            model = nn.ModuleDict({"policy": self.policy.model, "value": critic.model})
            model.train()
            count = sum(p.numel() for p in critic.model.parameters() if p.requires_grad)
            self.note(f"value model: {count:,} weights trained ({self._critic_source(recipe)})")
        names = [field.name for field in dataclasses.fields(PpoSettings)]
        settings = {name: getattr(recipe, name) for name in names if name != "bootstrap"}
        bootstrap = recipe.truncated_value == "bootstrap"
        return PPO(
            self.policy,
            stream,
            model=model,
            critic=critic,
            ppo=PpoSettings(**settings, bootstrap=bootstrap),
            **common,
        )

    def _critic_source(self, recipe: PpoRecipe) -> str:
        """Where the value model starts: ``shared``, a path, ``REWARD_MODEL`` or ``policy``."""
        if recipe.value_model is not None:
            return recipe.value_model
        if recipe.use_peft:
            return "shared"
        model, path = self.reward_model, recipe.reward_model
        if model is not None and path is not None and not (Path(path) / MANIFEST).is_file():
            source = load.locate(path, key="reward_model")
            if source.kind == "model" and same_tokens(model.tokenizer, self.rows.tokenizer):
                return REWARD_MODEL
        return "policy"

    def _critic(self, recipe: PpoRecipe) -> Critic:
        found = self._critic_source(recipe)
        inner: Any = self.policy.model
        dtype = next(inner.parameters()).dtype
        if found == "shared":
            width = inner.config.get_text_config().hidden_size
            layer = nn.Linear(width, 1, bias=False).to(device=self.policy.device, dtype=dtype)
            nn.init.zeros_(layer.weight)
            kept = self._kept_head(inner)
            return Critic(layer, self.policy.layout, kept, shared=True, new=True)
        if found == "policy":
            model: Any = copy.deepcopy(inner)
        else:
            path = recipe.reward_model if found == REWARD_MODEL else found
            model = self._loaded_critic(str(path), dtype)
        if found == REWARD_MODEL:
            # Trained at stop tokens, it says nothing at others, and far from nothing: below a
            # constant by several times the variance of the returns.
            nn.init.zeros_(unwrap(model).score.weight)
        own = head_of(model)
        new = own is None or found == REWARD_MODEL
        if own is None:
            attach_head(model, ScoreHead("reward"), std=0.0, seed=0)
        head = self._value_head()
        set_head(model, head)
        model.requires_grad_(True)
        without_output_head(model)
        layout = choose_layout(model, recipe.attn_layout).layout
        offset = 0.0 if own is None or new else -own.offset
        return Critic(model, layout, head, new=new, offset=offset)

    def _kept_head(self, model: Any) -> ScoreHead | None:
        """The head as it is saved with the policy's weights; None where no class takes it."""
        try:
            scored_class(unwrap(model).config)
        except RecipeError:
            self.note("value model: not kept at the end, transformers has no class for its family")
            return None
        return self._value_head()

    def _value_head(self) -> ScoreHead:
        """The value model's head as it is saved: its pad token ends no text, or there is none."""
        pad = self.rows.tokenizer.pad_token_id
        ends = self.rows.renderer.stop_ids | {self.rows.tokenizer.eos_token_id}
        return ScoreHead("reward", pad_token_id=None if pad in ends else pad)

    def _loaded_critic(self, path: str, dtype: torch.dtype) -> Any:
        source = load.locate(path, key="value_model")
        if source.kind == "adapter":
            raise RecipeError(f"value_model={path!r}: an adapter; give a whole model")
        if not same_tokens(load.load_tokenizer(source, key="value_model"), self.rows.tokenizer):
            raise RecipeError(
                f"value_model={path!r}: its tokenizer differs from the policy's, whose tokens it "
                "has to value one by one; choose a model with the same one"
            )
        read = load_scored if is_scored(source) else load.load_model
        model = read(source, dtype=dtype, device=self.policy.device, key="value_model")
        reward_score(model, "value_model", path)
        return model

    # ------------------------------------------------------------------ held-out text

    def _eval_text(self) -> TreeStream | None:
        recipe = self.recipe
        if recipe.eval_text_name is None:
            return None
        window = min(self.rows.positions() or 1024, 1024)
        options = TokeniseOptions(max_length=None, context_length=window - 1)
        spec = DatasetSpec(path=recipe.eval_text_name)
        found = self.rows.load(
            "held-out text", [spec], options, ACCEPT["mix"], recipe.max_eval_rows
        )
        return TreeStream(
            found.stores,
            rows_per_step=1,
            token_budget=recipe.token_budget * EVALUATION_BUDGET,
            seed=recipe.seed,
            name="held-out text",
        )


def _by_name(sources: Sequence[tuple[str, Score]]) -> dict[str, Score]:
    """Rewards by names that tell them apart, of models and functions together."""
    names = told_apart([name for name, _ in sources])
    return dict(zip(names, (score for _, score in sources), strict=True))


def prompt_rows(*rows: Rows | None) -> dict[Origin, PromptRow]:
    """What the rows say beside their tokens, by the origin of their trees."""
    return {
        example.origin: PromptRow(example.prompt, example.extras)
        for one in rows
        if one is not None
        for example in one.prompts
    }


def longest_rollout(
    rows: RecipeRows, train: Rows, held_out: Rows | None, policy: Policy, recipe: Any
) -> TokenTree:
    """The largest tree that can come of training: the longest prompt with whole responses.

    Raises DataError for a prompt, held-out ones included, that leaves no room for a response.
    """
    limit = getattr(policy.model.config, "max_position_embeddings", None)
    both = [longest_of(r.stores) for r in (train, held_out) if r is not None]
    for tree in both:
        if limit is not None and len(tree.trunk.ids) >= limit:
            raise DataError(
                f"{tree.origin.source}:{tree.origin.row}: a prompt of {len(tree.trunk.ids)} tokens "
                f"fills the model's {limit} positions and leaves no room for a response; set "
                "max_prompt_length"
            )
    tree = both[0]
    length = len(tree.trunk.ids)
    room = recipe.max_completion_length
    if limit is not None and length + room > limit:
        room = limit - length
        rows.note(
            f"max_completion_length={recipe.max_completion_length}: the longest prompt leaves "
            f"{room} of the model's {limit} positions; its responses are cut there"
        )
    filler = tree.trunk.ids[-1:] * room
    branch = Branch(filler, (True,) * room)
    return tree._replace(branches=(branch,) * recipe.num_generations)
