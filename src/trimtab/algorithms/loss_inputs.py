"""What a preference loss is called with: the inputs that it names, out of one micro-batch.

A loss asks for what it needs by naming it (``losses/contract.py``). Shapes: M targets, N branches,
P comparisons, R trees, K responses of the longest ranking, T tokens of the longest response.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from trimtab.data.batch import TreeBatch
from trimtab.losses.contract import LossSpec
from trimtab.losses.types import Pair, PairTokens, PairValues, Ranking, SequenceLogprobs
from trimtab.losses.types import TokenLogprobs as Tokens
from trimtab.models.logprobs import TokenStats
from trimtab.training.algorithm import Micro


def loss_inputs(
    spec: LossSpec,
    needs: frozenset[str],
    micro: Micro,
    sums: SequenceLogprobs,
    stats: TokenStats | None = None,
    order: Tensor | None = None,
) -> dict[str, Any]:
    """Those inputs of the loss that ``needs`` names.

    ``sums`` [N] are the policy's; ``stats`` [M] is what else the loss needs of each token;
    ``order`` the ``ranking_order``, where it is known already.
    """
    batch = micro.batch
    if spec.kind == "ranking" and order is None:
        order = ranking_order(batch)

    def compared(of: SequenceLogprobs) -> Pair | SequenceLogprobs | Ranking:
        if spec.kind == "pair":
            return Pair(_take(of, batch.winner), _take(of, batch.loser))
        return of if order is None else _ranking(of, order)

    def reference() -> Pair | SequenceLogprobs | Ranking:
        assert micro.reference is not None
        return compared(SequenceLogprobs(micro.reference, sums.length))

    def of_pairs(per_target: Tensor | None) -> PairValues:
        assert per_target is not None
        of_branch = batch.sequence_sums(per_target)
        return PairValues(of_branch[batch.winner], of_branch[batch.loser])

    def policy_tokens() -> PairTokens:
        assert stats is not None
        return pair_tokens(batch, stats.logp)

    def scores() -> Tensor:
        assert batch.scores is not None and order is not None, "rows are checked for scores"
        return batch.scores[order.clamp(min=0)] * (order >= 0)

    made: dict[str, Callable[[], Any]] = {
        "policy": lambda: compared(sums),
        "reference": reference,
        "sequence_kl": lambda: of_pairs(stats and stats.kl),
        "log_square": lambda: of_pairs(stats and stats.log_square),
        "policy_tokens": policy_tokens,
        "reference_tokens": lambda: pair_tokens(batch, micro.tokens["reference"]),
        "margins": lambda: batch.margin,
        "labels": lambda: batch.labels,
        "scores": scores,
    }
    return {name: make() for name, make in made.items() if name in needs}


def pair_tokens(batch: TreeBatch, logp: Tensor) -> PairTokens:
    """Log-probs [M] of the targets as those of both responses of every comparison, [P, T] each."""
    count = batch.branch_count
    lengths = batch.length[:count]
    owner = batch.target_sequence
    ours = (owner < count).nonzero().squeeze(1)  # targets of branches, branch by branch
    owner = owner[ours]
    start = lengths.cumsum(0) - lengths
    place = torch.arange(ours.numel(), device=ours.device) - start[owner]
    widest = int(lengths.max())
    flat = logp.new_zeros(count * widest).index_put((owner * widest + place,), logp[ours])
    whole = flat.view(count, widest)
    mask = torch.arange(widest, device=ours.device) < lengths[:, None]
    return PairTokens(*(Tokens(whole[side], mask[side]) for side in (batch.winner, batch.loser)))


def ranking_order(batch: TreeBatch) -> Tensor:
    """[R, K] branch numbers from best to worst, padded with -1 to the longest ranking."""
    assert batch.ranks is not None, "rankings are checked when rows become trees"
    starts = [0]
    for tree in batch.trees:
        starts.append(starts[-1] + len(tree.branches))
    widest = max(len(tree.branches) for tree in batch.trees)
    order = torch.full((batch.tree_count, widest), -1, dtype=torch.int64, device=batch.ids.device)
    for row in range(batch.tree_count):
        own = batch.ranks[starts[row] : starts[row + 1]]
        order[row, : own.numel()] = own.argsort(stable=True) + starts[row]
    return order


def join(parts: Sequence[Any]) -> Any:
    """Inputs of several micro-batches as one; rankings are padded to the longest."""
    if not isinstance(parts[0], Tensor):
        return type(parts[0])(*(join(columns) for columns in zip(*parts, strict=True)))
    if parts[0].ndim == 2:
        widest = max(part.shape[1] for part in parts)
        parts = [torch.nn.functional.pad(part, (0, widest - part.shape[1])) for part in parts]
    return torch.cat(list(parts))


def _ranking(sums: SequenceLogprobs, order: Tensor) -> Ranking:
    mask = order >= 0
    index = order.clamp(min=0)
    return Ranking(sums.sum[index] * mask, sums.length[index], mask)


def _take(sums: SequenceLogprobs, index: Tensor) -> SequenceLogprobs:
    return SequenceLogprobs(sums.sum[index], sums.length[index])
