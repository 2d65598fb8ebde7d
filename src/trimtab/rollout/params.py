"""What is asked of a sampler, and what comes back."""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

from trimtab.errors import RecipeError


class Rollout(NamedTuple):
    """One sampled continuation.

    prompt    number of its prompt
    sample    which of the prompt's n continuations it is, from 0 on
    ids       sampled tokens, the stop token included where one came
    logprobs  of each token in nats, over the whole vocabulary, at the temperature of the sampling
              (at temperature 1 for greedy decoding)
    ended     whether the last token is a stop token; False means that it was cut off
    """

    prompt: int
    sample: int
    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    ended: bool

    @property
    def no_room(self) -> bool:
        """Whether the prompt fills the model's context, so that nothing could be sampled."""
        return not self.ids


@dataclasses.dataclass(frozen=True)
class SamplingParams:
    """How tokens are chosen.

    max_new_tokens  at least 1; a continuation that reaches it without a stop token is cut off
    temperature     divides the logits; 0 is greedy
    top_k           only the k likeliest tokens; 0 is all
    top_p           only the likeliest tokens that together have this probability (nucleus sampling,
                    arXiv:1904.09751), after top_k, as transformers does; 1 is all

    Raises RecipeError, naming the key, for numbers out of range.
    """

    max_new_tokens: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise RecipeError(f"max_new_tokens={self.max_new_tokens}: must be at least 1")
        if not 0 <= self.temperature < math.inf:
            raise RecipeError(
                f"temperature={self.temperature:g}: must be a number, 0 (greedy) or more"
            )
        if self.top_k < 0:
            raise RecipeError(f"top_k={self.top_k}: must be at least 1, or 0 for all tokens")
        if not 0 < self.top_p <= 1:
            raise RecipeError(f"top_p={self.top_p:g}: must be above 0 and at most 1")

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken, without a draw."""
        return self.temperature == 0

    def check_training(self) -> None:
        """Refuse what would not sample from the policy itself.

        A policy gradient is an expectation under the distribution that was sampled from. Tokens
        that top-k or top-p leave out have probability 0 there and not in the policy, so that
        importance ratios are biased; greedy decoding samples from no distribution at all.
        """
        if self.top_k:
            key, value = "top_k", str(self.top_k)
        elif self.top_p < 1:
            key, value = "top_p", f"{self.top_p:g}"
        elif self.greedy:
            key, value = "temperature", "0"
        else:
            return
        raise RecipeError(
            f"{key}={value}: training samples from the whole distribution, or its ratios would be "
            f"biased; leave {key} out"
        )
