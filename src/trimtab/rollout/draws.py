"""One uniform number per token, as a function of (seed, prompt, sample, position) alone.

Philox 4x64-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) is a keyed
bijection of counters: the key is the seed, the counter is (position / 4, sample, prompt, 0), and
each output gives four numbers. So a draw depends neither on how work was batched nor on how many
tokens others took, and two prompts or samples never share one. NumPy guarantees the stream.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_PURPOSE = (
    0x726F6C6C6F7574  # "rollout": the second word of the key, apart from other uses of a seed
)
_WORD = (1 << 64) - 1


def uniforms(seed: int, prompt: int, sample: int, count: int) -> NDArray[np.float64]:
    """[count] uniforms in (0, 1) for the tokens of one continuation; 52 bits each.

    A longer ``count`` only adds numbers at the end. ``prompt`` and ``sample`` are at least 0.
    """
    key = np.array([seed & _WORD, _PURPOSE], np.uint64)
    counter = np.array([0, sample, prompt, 0], np.uint64)
    raw = np.random.Philox(key=key, counter=counter).random_raw(count)
    # The middle of 2^52 equal cells: neither 0 nor 1 can come out.
    return ((raw >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52
