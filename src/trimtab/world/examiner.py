"""What a model of the demo's world is worth: asked the same held-out requests as all others."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from trimtab.evaluation.statistics import Interval, cluster_bootstrap, ratio
from trimtab.world.corpus import held_out_requests, pretrain_documents
from trimtab.world.demo_stories import Storyteller, story_trees
from trimtab.world.gold import gold_reward

DOCUMENTS = 128  # of held-out text


@dataclasses.dataclass(frozen=True)
class Examination:
    """How much a model is asked."""

    requests: int = 128  # held out
    tellings: int = 2  # stories on each
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Point:
    """A model on the way: a mean of each request; (nats, tokens) of each document."""

    step: int
    cpu_seconds: float
    gold: list[float]
    learned: list[float]
    kl: list[float]
    length: list[float]
    text: list[tuple[float, int]]

    def text_loss(self) -> float:
        """Nats a token over all documents."""
        return sum(nats for nats, _ in self.text) / sum(tokens for _, tokens in self.text)


class Examiner:
    """Asks every model the same requests, and how likely the same text is to it."""

    def __init__(self, demo: Path, settings: Examination) -> None:
        from trimtab.rewards.reward_model import RewardModel

        self.settings = settings
        self.reference = Storyteller(demo / "sft")
        self.judge = RewardModel.load(demo / "reward")
        # Requests and text that neither the demo's stages nor its result have seen.
        self.requests = held_out_requests(settings.requests, settings.seed + 2)
        self.documents = pretrain_documents(DOCUMENTS, settings.seed + 2)

    def point(self, folder: Path | None, step: int, cpu_seconds: float) -> Point:
        """What the model in a folder (None: sft itself) is worth after ``step`` steps."""
        s = self.settings
        model = self.reference if folder is None else Storyteller(folder)
        told = model.tell(self.requests, s.tellings, s.seed, "compare")
        ours = [one.logprob for one in told]
        theirs = ours if folder is None else self.reference.logprobs(told)
        columns = {
            "gold": [gold_reward(one.request, one.story).total for one in told],
            "learned": [one for (one,) in self.judge.score_trees(story_trees(told))],
            "kl": [a - b for a, b in zip(ours, theirs, strict=True)],
            "length": [float(len(one.ids)) for one in told],
        }
        means = {
            name: [
                sum(values[i : i + s.tellings]) / s.tellings
                for i in range(0, len(values), s.tellings)
            ]
            for name, values in columns.items()
        }
        return Point(step, cpu_seconds, **means, text=model.text_loss(self.documents))


def apart(one: Sequence[float], other: Sequence[float]) -> Interval:
    """Mean of one - other on the same requests."""
    table = np.column_stack([np.subtract(one, other), np.ones(len(one))])
    return cluster_bootstrap(ratio, table, range(len(one)))
