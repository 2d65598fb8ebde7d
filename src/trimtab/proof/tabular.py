"""Policies that can be anything: one number a response, or one a prefix and token."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trimtab.proof.language import Language


class ResponseTable(nn.Module):
    """Free log-probs: a softmax over the Y responses of each prompt."""

    def __init__(self, reference: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(reference.detach().clone())

    def forward(self) -> Tensor:
        """Log-probs [X, Y]."""
        return torch.log_softmax(self.logits, -1)


class TokenTable(nn.Module):
    """A language model without weights to share: a softmax over the tokens after each prefix.

    It begins as the distribution ``reference`` [X, Y] itself, which it can represent exactly.
    """

    def __init__(self, language: Language, reference: Tensor) -> None:
        super().__init__()
        self.language = language
        # What follows a prefix: the mass of all responses that choose the token there.
        mass = torch.einsum("xy,ypt->xpt", reference.detach().exp(), language.visits)
        logits = torch.where(language.choices, mass.clamp(min=1e-300).log(), 0.0)
        self.logits = nn.Parameter(logits)

    def tokens(self) -> Tensor:
        """[X, prefixes, tokens] log-probs of the next token; -inf for one that may not follow."""
        return torch.log_softmax(self.logits.masked_fill(~self.language.choices, -torch.inf), -1)

    def forward(self) -> Tensor:
        """Log-probs [X, Y]."""
        finite = self.tokens().masked_fill(~self.language.choices, 0.0)
        return torch.einsum("xpt,ypt->xy", finite, self.language.visits)

    def log_square(self) -> Tensor:
        """[X, Y] the sum of log sum_v p(v)^2 of the next token over a response's prefixes."""
        square = (2 * self.tokens().detach()).logsumexp(-1)
        return square @ self.language.visits.sum(-1).T

    def token_logprobs(self) -> Tensor:
        """[X, Y, T] log-probs of a response's tokens, T the longest; 0 behind the last one.

        A stop token that nothing else could stand for has log-prob 0.
        """
        language, tokens = self.language, self.tokens()
        found = tokens.new_zeros(tokens.shape[0], len(language.texts), language.longest + 1)
        rows, places, prefixes, ids = [], [], [], []
        for row, text in enumerate(language.texts):
            for place, token in enumerate(language.ids(text)[: language.longest]):
                rows.append(row)
                places.append(place)
                prefixes.append(language.prefixes.index(text[:place]))
                ids.append(token)
        every = (slice(None), torch.tensor(rows), torch.tensor(places))
        found[every] = tokens[:, torch.tensor(prefixes), torch.tensor(ids)]
        return found

    def sequence_kl(self, reference: TokenTable) -> Tensor:
        """[X, Y] the sum of KL(reference || this) of the next token over a response's prefixes."""
        theirs, ours = reference.tokens().detach(), self.tokens()
        apart = (theirs - ours).masked_fill(~self.language.choices, 0.0)
        at_prefix = (theirs.exp() * apart).sum(-1)  # [X, prefixes]
        met = self.language.visits.sum(-1)  # [Y, prefixes]
        return at_prefix @ met.T
