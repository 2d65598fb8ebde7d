"""Rollouts against transformers' ``generate`` and against the machine, in one process.

python -m benchmarks.rollout --cases 9m-natural 9m-fixed smollm2 --repeats 3 --threads 1

    9m-natural   Llama of 9 M weights, 8 prompts x 8 samples, natural ends, up to 64 new tokens
    9m-fixed     the same model, 64 different prompts x exactly 64 tokens
    smollm2      SmolLM2-135M-Instruct, 8 prompts x 8 samples x 64 tokens (make smollm2)

The arms alternate, each with the same model, prompts, dtype and threads; a random model gives every
token about the same probability, so that a 32nd of the vocabulary as stop tokens ends a
continuation after 28 tokens on average. Tokens count up to and with the first stop token: what
``generate`` computes behind it is not counted, and is what a user of it pays.

The limit is what the same work costs at the least, part by part, measured in the same run: all
matrix products with the model's own weights, at the number of rows that really ran in each step;
one pass over the keys and values that a step reads, shared prompts once; one exponential over the
vocabulary for each row. Python's own part of a step, calls and bookkeeping, is measured beside it:
what a step takes of a model with as many layers, and next to no weights.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from benchmarks.models import described, folder
from benchmarks.profile_step import by_part, lines
from trimtab.models.build import model_from_config
from trimtab.models.forward import choose_layout
from trimtab.models.load import load_model
from trimtab.rollout import Rollout, Sampler, SamplingParams
from trimtab.training.precision import choose_precision

NEW_TOKENS = 64
SHORTEST, LONGEST = 60, 180  # tokens of a prompt, uniformly
GRID = (1, 4, 8, 16, 24, 32, 48, 64)  # rows at which the limit is measured; linear in between
GOALS = {"9m-natural": 5.0, "9m-fixed": 2.5, "smollm2": 4.0}


_clock = time.perf_counter


class Case(NamedTuple):
    """What is sampled: a model of benchmarks/inputs/models.json, so many samples of each prompt."""

    model: str
    prompts: int
    samples: int
    natural_ends: bool


CASES = {
    "9m-natural": Case("llama-9m", 8, 8, True),
    "9m-fixed": Case("llama-9m", 64, 1, False),
    "smollm2": Case("smollm2-135m", 8, 8, False),
}


def made(name: str, dtype: torch.dtype) -> Any:
    """The model: random weights where models.json says how to make them, else its folder's."""
    spec = described()[name].get("made_from")
    if spec is None:
        return load_model(folder(name), dtype=dtype)
    return model_from_config(
        spec["architecture"],
        spec["config"],
        vocab_size=spec["vocab_size"],
        seed=spec["seed"],
        dtype=dtype,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    ).eval()


def random_prompts(count: int, vocabulary: int, seed: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int, size: int) -> list[int]:
        return torch.randint(low, high, (size,), generator=generator).tolist()

    return [draw(3, vocabulary, n) for n in draw(SHORTEST, LONGEST + 1, count)]


# ---------------------------------------------------------------------- the arms


def by_generate(
    model: Any, prompts: Sequence[Sequence[int]], samples: int, stops: Sequence[int]
) -> tuple[float, int]:
    """Seconds, and tokens that count, of one call of ``generate``."""
    width = max(map(len, prompts))
    ids = torch.full((len(prompts), width), 2)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    start = _clock()
    with torch.inference_mode():
        out = model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=NEW_TOKENS,
            do_sample=True,
            top_k=0,
            top_p=1.0,
            temperature=1.0,
            num_return_sequences=samples,
            eos_token_id=list(stops) or None,
            pad_token_id=2,
        )
    seconds = _clock() - start
    ends = set(stops)
    rows = (row.tolist() for row in out[:, width:])
    return seconds, sum(
        next((i + 1 for i, token in enumerate(row) if token in ends), len(row)) for row in rows
    )


def by_trimtab(
    sampler: Sampler, prompts: Sequence[Sequence[int]], samples: int, seed: int
) -> tuple[float, list[list[Rollout]]]:
    start = _clock()
    params = SamplingParams(NEW_TOKENS)
    rollouts = sampler.sample(prompts, samples, params, seed=seed, training=True)
    return _clock() - start, rollouts


# ---------------------------------------------------------------------- the limit


