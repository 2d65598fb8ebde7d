"""The scheduling of one call of the sampler: prompts wait, rows run, finished rows make room.

A row is one continuation. Rows stand in places 0 ... R - 1 of the cache, R <= slots; when one
finishes, the last one moves into its place, so that a step is never longer than what runs. Waiting
samples come in as soon as places are free (a few at a time, so that their prompts are read
together). A prompt is read once: its keys and its last hidden state stay until its last sample is
done. Prompts come in by length, longest first, since neighbours in the cache are read together.

Nothing here decides what is sampled: a token depends on its path and its own uniform number.
"""

from __future__ import annotations

import collections
import heapq
from collections.abc import Callable, Collection, Sequence

import torch
from torch import Tensor

from trimtab.models.head import LogitHead
from trimtab.rollout.attention import Crew
from trimtab.rollout.cache import KeyValues
from trimtab.rollout.choose import Choice, Chooser
from trimtab.rollout.draws import uniforms
from trimtab.rollout.params import Rollout, SamplingParams
from trimtab.rollout.steps import Steps

TOGETHER = 16
"""Rows come in once one in so many places is free: to read a prompt costs a call of the model."""


class _Prompt:
    """A prompt with samples to come or running; ``place`` in the cache, -1 before it is read."""

    __slots__ = ("hidden", "ids", "limit", "number", "place", "running", "started")

    def __init__(self, number: int, ids: Sequence[int], limit: int) -> None:
        self.number = number
        self.ids = ids
        self.limit = limit
        self.place = -1
        self.hidden: Tensor | None = None
        self.started = 0
        self.running = 0


class _Row:
    """A running continuation."""

    __slots__ = ("draws", "ids", "logprobs", "prompt", "sample")

    def __init__(self, prompt: _Prompt, sample: int, draws: list[float]) -> None:
        self.prompt = prompt
        self.sample = sample
        self.draws = draws
        self.ids: list[int] = []
        self.logprobs: list[float] = []


