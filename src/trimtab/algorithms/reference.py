"""The reference: the policy as it was at the start of the stage, or a model that is named.

Its log-probs of the rows are computed once, kept on disk, and reused over epochs and runs. Where a
loss needs more than sums (full-vocabulary KL, mismatched responses) a frozen model stays at hand.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import hashlib
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from trimtab.algorithms.policy import Policy, frozen
from trimtab.algorithms.stream import TreeStream, micro_batches
from trimtab.data.batch import TreeBatch
from trimtab.losses.types import SequenceLogprobs
from trimtab.models.logprobs import LogitHead
from trimtab.training import files

# Trees of one cache file. A file is computed in micro-batches that depend on its own trees alone,
# so that a cached value and a freshly computed one have the same bits.
SHARD_TREES = 64
CACHE_VERSION = 1


class CachedLogprobs:
    """Summed reference log-probs of every branch of the trees asked for at construction."""

    def __init__(self, sums: dict[int, Tensor]) -> None:
        self._sums = sums

    def of(self, rows: Sequence[int]) -> Tensor:
        """[N] fp32: the branches of the trees ``rows``, in order."""
        return torch.cat([self._sums[row] for row in rows])


@dataclasses.dataclass(frozen=True)
class ReferenceCache:
    """Where reference log-probs are kept; ``identity`` names model, tokenizer, dtype and layout.

    A tree's own tokens and masks are in the key of its shard, so that new data, another template
    or another truncation never meets an old value.
    """

    folder: Path | None
    identity: str
    token_budget: int

    def compute(
        self,
        policy: Policy,
        stream: TreeStream,
        rows: Sequence[int],
        progress: Callable[[int], None] = lambda done: None,
    ) -> CachedLogprobs:
        """Read or compute the log-probs of trees ``rows`` (numbers in ``stream``)."""
        wanted = sorted(set(rows))
        sums: dict[int, Tensor] = {}
        publish = True
        for start in range(0, len(wanted), SHARD_TREES):
            shard = wanted[start : start + SHARD_TREES]
            path = self._path(stream, shard)
            found = _read(path, len(shard)) if path else None
            if found is None:
                found = self._shard(policy, stream, shard)
                if path and publish:
                    publish = self._publish(path, found)
            sums.update(zip(shard, found, strict=True))
            progress(start + len(shard))
        return CachedLogprobs(sums)

    def _shard(self, policy: Policy, stream: TreeStream, shard: Sequence[int]) -> list[Tensor]:
        found: list[Tensor] = []
        with frozen(policy.model):
            for micro in micro_batches(stream, shard, self.token_budget, "reference"):
                batch = micro.batch.to(policy.device)
                sums = policy.branch_logprobs(batch).sum.cpu()
                found += sums.split([len(tree.branches) for tree in batch.trees])
        return found

    def _publish(self, path: Path, found: list[Tensor]) -> bool:
        """A folder that cannot be written to costs the time to compute again, and no more."""
        try:
            _publish(path, found)
        except OSError as error:
            reason = error.strerror or error
            print(f"trimtab: reference log-probs are not cached: {path}: {reason}", file=sys.stderr)
            return False
        return True

    def _path(self, stream: TreeStream, shard: Sequence[int]) -> Path | None:
        if self.folder is None:
            return None
        digest = hashlib.sha256(
            f"{CACHE_VERSION}:{self.identity}:{self.token_budget}:{torch.get_num_threads()}".encode()
        )
        for row in shard:
            tree = stream.tree(row)
            digest.update(repr((tree.trunk, tree.branches)).encode())
        return self.folder / "reference" / f"{digest.hexdigest()[:40]}.safetensors"


def _read(path: Path, trees: int) -> list[Tensor] | None:
    """The log-probs of a shard, or None where the file is missing or not what was written."""
    if not path.exists():
        return None
    try:
        tensors = load_file(path)
        sums, lengths = tensors["sums"], tensors["branches"].tolist()
        if len(lengths) != trees or tensors["digest"].tolist() != _digest(sums):
            return None
        return list(sums.split(lengths))
    except (OSError, SafetensorError, KeyError, RuntimeError):
        return None


def _publish(path: Path, sums: Sequence[Tensor]) -> None:
    flat = torch.cat(list(sums))
    tensors = {
        "sums": flat,
        "branches": torch.tensor([len(part) for part in sums]),
        "digest": torch.tensor(_digest(flat)),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_atomic(path, save(tensors))


def _digest(tensor: Tensor) -> list[int]:
    return list(hashlib.sha256(tensor.contiguous().numpy().tobytes()).digest())


class LiveReference:
    """A frozen model that gives what sums cannot: hidden states, or unforeseen sequences."""

    def __init__(
        self, policy: Policy, context: Callable[[], contextlib.AbstractContextManager[object]]
    ) -> None:
        self.policy = policy
        self._context = context

    @contextlib.contextmanager
    def _active(self) -> Iterator[None]:
        with self._context(), frozen(self.policy.model):
            yield

    def hidden(self, batch: TreeBatch) -> tuple[Tensor, LogitHead]:
        """Hidden states [M, d] at the predicting positions, and the head that reads them."""
        with self._active():
            return self.policy.hidden(batch), self.policy.head

    def token_logprobs(self, batch: TreeBatch, temperature: float = 1.0) -> Tensor:
        """Log-probs [M] of the trained tokens."""
        with self._active():
            return self.policy.token_stats(batch, temperature=temperature).logp

    def branch_logprobs(self, batch: TreeBatch) -> SequenceLogprobs:
        """Summed log-probs [N] of the branches."""
        with self._active():
            return self.policy.branch_logprobs(batch)


def frozen_copy(policy: Policy) -> LiveReference:
    """A copy of a policy as it is now, without gradients; weights that are frozen are shared."""
    shared = {id(p): p for p in policy.model.parameters() if not p.requires_grad}
    model = copy.deepcopy(policy.model, dict[int, Any](shared)).requires_grad_(False)
    copied = dataclasses.replace(policy, model=model)
    return LiveReference(copied, contextlib.nullcontext)
