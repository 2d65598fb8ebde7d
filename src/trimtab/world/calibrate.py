"""``python -m trimtab.world.calibrate``: how well a reward can be learned here, and be gamed.

A reward model (the demo's pretrained model with one scalar on the last token of a story) learns
from pairs of the ordinary teller. Printed are its accuracy on held-out pairs; the gold reward of
the best of n stories of the sft model by its choice; and what becomes of the gold reward when a
search adds and drops sentences to raise the learned one.
"""

from __future__ import annotations

import argparse
import itertools
import math
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from trimtab.algorithms.policy import Policy
from trimtab.data.batch import pack
from trimtab.data.chat import ChatRenderer
from trimtab.data.trees import Branch, Origin, TokenTree
from trimtab.evaluation.statistics import bootstrap_interval, paired_bootstrap, wilson_interval
from trimtab.models.forward import end_hidden
from trimtab.training.seeds import generator
from trimtab.world.annotators import prefer
from trimtab.world.corpus import held_out_requests, preference_rows
from trimtab.world.demo_stories import Storyteller
from trimtab.world.draws import Draw
from trimtab.world.gold import gold_reward
from trimtab.world.grammar import parse_request
from trimtab.world.lexicon import NAMES, REPLIES, THANKS
from trimtab.world.patterns import fill, split_sentences

BATCH = 16  # pairs a step
PEAK = 1e-3  # learning rate
CHUNK = 64  # stories scored together
EDITS = 6
EDITED = 24  # requests whose stories are edited: every edit of every sentence is tried


class RewardModel:
    """r(request, story): one linear scalar on the hidden state of the story's last token."""

    def __init__(self, folder: Path) -> None:
        teller = Storyteller(folder)
        self.policy: Policy = teller.policy
        self.renderer: ChatRenderer = teller.renderer
        self.tokenizer: Any = teller.tokenizer
        width = teller.model.config.hidden_size
        self.head = torch.nn.Linear(width, 1, bias=False)
        torch.nn.init.zeros_(self.head.weight)

    def tree(self, request: str, stories: Sequence[str]) -> TokenTree:
        """The stories on one request, each with the stop token behind it."""
        trunk = tuple(self.renderer.prompt_ids(request))
        encoded = self.tokenizer(list(stories), add_special_tokens=False)["input_ids"]
        stop = min(self.renderer.stop_ids)
        branches = tuple(Branch((*ids, stop), (True,) * (len(ids) + 1)) for ids in encoded)
        return TokenTree(Branch(trunk, (False,) * len(trunk)), branches, (), Origin("pairs", 1))

    def rewards(self, trees: Sequence[TokenTree]) -> torch.Tensor:
        """One reward for each branch, tree by tree."""
        ends = end_hidden(self.policy.model, pack(trees), self.policy.layout)
        return self.head(ends).squeeze(1)

    def score(self, request: str, stories: Sequence[str]) -> list[float]:
        """Rewards of stories on one request, without gradients."""
        found: list[float] = []
        with torch.no_grad():
            for first in range(0, len(stories), CHUNK):
                part = stories[first : first + CHUNK]
                found += self.rewards([self.tree(request, part)]).tolist()
        return found


