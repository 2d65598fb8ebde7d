"""What a forward and a backward pass keep in memory, found by running them without memory.

The model runs on fake tensors, which have shapes and no content, through the very code that trains;
every storage that comes into being is counted until it is gone. So adapters, precision, grouped
heads, windows and whatever a layer keeps for its backward pass are in the numbers, for any
architecture and any size. All layers cost the same: two and three of them are run, and the rest is
arithmetic.
"""

from __future__ import annotations

import gc
import warnings
import weakref
from typing import Any, NamedTuple

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from trimtab.data.batch import TreeBatch, pack
from trimtab.data.trees import Branch, Origin, TokenTree
from trimtab.models.attention import install
from trimtab.models.attention_kernels import block_attention_works
from trimtab.models.forward import hidden_states, prepare
from trimtab.plan.flops import Tree
from trimtab.plan.skeleton import Skeleton


class Work(NamedTuple):
    """Bytes of the body, without weights and the output head.

    kept      alive between the forward and the backward pass
    moment    beyond that, at the worst moment of the two
    """

    kept: int
    moment: int


def training_work(skeleton: Skeleton, trees: list[Tree], *, checkpointing: bool = False) -> Work:
    """Of one micro-batch with gradients."""
    batch = batch_of(trees)
    few, more = (_trained(skeleton, batch, count) for count in (2, 3))
    layer = max(0, more.kept - few.kept)
    if checkpointing:  # of a layer its input; one layer at a time is run again
        width = batch.ids.numel() * skeleton.width * skeleton.dtype.itemsize
        rest = max(0, few.kept - 2 * layer)
        return Work(rest + skeleton.layers * width, layer + few.moment)
    return Work(few.kept + (skeleton.layers - 2) * layer, more.moment)


def reading_work(skeleton: Skeleton, trees: list[Tree]) -> int:
    """Bytes at the worst moment of a forward pass without gradients; depth does not matter."""
    batch = batch_of(trees)
    with _Fakes(skeleton, 2) as (model, meter), torch.no_grad():
        hidden_states(model, batch, "shared").targets()
        return meter.peak


def batch_of(trees: list[Tree]) -> TreeBatch:
    """A batch of trees of these lengths, whatever their tokens are."""

    def run(length: int, trained: int) -> Branch:
        return Branch((0,) * length, tuple(i >= length - trained for i in range(length)))

    made: list[TokenTree] = []
    for number, tree in enumerate(trees):
        left = tree.targets
        branches: list[Branch] = []
        for length in tree.branches:
            count = min(length if tree.trunk else length - 1, left)
            branches.append(run(length, count))
            left -= count
        origin = Origin("plan", number + 1)
        # What is left is trained in the trunk: a prompt that is learnt, earlier turns.
        trunk = run(tree.trunk, max(0, min(tree.trunk - 1, left)))
        made.append(TokenTree(trunk, tuple(branches), (), origin))
    batch = pack(made)
    prepare(batch, "shared")
    return batch


def _trained(skeleton: Skeleton, batch: TreeBatch, layers: int) -> Work:
    with _Fakes(skeleton, layers) as (model, meter):
        hidden = hidden_states(model, batch, "shared")
        states = hidden.ends() if skeleton.scores else hidden.targets()
        gc.collect()
        kept, forward = meter.now, meter.peak
        meter.peak = kept
        states.sum().backward()
        return Work(kept, max(meter.peak, forward) - kept)


class _Fakes:
    """Within it, a skeleton's model of so many layers on fake tensors, and the meter."""

    def __init__(self, skeleton: Skeleton, layers: int) -> None:
        self._model = skeleton.model(min(layers, skeleton.layers))
        self._mode = FakeTensorMode(allow_non_fake_inputs=True)

    def __enter__(self) -> tuple[nn.Module, _Meter]:
        block_attention_works()  # asks real numbers, once
        self._warnings = warnings.catch_warnings()
        self._warnings.__enter__()
        warnings.simplefilter("ignore")  # of fake tensors' data pointers
        self._mode.__enter__()
        _make_fake(self._model)
        install(self._model)
        self._meter = _Meter([*self._model.parameters(), *self._model.buffers()])
        self._meter.__enter__()
        return self._model, self._meter

    def __exit__(self, *error: Any) -> None:
        self._meter.__exit__(*error)
        self._mode.__exit__(*error)
        self._warnings.__exit__(*error)


def _make_fake(model: nn.Module) -> None:
    """Fake tensors of the CPU in place of a model's meta tensors, tied ones still one."""
    made: dict[int, tuple[nn.Parameter, Any]] = {}
    for module in model.modules():
        for name, old in module._parameters.items():
            if old is None:
                continue
            if id(old) not in made:
                new = torch.empty(old.shape, dtype=old.dtype, device="cpu")
                # ``old`` is kept, too: another tensor must not get its id.
                made[id(old)] = nn.Parameter(new, requires_grad=old.requires_grad), old
            module._parameters[name] = made[id(old)][0]
        for name, old in module._buffers.items():
            if old is not None:
                module._buffers[name] = torch.empty(old.shape, dtype=old.dtype, device="cpu")


class _Meter(TorchDispatchMode):
    """Counts the bytes of storages that operations make, while they live."""

    def __init__(self, known: list[torch.Tensor]) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._live: dict[int, int] = {id(tensor.untyped_storage()): 0 for tensor in known}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        return out

    def _count(self, storage: Any) -> None:
        key = id(storage)
        if key in self._live:
            return
        size = storage.nbytes()
        self._live[key] = size
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._gone, key)

    def _gone(self, key: int) -> None:
        self.now -= self._live.pop(key, 0)
