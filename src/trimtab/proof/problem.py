"""What is to be learnt over a language: reference, rewards, and which responses are compared."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from trimtab.proof.language import Language


class Problem(NamedTuple):
    """X prompts with the same Y responses; all in float64.

    reference   [X, Y]  log-probs of the reference over the responses: each row is a distribution
    rewards     [X, Y]  the true reward of each response
    sampling    [X, Y]  how likely a response is to be drawn into a comparison: rows sum to 1
    lengths     [Y]     tokens of each response
    """

    reference: Tensor
    rewards: Tensor
    sampling: Tensor
    lengths: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """X and Y."""
        return self.reference.shape[0], self.reference.shape[1]


def uniform(reference: Tensor, rewards: Tensor, lengths: Tensor) -> Problem:
    """A problem in which all responses are equally likely to be compared; inputs [X, Y] or [Y]."""
    reference = torch.log_softmax(torch.atleast_2d(reference).double(), -1)
    rewards = torch.atleast_2d(rewards).double()
    return Problem(reference, rewards, torch.full_like(rewards, 1 / rewards.shape[1]), lengths)


def setup_e6() -> Problem:
    """One prompt and the six responses a, b, aa, ab, ba, bb, whose optima are known in numbers."""
    reference = torch.tensor([0.3, -0.2, 0.5, 0.0, -0.7, 0.1], dtype=torch.float64)
    rewards = torch.tensor([1.0, 0.0, -0.5, 2.0, 0.3, -1.0], dtype=torch.float64)
    return uniform(reference, rewards, Language().lengths)


def random_rewards(prompts: int, responses: int, *, seed: int, scale: float = 1.0) -> Tensor:
    """[X, Y] rewards, standard normal times ``scale``, the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(prompts, responses, generator=generator, dtype=torch.float64)
