"""Gradient norms of a step's streams, told apart: what each one adds to the others'."""

from __future__ import annotations

from torch import Tensor

from trimtab.training.precision import MasterWeights


class StreamNorms:
    """Gradient norms of each stream of a step: what was there before a stream is taken off."""

    def __init__(self, masters: MasterWeights) -> None:
        self.masters = masters
        self.stream: str | None = None
        self.before: dict[str, Tensor] = {}
        self.squares: dict[str, float] = {}

    def begin(self, stream: str) -> None:
        """The next micro-batch is of this stream; a stream's own stand together."""
        if stream == self.stream:
            return
        self._close()
        self.stream = stream
        self.before = {n: m.grad.clone() for n, m in self.masters if m.grad is not None}

    def end(self) -> dict[str, float]:
        """Norm by stream."""
        self._close()
        return {name: value**0.5 for name, value in self.squares.items()}

    def _close(self) -> None:
        if self.stream is None:
            return
        total = 0.0
        for name, master in self.masters:
            if master.grad is not None:
                before = self.before.get(name)
                own = master.grad if before is None else master.grad - before
                total += own.double().square().sum().item()
        self.squares[self.stream] = self.squares.get(self.stream, 0.0) + total
