"""reward: scores of responses, from comparisons (arXiv:2203.02155, equation 1).

    -1/C(K, 2) sum over ranked pairs of log sigmoid(r(x, y_w) - r(x, y_l)),    per row

The K responses to a prompt are one tree: K passes over responses, one over the prompt. A pair is
the case K = 2; tied responses are not compared and leave the divisor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from trimtab.algorithms.loss_inputs import ranking_order
from trimtab.algorithms.policy import Policy, frozen
from trimtab.algorithms.stage import Mix, Stage
from trimtab.algorithms.stream import TreeStream, micro_batches
from trimtab.data.batch import TreeBatch, pack, split_by_tokens
from trimtab.data.trees import TokenTree
from trimtab.evaluation.reward_statistics import confidence_curve
from trimtab.evaluation.shifts import by_length
from trimtab.evaluation.statistics import clustered_share, mean_interval
from trimtab.losses.reward import centring_loss, plackett_luce_ranking_loss, ranking_loss
from trimtab.models.score_head import head_of
from trimtab.training.algorithm import Micro, Outcome
from trimtab.training.terms import Metric, Term

RankingLoss = Literal["pairwise", "plackett_luce"]


class Judged(NamedTuple):
    """A micro-batch's unreduced losses and weights, and its detached scores [N]."""

    losses: Tensor
    weights: Tensor
    scores: Tensor


class RewardModelling(Stage):
    """Learns one score a response; the unit of its loss is a row, whatever its K."""

    def __init__(
        self,
        policy: Policy,
        stream: TreeStream,
        *,
        total_steps: int,
        loss: RankingLoss = "pairwise",
        centring: float = 0.0,
        mix: Mix | None = None,
        held_out: TreeStream | None = None,
    ) -> None:
        super().__init__(policy, stream, total_steps=total_steps, mix=mix, held_out=held_out)
        self.loss = loss
        self.centring = centring

    def weights(self, batch: TreeBatch) -> Tensor:
        """Weight of every unit of the loss: [P] comparisons, or [R] whole rankings."""
        return batch.weight if self.loss == "pairwise" else batch.tree_weight

    def own_counts(self, micro: Micro) -> Mapping[str, float]:
        """Rows by weight: the comparisons of a row share its weight."""
        count = float(self.weights(micro.batch).cpu().double().sum())
        return {"ranking": count, "centring": count} if self.centring else {"ranking": count}

    def own_terms(self, micro: Micro) -> Outcome:
        """The ranking loss, and the centring term if it has a weight."""
        batch = micro.batch
        scores = self.policy.scores(batch).squeeze(-1)
        judged = self.judge(batch, scores)
        count = self.own_counts(micro)["ranking"]
        total = (judged.losses * judged.weights).sum()
        terms = [Term("ranking", total, count, "prompt")]
        if self.centring:
            apart = centring_loss(scores[batch.winner], scores[batch.loser]) * batch.weight
            terms.append(Term("centring", apart.sum(), count, "prompt", self.centring))
        return Outcome(terms, self._metrics(batch, judged.scores))

    def judge(self, batch: TreeBatch, scores: Tensor) -> Judged:
        """The losses of scores [N]."""
        weights = self.weights(batch)
        if self.loss == "pairwise":
            losses = ranking_loss(scores[batch.winner], scores[batch.loser], batch.margin)
        else:
            order = ranking_order(batch)
            losses = plackett_luce_ranking_loss(scores[order.clamp(min=0)], order >= 0)
        return Judged(losses, weights, scores.detach())

    def _metrics(self, batch: TreeBatch, scores: Tensor) -> dict[str, Metric]:
        gaps = scores[batch.winner] - scores[batch.loser]
        pairs, responses = float(gaps.numel()), float(scores.numel())
        found = {
            "accuracy": Metric((gaps > 0).sum().item(), pairs),
            "margin": Metric(gaps.sum().item(), pairs),
            "mean_reward": Metric(scores.sum().item(), responses),
        }
        for name, values in lengths_ruled(batch, scores).items():
            found[name] = Metric(values.sum().item(), float(values.numel()))
        return found

    # ------------------------------------------------------------------ held-out rows

    def evaluate(self, step: int) -> dict[str, Any]:
        """Loss, accuracy and margin on the held-out rows, with 95 % intervals over prompts."""
        if self.held_out is None:
            return {}
        rows = range(len(self.held_out))
        judged: list[Judged] = []
        gaps: list[Tensor] = []
        prompts: list[Tensor] = []  # number of the row of each gap
        hits: list[float] = []
        pairs: list[float] = []
        lengths: list[dict[str, Tensor]] = []
        with frozen(self.model):
            for micro in micro_batches(self.held_out, rows, self.held_out.token_budget, "eval"):
                batch = micro.batch.to(self.policy.device)
                one = self.judge(batch, self.policy.scores(batch).squeeze(-1))
                gap = (one.scores[batch.winner] - one.scores[batch.loser]).cpu().double()
                tree = batch.tree_of_branch[batch.winner].cpu()
                right = (
                    torch.zeros(batch.tree_count).double().index_add(0, tree, (gap > 0).double())
                )
                prompts.append(tree + len(hits))
                hits += right.tolist()
                pairs += torch.bincount(tree, minlength=batch.tree_count).tolist()
                judged.append(one)
                gaps.append(gap)
                lengths.append(lengths_ruled(batch, one.scores))
        found = _summary(judged, torch.cat(gaps), hits, pairs)
        found["confidence"] = confidence_curve(torch.cat(gaps).numpy(), torch.cat(prompts).numpy())
        for name in lengths[0]:
            values = torch.cat([one[name] for one in lengths]).double()
            if values.numel():
                found[name] = values.mean().item()
        return found