class Limit(NamedTuple):
    """Seconds of a call, by part; ``step`` are those of one step of all rows, in ms."""

    prompts: float
    products: float
    cache: float
    sampling: float
    python: float
    step: dict[str, float]

    @property
    def seconds(self) -> float:
        """What the arithmetic takes."""
        return self.prompts + self.products + self.cache + self.sampling

    @property
    def floor(self) -> float:
        """With Python's part of every step."""
        return self.seconds + self.python


def limit_of(
    model: Any, prompts: Sequence[Sequence[int]], rollouts: Sequence[Sequence[Rollout]]
) -> Limit:
    """The least that this very work costs here."""
    weights = [m.weight for m in model.modules() if isinstance(m, nn.Linear)]
    head = model.get_output_embeddings().weight
    layers = [w for w in weights if w is not head]
    products = _over_rows(lambda rows: _product_seconds([*layers, head], rows))
    sampling = _over_rows(lambda rows: _exponential_seconds(rows, head.shape[0]))
    per_token = _cache_bytes(model.config, head.element_size())
    rate = _read_rate()
    total = dict.fromkeys(("products", "cache", "sampling"), 0.0)
    for step in range(1, NEW_TOKENS):
        running = [[len(one.ids) > step for one in own] for own in rollouts]
        rows = sum(map(sum, running))
        shared = sum(len(p) for p, own in zip(prompts, running, strict=True) if any(own))
        total["products"] += products(rows)
        total["sampling"] += sampling(rows)
        total["cache"] += (shared + rows * step) * per_token / rate
    tokens = sum(map(len, prompts))
    reading = _product_seconds(layers, 512) * tokens / 512
    every = sum(map(len, rollouts))
    longest = max(GRID)
    middle = sum(map(len, prompts)) + every * NEW_TOKENS / 2
    python = _python_seconds(model.config, longest)
    step = {
        "products": products(longest),
        "cache": middle * per_token / rate,
        "sampling": sampling(longest),
        "Python": python,
    }
    step = {name: 1e3 * seconds for name, seconds in step.items()}
    steps = max(len(one.ids) for own in rollouts for one in own) - 1
    return Limit(reading, *total.values(), steps * python, step)


def _best(call: Callable[[], Any], repeats: int = 5) -> float:
    """Seconds of the quickest of some calls."""
    found: list[float] = []
    for _ in range(repeats + 1):
        start = _clock()
        call()
        found.append(_clock() - start)
    return min(found[1:])


def _over_rows(seconds: Callable[[int], float]) -> Callable[[int], float]:
    """Seconds at any number of rows, linear between those of ``GRID``."""
    known = [(0, 0.0)] + [(rows, seconds(rows)) for rows in GRID]

    def at(rows: int) -> float:
        for (low, first), (high, second) in itertools.pairwise(known):
            if rows <= high:
                return first + (second - first) * (rows - low) / (high - low)
        return known[-1][1] * rows / known[-1][0]

    return at


@torch.inference_mode()
def _product_seconds(weights: Iterable[Tensor], rows: int) -> float:
    """All products of ``rows`` rows with ``weights``, one after the other as a model does."""
    pairs = [(w.new_empty(rows, w.shape[1]).normal_(), w) for w in weights]

    def run() -> None:
        for x, w in pairs:
            nn.functional.linear(x, w)

    return _best(run)


def _python_seconds(config: Any, rows: int) -> float:
    """A step of as many rows and layers, the width being 8: calls, and what is between them."""
    small = copy.deepcopy(config)
    small.update(
        {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 1, "head_dim": 8,
         "num_key_value_heads": 1, "vocab_size": 128}
    )  # fmt: skip
    model: Any = AutoModelForCausalLM.from_config(small).eval()
    choose_layout(model)
    sampler = Sampler(model, stop_ids=())

    def run(tokens: int) -> float:
        return _best(lambda: sampler.sample([[3]] * rows, 1, SamplingParams(tokens), seed=0), 3)

    return max(0.0, run(33) - run(1)) / 32


@torch.inference_mode()
def _exponential_seconds(rows: int, vocabulary: int) -> float:
    logits = torch.randn(rows, vocabulary)
    return _best(lambda: logits.sub_(1.0).exp_())


