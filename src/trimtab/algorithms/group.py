"""grpo, rloo and the other critic-free policy gradients: responses against those of their group.

What tells them apart is data (``PAPERS``): how a response's advantage is made of the rewards, over
what ratios are clipped, by what a sum is divided, and where the KL term is.

    grpo                   arXiv:2402.03300   A = (r - mean) / std, mean over tokens, then responses
    dr_grpo                arXiv:2503.20783   A = r - mean, divided by a constant length
    dapo                   arXiv:2503.14476   mean over tokens, clipped higher, flat groups again
    gspo                   arXiv:2507.18071   one ratio a response, the mean of its tokens' logs
    rloo                   arXiv:2402.14740   A = R - mean of the others, sums over a response
    reinforce_pp           arXiv:2501.03262   rewards to go, normalised over the whole batch
    reinforce_pp_baseline                     the group's mean taken off first
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from trimtab.algorithms.experience import Experience
from trimtab.algorithms.on_policy import OnPolicy, sequence_sums
from trimtab.algorithms.rollout_log import greatest, least, mean
from trimtab.algorithms.sampling_gap import gap_metrics, old_logprobs
from trimtab.config.on_policy_recipe import GroupRecipe
from trimtab.losses.advantages import (
    group_relative,
    leave_one_out,
    overlong_penalty,
    reinforce_pp,
    reinforce_pp_baseline,
)
from trimtab.losses.kl import KL_ESTIMATORS, weighted_kl
from trimtab.losses.packed import segment_sum
from trimtab.losses.policy_gradient import (
    Aggregation,
    clipped_ratio_loss,
    gspo_ratio,
    reinforce_loss,
    token_ratio,
    token_weights,
)
from trimtab.training.algorithm import Micro, Outcome
from trimtab.training.seeds import derive
from trimtab.training.terms import Metric, Term, Unit

ROUNDS = 3  # times that flat groups are sampled again, at most


@dataclasses.dataclass(frozen=True)
class GroupSettings:
    """An algorithm: the paper's choices, and the recipe's in their place where it names some.

    advantage   group | loo | to_go | baseline      aggregate  sequence_mean | token_mean |
    kl_place    reward | loss                                  constant | sequence_sum
    """

    advantage: str
    aggregate: Aggregation
    kl_coef: float
    kl_estimator: str
    kl_place: str
    low: float | None
    high: float | None
    scale: str = "group"
    whole_ratio: bool = False
    dynamic: bool = False
    overlong_cache: int = 0


PAPERS: Mapping[str, GroupSettings] = {
    "grpo": GroupSettings("group", "sequence_mean", 0.04, "k3", "loss", 0.2, 0.2),
    "dr_grpo": GroupSettings("group", "constant", 0.0, "k3", "loss", 0.2, 0.2, scale="none"),
    "dapo": GroupSettings("group", "token_mean", 0.0, "k3", "loss", 0.2, 0.28, dynamic=True),
    "gspo": GroupSettings(
        "group", "sequence_mean", 0.0, "k3", "loss", 3e-4, 4e-4, whole_ratio=True
    ),
    "rloo": GroupSettings("loo", "sequence_sum", 0.03, "k1", "reward", None, None, scale="none"),
    "reinforce_pp": GroupSettings("to_go", "token_mean", 0.01, "k1", "reward", 0.2, 0.2),
    "reinforce_pp_baseline": GroupSettings("baseline", "token_mean", 0.01, "k2", "loss", 0.2, 0.2),
}
UNITS: Mapping[str, Unit] = {
    "sequence_mean": "sequence",
    "sequence_sum": "sequence",
    "token_mean": "token",
    "constant": "constant",
}


def group_settings(recipe: GroupRecipe) -> GroupSettings:
    """The recipe's algorithm, with what the recipe says itself."""
    paper = PAPERS[recipe.algorithm]
    given: dict[str, Any] = {
        "kl_coef": recipe.kl_coef,
        "kl_estimator": recipe.kl_estimator,
        "kl_place": recipe.kl_placement,
        "low": recipe.epsilon,
        "high": recipe.epsilon_high or recipe.epsilon,
        "scale": recipe.scale_rewards,
        "dynamic": recipe.dynamic_sampling,
    }
    changes = {name: value for name, value in given.items() if value is not None}
    if changes.get("kl_place") == "reward" and "kl_estimator" not in changes:
        changes["kl_estimator"] = "k1"
    if changes.get("kl_place") == "loss" and paper.kl_estimator == "k1":
        changes.setdefault("kl_estimator", "k3")
    return dataclasses.replace(paper, **changes, overlong_cache=recipe.overlong_cache)