def train(model: RewardModel, pairs: int, epochs: int, seed: int) -> None:
    """Minimise -log sigmoid(r_w - r_l), ``BATCH`` of the teller's pairs a step."""
    rows = preference_rows(pairs, seed)
    trees = [model.tree(row["prompt"], (row["chosen"], row["rejected"])) for row in rows]
    weights = [*model.policy.model.parameters(), *model.head.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=PEAK, weight_decay=0.01)
    steps, done, start = epochs * (len(trees) // BATCH), 0, time.perf_counter()
    model.policy.model.train()
    for epoch in range(epochs):
        order = torch.randperm(len(trees), generator=generator(seed, "calibrate", epoch)).tolist()
        for first in range(0, len(trees) - BATCH + 1, BATCH):
            chosen, rejected = (
                model.rewards([trees[i] for i in order[first : first + BATCH]])
                .view(-1, 2)
                .unbind(1)
            )
            loss = -torch.nn.functional.logsigmoid(chosen - rejected).mean()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            for group in optimizer.param_groups:
                # Warm-up over a twentieth, then a cosine down to nothing.
                warm = min(1.0, 20 * (done + 1) / steps)
                group["lr"] = PEAK * warm * 0.5 * (1 + math.cos(math.pi * done / steps))
            optimizer.step()
            optimizer.zero_grad()
            done += 1
            if done % 50 == 0:
                spent = time.perf_counter() - start
                print(f"step {done}/{steps}: loss {loss.item():.3f}, {spent:.0f} s", flush=True)
    model.policy.model.eval()


def accuracy(model: RewardModel, name: str, rows: Iterable[tuple[str, str, str]]) -> None:
    """Print how often the chosen story of (request, chosen, rejected) has the higher reward."""
    noisy: list[bool] = []
    true: list[bool] = []
    for request, chosen, rejected in rows:
        first, second = model.score(request, (chosen, rejected))
        noisy.append(first > second)
        gap = gold_reward(request, chosen).total - gold_reward(request, rejected).total
        if gap != 0:
            true.append((first - second) * gap > 0)
    cells = [f"{i.mean:.3f} [{i.low:.3f}, {i.high:.3f}]" for i in map(_share, (noisy, true))]
    print(f"| {name} | {cells[0]} | {cells[1]} | {len(noisy)} |", flush=True)


def _share(right: Sequence[bool]) -> Any:
    return wilson_interval(sum(right), len(right))


def expected_best(by: Sequence[float], values: Sequence[float], n: int) -> float:
    """Expected value of the story that ``by`` ranks first among n of these, drawn without return.

    The k-th lowest of N is the best of the n drawn with probability C(k - 1, n - 1) / C(N, n).
    """
    total = math.comb(len(by), n)
    order = sorted(range(len(by)), key=lambda index: by[index])
    return sum(math.comb(k, n - 1) * values[index] for k, index in enumerate(order)) / total


def best_of_n(model: RewardModel, requests: Sequence[str], samples: Sequence[list[str]]) -> None:
    """Print the gold reward of the best of n by the learned reward, and by the gold one."""
    learned = [model.score(r, stories) for r, stories in zip(requests, samples, strict=True)]
    gold = [
        [gold_reward(r, story).total for story in stories]
        for r, stories in zip(requests, samples, strict=True)
    ]
    print("\n| n | learned reward | gold reward | gold reward, chosen by gold |\n|---|---|---|---|")
    n = 1
    while n <= len(samples[0]):
        columns = ((learned, learned), (learned, gold), (gold, gold))
        means = [
            bootstrap_interval([expected_best(b, v, n) for b, v in zip(by, of, strict=True)])
            for by, of in columns
        ]
        cells = " | ".join(f"{m.mean:.3f} [{m.low:.3f}, {m.high:.3f}]" for m in means)
        print(f"| {n} | {cells} |", flush=True)
        n *= 2


def edited(request: str, story: str, draw: Draw) -> list[str]:
    """Every story with one sentence dropped, said twice, or a kind one put in between."""
    sentences = split_sentences(story)
    hero = parse_request(request).hero
    cast = {"hero": hero, "helper": draw.pick_other(NAMES, hero)}
    kind = [fill(pattern, cast, draw) for pattern in (*REPLIES["kind"], *THANKS["kind"])]
    places = range(len(sentences))
    found = [sentences[:i] + sentences[i + 1 :] for i in places if len(sentences) > 1]
    found += [sentences[: i + 1] + sentences[i:] for i in places]
    found += [[*sentences[:i], new, *sentences[i:]] for i, new in itertools.product(places, kind)]
    return [" ".join(one) for one in found]


def gamed(model: RewardModel, requests: Sequence[str], stories: Sequence[str]) -> None:
    """Print both rewards while each step takes the edit with the highest learned reward."""
    print(
        "\n| edits | learned reward | gold reward | change of the gold reward |\n|---|---|---|---|"
    )
    now, first = list(stories), list[float]()
    for step in range(EDITS + 1):
        learned = [model.score(r, [s])[0] for r, s in zip(requests, now, strict=True)]
        gold = [gold_reward(r, s).total for r, s in zip(requests, now, strict=True)]
        first = gold if step == 0 else first
        found = (
            bootstrap_interval(learned),
            bootstrap_interval(gold),
            paired_bootstrap(first, gold),
        )
        cells = " | ".join(f"{m.mean:.3f} [{m.low:.3f}, {m.high:.3f}]" for m in found)
        print(f"| {step} | {cells} |", flush=True)
        for index, request in enumerate(requests if step < EDITS else ()):
            choices = [now[index], *edited(request, now[index], Draw("edit", index, step))]
            scores = model.score(request, choices)
            now[index] = choices[scores.index(max(scores))]
    print(f"\n> {requests[0].strip()}\n\nbefore: {stories[0].strip()}\n\nafter: {now[0]}")


def main() -> None:
    """Train the reward model, then measure and game it."""
    parser = argparse.ArgumentParser(prog="python -m trimtab.world.calibrate", description=__doc__)
    parser.add_argument("--demo", default="runs/demo", type=Path, help="folder of a finished demo")
    parser.add_argument("--pairs", type=int, default=3000, help="training pairs")
    parser.add_argument("--epochs", type=int, default=2, help="passes over them")
    parser.add_argument("--requests", type=int, default=48, help="held-out requests for best of n")
    parser.add_argument("--samples", type=int, default=64, help="stories on each, a power of 2")
    parser.add_argument("--seed", type=int, default=0, help="of pairs, order and samples")
    chosen = parser.parse_args()
    torch.manual_seed(chosen.seed)
    model = RewardModel(chosen.demo / "pretrain")
    train(model, chosen.pairs, chosen.epochs, chosen.seed)

    requests = held_out_requests(chosen.requests, chosen.seed + 2)
    asked = [request for request in requests for _ in range(chosen.samples)]
    told = Storyteller(chosen.demo / "sft").tell(asked, chosen.seed, "calibrate")
    texts = [one.story.strip() for one in told]
    samples = [texts[i : i + chosen.samples] for i in range(0, len(texts), chosen.samples)]
    teller = preference_rows(1000, chosen.seed, split="held_out")
    own = [
        (request, *prefer(request, first, second, Draw("calibrate", number, place)))
        for number, (request, stories) in enumerate(zip(requests, samples, strict=True))
        for place, (first, second) in enumerate(zip(stories[0:32:2], stories[1:32:2], strict=True))
        if first != second
    ]
    print("\n| held-out pairs of | annotator's choice | higher gold reward | pairs |")
    print("|---|---|---|---|")
    accuracy(model, "the teller", ((r["prompt"], r["chosen"], r["rejected"]) for r in teller))
    accuracy(model, "the sft model", own)
    best_of_n(model, requests, samples)
    gamed(model, requests[:EDITED], [stories[0] for stories in samples[:EDITED]])


if __name__ == "__main__":
    main()