@torch.inference_mode()
def _read_rate() -> float:
    """Bytes/s of reading what is not in a cache."""
    block = torch.ones(64 * 2**20)
    return block.numel() * 4 / _best(block.sum)


def _cache_bytes(config: Any, element: int) -> int:
    """Keys and values of a token, over all layers."""
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 2 * config.num_hidden_layers * config.num_key_value_heads * size * element


# ---------------------------------------------------------------------- the run


def profiled(sampler: Sampler, prompts: Sequence[Sequence[int]], samples: int) -> str:
    """Shares of one call's time by part, from torch's profiler, which slows small operations."""
    with torch.profiler.profile() as profiler:
        by_trimtab(sampler, prompts, samples, 0)
    operations = {one.key: one.self_cpu_time_total / 1e6 for one in profiler.key_averages()}
    split = {"products of keys and values": operations.pop("aten::bmm", 0.0)}
    split |= {"packing the head": operations.pop("mkldnn::_reorder_linear_weight", 0.0)}
    split |= by_part(operations)
    whole = sum(split.values())
    return "\n".join(lines("part", {name: s for name, s in split.items() if s}, whole))


def run(name: str, repeats: int, precision: str, *, profile: bool) -> None:
    """Measure one case and print it."""
    case = CASES[name]
    width = 256 if case.model == "llama-9m" else 576
    chosen = choose_precision(precision, torch.device("cpu"), width)
    model = made(case.model, chosen.dtype)
    choose_layout(model)
    vocabulary = model.get_output_embeddings().weight.shape[0]
    stops = range(100, 100 + vocabulary // 32) if case.natural_ends else ()
    sampler = Sampler(model, stop_ids=stops)
    print(f"\n{name}: {chosen.name} ({chosen.reason}); way {sampler.way}", flush=True)
    theirs: list[float] = []
    ours: list[float] = []
    for repeat in range(repeats):
        prompts = random_prompts(case.prompts, vocabulary, repeat)
        # One arm may find the machine busier than the other: both orders.
        for arm in ("generate", "trimtab") if repeat % 2 else ("trimtab", "generate"):
            if arm == "generate":
                seconds, tokens = by_generate(model, prompts, case.samples, stops)
                theirs.append(tokens / seconds)
            else:
                seconds, rollouts = by_trimtab(sampler, prompts, case.samples, repeat)
                tokens = sum(len(one.ids) for own in rollouts for one in own)
                ours.append(tokens / seconds)
                limit = limit_of(model, prompts, rollouts)
                share, of_floor = limit.seconds / seconds, limit.floor / seconds
            print(f"  {arm}: {tokens} tokens in {seconds:.2f} s, {tokens / seconds:.0f} tokens/s")
        parts = ", ".join(
            f"{part} {getattr(limit, part):.2f}"
            for part in ("prompts", "products", "cache", "sampling")
        )
        print(
            f"  limit {limit.seconds:.2f} s ({parts}); share reached {share:.0%}; with Python's "
            f"{limit.python:.2f} s {of_floor:.0%}",
            flush=True,
        )
    step = ", ".join(f"{part} {value:.1f}" for part, value in limit.step.items())
    print(f"  floor of one step of {max(GRID)} rows: {step} ms")
    one, other = statistics.median(ours), statistics.median(theirs)
    told = f"{one:.0f} against {other:.0f} tokens/s, {one / other:.1f} times"
    print(f"  {name}: {told} (goal {GOALS[name]:g})", flush=True)
    if profile:
        print(profiled(sampler, random_prompts(case.prompts, vocabulary, 0), case.samples))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto")
    parser.add_argument(
        "--clock",
        choices=("wall", "cpu"),
        default="wall",
        help="cpu: seconds of the process, for one thread on a machine that others use too",
    )
    parser.add_argument("--profile", action="store_true", help="and where the time goes")
    chosen = parser.parse_args()
    if chosen.clock == "cpu":
        global _clock
        _clock = time.process_time
    torch.set_num_threads(chosen.threads)
    for name in chosen.cases:
        if not Path(folder(CASES[name].model), "config.json").exists() and name == "smollm2":
            print(f"{name}: no model in {folder(CASES[name].model)}; run make smollm2")
            continue
        run(name, chosen.repeats, chosen.precision, profile=chosen.profile)


if __name__ == "__main__":
    main()
