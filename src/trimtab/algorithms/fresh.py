"""What online preference learning and RAFT share: of a rollout, some branches are trained on.

A rollout is sampled, judged, given its reference log-probs and written, as in ``on_policy.py``.
Then every prompt's tree is cut to what the algorithm chooses of it (``choose``); a prompt of which
nothing is chosen is left out. A step without anything has a batch of weight 0: its terms are 0 / 0
and left out, and the weights stay as they are.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from trimtab.algorithms.experience import Experience
from trimtab.algorithms.on_policy import OnPolicy, sequence_sums
from trimtab.algorithms.pairing import Chosen, Judged, unused
from trimtab.algorithms.rollout_log import mean
from trimtab.losses.contract import Kind
from trimtab.training.algorithm import Micro
from trimtab.training.terms import Metric


class FreshSamples(OnPolicy):
    """Base of ``online_dpo`` and ``raft``."""

    kind: Kind | None = None  # what the loss compares, None for the language-model loss

    def __init__(self, *args: Any, note: Callable[[str], None], **more: Any) -> None:
        super().__init__(*args, **more)
        self.note = note
        self.empty_rollouts = 0
        self._chosen: tuple[int, list[Chosen | None]] = (-1, [])

    @abstractmethod
    def choose(self, judged: Judged) -> Chosen | None:
        """What is trained on of a prompt's responses; None: nothing."""

    @abstractmethod
    def why_nothing(self, experience: Experience) -> str:
        """Why nothing was chosen of a whole rollout, with the numbers."""

    needs_rewards = False  # nothing is chosen then, and that is noted

    # ------------------------------------------------------------------ a rollout

    def collect(self, number: int) -> Experience:
        """A rollout; a note where nothing can be trained on, ever more seldom."""
        experience = super().collect(number)
        if not any(self.chosen(experience)):
            self.empty_rollouts += 1
            if self.empty_rollouts.bit_count() == 1:  # the 1st, 2nd, 4th, 8th, ...
                self.note(
                    f"rollout {number + 1}: {self.why_nothing(experience)}; its steps change "
                    f"nothing (rollouts like that: {self.empty_rollouts})"
                )
        return experience

    def complete(self, experience: Experience) -> None:
        """The KL of every token, for the log."""
        tokens = experience.tokens
        tokens["kl"] = tokens["old"] - tokens["reference"]

    def chosen(self, experience: Experience) -> list[Chosen | None]:
        """What is trained on of every prompt: a function of the frozen scores."""
        if self._chosen[0] != experience.number:
            judged = _judged(experience)
            self._chosen = experience.number, [self.choose(one) for one in judged]
        return self._chosen[1]

    # ------------------------------------------------------------------ a step

    def select(self, experience: Experience, chosen: Sequence[int]) -> list[Micro]:
        """Micro-batches of what is trained on of these prompts."""
        found = self.chosen(experience)
        kept = {i: one for i in chosen if (one := found[i]) is not None}
        if not kept:
            kept = {chosen[0]: unused(experience.trees[chosen[0]], self.kind)}
        part = _part(experience, kept)
        return list(part.micros(range(len(kept)), self.stream.token_budget))

    # ------------------------------------------------------------------ metrics

    def rollout_metrics(self, experience: Experience) -> dict[str, Metric]:
        """How far the policy went, and prompts whose scores say nothing."""
        flat = 0
        for one in _judged(experience):
            known = [score for score, valid in zip(one.scores, one.valid, strict=True) if valid]
            flat += not known or max(known) - min(known) == 0
        kl = sequence_sums(experience.tokens["kl"], experience)
        return {
            "objective/kl": mean(kl),
            "frac_reward_zero_std": Metric(float(flat), float(len(experience.trees))),
        }


def _judged(experience: Experience) -> list[Judged]:
    """The responses of every prompt with what the judge said."""
    r = experience.responses
    columns = [r["score"].tolist(), r.get("order", r["score"]).tolist(), r["valid"].tolist()]
    found: list[Judged] = []
    start = 0
    for tree in experience.trees:
        end = start + len(tree.branches)
        scores, order, valid = (column[start:end] for column in columns)
        found.append(Judged(tree, scores, order, [bool(v) for v in valid]))
        start = end
    return found


def _part(experience: Experience, kept: dict[int, Chosen]) -> Experience:
    """The chosen branches as a rollout of their own, with the responses' columns."""
    starts = [0]
    for tree in experience.trees:
        starts.append(starts[-1] + len(tree.branches))
    places: Tensor = torch.tensor([starts[i] + p for i, one in kept.items() for p in one.places])
    return Experience(
        experience.number,
        [one.tree for one in kept.values()],
        [experience.rows[i] for i in kept],
        responses={name: column[places] for name, column in experience.responses.items()},
    )