class GroupPolicyGradient(OnPolicy):
    """One policy term, and a KL term where it is in the loss."""

    def __init__(self, *args: Any, group: GroupSettings, **more: Any) -> None:
        super().__init__(*args, **more)
        self.group = group
        self.kl_in_loss = group.kl_place == "loss" and group.kl_coef > 0

    # ------------------------------------------------------------------ what a rollout is worth

    def judged(self, experience: Experience) -> None:
        """Scores; DAPO's soft penalty for length; other samples where all rewards are equal."""
        super().judged(experience)
        self._penalise_length(experience)
        if not self.group.dynamic or experience.number < 0:
            return
        for again in range(ROUNDS):
            flat = self._flat(experience)
            if not flat:
                break
            self._sample_again(experience, flat, again)

    def _penalise_length(self, experience: Experience) -> None:
        if self.group.overlong_cache:
            penalty = overlong_penalty(
                experience.lengths, self.settings.max_new_tokens, self.group.overlong_cache
            )
            experience.responses["score"] = experience.responses["score"] + penalty.float()

    def _flat(self, experience: Experience) -> list[int]:
        """Prompts whose judged responses all have one reward."""
        size = self.settings.per_prompt
        scores = experience.responses["score"].view(-1, size)
        valid = experience.responses["valid"].view(-1, size)
        return [
            i
            for i in range(len(scores))
            if valid[i].any() and (scores[i][valid[i]].max() - scores[i][valid[i]].min()) < 1e-3
        ]

    def _sample_again(self, experience: Experience, flat: Sequence[int], again: int) -> None:
        """Put new groups in the place of flat ones, where the new ones are not flat."""
        seed = derive(self.settings.seed, "again", experience.number, again)
        prompts = [experience.trees[i]._replace(branches=()) for i in flat]
        rows = [experience.rows[i] for i in flat]
        fresh = self.sampled(experience.number, rows, prompts, seed)
        super().judged(fresh)
        self._penalise_length(fresh)
        still = set(self._flat(fresh))
        for place, index in enumerate(flat):
            if place not in still:
                _replace(experience, index, fresh, place)

    def complete(self, experience: Experience) -> None:
        """Advantages from the groups' rewards."""
        g, tokens, responses = self.group, experience.tokens, experience.responses
        sequence, groups = experience.sequence, experience.groups
        valid = responses["valid"].bool()
        tokens["valid"] = valid[sequence].float()
        tokens["kl"] = KL_ESTIMATORS["k1"](tokens["old"], tokens["reference"])
        rewards = responses["score"]
        penalty = g.kl_coef if g.kl_place == "reward" else 0.0
        if g.advantage == "loo":
            rewards = rewards - penalty * sequence_sums(tokens["kl"], experience).float()
            per_response = leave_one_out(rewards, groups, valid)
        elif g.advantage == "group":
            rewards = rewards - penalty * sequence_sums(tokens["kl"], experience).float()
            per_response = group_relative(rewards, groups, valid, scale=g.scale)  # type: ignore[arg-type]
        else:
            make = reinforce_pp if g.advantage == "to_go" else reinforce_pp_baseline
            more = {} if g.advantage == "to_go" else {"groups": groups}
            tokens["advantages"] = make(
                rewards,
                tokens["kl"],
                sequence,
                experience.lengths,
                valid=valid,
                beta=penalty,
                **more,
            )
            return
        tokens["advantages"] = per_response[sequence]

    # ------------------------------------------------------------------ a step

    def select(self, experience: Experience, chosen: Sequence[int]) -> list[Micro]:
        """Micro-batches; prompts without any signal are counted and not computed."""
        if self.kl_in_loss:
            return super().select(experience, chosen)
        sizes = torch.tensor([sum(len(b.ids) for b in t.branches) for t in experience.trees])
        tree = torch.arange(len(sizes)).repeat_interleave(sizes)
        signal = torch.zeros(len(sizes)).index_add(0, tree, experience.tokens["advantages"].abs())
        kept = [i for i in chosen if signal[i] != 0] or list(chosen[:1])
        found = super().select(experience, kept)
        valid = _valid_by_tree(experience)
        beside = {"sequence": 0.0, "token": 0.0}
        for index in set(chosen) - set(kept):
            for branch, use in zip(experience.trees[index].branches, valid[index], strict=True):
                beside["sequence"] += use
                beside["token"] += use * len(branch.ids)
        found[0].beside = beside
        return found

    def own_counts(self, micro: Micro) -> Mapping[str, float]:
        """Responses, tokens, or responses times the longest length, of what could be judged."""
        unit = UNITS[self.group.aggregate]
        by_token = unit == "token"
        column = micro.tokens["valid"] if by_token else micro.responses["valid"]
        count = float(column.cpu().double().sum())
        count += micro.beside.get("token" if by_token else "sequence", 0.0)
        if unit == "constant":
            count *= self.settings.max_new_tokens
        return {"policy": count, "kl": count} if self.kl_in_loss else {"policy": count}

    def own_terms(self, micro: Micro) -> Outcome:
        """The clipped policy loss, and the KL term."""
        batch, tokens = micro.batch, micro.tokens
        stats = self.policy.token_stats(batch, entropy=True, temperature=self.settings.temperature)
        logp, old = stats.logp, old_logprobs(stats.logp, tokens)
        lengths = batch.length[: batch.branch_count]
        owner = batch.target_sequence
        g = self.group
        weights = token_weights(g.aggregate, lengths, owner) * tokens["valid"]
        counts = self.own_counts(micro)
        if g.low is None or g.high is None:
            losses, ratio = reinforce_loss(logp, tokens["advantages"]), token_ratio(logp, old)
            ratio, low, high = ratio.detach(), torch.zeros_like(old), torch.zeros_like(old)
        else:
            whole = g.whole_ratio
            ratio = gspo_ratio(logp, old, owner, lengths) if whole else token_ratio(logp, old)
            found = clipped_ratio_loss(ratio, tokens["advantages"], low=g.low, high=g.high)
            losses, ratio = found.losses, found.ratio
            low, high = found.clipped_low.float(), found.clipped_high.float()
        unit = UNITS[g.aggregate]
        terms = [Term("policy", (losses * weights).sum(), counts["policy"], unit)]
        valid, count = tokens["valid"], float(tokens["valid"].sum())
        assert stats.entropy is not None
        metrics = {
            "entropy": mean(stats.entropy.detach()),
            "val/ratio": Metric((ratio * valid).sum().item(), count),
            "policy/approxkl_avg": Metric(
                0.5 * ((logp.detach() - old) * valid).square().sum().item(), count
            ),
        }
        metrics |= clip_metrics(low, high, valid, owner, batch.branch_count)
        metrics |= gap_metrics(logp, tokens)
        if self.kl_in_loss:
            kl = self._kl(logp, tokens)
            terms.append(Term("kl", (kl * weights).sum(), counts["kl"], unit, g.kl_coef))
            metrics["kl"] = Metric((kl.detach() * valid).sum().item(), count)
        return Outcome(terms, metrics)

    def _kl(self, logp: Tensor, tokens: Mapping[str, Tensor]) -> Tensor:
        name = self.group.kl_estimator
        if name == "k3_weighted":
            return weighted_kl("k3", logp, tokens["reference"], old_logprobs(logp, tokens))
        return KL_ESTIMATORS[name](logp, tokens["reference"])

    # ------------------------------------------------------------------ metrics

    def rollout_metrics(self, experience: Experience) -> dict[str, Metric]:
        """Groups without a signal; how far the policy has gone, where a reference says so."""
        flat = len(self._flat(experience)) / len(experience.trees)
        found = {"frac_reward_zero_std": Metric(flat, 1.0)}
        if self.cast.reference is not None:
            kl = experience.tokens["old"] - experience.tokens["reference"]
            found["objective/kl"] = mean(sequence_sums(kl, experience))
        return found


