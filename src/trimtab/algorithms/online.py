"""online_dpo: any preference loss on the policy's own samples, compared by their scores.

Direct alignment from online feedback (arXiv:2402.04792): G responses to every prompt are sampled
from the policy as it is, judged, compared (``pairing.py``) and trained on by the loss that the
recipe names, against a frozen reference. The gradient does not pass through the sampling. With
``sync_steps`` the policy becomes the reference every so many steps: iterative DPO.

The loss, what it needs and its metrics are ``preference.py``'s; log-probs are those of the model
as it is, whatever temperature it was sampled at.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from trimtab.algorithms.experience import Experience
from trimtab.algorithms.fresh import FreshSamples
from trimtab.algorithms.on_policy import sequence_sums
from trimtab.algorithms.pairing import Chosen, Judged, compared
from trimtab.algorithms.preference import PreferenceOptimisation
from trimtab.algorithms.reference import LiveReference, frozen_copy
from trimtab.training.algorithm import Micro, Outcome
from trimtab.training.seeds import generator
from trimtab.training.terms import Metric


@dataclasses.dataclass(frozen=True)
class OnlineSettings:
    """The recipe's keys; see ``config/online_recipe.py``."""

    every_pair: bool
    noisy: bool  # the winner is drawn by Bradley-Terry
    sync_steps: int | None


class OnlinePreference(FreshSamples):
    """Rollouts of ``FreshSamples``, the loss of a ``PreferenceOptimisation``."""

    def __init__(
        self, *args: Any, online: OnlineSettings, preference: PreferenceOptimisation, **more: Any
    ) -> None:
        super().__init__(*args, **more)
        self.online = online
        self.preference = preference
        self.kind = preference.spec.kind
        self.synced_at = 0  # the step at which the policy became the reference; 0: the first one

    # ------------------------------------------------------------------ a rollout

    def collect(self, number: int) -> Experience:
        """A rollout, against the reference that is due."""
        step, every = number * self.steps_per_rollout, self.online.sync_steps
        if every and step and step % every == 0 and step != self.synced_at:
            self._refer_to(frozen_copy(self.policy), step)
            self.note(f"step {step}: the policy is the reference from here on")
        return super().collect(number)

    def _refer_to(self, reference: LiveReference, step: int) -> None:
        self.cast = dataclasses.replace(self.cast, reference=reference)
        self.preference.references.live = reference
        self.synced_at = step

    def complete(self, experience: Experience) -> None:
        """Reference log-probs [N] of whole responses; by what responses are compared."""
        super().complete(experience)
        responses = experience.responses
        if "reference" in self.preference.spec.needs | self.preference.spec.prepare_needs:
            responses["reference"] = self._reference_sums(experience)
        if self.online.noisy:
            # Differences of Gumbel variables are logistic: of every two responses, i comes before
            # j with probability sigmoid(s_i - s_j), and all of them in Plackett and Luce's order.
            draw = generator(self.settings.seed, "annotator", experience.number)
            uniform = torch.rand(len(responses["score"]), generator=draw, dtype=torch.float64)
            noise = -(-uniform.clamp(min=1e-300).log()).clamp(min=1e-300).log()
            responses["order"] = responses["score"].double() + noise

    def _reference_sums(self, experience: Experience) -> Tensor:
        if self.settings.temperature == 1.0:
            return sequence_sums(experience.tokens["reference"], experience).float()
        assert self.cast.reference is not None
        parts: list[Tensor] = []
        for micro in experience.micros(range(len(experience.trees)), self.stream.token_budget):
            batch = micro.batch.to(self.policy.device)
            parts.append(self.cast.reference.branch_logprobs(batch).sum.cpu())
        return torch.cat(parts)

    def choose(self, judged: Judged) -> Chosen | None:
        """The comparisons among a prompt's responses."""
        assert self.kind is not None
        return compared(judged, self.kind, self.online.every_pair)

    def why_nothing(self, experience: Experience) -> str:
        """All ties, or nobody could judge."""
        count, prompts = len(experience.lengths), len(experience.trees)
        known = int(experience.responses["valid"].sum())
        told = "all scores of a prompt tie" if known else "no reward could judge them"
        return f"{count} responses to {prompts} prompts and no comparison, for {told}"

    # ------------------------------------------------------------------ a step

    def select(self, experience: Experience, chosen: Sequence[int]) -> list[Micro]:
        """Micro-batches of comparisons, with the reference's log-probs."""
        found = super().select(experience, chosen)
        for micro in found:
            if (reference := micro.responses.get("reference")) is not None:
                micro.reference = reference.to(self.policy.device)
        return found

    def prepare(self, step: int, micros: Sequence[Micro]) -> dict[str, Metric]:
        """The rollout's metrics, and what the loss needs of the whole step."""
        found = super().prepare(step, micros)
        own = [micro for micro in micros if micro.stream == "main"]
        if any(sum(self.preference.own_counts(micro).values()) for micro in own):
            found |= self.preference.prepare(step, own)
        return found

    def own_counts(self, micro: Micro) -> Mapping[str, float]:
        """Comparisons (responses, prompts) of the step, and tokens of the likelihood term."""
        return self.preference.own_counts(micro)

    def own_terms(self, micro: Micro) -> Outcome:
        """The loss of the family."""
        return self.preference.own_terms(micro)

    # ------------------------------------------------------------------ metrics

    def rollout_metrics(self, experience: Experience) -> dict[str, Metric]:
        """Comparisons of a rollout and the gap of their scores, under TRL's name."""
        pairs = [c for one in self.chosen(experience) if one for c in one.tree.comparisons]
        found = super().rollout_metrics(experience)
        found["pairs"] = Metric(float(len(pairs)), 1.0)
        if pairs:
            gap = sum(c.margin for c in pairs)
            found["objective/scores_margin"] = Metric(gap, float(len(pairs)))
        return found

    # ------------------------------------------------------------------ state

    def state_dict(self) -> dict[str, Any]:
        """The loss's statistics; since when the policy is the reference."""
        return {"preference": self.preference.state_dict(), "synced_at": self.synced_at}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what ``state_dict`` gave."""
        self.preference.load_state_dict(state["preference"])
        self.synced_at = int(state["synced_at"])

    def tensors(self) -> dict[str, Tensor]:
        """The trained weights of a reference that was the policy once."""
        if not self.synced_at:
            return {}
        assert self.cast.reference is not None
        reference = dict(self.cast.reference.policy.model.named_parameters())
        trained = [name for name, p in self.policy.model.named_parameters() if p.requires_grad]
        return {name: reference[name].detach() for name in trained}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back what ``tensors`` gave."""
        reference = frozen_copy(self.policy)
        parameters = dict(reference.policy.model.named_parameters())
        with torch.no_grad():
            for name, value in tensors.items():
                parameters[name].copy_(value)
        self._refer_to(reference, self.synced_at)

    def forget_tensors(self) -> None:
        """The reference is the one that the stage was built with."""
        self.synced_at = 0
