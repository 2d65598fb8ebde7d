"""What on-policy algorithms share: rollouts, their scores, reference log-probs, passes over them.

Optimizer step s belongs to rollout s // (passes x mini-batches). A rollout is sampled when its
first step comes, judged, completed (``complete``, the algorithm's own part: rewards, advantages),
written to disk, and then trained on; its columns are frozen. Prompts, mini-batches and samples are
functions of (seed, rollout, pass).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trimtab.algorithms.experience import Experience, response_tree
from trimtab.algorithms.judge import Asked, Judge
from trimtab.algorithms.policy import Policy, frozen
from trimtab.algorithms.reference import LiveReference
from trimtab.algorithms.rollout_log import (
    completion_metrics,
    reward_columns,
    texture,
    write_completions,
)
from trimtab.algorithms.sampling_gap import keep_recorded
from trimtab.algorithms.stage import Mix, Stage, target_weights
from trimtab.algorithms.stream import TreeStream, micro_batches
from trimtab.data.order import permutation
from trimtab.data.rows import Text
from trimtab.data.trees import TokenTree
from trimtab.errors import RecipeError
from trimtab.evaluation.statistics import mean_interval
from trimtab.rollout import Sampler, SamplingParams
from trimtab.training.algorithm import Micro
from trimtab.training.seeds import derive
from trimtab.training.terms import Metric


@dataclasses.dataclass(frozen=True)
class PromptRow:
    """What a prompt's row says beside its tokens."""

    prompt: Text
    columns: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class RolloutSettings:
    """How rollouts are made and used."""

    per_prompt: int
    per_held_out: int
    max_new_tokens: int
    temperature: float
    passes: int
    mini_batches: int
    missing_eos_penalty: float | None
    trainer_logprobs: bool
    seed: int
    folder: Path


@dataclasses.dataclass(frozen=True)
class Cast:
    """Everybody but the policy: who samples, who judges, whom the policy must stay near."""

    sampler: Sampler
    judge: Judge
    reference: LiveReference | None
    tokenizer: Any
    prompt_rows: Mapping[Any, PromptRow]  # by the origin of the prompt's tree


