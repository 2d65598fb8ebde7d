"""Responses laid end to end: M tokens, N responses, no padding.

``sequence`` [M] int64 numbers the response of every token, 0 to N - 1; a response's tokens are
contiguous and in order, and every response has at least one.
"""

from __future__ import annotations

import torch
from torch import Tensor


def segment_sum(values: Tensor, index: Tensor, count: int) -> Tensor:
    """[count] sums of ``values`` [M] by ``index`` [M]; with gradient.

    Each sum sees its own terms alone. Differences of one running sum would not: rounding at the
    size of everything that came before would stay in them.
    """
    return values.new_zeros(count).index_add(0, index, values)


def last_tokens(sequence: Tensor, count: int) -> Tensor:
    """[M] bool: whether a token is its response's last one.

    ValueError unless ``sequence`` holds ``count`` responses, each in one piece and in order.
    """
    last = torch.ones_like(sequence, dtype=torch.bool)
    last[:-1] = sequence[1:] != sequence[:-1]
    if not torch.equal(sequence[last], torch.arange(count, device=sequence.device)):
        raise ValueError(
            f"sequence: has to number {count} responses from 0, each with at least one token and "
            "in one piece"
        )
    return last


def require_lengths(sequence: Tensor, lengths: Tensor) -> None:
    """ValueError unless response n has ``lengths`` [N] of the tokens of ``sequence`` [M]."""
    ends = last_tokens(sequence, len(lengths)).nonzero().squeeze(1)
    found = ends.diff(prepend=ends.new_tensor([-1]))
    if not torch.equal(found, lengths.to(found)):
        raise ValueError("lengths: are not those of the responses in sequence")


def suffix_sums(values: Tensor, sequence: Tensor, factor: float, longest: int) -> Tensor:
    """[M]: x_t = values_t + factor x_(t+1) within each response, x = 0 after its last token.

    By doubling: after k passes x_t covers the 2^k tokens from t on, so log2(longest) passes over
    the packed row do what a loop over tokens would, at 0 <= ``factor`` <= 1 with no more rounding.
    """
    reach = 1
    while reach < longest:
        same = sequence[reach:] == sequence[:-reach]
        later = torch.where(same, values[reach:], 0.0) * factor**reach
        values = torch.cat([values[:-reach] + later, values[-reach:]])
        reach *= 2
    return values
