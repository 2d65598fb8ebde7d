"""The slow twin: rollouts by transformers' own ``generate``, for any causal language model.

It knows how each architecture keeps its state (recurrences, position biases, latent attention), and
is left to it; what is sampled is decided by a logits processor that leaves one token, the one that
the same uniform number chooses. Rows are padded on the left and run until the longest ends.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from trimtab.models.attention import plain_attention, unwrap
from trimtab.rollout.choose import Choice, Chooser
from trimtab.rollout.draws import uniforms
from trimtab.rollout.params import Rollout, SamplingParams


class Generation:
    """As ``engine.Engine``, with the model's own ``generate``."""

    def __init__(
        self,
        model: nn.Module,
        params: SamplingParams,
        *,
        stop_ids: Collection[int],
        slots: int,
        seed: int,
        device: torch.device,
        done: Callable[[int], None],
        each: Callable[[int, int, int], None] | None = None,
    ) -> None:
        self.model: Any = model
        self.params = params
        self.stop_ids = frozenset(stop_ids)
        self.slots = slots
        self.seed = seed
        self.device = device
        self.done = done
        self.each = each

    def run(
        self,
        prompts: Sequence[Sequence[int]],
        limits: Sequence[int],
        numbers: Sequence[int],
        n: int,
    ) -> list[list[Rollout]]:
        """Rollouts of each prompt, as ``engine.Engine.run``."""
        found: list[list[Rollout]] = [[] for _ in prompts]
        # Rows of one limit and of like length together; learned positions end with the limit.
        order = sorted(range(len(prompts)), key=lambda i: (limits[i], len(prompts[i])))
        rows = [(i, k) for i in order for k in range(n)]
        finished = begin = 0
        while begin < len(rows):
            stop = begin + 1
            limit = limits[rows[begin][0]]
            while stop < min(len(rows), begin + self.slots) and limits[rows[stop][0]] == limit:
                stop += 1
            batch = rows[begin:stop]
            keys = [(numbers[i], k) for i, k in batch]
            results = self._batch([prompts[i] for i, _ in batch], limit, keys)
            for (i, _), rollout in zip(batch, results, strict=True):
                found[i].append(rollout)
            begin, finished = stop, finished + len(batch)
            self.done(finished)
        return found

    def _batch(
        self, prompts: Sequence[Sequence[int]], limit: int, numbers: Sequence[tuple[int, int]]
    ) -> list[Rollout]:
        width = max(map(len, prompts))
        pad = min(self.stop_ids, default=0)
        ids = torch.full((len(prompts), width), pad)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, width - len(prompt) :] = torch.tensor(prompt)
            mask[row, width - len(prompt) :] = 1
        draws = [uniforms(self.seed, *k, limit) for k in numbers]
        chooser = _Choosing(self.params, draws, self._teller(numbers))
        inner: Any = unwrap(self.model)
        settings = GenerationConfig(
            max_new_tokens=limit,
            do_sample=False,
            eos_token_id=sorted(self.stop_ids) or None,
            pad_token_id=pad,
        )
        with plain_attention(self.model), _settings(inner, settings):
            inner.generate(
                input_ids=ids.to(self.device),
                attention_mask=mask.to(self.device),
                logits_processor=LogitsProcessorList([chooser]),
            )
        rows = zip(numbers, chooser.tokens(), chooser.logprobs(), strict=True)
        return [self._rollout(*row) for row in rows]

    def _teller(self, numbers: Sequence[tuple[int, int]]) -> Callable[[Tensor], None] | None:
        """Tells ``each`` the tokens of rows that have not ended; those behind an end are no one's.

        Rows of a batch run until the longest ends.
        """
        each = self.each
        if each is None:
            return None
        running = set(range(len(numbers)))

        def tell(tokens: Tensor) -> None:
            for row, token in enumerate(tokens.tolist()):
                if row in running:
                    each(*numbers[row], token)
                    if token in self.stop_ids:
                        running.discard(row)

        return tell

    def _rollout(self, number: tuple[int, int], ids: list[int], logprobs: list[float]) -> Rollout:
        end = next((i + 1 for i, token in enumerate(ids) if token in self.stop_ids), None)
        return Rollout(*number, tuple(ids[:end]), tuple(logprobs[:end]), end is not None)


class _Choosing(LogitsProcessor):
    """Leaves the chosen token of each row, and remembers what was chosen."""

    def __init__(
        self,
        params: SamplingParams,
        draws: Sequence[NDArray[np.float64]],
        tell: Callable[[Tensor], None] | None,
    ) -> None:
        self._chooser = Chooser(params)
        self._draws = torch.from_numpy(np.stack(draws))
        self._chosen: list[Choice] = []
        self._tell = tell

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """[B, V], minus infinity everywhere but at the chosen tokens."""
        draws = self._draws[:, len(self._chosen)].to(scores.device)
        choice = self._chooser.from_logits(scores, draws)
        self._chosen.append(choice)
        if self._tell is not None:
            self._tell(choice.tokens)
        left = torch.full_like(scores, float("-inf"))
        return left.scatter_(-1, choice.tokens[:, None], 0.0)

    def tokens(self) -> list[list[int]]:
        """Of each row, what was chosen; more than counts where it ended before others."""
        return torch.stack([choice.tokens for choice in self._chosen], -1).tolist()

    def logprobs(self) -> list[list[float]]:
        """Of each row and token."""
        return torch.stack([choice.logprobs for choice in self._chosen], -1).tolist()


@contextlib.contextmanager
def _settings(model: Any, settings: GenerationConfig) -> Iterator[None]:
    """Generation settings instead of the model's own, which may penalise or suppress tokens."""
    own = model.generation_config
    model.generation_config = settings
    try:
        yield
    finally:
        model.generation_config = own
