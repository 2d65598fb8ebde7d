"""A rollout as it is trained on: sampled responses, what was computed of them, and their file.

Rollouts and their rewards are written before they are trained on, so that a run that was killed
within its passes over one goes on with the same numbers.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from trimtab.data.batch import pack
from trimtab.data.trees import Branch, Origin, TokenTree
from trimtab.errors import CheckpointError
from trimtab.training import files
from trimtab.training.algorithm import Micro


@dataclasses.dataclass
class Experience:
    """One rollout: a tree for every prompt, its branches the sampled responses.

    ``tokens`` holds columns over all sampled tokens [M] and ``responses`` over all responses [N],
    both in the order of the trees; fp32 on the CPU. ``facts`` are plain numbers of the whole
    rollout (``next_kl_coef``, what is logged of it). ``rows`` are the prompts' row numbers.
    """

    number: int
    trees: list[TokenTree]
    rows: list[int]
    tokens: dict[str, Tensor] = dataclasses.field(default_factory=dict)
    responses: dict[str, Tensor] = dataclasses.field(default_factory=dict)
    facts: dict[str, float] = dataclasses.field(default_factory=dict)

    @property
    def lengths(self) -> Tensor:
        """[N] sampled tokens of every response."""
        return torch.tensor([len(b.ids) for tree in self.trees for b in tree.branches])

    @property
    def sequence(self) -> Tensor:
        """[M] number of the response that a token belongs to."""
        return torch.arange(len(self.lengths)).repeat_interleave(self.lengths)

    @property
    def groups(self) -> Tensor:
        """[N] number of the prompt that a response answers."""
        sizes = torch.tensor([len(tree.branches) for tree in self.trees])
        return torch.arange(len(self.trees)).repeat_interleave(sizes)

    def micros(self, chosen: Sequence[int], token_budget: int) -> Iterator[Micro]:
        """Micro-batches of the trees ``chosen``, in that order, with their columns."""
        token_starts, response_starts = self._starts()
        run: list[int] = []
        used = 0
        for index in [*chosen, None]:
            size = 0 if index is None else self.trees[index].token_count
            if run and (index is None or used + size > token_budget):
                yield self._micro(run, token_starts, response_starts)
                run, used = [], 0
            if index is not None:
                run.append(index)
                used += size

    def _starts(self) -> tuple[list[int], list[int]]:
        tokens, responses = [0], [0]
        for tree in self.trees:
            tokens.append(tokens[-1] + sum(len(branch.ids) for branch in tree.branches))
            responses.append(responses[-1] + len(tree.branches))
        return tokens, responses

    def _micro(self, run: Sequence[int], tokens: list[int], responses: list[int]) -> Micro:
        def gathered(columns: Mapping[str, Tensor], starts: list[int]) -> dict[str, Tensor]:
            return {
                name: torch.cat([column[starts[i] : starts[i + 1]] for i in run])
                for name, column in columns.items()
            }

        return Micro(
            pack([self.trees[i] for i in run]),
            tuple(self.rows[i] for i in run),
            tokens=gathered(self.tokens, tokens),
            responses=gathered(self.responses, responses),
        )

    # ------------------------------------------------------------------ the file

    def save(self, path: Path) -> None:
        """Write everything, atomically."""
        tensors = {f"tokens.{name}": value.contiguous() for name, value in self.tokens.items()}
        tensors |= {f"responses.{n}": value.contiguous() for n, value in self.responses.items()}
        segments = [part.ids for tree in self.trees for part in (tree.trunk, *tree.branches)]
        tensors["ids"] = torch.tensor([i for ids in segments for i in ids], dtype=torch.int32)
        tensors["lengths"] = torch.tensor([len(ids) for ids in segments], dtype=torch.int32)
        about = {
            "number": self.number,
            "rows": self.rows,
            "branches": [len(tree.branches) for tree in self.trees],
            "origins": [list(tree.origin) for tree in self.trees],
            "facts": self.facts,
        }
        content = save(tensors, {"rollout": json.dumps(about)})
        try:
            files.make_folder(path.parent)
            files.write_atomic(path, content)
        except OSError as error:
            raise CheckpointError(
                f"{path}: the rollout cannot be written ({error.strerror or error}); see to the "
                "disk and run the same command again: it goes on from the last checkpoint"
            ) from error

    @classmethod
    def load(cls, path: Path) -> Experience:
        """Read what ``save`` wrote; CheckpointError for a file that is not whole."""
        try:
            with safe_open(path, "pt") as file:
                about: dict[str, Any] = json.loads(file.metadata()["rollout"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{path}: the rollout of this checkpoint cannot be read ({error}); "
                "start over with --restart, or --resume from a checkpoint between two rollouts"
            ) from error
        ids, lengths = tensors.pop("ids").tolist(), tensors.pop("lengths").tolist()
        segments: list[tuple[int, ...]] = []
        start = 0
        for length in lengths:
            segments.append(tuple(ids[start : start + length]))
            start += length
        trees: list[TokenTree] = []
        parts = iter(segments)
        for count, origin in zip(about["branches"], about["origins"], strict=True):
            prompt = next(parts)
            trees.append(
                response_tree(prompt, [next(parts) for _ in range(count)], Origin(*origin))
            )
        found = cls(about["number"], trees, about["rows"], facts=about["facts"])
        for name, tensor in tensors.items():
            kind, _, column = name.partition(".")
            (found.tokens if kind == "tokens" else found.responses)[column] = tensor
        return found


def response_tree(
    prompt: Sequence[int], responses: Sequence[Sequence[int]], origin: Origin
) -> TokenTree:
    """A prompt with sampled responses: every sampled token is trained, stop tokens too."""
    trunk = Branch(tuple(prompt), (False,) * len(prompt))
    branches = tuple(Branch(tuple(ids), (True,) * len(ids)) for ids in responses)
    return TokenTree(trunk, branches, (), origin)
