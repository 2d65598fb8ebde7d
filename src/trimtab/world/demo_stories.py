"""What the demo asks its models: stories on requests, judged by the gold reward, and pairs of them.

Every draw is a function of (seed, purpose, batch), and how requests are cut into batches depends on
the requests alone: the same model, seed and requests give the same stories on the same machine.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from trimtab.world.annotators import NOISE, rank_stories
from trimtab.world.corpus import PreferenceRow, write_jsonl
from trimtab.world.draws import Draw
from trimtab.world.gold import gold_reward

BATCH = 128  # stories that are sampled together
LONGEST = 130  # tokens of a story; 99 % of the ordinary teller's are no longer
TOKENS = 4096  # per forward pass when stories are scored


class Told(NamedTuple):
    """A story as it was sampled. ``ids`` are its tokens, the stop token included if it came."""

    request: str
    story: str
    prompt_ids: tuple[int, ...]
    ids: tuple[int, ...]


class Storyteller:
    """A model that is asked for stories; raises what loading a model raises."""

    def __init__(self, folder: Path) -> None:
        import torch

        from trimtab.algorithms.policy import Policy
        from trimtab.data.chat import ChatRenderer
        from trimtab.models.forward import choose_layout
        from trimtab.models.load import load_model, load_tokenizer

        self.tokenizer = load_tokenizer(folder)
        self.renderer = ChatRenderer(self.tokenizer)
        self.model: Any = load_model(folder, dtype=torch.float32).eval()
        layout = choose_layout(self.model).layout
        self.policy = Policy(self.model, layout, torch.device("cpu"))

    def tell(
        self,
        requests: Sequence[str],
        seed: int,
        purpose: str,
        done: Callable[[int], None] = lambda _: None,
    ) -> list[Told]:
        """One story for each request, in their order, sampled at temperature 1.

        A request that stands there twice gets two stories. ``done`` is told how many there are.
        """
        prompts = [tuple(self.renderer.prompt_ids(request)) for request in requests]
        # Prompts of like length together: less padding, and the stable sort keeps it reproducible.
        order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
        told: dict[int, Told] = {}
        for first in range(0, len(order), BATCH):
            chunk = order[first : first + BATCH]
            sampled = self._sample([prompts[index] for index in chunk], seed, purpose, first)
            for index, ids in zip(chunk, sampled, strict=True):
                text = str(self.tokenizer.decode(ids, skip_special_tokens=True))
                told[index] = Told(requests[index], text, prompts[index], tuple(ids))
            done(len(told))
        return [told[index] for index in range(len(prompts))]

    def _sample(
        self, prompts: Sequence[Sequence[int]], seed: int, purpose: str, first: int
    ) -> Iterator[list[int]]:
        import torch

        from trimtab.models.attention import plain_attention
        from trimtab.training.seeds import derive

        width = max(map(len, prompts))
        ids = torch.tensor([[0] * (width - len(p)) + list(p) for p in prompts])
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
        stops = sorted(self.renderer.stop_ids)
        torch.manual_seed(derive(seed, purpose, first))
        with torch.no_grad(), plain_attention(self.model):
            out = self.model.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=LONGEST,
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                eos_token_id=stops,
                pad_token_id=stops[0],
            )
        for row in out[:, width:].tolist():
            end = next((place for place, token in enumerate(row) if token in stops), len(row) - 1)
            yield row[: end + 1]

    def logprobs(self, stories: Sequence[Told]) -> list[float]:
        """log P(story | request) in nats, the stop token included."""
        import torch

        from trimtab.data.batch import pack, split_by_tokens
        from trimtab.data.trees import Branch, Origin, TokenTree

        trees = [
            TokenTree(
                Branch(told.prompt_ids, (False,) * len(told.prompt_ids)),
                (Branch(told.ids, (True,) * len(told.ids)),),
                (),
                Origin("stories", number + 1),
            )
            for number, told in enumerate(stories)
        ]
        found: list[float] = []
        with torch.no_grad():
            for part in split_by_tokens(trees, TOKENS):
                found += self.policy.branch_logprobs(pack(part)).sum.tolist()
        return found


def best_and_worst(
    requests: Sequence[str], samples: Sequence[Sequence[str]], seed: int, noise: float = NOISE
) -> list[PreferenceRow]:
    """One pair a request: what an annotator ranks first among a model's stories, and last.

    ``samples[i]`` are stories on ``requests[i]``. Stories of nothing are left out, and a request
    whose stories are all equal gives no row.
    """
    rows: list[PreferenceRow] = []
    for index, (request, every) in enumerate(zip(requests, samples, strict=True)):
        stories = [story for story in every if story.strip()]
        if not stories:
            continue
        ranks = rank_stories(request, stories, Draw("best and worst", seed, index), noise)
        best, worst = stories[ranks.index(1)], stories[ranks.index(len(stories))]
        if best != worst:
            rows.append({"prompt": request, "chosen": best, "rejected": worst})
    return rows


def write_stories(path: Path, told: Sequence[Told], log_ratios: Sequence[float]) -> None:
    """One line a story: request, story, gold reward and its parts, tokens, log ratio to sft."""

    def line(one: Told, ratio: float) -> Mapping[str, Any]:
        score = gold_reward(one.request, one.story)
        return {
            "request": one.request,
            "story": one.story,
            "gold": score.total,
            **score.parts,
            "tokens": len(one.ids),
            "log_ratio": ratio,
        }

    write_jsonl(path, map(line, told, log_ratios))


def read_stories(path: Path) -> list[dict[str, Any]]:
    """The lines of ``write_stories``."""
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]
