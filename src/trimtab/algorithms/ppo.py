"""ppo: E[r - beta log(pi/pi_SFT)] + gamma_ptx E_pretrain[log pi], by clipped importance ratios.

The four lines of the derivation are ``objective``s (docs/algorithms.md):

    on_policy       E over pi of the reward itself: one step a rollout
    importance      the expectation moved to the policy that sampled: ratio x reward
    clip_reward     min(ratio x reward, clip(ratio) x reward)
    clip_advantage  PPO (arXiv:1707.06347, equation 7): an advantage in the reward's place, from a
                    learned value function, with the KL inside it

``ratio=sequence`` takes a whole response for one action: its ratio is the product of the tokens',
its advantage what it brought in all, less the value of its prompt.

``mix`` is the ptx term (arXiv:2203.02155, equation 2).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trimtab.algorithms.critic import Critic
from trimtab.algorithms.experience import Experience
from trimtab.algorithms.on_policy import OnPolicy, move, sequence_sums
from trimtab.algorithms.policy import frozen
from trimtab.algorithms.rollout_log import mean
from trimtab.algorithms.sampling_gap import gap_metrics, old_logprobs
from trimtab.losses.advantages import explained_variance, gae, reward_to_go, token_rewards, whiten
from trimtab.losses.kl import KL_ESTIMATORS
from trimtab.losses.packed import last_tokens
from trimtab.losses.policy_gradient import (
    clipped_policy_loss,
    clipped_ratio_loss,
    clipped_value_loss,
    importance_loss,
    sequence_ratio,
    token_ratio,
)
from trimtab.models.forward import hidden_states
from trimtab.training.algorithm import Micro, Outcome
from trimtab.training.terms import Metric, Term

LEAST_KL_FACTOR = 0.1  # of the adaptive controller, at a rollout of several horizons
VALUE_MODEL = "value_model"  # its folder in the run's


@dataclasses.dataclass(frozen=True)
class PpoSettings:
    """The recipe's PPO keys; see ``config/on_policy_recipe.py``."""

    objective: str
    ratio: str
    kl_coef: float
    kl_estimator: str
    kl_placement: str
    kl_controller: str
    kl_target: float
    kl_horizon: int
    cliprange: float
    cliprange_value: float | None
    vf_coef: float
    gamma: float
    lam: float
    whiten_rewards: bool
    whiten_advantages: bool
    bootstrap: bool


