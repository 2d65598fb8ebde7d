"""raft: the language-model loss on the best of the policy's own samples.

Reward-ranked fine-tuning (arXiv:2304.06767): of G responses to every prompt the best are kept, and
their tokens are trained like those of an sft. With ``min_score`` it is rejection sampling
(arXiv:2308.01825): a response is kept if it is good enough, and a prompt may have none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trimtab.algorithms.experience import Experience
from trimtab.algorithms.fresh import FreshSamples
from trimtab.algorithms.pairing import Chosen, Judged, best
from trimtab.algorithms.stage import token_count, token_nll
from trimtab.training.algorithm import Micro, Outcome
from trimtab.training.terms import Metric


class Raft(FreshSamples):
    """One term: the NLL of the kept responses, per token."""

    def __init__(self, *args: Any, keep_top: int, min_score: float | None, **more: Any) -> None:
        super().__init__(*args, **more)
        self.keep_top = keep_top
        self.min_score = min_score

    def choose(self, judged: Judged) -> Chosen | None:
        """The best responses of a prompt."""
        return best(judged, self.keep_top, self.min_score)

    def why_nothing(self, experience: Experience) -> str:
        """No response was good enough, or nobody could judge."""
        r = experience.responses
        known = r["score"][r["valid"].bool()]
        count = len(experience.lengths)
        if not len(known):
            return f"no reward could judge any of {count} responses"
        return (
            f"none of {count} responses reaches min_score={self.min_score:g}, the best has "
            f"{known.max().item():.4g}"
        )

    def own_counts(self, micro: Micro) -> Mapping[str, float]:
        """Tokens of the kept responses."""
        return {"sft": token_count(micro.batch)}

    def own_terms(self, micro: Micro) -> Outcome:
        """Their negative log-likelihood."""
        stats = self.policy.token_stats(micro.batch, correct=True)
        term = token_nll(micro.batch, stats.logp, "sft")
        assert stats.correct is not None
        accuracy = Metric(stats.correct.double().sum().item(), float(stats.correct.numel()))
        return Outcome([term], {"mean_token_accuracy": accuracy})

    def rollout_metrics(self, experience: Experience) -> dict[str, Metric]:
        """How many responses were kept, and their scores."""
        found = super().rollout_metrics(experience)
        r = experience.responses["score"].tolist()
        kept: list[float] = []
        start = 0
        for tree, one in zip(experience.trees, self.chosen(experience), strict=True):
            kept += [r[start + place] for place in (one.places if one else ())]
            start += len(tree.branches)
        found["completions/kept_ratio"] = Metric(float(len(kept)), float(len(r)))
        if kept:
            found["rewards/kept"] = Metric(sum(kept), float(len(kept)))
        return found