def _summary(
    judged: Sequence[Judged], gaps: Tensor, hits: Sequence[float], pairs: Sequence[float]
) -> dict[str, Any]:
    losses = torch.cat([one.losses for one in judged]).cpu().double()
    weights = torch.cat([one.weights for one in judged]).cpu().double()
    scores = torch.cat([one.scores for one in judged]).cpu().double()
    accuracy, margin = clustered_share(hits, pairs), mean_interval(gaps.numpy())
    found: dict[str, Any] = {
        "loss": ((losses * weights).sum() / weights.sum()).item(),
        "accuracy": accuracy.mean,
        "margin": margin.mean,
        "mean_reward": scores.mean().item(),
        "min_reward": scores.min().item(),
        "max_reward": scores.max().item(),
        "pairs": gaps.numel(),
    }
    if gaps.numel() > 1:
        found["accuracy_ci95"] = [accuracy.low, accuracy.high]
        found["margin_ci95"] = [margin.low, margin.high]
    return found


def lengths_ruled(batch: TreeBatch, scores: Tensor) -> dict[str, Tensor]:
    """``by_length`` of scores [N]; a response's length is that of its tokens, trained or not."""
    spans = (span.length for tree in batch.spans for span in tree.branches)
    lengths = torch.tensor(list(spans), device=scores.device)
    w, loser = batch.winner, batch.loser
    return by_length(scores[w], scores[loser], lengths[w], lengths[loser])


def centre(policy: Policy, trees: Sequence[TokenTree], token_budget: int) -> float:
    """Set the model's offset so that the mean reward of these responses is 0; returns it.

    The loss knows differences alone, so a constant is free (arXiv:2203.02155, appendix C.2).
    """
    head = head_of(policy.model)
    assert head is not None and trees, "a reward model and at least one response"
    total, count = 0.0, 0
    with frozen(policy.model):
        for run in split_by_tokens(trees, token_budget):
            scores = policy.scores(pack(run).to(policy.device)).cpu().double()
            total += scores.sum().item()
            count += scores.numel()
    head.offset = total / count
    return head.offset


def best_responses(stream: TreeStream, limit: int) -> list[TokenTree]:
    """The first ``limit`` trees, each with its preferred responses alone: those that lose to none.

    Where every response of a tree loses somewhere (annotators who disagree) all of them stay.
    """
    found: list[TokenTree] = []
    for number in range(min(limit, len(stream))):
        tree = stream.tree(number)
        losers = {c.loser for c in tree.comparisons}
        best = [b for i, b in enumerate(tree.branches) if i not in losers] or list(tree.branches)
        found.append(TokenTree(tree.trunk, tuple(best), (), tree.origin))
    return found
