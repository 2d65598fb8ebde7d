"""What a machine reaches with a recipe's own work: tried for some seconds on random weights.

The rate of a large matrix product says little of a step: attention over short segments, a small
model's operations, the head, adapters and an entropy for the log take their own shares. So the code
that trains runs here, forward and backward, on some of the run's own micro-batches, and the sampler
on some of its prompts. What would take too long is made smaller: first fewer micro-batches, then
fewer trees of one, and only then, or where the memory does not suffice, fewer layers, at two depths
and the head by itself; the rest is arithmetic, since layers cost the same.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from trimtab.algorithms.policy import Policy, frozen
from trimtab.models.forward import choose_layout
from trimtab.models.load import checkpoint_activations
from trimtab.plan import flops
from trimtab.plan.flops import Shape, Tree
from trimtab.plan.skeleton import Skeleton
from trimtab.plan.trace import batch_of
from trimtab.rollout import Sampler, SamplingParams
from trimtab.training.optim import build_optimizer
from trimtab.training.precision import MasterWeights, wait_for

SECONDS = 30.0
"""What the trial of either kind may take, roughly; more only where a single tree takes longer."""
PICKS = 3  # micro-batches of different sizes
PASSES = 3  # the first one is not timed; memory to use again is there after two
EXPECTED = 0.6  # share of the products' rate, to see beforehand what a trial would take
ENOUGH = 256  # tokens: fewer have slower products
FEW, MORE = 2, 6  # layers: of large models; in a small one few layers stay in the caches
MEMORY_SHARE = 0.5
"""Of the free memory, which a trial's weights, gradients and optimizer may take."""


class Reached(NamedTuple):
    """Useful operations per second, training and reading; ``update`` seconds a trained weight."""

    training: float
    reading: float
    update: float
    layers: int  # that were run, at the most


class Work(NamedTuple):
    """What a pass computes beside log-probs, and how; ``optim`` as the recipe names it."""

    optim: str
    entropy: bool = False
    correct: bool = False
    checkpointing: bool = False


def reached(
    skeleton: Skeleton,
    shape: Shape,
    micros: Sequence[list[Tree]],
    work: Work,
    *,
    device: torch.device,
    rate: float,
    room: int | None,
) -> Reached | None:
    """Try training and reading on some of ``micros``; ``rate`` is that of matrix products.

    None where even a single tree would take too long, or the model too much memory.
    """
    picks, depths = _affordable(skeleton, shape, _picks(shape, micros), rate, room)
    if not picks:
        return None
    seconds = _seconds_of(skeleton, depths, picks, work, device)
    trees = [tree for pick in picks for tree in pick]
    again = 4 / 3 if work.checkpointing else 1.0
    rank = None if skeleton.lora is None else skeleton.lora[0]
    return Reached(
        again * flops.training(shape, trees, lora_rank=rank) / seconds.training,
        flops.forward(shape, trees) / seconds.reading,
        seconds.update,
        depths[-1],
    )


class Decoding(NamedTuple):
    """Seconds of reading the prompts that were tried, once, and of a step of all their rows."""

    reading: float
    step: float
    prompts: int
    rows: int


