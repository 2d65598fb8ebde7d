"""Attention of decoding: each row over its prompt's keys, shared with its siblings, and its own.

Both plans below are handed to an unmodified transformers model as ``tree_plan``; tree attention
(``models/attention.py``) leaves the work to a plan that has ``attend``. ``PromptPlan`` is tree
attention over whole prompts, packed, that keeps their keys and values. ``RowPlan`` is one step of
all running rows, which stand in the packed row one token each.

A step computes scores by batched products: for each run of prompts all of their rows together, so
that a prompt's keys are read once for all of its samples, and for each run of rows over their own.
One softmax goes over both. Everything is a public operation and works on any device; a window, a
soft-cap and sinks are a mask, a tanh and a column.

Shapes: R rows, H query heads, H_kv key heads, G = H / H_kv, D and D' sizes of key and value heads,
P tokens of the longest prompt in use, L the most sampled tokens of a row, this one included.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from trimtab.data.batch import Span, TreeSpans
from trimtab.models.attention import tree_attention
from trimtab.models.attention_kernels import compute_dtype
from trimtab.models.attention_plan import TreePlan
from trimtab.rollout.cache import KeyValues, Run, runs_of

Rows = slice | Tensor
"""Rows of a tensor: neighbours, which cost nothing to take, or any."""

_Views = Sequence[tuple[Tensor, Tensor]]


class PromptPlan:
    """Attention over packed prompts; keys and values go to their places as they come.

    ``lengths`` and ``places`` are those of the prompts, in the order in which they are packed.
    """

    def __init__(
        self, cache: KeyValues, lengths: Sequence[int], places: Sequence[int], device: torch.device
    ) -> None:
        ends = torch.tensor(lengths).cumsum(0).tolist()
        self.spans = [Span(end - n, end) for end, n in zip(ends, lengths, strict=True)]
        self.places = list(places)
        depth = torch.cat([torch.arange(n) for n in lengths]).to(device)
        trees = [TreeSpans(span, ()) for span in self.spans]
        self.tree = TreePlan(trees, depth)
        self.depth = depth
        self.last = torch.tensor(ends, device=device) - 1
        self.windows: list[int | None] = []
        self._arena = cache.prompts

    def attend(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, **options: Any
    ) -> Tensor:
        """[1, T, H, D'] from [1, H, T, D], [1, H_kv, T, D] and [1, H_kv, T, D']."""
        layer = len(self.windows)
        self.windows.append(options.get("sliding_window"))
        keys, values = self._arena.layer(layer, key.transpose(1, 2), value.transpose(1, 2))
        for place, span in zip(self.places, self.spans, strict=True):
            keys[place, :, : span.length] = key[0, :, span.start : span.end]
            values[place, :, : span.length] = value[0, :, span.start : span.end]
        out, _ = tree_attention(module, query, key, value, None, tree_plan=self.tree, **options)
        return out


@dataclasses.dataclass(frozen=True, eq=False)
class _PromptRun:
    """A run of n prompts of which each has up to ``width`` rows.

    take   [n * width]  rows as the products want them, prompt by prompt; where a prompt has fewer
                        rows than ``width``, any row stands in and is not read
    place  [k]          where each of its rows stands there
    rows   [k]          its rows among all
    """

    run: Run
    width: int
    take: Rows
    place: Rows
    rows: Rows

    def views(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """[n * H_kv, D, length] and [n * H_kv, length, D'] of a layer's prompts."""
        start, stop, length = self.run
        keys = keys[start:stop, :, :length].flatten(0, 1).transpose(1, 2)
        return keys, values[start:stop, :, :length].flatten(0, 1)

    def gather(self, x: Tensor) -> Tensor:
        """[n * H_kv, width * G, S] from the rows of [R, H_kv, G, S]."""
        x = _take(x, self.take)
        _, heads, groups, size = x.shape
        if self.width == 1:
            return x.reshape(-1, groups, size)
        x = x.view(-1, self.width, heads, groups, size).transpose(1, 2)
        return x.reshape(-1, self.width * groups, size)

    def scatter(self, x: Tensor, target: Tensor, *, add: bool = False) -> None:
        """Give [n * H_kv, width * G, S] to the rows of ``target`` [R, H_kv, G, S]."""
        _, heads, groups, size = target.shape
        x = x.view(-1, heads, self.width, groups, size).transpose(1, 2)
        rows = self.rows
        if isinstance(rows, slice):
            if rows.stop - rows.start == len(x) * self.width:  # in their order, none missing
                part = target[rows].unflatten(0, (-1, self.width))
                part.add_(x) if add else part.copy_(x)
                return
            rows = torch.arange(rows.start, rows.stop, device=x.device)
        x = _take(x.reshape(-1, heads, groups, size), self.place)
        if add:
            target.index_add_(0, rows, x)
        else:
            target.index_copy_(0, rows, x.to(target.dtype))


class Crew:
    """Which rows there are: the same for all steps until one comes or goes.

    prompts  of each row, the place of its prompt
    lengths  of each row, the tokens of its prompt
    sampled  of each row, the tokens that it has sampled so far: the last of them is what the next
             step is fed
    """

    def __init__(
        self,
        prompts: Sequence[int],
        lengths: Sequence[int],
        sampled: Sequence[int],
        device: torch.device,
    ) -> None:
        self.device = device
        self.longest_prompt = max(lengths)
        self.prompt_lengths = torch.tensor(lengths, device=device)
        self.sampled = torch.tensor(sampled, device=device)
        self.most_sampled = max(sampled)
        self.prompt_runs = self._prompt_runs(prompts, lengths)
        self.own_runs = runs_of(sampled)
        self._views: dict[int, _Views] = {}

    def prompt_views(self, layer: int, keys: Tensor, values: Tensor) -> _Views:
        """Of each run of prompts, what the products read; the prompts stay as long as the crew."""
        if layer not in self._views:
            self._views[layer] = [part.views(keys, values) for part in self.prompt_runs]
        return self._views[layer]

    def advance(self) -> None:
        """Every row has sampled one more token."""
        self.sampled = self.sampled + 1
        self.most_sampled += 1
        self.own_runs = [run._replace(length=run.length + 1) for run in self.own_runs]

    def _prompt_runs(self, prompts: Sequence[int], lengths: Sequence[int]) -> list[_PromptRun]:
        rows_of: dict[int, list[int]] = {}
        length_at = [0] * (max(prompts) + 1)
        for row, (place, length) in enumerate(zip(prompts, lengths, strict=True)):
            rows_of.setdefault(place, []).append(row)
            length_at[place] = length
        found: list[_PromptRun] = []
        for run in runs_of(length_at):
            members = [rows_of.get(place, []) for place in range(run.start, run.stop)]
            width = max(map(len, members))
            take = [row for own in members for row in own + [0] * (width - len(own))]
            places = [i * width + j for i, own in enumerate(members) for j in range(len(own))]
            rows = [row for own in members for row in own]
            found.append(_PromptRun(run, width, *map(self._rows, (take, places, rows))))
        return found

    def _rows(self, rows: list[int]) -> Rows:
        first = rows[0]
        if rows == list(range(first, first + len(rows))):
            return slice(first, first + len(rows))
        return torch.tensor(rows, device=self.device)


class RowPlan:
    """One step of a crew: row i's new token is written behind its own, and sees its path."""

    def __init__(self, cache: KeyValues, crew: Crew) -> None:
        cache.reserve_own(crew.most_sampled)
        self.cache = cache
        self.crew = crew
        self.rows = crew.sampled.numel()
        self.depth = crew.prompt_lengths + crew.sampled - 1
        self.windows: list[int | None] = []
        self._deepest = crew.longest_prompt + crew.most_sampled
        self._written: dict[int, Tensor] = {}
        self._masks: dict[int | None, Tensor] = {}

    def attend(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        **options: Any,
    ) -> Tensor:
        """[1, R, H, D'] from [1, H, R, D], [1, H_kv, R, D] and [1, H_kv, R, D']."""
        query, key, value = (x[0].transpose(0, 1) for x in (query, key, value))
        return self.attend_rows(query, key, value, **options)[None]

    def attend_rows(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        scaling: float | None = None,
        sliding_window: int | None = None,
        softcap: float | None = None,
        s_aux: Tensor | None = None,
    ) -> Tensor:
        """[R, H, D'] from [R, H, D], [R, H_kv, D] and [R, H_kv, D'], of the next layer."""
        layer = len(self.windows)
        self.windows.append(sliding_window)
        query = query * (query.shape[-1] ** -0.5 if scaling is None else scaling)
        own = self.cache.own.layer(layer, key, value)
        self._write(own, key, value)
        prompts = self.cache.prompts.layer(layer, key, value)
        views = self.crew.prompt_views(layer, *prompts)
        heads = key.shape[1]
        query = query.reshape(self.rows, heads, -1, query.shape[-1])
        scores = self._scores(query, views, own[0])
        if softcap is not None:
            scores.div_(softcap).tanh_().mul_(softcap)
        scores += self._mask(sliding_window, scores.dtype)
        if s_aux is None:
            weights = scores.softmax(-1)
        else:
            sinks = s_aux.to(scores.dtype).view(1, heads, -1, 1).expand(*scores.shape[:3], 1)
            weights = torch.cat((scores, sinks), -1).softmax(-1)
        out = self._values(weights.to(value.dtype), views, own[1])
        return out.flatten(1, 2)

    def _write(self, own: tuple[Tensor, Tensor], key: Tensor, value: Tensor) -> None:
        """Put the new keys and values at the end of each row's own."""
        heads = key.shape[1]
        if heads not in self._written:
            row = torch.arange(self.rows, device=key.device)[:, None]
            head = torch.arange(heads, device=key.device)
            end = self.crew.sampled[:, None] - 1
            place = (row * heads + head) * self.cache.own.capacity + end
            self._written[heads] = place.flatten()
        for store, new in zip(own, (key, value), strict=True):
            flat = store.view(-1, store.shape[-1])
            flat.index_copy_(0, self._written[heads], new.reshape(-1, new.shape[-1]))

    def _scores(self, query: Tensor, views: _Views, own: Tensor) -> Tensor:
        """[R, H_kv, G, P + L] in at least fp32; what no run covers is 0, and masked."""
        crew = self.crew
        rows, heads, groups, _ = query.shape
        split = crew.longest_prompt
        shape = rows, heads, groups, split + crew.most_sampled
        scores = query.new_zeros(shape, dtype=compute_dtype(query.dtype))
        for part, (keys, _) in zip(crew.prompt_runs, views, strict=True):
            product = torch.bmm(part.gather(query), keys)
            part.scatter(product, scores[..., : part.run.length])
        for start, stop, length in crew.own_runs:
            keys = own[start:stop, :, :length].flatten(0, 1).transpose(1, 2)
            product = torch.bmm(query[start:stop].flatten(0, 1), keys)
            target = scores[start:stop, ..., split : split + length]
            target.copy_(product.view(stop - start, heads, groups, length))
        return scores

    def _values(self, weights: Tensor, views: _Views, own: Tensor) -> Tensor:
        """[R, H_kv, G, D'] from the weights [R, H_kv, G, P + L ...] of ``_scores``."""
        crew = self.crew
        rows, heads, groups, _ = weights.shape
        split = crew.longest_prompt
        out = weights.new_empty(rows, heads, groups, own.shape[-1])
        for start, stop, length in crew.own_runs:
            part = weights[start:stop, ..., split : split + length].flatten(0, 1)
            product = torch.bmm(part, own[start:stop, :, :length].flatten(0, 1))
            out[start:stop].copy_(product.view(stop - start, heads, groups, -1))
        for part, (_, values) in zip(crew.prompt_runs, views, strict=True):
            product = torch.bmm(part.gather(weights[..., : part.run.length]), values)
            part.scatter(product, out, add=True)
        return out

    def _mask(self, window: int | None, dtype: torch.dtype) -> Tensor:
        """[R, 1, 1, P + L], minus infinity where a row does not see a token, 0 elsewhere."""
        if window is not None and window >= self._deepest:
            window = None
        if window not in self._masks:
            crew, device = self.crew, self.depth.device
            prompt = torch.arange(crew.longest_prompt, device=device)
            own = torch.arange(crew.most_sampled, device=device)
            lengths, sampled = crew.prompt_lengths[:, None], crew.sampled[:, None]
            hidden = torch.cat((prompt >= lengths, own >= sampled), -1)
            if window is not None:
                depth = torch.cat((prompt.expand(self.rows, -1), lengths + own), -1)
                hidden |= self.depth[:, None] - depth >= window
            mask = torch.zeros(hidden.shape, dtype=dtype, device=device)
            self._masks[window] = mask.masked_fill_(hidden, float("-inf"))[:, None, None]
        return self._masks[window]


def _take(x: Tensor, rows: Rows) -> Tensor:
    return x[rows] if isinstance(rows, slice) else x.index_select(0, rows)
