"""What is recorded of preference losses, batch by batch, and its summary with intervals.

Metric names are those of TRL's DPO trainer. ``rewards/*`` are the implicit rewards of the loss at
hand, ``logps/*`` sums of token log-probs. A tie is not counted as right. ``displacement/*`` (where
there is a reference) and ``lengths/*`` are ours: ``shifts.py``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from trimtab.data.batch import TreeBatch
from trimtab.evaluation.shifts import by_length, displacement
from trimtab.evaluation.statistics import mean_interval, wilson_interval
from trimtab.losses.types import PreferenceTerms, RankingTerms, SequenceLogprobs, UnpairedTerms
from trimtab.training.terms import Metric


@dataclasses.dataclass(frozen=True)
class PreferenceRecord:
    """Losses of one micro-batch with gradient, and detached columns of its comparisons.

    ``losses`` and ``weights`` have one entry a unit of the loss; the columns have one a comparison
    [P]: implicit rewards and log-probs. Where responses are judged one by one (``paired`` False),
    the wanted ones stand under chosen and the unwanted under rejected, and the two need not be
    equally many. ``reference`` are the sums of the two under the reference, where there is one.
    """

    losses: Tensor
    weights: Tensor
    chosen_rewards: Tensor
    rejected_rewards: Tensor
    chosen: SequenceLogprobs
    rejected: SequenceLogprobs
    reference: tuple[Tensor, Tensor] | None = None
    paired: bool = True

    @staticmethod
    def of_pairs(
        batch: TreeBatch,
        sums: SequenceLogprobs,
        terms: PreferenceTerms,
        weights: Tensor,
        reference: Tensor | None = None,
    ) -> PreferenceRecord:
        """Record of a paired loss; ``reference``, here and below, are sums [N] of all branches."""
        return PreferenceRecord(
            terms.losses,
            weights,
            terms.chosen_rewards.detach(),
            terms.rejected_rewards.detach(),
            _detached(sums, batch.winner),
            _detached(sums, batch.loser),
            _sides(reference, batch.winner, batch.loser),
        )

    @staticmethod
    def of_responses(
        batch: TreeBatch,
        sums: SequenceLogprobs,
        terms: UnpairedTerms,
        weights: Tensor,
        reference: Tensor | None = None,
    ) -> PreferenceRecord:
        """Record of an unpaired loss; labelled rows that came as pairs are still compared."""
        assert batch.labels is not None
        paired = 2 * batch.winner.numel() == batch.branch_count
        wanted = batch.winner if paired else batch.labels.nonzero().squeeze(1)
        unwanted = batch.loser if paired else (~batch.labels).nonzero().squeeze(1)
        rewards = terms.rewards.detach()
        return PreferenceRecord(
            terms.losses,
            weights,
            rewards[wanted],
            rewards[unwanted],
            _detached(sums, wanted),
            _detached(sums, unwanted),
            _sides(reference, wanted, unwanted),
            paired,
        )

    @staticmethod
    def of_rankings(
        batch: TreeBatch,
        sums: SequenceLogprobs,
        terms: RankingTerms,
        order: Tensor,
        weights: Tensor,
        reference: Tensor | None = None,
    ) -> PreferenceRecord:
        """Record of a listwise loss: all comparisons of each ranking."""
        flat = torch.zeros_like(sums.sum)
        real = order >= 0
        flat = flat.index_put((order[real],), terms.rewards.detach()[real])
        return PreferenceRecord(
            terms.losses,
            weights,
            flat[batch.winner],
            flat[batch.loser],
            _detached(sums, batch.winner),
            _detached(sums, batch.loser),
            _sides(reference, batch.winner, batch.loser),
        )

    def metrics(self) -> dict[str, Metric]:
        """What the training log shows of one micro-batch."""
        found = {
            "rewards/chosen": _mean(self.chosen_rewards),
            "rewards/rejected": _mean(self.rejected_rewards),
            "logps/chosen": _mean(self.chosen.sum),
            "logps/rejected": _mean(self.rejected.sum),
        }
        if self.paired:
            margins = self.chosen_rewards - self.rejected_rewards
            found["rewards/accuracies"] = _mean((margins > 0).float())
            found["rewards/margins"] = _mean(margins)
        found |= {name: _mean(values) for name, values in self.shifts().items()}
        return {name: metric for name, metric in found.items() if metric.count}

    def shifts(self) -> dict[str, Tensor]:
        """Columns of ``displacement`` and ``by_length``, as far as they are known."""
        found: dict[str, Tensor] = {}
        if self.reference is not None:
            policy = (self.chosen, self.rejected)
            found |= displacement(policy, self.reference, paired=self.paired)
        if self.paired:
            found |= by_length(
                self.chosen_rewards,
                self.rejected_rewards,
                self.chosen.length,
                self.rejected.length,
            )
        return found


def summarise(records: Sequence[PreferenceRecord]) -> dict[str, Any]:
    """Means over all records; ``*_ci95`` beside a mean is its 95 % interval [low, high].

    Proportions have Wilson's interval, means the normal one. ``logps/accuracies`` says how often
    the model gives the chosen response the higher summed log-prob, ``logps/accuracies_mean`` the
    higher log-prob per token: these exist before any training too, when all implicit rewards are 0.
    """
    losses = torch.cat([record.losses.detach() for record in records]).cpu().double()
    weights = torch.cat([record.weights for record in records]).cpu().double()
    chosen_rewards = torch.cat([r.chosen_rewards for r in records]).cpu().double()
    rejected_rewards = torch.cat([r.rejected_rewards for r in records]).cpu().double()
    chosen, rejected = (
        _joined([r.chosen for r in records]),
        _joined([r.rejected for r in records]),
    )
    found: dict[str, Any] = {"loss": ((losses * weights).sum() / weights.sum()).item()}
    _add_mean(found, "rewards/chosen", chosen_rewards)
    _add_mean(found, "rewards/rejected", rejected_rewards)
    _add_mean(found, "logps/chosen", chosen.sum)
    _add_mean(found, "logps/rejected", rejected.sum)
    _add_mean(found, "logps/chosen_per_token", chosen.mean)
    if all(record.paired for record in records):
        margins = chosen_rewards - rejected_rewards
        _add_mean(found, "rewards/margins", margins)
        _add_share(found, "rewards/accuracies", margins > 0)
        _add_share(found, "logps/accuracies", chosen.sum > rejected.sum)
        _add_share(found, "logps/accuracies_mean", chosen.mean > rejected.mean)
        found["pairs"] = margins.numel()
    _add_shifts(found, [record.shifts() for record in records])
    return found


def _add_shifts(found: dict[str, Any], shifts: Sequence[dict[str, Tensor]]) -> None:
    """Means and shares of the columns that every record has."""
    for name in shifts[0]:
        if all(name in one for one in shifts):
            values = torch.cat([one[name].cpu() for one in shifts])
            if name.startswith("lengths/") or name.endswith("/both_fell"):
                if values.numel():
                    _add_share(found, name, values > 0)
            else:
                _add_mean(found, name, values)


def _add_mean(found: dict[str, Any], name: str, values: Tensor) -> None:
    if values.numel() == 0:  # labelled responses of one class only
        return
    interval = mean_interval(values.cpu().double().numpy())
    found[name] = interval.mean
    if interval.n > 1:  # one value has no spread
        found[f"{name}_ci95"] = [interval.low, interval.high]


def _add_share(found: dict[str, Any], name: str, hits: Tensor) -> None:
    interval = wilson_interval(int(hits.sum()), hits.numel())
    found[name] = interval.mean
    found[f"{name}_ci95"] = [interval.low, interval.high]


def _mean(values: Tensor) -> Metric:
    return Metric(values.sum().item(), float(values.numel()))


def _sides(sums: Tensor | None, one: Tensor, other: Tensor) -> tuple[Tensor, Tensor] | None:
    return None if sums is None else (sums.detach()[one], sums.detach()[other])


def _detached(sums: SequenceLogprobs, index: Tensor) -> SequenceLogprobs:
    return SequenceLogprobs(sums.sum.detach()[index], sums.length[index])


def _joined(parts: Sequence[SequenceLogprobs]) -> SequenceLogprobs:
    return SequenceLogprobs(
        torch.cat([part.sum for part in parts]).cpu().double(),
        torch.cat([part.length for part in parts]).cpu(),
    )
