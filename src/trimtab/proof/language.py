"""A language of a few responses: every string of up to ``longest`` letters, then the stop token.

Shapes here and in the package: X prompts, Y responses, P comparisons, R rankings of K responses.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools

import torch
from torch import Tensor


@dataclasses.dataclass(frozen=True)
class Language:
    """All strings of 1 to ``longest`` letters, as answers to any of the ``prompts``.

    With two letters and ``longest`` = 2 there are six responses (the setup E6), with 3 fourteen.
    The empty response is left out: rows of data cannot have it. A prompt is one token, and none of
    the letters: otherwise a prompt with the beginning of a response could be another prompt, whose
    answers no language model could then choose freely, and a transformer could not count the
    letters of "xaaa", if x were an a.
    """

    letters: str = "ab"
    longest: int = 2
    prompts: str = "x"

    @functools.cached_property
    def texts(self) -> tuple[str, ...]:
        """The Y responses as text, the shorter ones first."""
        return tuple(
            "".join(letters)
            for length in range(1, self.longest + 1)
            for letters in itertools.product(self.letters, repeat=length)
        )

    @property
    def stop(self) -> int:
        """Id of the stop token; the letters are 0, 1, ... before it, the prompts come after it."""
        return len(self.letters)

    @property
    def vocabulary(self) -> int:
        """Number of tokens: letters, stop token and prompts."""
        return len(self.letters) + 1 + len(self.prompts)

    def prompt_id(self, prompt: str) -> int:
        """Token id of a prompt."""
        return self.stop + 1 + self.prompts.index(prompt)

    def ids(self, text: str) -> tuple[int, ...]:
        """Token ids of a response, the stop token included."""
        return (*(self.letters.index(letter) for letter in text), self.stop)

    @functools.cached_property
    def lengths(self) -> Tensor:
        """[Y] tokens of each response, the stop token included."""
        return torch.tensor([len(text) + 1 for text in self.texts])

    @functools.cached_property
    def prefixes(self) -> tuple[str, ...]:
        """Where a token is chosen: the empty prefix and every shorter-than-``longest`` string.

        After ``longest`` letters only the stop token is left, and nothing at all is chosen.
        """
        return ("", *(text for text in self.texts if len(text) < self.longest))

    @functools.cached_property
    def choices(self) -> Tensor:
        """[prefixes, letters and stop] bool: what may follow; nothing stops before it began."""
        allowed = torch.ones(len(self.prefixes), self.stop + 1, dtype=torch.bool)
        allowed[0, self.stop] = False
        return allowed

    @functools.cached_property
    def visits(self) -> Tensor:
        """[Y, prefixes, tokens] float64: 1 where a response has that token after that prefix."""
        shape = (len(self.texts), len(self.prefixes), self.stop + 1)
        found = torch.zeros(shape, dtype=torch.float64)
        for number, text in enumerate(self.texts):
            for place, token in enumerate(self.ids(text)):
                if place < self.longest:
                    found[number, self.prefixes.index(text[:place]), token] = 1.0
        return found