class Engine:
    """One call of the sampler: ``run``, once."""

    def __init__(
        self,
        steps: Steps,
        head: LogitHead,
        params: SamplingParams,
        *,
        stop_ids: Collection[int],
        slots: int,
        seed: int,
        device: torch.device,
        done: Callable[[int], None] = lambda _: None,
        each: Callable[[int, int, int], None] | None = None,
        watch: Callable[[Sequence[tuple[int, int]], Tensor], None] | None = None,
    ) -> None:
        """``watch`` gets the numbers (prompt, sample) of all rows and the states that choose.

        ``each`` gets the numbers of prompt and sample and the token, one by one as they come.
        """
        self.steps = steps
        self.head = head
        self.chooser = Chooser(params)
        self.stop_ids = frozenset(stop_ids)
        self.slots = slots
        self.seed = seed
        self.device = device
        self.done = done
        self.each = each
        self.watch = watch

    def run(
        self,
        prompts: Sequence[Sequence[int]],
        limits: Sequence[int],
        numbers: Sequence[int],
        n: int,
    ) -> list[list[Rollout]]:
        """Rollouts of each prompt, in order of prompts and samples.

        ``limits`` are the most tokens that each prompt's continuations may have, at least 1;
        ``numbers`` are the prompts' own, which their draws are taken by.
        """
        self.n = n
        self.finished: dict[tuple[int, int], Rollout] = {}
        made = [_Prompt(*one) for one in zip(numbers, prompts, limits, strict=True)]
        # A stable sort: what runs beside what is a function of the prompts alone.
        self.waiting = collections.deque(sorted(made, key=lambda prompt: -len(prompt.ids)))
        rows = min(self.slots, n * len(prompts))
        self.cache = KeyValues(
            rows=rows,
            prompts=min(len(prompts), -(-rows // n) + 1),
            prompt_tokens=max(map(len, prompts)),
            new_tokens=max(limits),
        )
        self.free_places = list(range(len(prompts)))
        self.rows: list[_Row] = []
        self.crew: Crew | None = None
        while self.rows or self.waiting:
            self._step()
        return [[self.finished[prompt.number, k] for k in range(n)] for prompt in made]

    def _step(self) -> None:
        """One token for every row; rows that came in take their first from their prompt's end."""
        fresh = self._admit()
        hidden: list[Tensor] = []
        source: list[int] = list(range(len(self.rows)))
        if self.rows:
            tokens = torch.tensor([row.ids[-1] for row in self.rows], device=self.device)
            hidden.append(self.steps.step(tokens, self._crew(), self.cache))
        at: dict[int, int] = {}
        for row in fresh:
            if row.prompt.number not in at:
                at[row.prompt.number] = len(self.rows) + len(at)
                assert row.prompt.hidden is not None
                hidden.append(row.prompt.hidden[None])
            source.append(at[row.prompt.number])
        if fresh:
            self.rows += fresh
            self.crew = None
        self._record(self._choose(torch.cat(hidden), source))

    def _choose(self, hidden: Tensor, source: list[int]) -> Choice:
        draws = torch.tensor(
            [row.draws[len(row.ids)] for row in self.rows], dtype=torch.float64, device=self.device
        )
        if self.watch is not None:
            self.watch([(row.prompt.number, row.sample) for row in self.rows], hidden[source])
        alone = len(source) == hidden.shape[0]
        rows = None if alone else torch.tensor(source, device=self.device)
        return self.chooser.from_hidden(hidden, self.head, rows, draws)

    def _crew(self) -> Crew:
        """The rows that run, kept as long as none comes or goes."""
        if self.crew is None:
            self.crew = Crew(
                [row.prompt.place for row in self.rows],
                [len(row.prompt.ids) for row in self.rows],
                [len(row.ids) for row in self.rows],
                self.device,
            )
        else:
            self.crew.advance()
        return self.crew

    # ------------------------------------------------------------------ coming in

    def _admit(self) -> list[_Row]:
        """Rows that begin now; their prompts have been read."""
        free = self.slots - len(self.rows)
        if not self.waiting or (self.rows and free < max(1, self.slots // TOGETHER)):
            return []
        rows: list[_Row] = []
        new: list[_Prompt] = []
        while self.waiting and len(rows) < free:
            prompt = self.waiting[0]
            if prompt.place < 0:
                prompt.place = heapq.heappop(self.free_places)
                new.append(prompt)
            draws = uniforms(self.seed, prompt.number, prompt.started, prompt.limit)
            rows.append(_Row(prompt, prompt.started, draws.tolist()))
            prompt.started += 1
            prompt.running += 1
            if prompt.started == self.n:
                self.waiting.popleft()
        if new:
            most = 1 + max(prompt.place for prompt in new)
            if most > self.cache.prompts.places:
                # By half: places are dear, a prompt's straggler keeps one.
                self.cache.prompts.reserve(max(most, 3 * self.cache.prompts.places // 2), 0)
            hidden = self.steps.read([p.ids for p in new], [p.place for p in new], self.cache)
            for prompt, row in zip(new, hidden, strict=True):
                prompt.hidden = row
        return rows

    # ------------------------------------------------------------------ going out

    def _record(self, choice: Choice) -> None:
        """Give every row its token; those that end make room."""
        tokens, logprobs = choice.tokens.tolist(), choice.logprobs.tolist()
        over: list[int] = []
        for place, row in enumerate(self.rows):
            token = tokens[place]
            row.ids.append(token)
            row.logprobs.append(logprobs[place])
            if self.each is not None:
                self.each(row.prompt.number, row.sample, token)
            if token in self.stop_ids or len(row.ids) == row.prompt.limit:
                over.append(place)
        if not over:
            return
        for place in over:
            self._finish(self.rows[place])
        self._close_up(over)
        self.crew = None
        self.done(len(self.finished))

    def _finish(self, row: _Row) -> None:
        prompt = row.prompt
        ended = row.ids[-1] in self.stop_ids
        self.finished[prompt.number, row.sample] = Rollout(
            prompt.number, row.sample, tuple(row.ids), tuple(row.logprobs), ended
        )
        prompt.running -= 1
        if not prompt.running and prompt.started == self.n:
            heapq.heappush(self.free_places, prompt.place)
            prompt.hidden = None

    def _close_up(self, over: list[int]) -> None:
        """Move the last rows into the places of finished ones."""
        left = len(self.rows) - len(over)
        empty = [place for place in over if place < left]
        gone = set(over)
        movers = [place for place in range(left, len(self.rows)) if place not in gone]
        # Written so far: all tokens but the newest, which the next step is fed.
        length = max((len(self.rows[place].ids) - 1 for place in movers), default=0)
        for target, mover in zip(empty, movers, strict=True):
            self.rows[target] = self.rows[mover]
        del self.rows[left:]
        if length:
            sources, targets = (torch.tensor(x, device=self.device) for x in (movers, empty))
            self.cache.own.move(sources, targets, length)