def decoding(
    skeleton: Skeleton,
    shape: Shape,
    prompts: Sequence[Tree],
    *,
    slots: int,
    device: torch.device,
    rate: float,
    room: int | None,
) -> Decoding | None:
    """Try the sampler on as many of ``prompts``, trees with whole responses, as fill the slots."""
    each = len(prompts[0].branches)
    length = max(max(tree.branches) for tree in prompts)
    tried = list(prompts[: max(1, slots // each)])
    rows = min(slots, each * len(tried))

    def cost(shape: Shape, steps: int) -> float:
        some = [tree._replace(branches=(steps,) * each, targets=steps * each) for tree in tried]
        return 2 * flops.generation(shape, some) / (EXPECTED * rate)

    depths: tuple[int, ...] = (skeleton.layers,)
    steps = min(length, 16)
    if cost(shape, steps) > SECONDS or not _fits(skeleton, depths[0], room, trained=False):
        depths = tuple(min(count, skeleton.layers) for count in (FEW, MORE))
        least = sum(cost(cut(shape, depth), steps) for depth in depths)
        if not _fits(skeleton, depths[-1], room, trained=False) or least > 4 * SECONDS:
            return None
    # As many tokens as there is time for: a row's own keys become more.
    while 2 * steps <= length and sum(cost(cut(shape, d), 2 * steps) for d in depths) < SECONDS:
        steps *= 2
    steps = length if 2 * steps > length and depths == (skeleton.layers,) else steps
    ids = [[3 + i % 64 for i in range(max(1, tree.trunk))] for tree in tried]
    seconds = [_sampled(skeleton, depth, ids, each, slots, steps, device) for depth in depths]
    reading, step = (_deeper(skeleton, depths, [s[i] for s in seconds]) for i in (0, 1))
    return Decoding(reading, step, len(tried), rows)


def cut(shape: Shape, layers: int) -> Shape:
    """The shape with so many of its layers."""
    body = tuple(p._replace(count=p.count * layers // shape.layers) for p in shape.body)
    return shape._replace(body=body, layers=layers)


# ---------------------------------------------------------------------- what is tried


def _picks(shape: Shape, micros: Sequence[list[Tree]]) -> list[list[Tree]]:
    """Some of the micro-batches, evenly from small to large."""
    ordered = sorted(micros, key=lambda trees: flops.forward(shape, trees))
    count = min(PICKS, len(ordered))
    return [ordered[(2 * i + 1) * len(ordered) // (2 * count)] for i in range(count)]


def _affordable(
    skeleton: Skeleton,
    shape: Shape,
    picks: list[list[Tree]],
    rate: float,
    room: int | None,
) -> tuple[list[list[Tree]], tuple[int, ...]]:
    """What there is time and memory for, and at which depths: the whole model if it can be.

    No micro-batch where there is none.
    """
    rank = None if skeleton.lora is None else skeleton.lora[0]

    def seconds(some: Sequence[list[Tree]], *depths: int) -> float:
        return sum(_seconds(cut(shape, depth), some, rate, rank) for depth in depths)

    every, middle = skeleton.layers, picks[len(picks) // 2]
    if _fits(skeleton, every, room):
        some = picks if seconds(picks, every) <= SECONDS else [middle]
        some = _fewer(some, lambda some: seconds(some, every), least=ENOUGH)
        if seconds(some, every) <= SECONDS:
            return some, (every,)
    depths = tuple(min(count, every) for count in (FEW, MORE))
    some = _fewer([middle], lambda some: seconds(some, *depths))
    fits = _fits(skeleton, depths[-1], room) and seconds(some, *depths) <= 4 * SECONDS
    return some if fits else [], depths


def _fewer(
    picks: list[list[Tree]], seconds: Callable[[list[list[Tree]]], float], least: int = 1
) -> list[list[Tree]]:
    """Several as they are; of a single one every second tree, until there is time for it."""
    if len(picks) > 1:
        return picks
    (trees,) = picks
    while len(trees) > 1 and seconds([trees]) > SECONDS:
        fewer = trees[::2]
        if sum(tree.tokens for tree in fewer) < least:
            break
        trees = fewer
    return [trees]


def _seconds(
    shape: Shape, picks: Sequence[list[Tree]], rate: float, rank: int | None = None
) -> float:
    """What a trial would take: forward and backward, and once more forward for reading."""
    once = sum(
        flops.training(shape, pick, lora_rank=rank) + flops.forward(shape, pick) for pick in picks
    )
    return PASSES * once / (EXPECTED * rate)


def _fits(skeleton: Skeleton, layers: int, room: int | None, *, trained: bool = True) -> bool:
    if room is None:
        return True
    parameters = list(skeleton.model(layers).parameters())
    size = sum(p.numel() * p.element_size() for p in parameters)
    if trained:
        size += sum(16 * p.numel() for p in parameters if p.requires_grad)
    return size <= MEMORY_SHARE * room


def _deeper(skeleton: Skeleton, depths: Sequence[int], seconds: Sequence[float]) -> float:
    """Seconds of all layers, from those of one depth that is all of them, or of two."""
    if depths[0] == depths[-1]:
        return seconds[0] * skeleton.layers / depths[0]
    layer = max(0.0, seconds[1] - seconds[0]) / (depths[1] - depths[0])
    return seconds[0] + (skeleton.layers - depths[0]) * layer


# ---------------------------------------------------------------------- the trials


class _Seconds(NamedTuple):
    """Of training and reading all picks; ``update`` of an optimizer step, a trained weight."""

    training: float
    reading: float
    update: float


def _seconds_of(
    skeleton: Skeleton,
    depths: Sequence[int],
    picks: Sequence[list[Tree]],
    work: Work,
    device: torch.device,
) -> _Seconds:
    """Of the whole model; the head's alone, where few layers would be lost beside it."""
    if len(depths) == 1:
        return _timed(_policy(skeleton, depths[0], work, device), skeleton, picks, work, _whole)
    found: list[_Seconds] = []
    head = _Seconds(0.0, 0.0, 0.0)
    for depth in reversed(depths):  # whatever has to wake wakes in what is longer
        policy = _policy(skeleton, depth, work, device)
        found.insert(0, _timed(policy, skeleton, picks, work, _body))
        if depth == depths[0] and not skeleton.scores:
            head = _timed(policy, skeleton, picks, work, _head)
    train, read = (_deeper(skeleton, depths, [one[i] for one in found]) + head[i] for i in (0, 1))
    return _Seconds(train, read, found[-1].update)


def _timed(
    policy: Policy,
    skeleton: Skeleton,
    picks: Sequence[list[Tree]],
    work: Work,
    part: Callable[[Policy, Skeleton, Any, Work], Tensor],
) -> _Seconds:
    """Of a part of the model."""
    device = policy.device
    weights = MasterWeights(policy.model)

    def of(trees: list[Tree]) -> tuple[Callable[[], None], Callable[[], None]]:
        batch = batch_of(trees)
        batch.ids.random_(0, skeleton.vocabulary)
        batch = batch.to(device)

        def step() -> None:
            part(policy, skeleton, batch, work).sum().backward()

        def look() -> None:
            with frozen(policy.model):
                part(policy, skeleton, batch, work._replace(entropy=False, correct=False))

        return step, look

    train = read = 0.0
    for step, look in map(of, picks):
        train += _clocked(step, device)
        read += _clocked(look, device)
    trained = {name: p for name, p in weights.masters.items() if p.grad is not None}
    if not trained:  # the head beside adapters
        return _Seconds(train, read, 0.0)
    optimizer = build_optimizer(trained, name=work.optim, weight_decay=0.0)

    def update() -> None:
        weights.clip(weights.gradient_norm(), 1.0)
        optimizer.step()
        weights.cast_to_working()

    count = sum(p.numel() for p in trained.values())
    return _Seconds(train, read, _clocked(update, device) / count)


def _whole(policy: Policy, skeleton: Skeleton, batch: Any, work: Work) -> Tensor:
    """Log-probs or scores."""
    if skeleton.scores:
        return policy.scores(batch)
    return policy.token_stats(batch, entropy=work.entropy, correct=work.correct).logp


def _body(policy: Policy, skeleton: Skeleton, batch: Any, work: Work) -> Tensor:
    """Without the head."""
    return policy.scores(batch) if skeleton.scores else policy.hidden(batch)


def _head(policy: Policy, skeleton: Skeleton, batch: Any, work: Work) -> Tensor:
    """Log-probs of states that nothing came from."""
    shape = batch.target.numel(), skeleton.width
    hidden = torch.zeros(shape, dtype=skeleton.dtype, device=policy.device, requires_grad=True)
    more = work.entropy, work.correct
    return policy.token_stats(batch, hidden=hidden, entropy=more[0], correct=more[1]).logp


def _sampled(
    skeleton: Skeleton,
    layers: int,
    prompts: Sequence[Sequence[int]],
    each: int,
    slots: int,
    steps: int,
    device: torch.device,
) -> tuple[float, float]:
    """Seconds up to every row's first token, and of a step after it."""
    model = _policy(skeleton, layers, Work("sgd"), device).model
    sampler = Sampler(model, stop_ids=(), slots=slots)

    def sample(tokens: int) -> None:
        sampler.sample(prompts, each, SamplingParams(tokens), seed=0)

    sample(2)
    first = _clocked(lambda: sample(1), device, warm=False)
    if steps < 2:
        return first, 0.0
    whole = _clocked(lambda: sample(steps), device, warm=False)
    return first, max(0.0, whole - first) / (steps - 1)


def _policy(skeleton: Skeleton, layers: int, work: Work, device: torch.device) -> Policy:
    model: nn.Module = skeleton.drawn(layers, device)
    if work.checkpointing:
        checkpoint_activations(model)
    choice = choose_layout(model)
    return Policy(model, choice.layout, device)


def _clocked(call: Callable[[], None], device: torch.device, *, warm: bool = True) -> float:
    """Seconds of a call, on average; the first one counts only where it is slow beyond belief."""
    if warm and (first := _once(call, device)) > SECONDS:
        return first  # some products have no kernel here: bf16's gradients on an old processor
    return sum(_once(call, device) for _ in range(PASSES - 1)) / (PASSES - 1)


def _once(call: Callable[[], None], device: torch.device) -> float:
    wait_for(device)
    start = time.perf_counter()
    call()
    wait_for(device)
    return time.perf_counter() - start