class PPO(OnPolicy):
    """Policy, value and mix terms over the passes of each rollout."""

    def __init__(self, *args: Any, ppo: PpoSettings, critic: Critic | None, **more: Any) -> None:
        super().__init__(*args, **more)
        assert (critic is not None) == (ppo.objective == "clip_advantage")
        self.ppo = ppo
        self.critic = critic
        self.kl_coef = ppo.kl_coef

    # ------------------------------------------------------------------ what a rollout is worth

    def complete(self, experience: Experience) -> None:
        """Token rewards with the KL inside, values, advantages; all of it frozen from here on."""
        tokens, responses = experience.tokens, experience.responses
        sequence, lengths = experience.sequence, experience.lengths
        kl = KL_ESTIMATORS[self.ppo.kl_estimator](tokens["old"], tokens["reference"])
        tokens["kl"] = kl
        beta = self.kl_coef if self.ppo.kl_placement == "reward" else 0.0
        rewards = token_rewards(self._final_scores(responses), kl, sequence, beta)
        tokens["valid"] = responses["valid"][sequence].float()
        if self.ppo.whiten_rewards:
            rewards = whiten(rewards, shift_mean=False, weights=tokens["valid"])
        tokens["rewards"] = rewards
        if self.critic is not None:
            if self.critic.new and experience.number == 0:
                self.critic.offset = self._mean_return(experience)
            self._add_values(experience)
            after = responses["value_after"] * (~responses["ended"].bool()).float()
            whole = self.ppo.ratio == "sequence"
            advantages, returns = gae(
                rewards,
                tokens["values"],
                sequence,
                lengths,
                gamma=self.ppo.gamma,
                lam=1.0 if whole else self.ppo.lam,
                bootstrap=after if self.ppo.bootstrap else None,
            )
            weights = tokens["valid"]
            if whole:  # the first token's: all rewards less the value of the prompt
                advantages = advantages[lengths.cumsum(0) - lengths]
                weights = responses["valid"].float()
            if self.ppo.whiten_advantages:
                advantages = whiten(advantages, weights=weights)
            if whole:
                advantages = advantages[sequence]
            tokens |= {"advantages": advantages, "returns": returns}
        elif self.ppo.ratio == "sequence":
            tokens["advantages"] = sequence_sums(rewards, experience).float()[sequence]
        else:
            tokens["advantages"] = reward_to_go(rewards, sequence, lengths, gamma=self.ppo.gamma)
        experience.facts["kl_coef"] = self.kl_coef
        experience.facts["next_kl_coef"] = self._next_kl_coef(experience)

    def _final_scores(self, responses: Mapping[str, Tensor]) -> Tensor:
        """[N]: what the last token brings. The value after a cut stands in its score's place.

        With both, a response that was cut off would count twice: V is the score to come.
        """
        scores = responses["score"]
        if self.critic is None or not self.ppo.bootstrap:
            return scores
        fine = scores - responses["raw_score"]
        return torch.where(responses["ended"].bool(), scores, fine)

    def _mean_return(self, experience: Experience) -> float:
        """What is still to come at a token, on average; of responses whose end has its score."""
        tokens, sequence = experience.tokens, experience.sequence
        weights = tokens["valid"]
        if self.ppo.bootstrap:
            weights = weights * experience.responses["ended"][sequence].float()
        to_come = reward_to_go(
            tokens["rewards"], sequence, experience.lengths, gamma=self.ppo.gamma
        )
        return ((to_come * weights).sum() / weights.sum().clamp(min=1)).item()

    def _add_values(self, experience: Experience) -> None:
        assert self.critic is not None
        values: list[Tensor] = []
        after: list[Tensor] = []
        everyone = range(len(experience.trees))
        for micro in experience.micros(everyone, self.stream.token_budget):
            move(micro, self.policy.device)
            with frozen(self.model):
                hidden = None
                if self.critic.shared:
                    hidden = hidden_states(self.policy.model, micro.batch, self.policy.layout)
                found = self.critic.values(micro.batch, hidden)
            values.append(found.tokens.cpu())
            after.append(found.ends.cpu())
        experience.tokens["values"] = torch.cat(values)
        experience.responses["value_after"] = torch.cat(after)

    def _next_kl_coef(self, experience: Experience) -> float:
        """The adaptive controller of arXiv:1909.08593, section 2.2."""
        if self.ppo.kl_controller == "fixed":
            return self.kl_coef
        kl = sequence_sums(experience.tokens["kl"], experience).mean().item()
        error = min(max(kl / self.ppo.kl_target - 1, -0.2), 0.2)
        factor = 1 + error * len(experience.lengths) / self.ppo.kl_horizon
        return self.kl_coef * max(factor, LEAST_KL_FACTOR)

    def use(self, experience: Experience) -> None:
        """The coefficient that the next rollout will have."""
        self.kl_coef = experience.facts["next_kl_coef"]

    # ------------------------------------------------------------------ a step

    def own_counts(self, micro: Micro) -> Mapping[str, float]:
        """Of what could be judged: tokens, or responses where the term is a sum over them."""
        responses = float(micro.responses["valid"].cpu().double().sum())
        if self.critic is None:
            return {"policy": responses}
        tokens = float(micro.tokens["valid"].cpu().double().sum())
        return {"policy": responses if self._by_response else tokens, "value": tokens}

    @property
    def _by_response(self) -> bool:
        return self.critic is None or self.ppo.ratio == "sequence"

    def own_terms(self, micro: Micro) -> Outcome:
        """The policy term and, with a critic, the value term."""
        batch, tokens = micro.batch, micro.tokens
        hidden = hidden_states(self.policy.model, batch, self.policy.layout)
        stats = self.policy.token_stats(
            batch,
            entropy=True,
            temperature=self.settings.temperature,
            hidden=hidden.targets(),
        )
        counts = self.own_counts(micro)
        if self._by_response:
            terms, metrics = self._expectation(micro, stats.logp, counts["policy"])
        else:
            found = clipped_policy_loss(
                stats.logp,
                old_logprobs(stats.logp, tokens),
                tokens["advantages"],
                low=self.ppo.cliprange,
                high=self.ppo.cliprange,
            )
            valid = tokens["valid"]
            terms = [Term("policy", (found.losses * valid).sum(), counts["policy"], "token")]
            metrics = self._ratio_metrics(stats.logp, micro)
            metrics["loss/policy_avg"] = Metric(terms[0].sum.item(), counts["policy"])
        if self.critic is not None:
            values = self.critic.values(batch, hidden).tokens
            term, more = self._value_term(values, micro, counts["value"])
            terms.append(term)
            metrics |= more
        assert stats.entropy is not None
        metrics["policy/entropy_avg"] = mean(stats.entropy.detach())
        return Outcome(terms, metrics)

    def _value_term(
        self, values: Tensor, micro: Micro, count: float
    ) -> tuple[Term, dict[str, Metric]]:
        tokens, clip = micro.tokens, self.ppo.cliprange_value
        valid = tokens["valid"]
        losses = clipped_value_loss(values, tokens["values"], tokens["returns"], clip)
        total = (losses * valid).sum()
        metrics = {"loss/value_avg": Metric(total.item(), count)}
        if clip is not None:
            moved = ((values.detach() - tokens["values"]).abs() > clip).float()
            metrics["val/clipfrac_avg"] = Metric((moved * valid).sum().item(), count)
        return Term("value", total, count, "token", self.ppo.vf_coef), metrics

    def _expectation(
        self, micro: Micro, logp: Tensor, count: float
    ) -> tuple[list[Term], dict[str, Metric]]:
        """Lines 1 to 3, and 4 of whole responses: a sum over a response, mean over responses."""
        batch, tokens = micro.batch, micro.tokens
        valid, gain = tokens["valid"], tokens["advantages"]
        owner, old = batch.target_sequence, old_logprobs(logp, tokens)
        if self.ppo.ratio == "sequence":
            lengths = batch.length[: batch.branch_count]
            ratio = sequence_ratio(logp, old, owner, lengths, kind="sum")
            last = last_tokens(owner, batch.branch_count)  # one entry a response
            gain, valid = gain[last], valid[last]
        else:
            ratio = token_ratio(logp, old)
        if self.ppo.objective == "on_policy":
            losses = importance_loss(ratio / ratio.detach(), gain)  # d log pi, at any ratio
        elif self.ppo.objective == "importance":
            losses = importance_loss(ratio, gain)
        else:
            clip = self.ppo.cliprange
            losses = clipped_ratio_loss(ratio, gain, low=clip, high=clip).losses
        total = (losses * valid).sum()
        if self.ppo.kl_placement == "literal":  # at the policy that sampled: a constant
            total = total + self.kl_coef * (tokens["kl"] * tokens["valid"]).sum()
        metrics = self._ratio_metrics(logp, micro)
        metrics["loss/policy_avg"] = Metric(total.item(), count)
        return [Term("policy", total, count, "sequence")], metrics

    # ------------------------------------------------------------------ metrics

    def _ratio_metrics(self, logp: Tensor, micro: Micro) -> dict[str, Metric]:
        valid, old = micro.tokens["valid"], old_logprobs(logp, micro.tokens)
        difference = (logp.detach() - old) * valid
        ratio = token_ratio(logp.detach(), old)
        count = float(valid.sum())
        clip = self.ppo.cliprange
        return gap_metrics(logp, micro.tokens) | {
            "policy/approxkl_avg": Metric(0.5 * difference.square().sum().item(), count),
            "policy/clipfrac_avg": Metric(
                (((ratio - 1).abs() > clip).float() * valid).sum().item(), count
            ),
            "val/ratio": Metric((ratio * valid).sum().item(), count),
            "val/ratio_var": Metric(((ratio - 1).square() * valid).sum().item(), count),
        }

    def rollout_metrics(self, experience: Experience) -> dict[str, Metric]:
        """The objective's parts, as TRL's PPO named them."""
        tokens, responses = experience.tokens, experience.responses
        valid = responses["valid"].bool()
        kl = sequence_sums(tokens["old"] - tokens["reference"], experience)
        penalty = -experience.facts["kl_coef"] * sequence_sums(tokens["kl"], experience)
        total = penalty + responses["score"].double()
        found = {
            "objective/kl": mean(kl),
            "objective/non_score_reward": mean(penalty),
            "objective/scores": mean(responses["score"][valid]),
            "objective/rlhf_reward": mean(total[valid]),
            "objective/entropy": mean(-sequence_sums(tokens["old"], experience)),
            "val/num_eos_tokens": Metric(responses["ended"].sum().item(), 1.0),
            "kl_coef": Metric(experience.facts["kl_coef"], 1.0),
        }
        if "values" in tokens:
            ev = explained_variance(tokens["values"], tokens["returns"], tokens["valid"])
            found["val/explained_variance"] = Metric(float(ev), 1.0)
        return found

    # ------------------------------------------------------------------ state, and what is saved

    def beside(self, tokenizer: Any, stop_ids: Sequence[int]) -> tuple[Callable[[Path], None], ...]:
        """The value model, as ``value_model/``."""
        critic = self.critic
        if critic is None or critic.head is None:
            return ()
        model = self.policy.model
        return (lambda f: critic.save(model, tokenizer, f / VALUE_MODEL, stop_ids=stop_ids),)

    def state_dict(self) -> dict[str, Any]:
        """The controller's coefficient, where values begin; the rollout itself is in its file."""
        offset = None if self.critic is None else self.critic.offset
        return {"kl_coef": self.kl_coef, "value_offset": offset}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what ``state_dict`` gave."""
        self.kl_coef = float(state["kl_coef"])
        if self.critic is not None:
            self.critic.offset = float(state.get("value_offset") or 0.0)  # older checkpoints: none
