"""What the demo asks its models: stories on requests, judged by the gold reward, and rankings.

A story is a function of (seed, purpose, place of its request, its number there) and the model: the
same ones give the same stories on the same machine.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from trimtab.world.annotators import NOISE, rank_stories
from trimtab.world.corpus import PreferenceRow, RankedRow, write_jsonl
from trimtab.world.draws import Draw
from trimtab.world.gold import gold_reward

if TYPE_CHECKING:
    from trimtab.data.trees import TokenTree

LONGEST = 130  # tokens of a story; 99 % of the ordinary teller's are no longer
TOKENS = 4096  # per forward pass when stories are scored


class Told(NamedTuple):
    """A story as it was sampled. ``ids`` are its tokens, the stop token included if it came.

    ``logprob`` is log P(story | request) in nats by the model that told it.
    """

    request: str
    story: str
    prompt_ids: tuple[int, ...]
    ids: tuple[int, ...]
    logprob: float


class Storyteller:
    """A model that is asked for stories; raises what loading a model raises."""

    def __init__(self, folder: Path) -> None:
        import torch

        from trimtab.algorithms.policy import Policy
        from trimtab.data.chat import ChatRenderer
        from trimtab.models.forward import choose_layout
        from trimtab.models.load import load_model, load_tokenizer
        from trimtab.rollout import Sampler

        self.tokenizer = load_tokenizer(folder)
        self.renderer = ChatRenderer(self.tokenizer)
        self.model: Any = load_model(folder, dtype=torch.float32).eval()
        layout = choose_layout(self.model).layout
        self.policy = Policy(self.model, layout, torch.device("cpu"))
        self.sampler = Sampler(self.model, stop_ids=self.renderer.stop_ids)

    def tell(
        self,
        requests: Sequence[str],
        each: int,
        seed: int,
        purpose: str,
        done: Callable[[int], None] = lambda _: None,
    ) -> list[Told]:
        """``each`` stories on every request, one request after the other, at temperature 1.

        A request that stands there twice gets other stories the second time. ``done`` is told, now
        and then, how many there are.
        """
        from trimtab.rollout import SamplingParams
        from trimtab.training.seeds import derive

        prompts = [tuple(self.renderer.prompt_ids(request)) for request in requests]
        params = SamplingParams(max_new_tokens=LONGEST)
        found = self.sampler.sample(
            prompts, each, params, seed=derive(seed, purpose), done=done, training=True
        )
        return [
            Told(request, self._text(one.ids), prompt, one.ids, sum(one.logprobs))
            for request, prompt, samples in zip(requests, prompts, found, strict=True)
            for one in samples
        ]

    def _text(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def logprobs(self, stories: Sequence[Told]) -> list[float]:
        """log P(story | request) in nats by this model, the stop token included."""
        return [logp for logp, _ in self._scored(story_trees(stories))]

    def text_loss(self, documents: Sequence[str]) -> list[tuple[float, int]]:
        """Minus log P in nats and predicted tokens of each document, all but its first token.

        Documents are read from their first token on, without a begin or an end of text.
        """
        from trimtab.data.trees import Branch, Origin, TokenTree

        every = [self.tokenizer(text, add_special_tokens=False)["input_ids"] for text in documents]
        trees = [
            TokenTree(
                Branch((ids[0],), (False,)),
                (Branch(tuple(ids[1:]), (True,) * (len(ids) - 1)),),
                (),
                Origin("documents", number),
            )
            for number, ids in enumerate(every, 1)
        ]
        return [(-logp, count) for logp, count in self._scored(trees)]

    def _scored(self, trees: Sequence[TokenTree]) -> list[tuple[float, int]]:
        """Log-prob of the only branch of each tree, and how many tokens it has."""
        import torch

        from trimtab.data.batch import pack, split_by_tokens

        found: list[float] = []
        with torch.no_grad():
            for part in split_by_tokens(trees, TOKENS):
                found += self.policy.branch_logprobs(pack(part)).sum.tolist()
        counts = [len(tree.branches[0].ids) for tree in trees]
        return list(zip(found, counts, strict=True))


def story_trees(stories: Sequence[Told]) -> list[TokenTree]:
    """Each story after its request, by the tokens that were sampled."""
    from trimtab.data.trees import Branch, Origin, TokenTree

    return [
        TokenTree(
            Branch(told.prompt_ids, (False,) * len(told.prompt_ids)),
            (Branch(told.ids, (True,) * len(told.ids)),),
            (),
            Origin("stories", number),
        )
        for number, told in enumerate(stories, 1)
    ]


def ranked(
    requests: Sequence[str], samples: Sequence[Sequence[str]], seed: int, noise: float = NOISE
) -> list[RankedRow]:
    """One ranking a request: a model's stories in an annotator's order.

    ``samples[i]`` are stories on ``requests[i]``. Stories of nothing and those told before are left
    out, and a request with one story or none gives no row.
    """
    rows: list[RankedRow] = []
    for index, (request, every) in enumerate(zip(requests, samples, strict=True)):
        stories = list(dict.fromkeys(story for story in every if story.strip()))
        if len(stories) > 1:
            ranks = rank_stories(request, stories, Draw("best and worst", seed, index), noise)
            rows.append({"prompt": request, "responses": stories, "ranks": ranks})
    return rows


def best_and_worst(rows: Sequence[RankedRow]) -> list[PreferenceRow]:
    """One pair a ranking: its first and its last."""
    return [
        {
            "prompt": row["prompt"],
            "chosen": row["responses"][row["ranks"].index(1)],
            "rejected": row["responses"][row["ranks"].index(len(row["ranks"]))],
        }
        for row in rows
    ]


def write_stories(
    path: Path, told: Sequence[Told], log_ratios: Sequence[float], learned: Sequence[float]
) -> None:
    """One line a story: request, story, gold reward and its parts, learned reward, tokens, log
    ratio to sft."""

    def line(one: Told, ratio: float, reward: float) -> Mapping[str, Any]:
        score = gold_reward(one.request, one.story)
        return {
            "request": one.request,
            "story": one.story,
            "gold": score.total,
            **score.parts,
            "learned": reward,
            "tokens": len(one.ids),
            "log_ratio": ratio,
        }

    write_jsonl(path, map(line, told, log_ratios, learned))


def read_stories(path: Path) -> list[dict[str, Any]]:
    """The lines of ``write_stories``."""
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]