class OnPolicy(Stage):
    """Base of ppo and the group algorithms."""

    needs_rewards = True  # a rollout without a single one ends the run

    def __init__(
        self,
        policy: Policy,
        stream: TreeStream,
        *,
        total_steps: int,
        settings: RolloutSettings,
        cast: Cast,
        model: nn.Module | None = None,
        mix: Mix | None = None,
        held_out: TreeStream | None = None,
        eval_text: TreeStream | None = None,
    ) -> None:
        super().__init__(policy, stream, total_steps=total_steps, mix=mix, held_out=held_out)
        self.model = model if model is not None else policy.model
        self.settings = settings
        self.cast = cast
        self.eval_text = eval_text
        self.current: Experience | None = None

    # ------------------------------------------------------------------ which step, which rollout

    @property
    def steps_per_rollout(self) -> int:
        """Optimizer steps that a rollout is good for."""
        return self.settings.passes * self.settings.mini_batches

    def epoch(self, step: int) -> float:
        """Epochs over the prompts done after ``step`` steps."""
        number, within = divmod(step, self.steps_per_rollout)
        before, after = (self.stream.epoch(number + more) for more in (0, 1))
        return before + (after - before) * within / self.steps_per_rollout

    def counted(self, step: int) -> dict[str, int]:
        """Responses that were sampled to be trained on, the last step's rollout included."""
        _, prompts = self.stream.position((step - 1) // self.steps_per_rollout)
        return {"episode": prompts * self.settings.per_prompt}

    def micros(self, step: int) -> Sequence[Micro]:
        """The mini-batch of a step, sampled first where a rollout begins; then mixed-in text."""
        number, within = divmod(step, self.steps_per_rollout)
        experience = self._experience(number, within)
        self.use(experience)
        pass_, mini = divmod(within, self.settings.mini_batches)
        count = len(experience.trees)
        order = permutation(count, derive(self.settings.seed, "mini-batches", number), pass_, 0)
        chosen = order.tolist()[mini :: self.settings.mini_batches]
        found = self.select(experience, chosen)
        for micro in found:
            move(micro, self.policy.device)
        if self.mix is not None:
            for micro in self.mix.stream.micros(step):
                micro.batch = micro.batch.to(self.policy.device)
                found.append(micro)
        return found

    def first_trees(self) -> Iterator[TokenTree]:
        """The first rollout, which the first step then trains on."""
        return iter(self._experience(0, 0).trees)

    def example(self, steps: int) -> TokenTree | None:
        """The first prompt of the last rollout, with its responses."""
        number = (steps - 1) // self.steps_per_rollout
        if self.current is None or self.current.number != number:
            self.current = Experience.load(self._path(number))  # the run went on from its last step
        return self.current.trees[0]

    def select(self, experience: Experience, chosen: Sequence[int]) -> list[Micro]:
        """Micro-batches of the prompts ``chosen``."""
        return list(experience.micros(chosen, self.stream.token_budget))

    def use(self, experience: Experience) -> None:
        """Take over what a rollout changes in the algorithm's own state."""

    def _experience(self, number: int, within: int) -> Experience:
        if self.current is not None and self.current.number == number:
            return self.current
        if within:  # a resumed run, in the middle of a rollout
            self.current = Experience.load(self._path(number))
            return self.current
        self.current = self.collect(number)
        self.current.save(self._path(number))
        return self.current

    def _path(self, number: int) -> Path:
        return self.settings.folder / "rollouts" / f"rollout_{number:06d}.safetensors"

    # ------------------------------------------------------------------ a rollout

    def collect(self, number: int) -> Experience:
        """Sample, judge, and compute all that training will read."""
        rows = self.stream.rows(number)
        prompts = [self.stream.tree(row) for row in rows]
        experience = self.sampled(number, rows, prompts, derive(self.settings.seed, "roll", number))
        self.judged(experience)
        self._reference_and_old(experience)
        try:
            if self.needs_rewards and not experience.responses["valid"].any():
                raise ValueError("no response has a reward")
            self.complete(experience)
        except ValueError as error:  # statistics over too few numbers
            count = len(experience.lengths)
            dropped = count - int(experience.responses["valid"].sum())
            if dropped:
                raise RecipeError(
                    f"rollout {number + 1}: {dropped} of {count} responses could not be judged, "
                    f"which leaves too little to train on ({error}); mend the reward, or take one "
                    "that judges more of them"
                ) from error
            raise RecipeError(
                f"per_device_train_batch_size={len(rows)}: {error}; take more prompts or "
                "num_generations a rollout"
            ) from error
        write_completions(experience, self._asked(experience), self.settings.folder)
        return experience

    def sampled(
        self, number: int, rows: Sequence[int], prompts: Sequence[TokenTree], seed: int
    ) -> Experience:
        """Responses to prompts, with the sampler's log-probs."""
        s = self.settings
        count = s.per_held_out if number < 0 else s.per_prompt
        params = SamplingParams(max_new_tokens=s.max_new_tokens, temperature=s.temperature)
        params.check_training()
        self.cast.sampler.refresh()
        with frozen(self.policy.model):
            found = self.cast.sampler.sample(
                [tree.trunk.ids for tree in prompts], count, params, seed=seed
            )
        trees = [
            response_tree(tree.trunk.ids, [one.ids for one in samples], tree.origin)
            for tree, samples in zip(prompts, found, strict=True)
        ]
        flat = [one for samples in found for one in samples]
        experience = Experience(number, trees, list(rows))
        old = [value for one in flat for value in one.logprobs]
        experience.tokens["old"] = torch.tensor(old, dtype=torch.float32)
        experience.responses["ended"] = torch.tensor([one.ended for one in flat])
        return experience

    def judged(self, experience: Experience) -> None:
        """Scores of all responses; what nobody could judge is marked and set to 0."""
        scores, columns = self.cast.judge.score(self._asked(experience))
        ended = experience.responses["ended"]
        valid = ~scores.isnan()
        scores = torch.where(valid, scores, 0.0)
        experience.responses["raw_score"] = scores
        if self.settings.missing_eos_penalty is not None:
            scores = scores - self.settings.missing_eos_penalty * (~ended).float()
        experience.responses |= {"score": torch.where(valid, scores, 0.0), "valid": valid}
        experience.responses |= columns

    def rewards_of(
        self, trees: Sequence[TokenTree], ended: Sequence[bool]
    ) -> dict[str, list[float]]:
        """Rewards of one response to each of some prompts, under the names of completion tables."""
        experience = Experience(-1, list(trees), list(range(len(trees))))
        experience.responses["ended"] = torch.tensor(ended)
        self.judged(experience)
        r = experience.responses
        score = torch.where(r["valid"], r["score"], math.nan)
        found = {name.removesuffix("/mean"): v.tolist() for name, v in reward_columns(r)}
        return {"reward": score.tolist(), **found}

    def _asked(self, experience: Experience) -> list[Asked]:
        asked: list[Asked] = []
        ended = experience.responses["ended"].tolist()
        for tree in experience.trees:
            row = self.cast.prompt_rows[tree.origin]
            for branch in tree.branches:
                text = self.cast.tokenizer.decode(branch.ids, skip_special_tokens=True)
                chat = not isinstance(row.prompt, str)
                completion: Text = [{"role": "assistant", "content": text}] if chat else text
                alone = tree._replace(branches=(branch,))
                asked.append(Asked(row.prompt, completion, row.columns, alone, ended[len(asked)]))
        return asked

    def _reference_and_old(self, experience: Experience) -> None:
        """Reference log-probs, and the trainer's own where they are asked for."""
        columns: dict[str, list[Tensor]] = {"reference": [], "old": []}
        t = self.settings.temperature
        for micro in experience.micros(range(len(experience.trees)), self.stream.token_budget):
            batch = micro.batch.to(self.policy.device)
            if self.cast.reference is not None:
                columns["reference"].append(self.cast.reference.token_logprobs(batch, t).cpu())
            if self.settings.trainer_logprobs:
                with frozen(self.policy.model):
                    columns["old"].append(self.policy.token_stats(batch, temperature=t).logp.cpu())
        if columns["old"]:
            experience.tokens["sampled"] = experience.tokens["old"]  # for the gap in the log
        for name, parts in columns.items():
            if parts:
                experience.tokens[name] = torch.cat(parts)
        experience.tokens.setdefault("reference", experience.tokens["old"].clone())

    def complete(self, experience: Experience) -> None:
        """Rewards, advantages and whatever else the algorithm trains with."""
        raise AssertionError("an algorithm says what it makes of a rollout")

    # ------------------------------------------------------------------ metrics

    def prepare(self, step: int, micros: Sequence[Micro]) -> dict[str, Metric]:
        """A rollout is logged with its first step: one that goes on within it has it logged."""
        if step % self.steps_per_rollout:
            return {}
        keep_recorded(micros)
        assert self.current is not None
        return {**completion_metrics(self.current), **self.rollout_metrics(self.current)}

    def rollout_metrics(self, experience: Experience) -> dict[str, Metric]:
        """What the algorithm logs of a rollout."""
        return {}

    # ------------------------------------------------------------------ held-out prompts

    def evaluate(self, step: int) -> dict[str, Any]:
        """Mean reward, KL and length on the held-out prompts; the tax."""
        found: dict[str, Any] = {}
        if self.held_out is not None:
            found |= self._evaluate_prompts(self.held_out)
        if self.eval_text is not None:
            found["lm_loss"] = self._text_loss(self.eval_text)
        return found

    def _evaluate_prompts(self, held_out: TreeStream) -> dict[str, Any]:
        rows = list(range(len(held_out)))
        prompts = [held_out.tree(row) for row in rows]
        # The same draws at every evaluation: two of them differ by the weights alone.
        experience = self.sampled(-1, rows, prompts, derive(self.settings.seed, "eval"))
        self.judged(experience)
        self._reference_and_old(experience)
        valid, r = experience.responses["valid"], experience.responses
        found: dict[str, Any] = {}
        kl = sequence_sums(experience.tokens["old"] - experience.tokens["reference"], experience)
        columns = {"reward": r["score"][valid], "kl": kl, "length": experience.lengths.double()}
        if self.cast.reference is None:  # nobody to measure it from
            del columns["kl"]
        columns |= {metric: v[~v.isnan()] for metric, v in reward_columns(r)}
        for name, values in columns.items():
            if len(values) == 0:  # nobody could judge: known, and no number
                found[name] = math.nan
                continue
            # One value a prompt, so that responses to one prompt do not count as independent.
            whole = values.numel() == len(experience.groups)
            if whole and self.settings.per_held_out > 1:
                values = values.double().view(len(prompts), -1).mean(1)
            interval = mean_interval(values.double().numpy())
            found[name] = interval.mean
            if interval.n > 1:
                found[f"{name}_ci95"] = [interval.low, interval.high]
        found["ended"] = r["ended"].double().mean().item()
        return found | texture(experience)

    def _text_loss(self, stream: TreeStream) -> float:
        nll = tokens = 0.0
        with frozen(self.policy.model):
            for micro in micro_batches(stream, range(len(stream)), stream.token_budget, "tax"):
                batch = micro.batch.to(self.policy.device)
                weights = target_weights(batch).cpu().double()
                logp = self.policy.token_stats(batch).logp.cpu().double()
                nll -= (logp * weights).sum().item()
                tokens += weights.sum().item()
        return nll / tokens


def move(micro: Micro, device: torch.device) -> None:
    """A micro-batch and its columns on a device."""
    micro.batch = micro.batch.to(device)
    micro.tokens = {name: value.to(device) for name, value in micro.tokens.items()}
    micro.responses = {name: value.to(device) for name, value in micro.responses.items()}


def sequence_sums(values: Tensor, experience: Experience) -> Tensor:
    """[N] sums over the tokens of each response."""
    out = torch.zeros(len(experience.lengths), dtype=torch.float64)
    return out.index_add(0, experience.sequence, values.double())