def clip_metrics(
    low: Tensor, high: Tensor, valid: Tensor, owner: Tensor, count: int
) -> dict[str, Metric]:
    """Shares of tokens [M] that the clip range holds back on either side (fp32, 0 or 1).

    Means are over the tokens of judged responses, the least and greatest over these responses,
    ``owner`` [M] out of ``count``: of each the share of its own tokens, as TRL has it.
    """
    of_each = segment_sum(valid, owner, count)
    judged = of_each > 0
    tokens = of_each.sum().item()
    lows, highs = (segment_sum(held * valid, owner, count) for held in (low, high))
    held_low, held_high = lows.sum().item(), highs.sum().item()
    return {
        "clip_ratio/region_mean": Metric(held_low + held_high, tokens),
        "clip_ratio/low_mean": Metric(held_low, tokens),
        "clip_ratio/low_min": least((lows / of_each)[judged]),
        "clip_ratio/high_mean": Metric(held_high, tokens),
        "clip_ratio/high_max": greatest((highs / of_each)[judged]),
    }


def _valid_by_tree(experience: Experience) -> list[list[float]]:
    valid = experience.responses["valid"].float().tolist()
    found: list[list[float]] = []
    start = 0
    for tree in experience.trees:
        found.append(valid[start : start + len(tree.branches)])
        start += len(tree.branches)
    return found


def _replace(into: Experience, index: int, source: Experience, place: int) -> None:
    """Put group ``place`` of another experience in the place of group ``index``, columns too."""

    def spliced(
        columns: dict[str, Tensor], other: dict[str, Tensor], per: Any
    ) -> dict[str, Tensor]:
        first, last = per(into, index)
        a, b = per(source, place)
        return {
            name: torch.cat([column[:first], other[name][a:b], column[last:]])
            for name, column in columns.items()
        }

    def tokens_of(one: Experience, at: int) -> tuple[int, int]:
        sizes = [sum(len(b.ids) for b in tree.branches) for tree in one.trees]
        return sum(sizes[:at]), sum(sizes[: at + 1])

    def responses_of(one: Experience, at: int) -> tuple[int, int]:
        sizes = [len(tree.branches) for tree in one.trees]
        return sum(sizes[:at]), sum(sizes[: at + 1])

    into.tokens = spliced(into.tokens, source.tokens, tokens_of)
    into.responses = spliced(into.responses, source.responses, responses_of)
    into.trees[index] = source.trees[place]
