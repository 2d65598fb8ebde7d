"""From logits to tokens: distribution, two-level inversion, heads, top-k and top-p, log-probs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import TopKLogitsWarper, TopPLogitsWarper

from trimtab.errors import NumericError
from trimtab.models.head import LogitHead
from trimtab.rollout import SamplingParams
from trimtab.rollout import choose as module
from trimtab.rollout.choose import Chooser
from trimtab.rollout.draws import uniforms

WIDE = 16


def draws(count: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(uniforms(seed, 0, 0, count))


def logits_of(rows: int, size: int, seed: int = 0, scale: float = 3.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(rows, size, generator=generator)


def naive(logits: torch.Tensor, u: torch.Tensor) -> list[int]:
    """The slow twin: the first token at which the cumulative probability exceeds u."""
    cumulative = logits.double().softmax(-1).cumsum(-1)
    return [int((row > value).nonzero()[0]) for row, value in zip(cumulative, u, strict=True)]


@pytest.mark.parametrize("size", [3, 128, 131, 1000])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_tokens_are_those_of_the_plain_inversion(size: int, temperature: float) -> None:
    logits, u = logits_of(300, size), draws(300)
    choice = Chooser(SamplingParams(1, temperature)).from_logits(logits, u)
    assert choice.tokens.tolist() == naive(logits / temperature, u)
    expected = (logits.double() / temperature).log_softmax(-1)
    expected = expected.gather(1, choice.tokens[:, None]).squeeze(1)
    assert float((choice.logprobs - expected).abs().max()) < 3e-6


def chi_square(tokens: list[int], p: torch.Tensor) -> float:
    counts = np.bincount(tokens, minlength=p.numel())
    expected = p.double().numpy() * len(tokens)
    return float(((counts - expected) ** 2 / expected).sum())


def test_tokens_have_the_distribution_of_the_softmax() -> None:
    logits = logits_of(1, 40, scale=1.0)
    many = logits.expand(40_000, -1)
    tokens = Chooser(SamplingParams(1, 0.7)).from_logits(many, draws(40_000)).tokens.tolist()
    limit = 72.1  # chi-square, 39 degrees of freedom, p = 0.001
    assert chi_square(tokens, (logits / 0.7).softmax(-1)[0]) < limit
    # Rejected: the temperature left out, and a draw that is shifted by one token.
    assert chi_square(tokens, logits.softmax(-1)[0]) > 10 * limit
    assert chi_square([(t + 1) % 40 for t in tokens], (logits / 0.7).softmax(-1)[0]) > 10 * limit


def test_draws_at_the_ends_of_the_interval() -> None:
    logits = torch.full((2, 300), -torch.inf)
    logits[:, [7, 140, 299]] = torch.tensor([1.0, 2.0, 1.5])
    u = torch.tensor([0.5 * 2.0**-52, 1 - 2.0**-53], dtype=torch.float64)
    choice = Chooser(SamplingParams(1)).from_logits(logits, u)
    assert choice.tokens.tolist() == [7, 299]


def test_several_draws_come_from_one_state() -> None:
    hidden = torch.randn(3, WIDE, generator=torch.Generator().manual_seed(0))
    head = LogitHead(logits_of(200, WIDE, 1, 1.0))
    source, u = torch.tensor([2, 0, 2, 1, 1]), draws(5)
    chooser = Chooser(SamplingParams(1))
    shared = chooser.from_hidden(hidden, head, source, u)
    alone = Chooser(SamplingParams(1)).from_hidden(hidden[source], head, None, u)
    assert shared.tokens.tolist() == alone.tokens.tolist()
    assert shared.logprobs.tolist() == pytest.approx(alone.logprobs.tolist(), abs=1e-6)


HEADS: dict[str, dict[str, Any]] = {
    "plain": {},
    "bias": {"bias": torch.linspace(-1, 1, 203)},
    "scale": {"scale": 0.3, "bias": torch.linspace(-1, 1, 203)},
    "softcap": {"softcap": 2.0, "scale": 1.5},
}


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("temperature", [0.0, 1.0, 0.7])
def test_heads(name: str, temperature: float) -> None:
    hidden = torch.randn(50, WIDE, generator=torch.Generator().manual_seed(0))
    head = LogitHead(logits_of(203, WIDE, 1, 1.0), **HEADS[name])
    logits, u = head.logits(hidden), draws(50)
    chooser = Chooser(SamplingParams(1, temperature))
    choices = [chooser.from_hidden(hidden, head, None, u) for _ in range(6)]
    assert chooser._packed is not None  # the later ones came from the packed head
    for choice in choices:
        if temperature:
            assert choice.tokens.tolist() == naive(logits / temperature, u)
        else:
            assert choice.tokens.tolist() == logits.argmax(-1).tolist()
        expected = (logits / (temperature or 1.0)).log_softmax(-1)
        expected = expected.gather(1, choice.tokens[:, None]).squeeze(1)
        assert float((choice.logprobs - expected).abs().max()) < 1e-5


def test_a_head_that_cannot_be_packed_is_used_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "packs", lambda weight: False)
    hidden, head = logits_of(4, WIDE), LogitHead(logits_of(203, WIDE, 1, 1.0))
    chooser = Chooser(SamplingParams(1))
    for _ in range(6):
        choice = chooser.from_hidden(hidden, head, None, draws(4))
        assert choice.tokens.tolist() == naive(head.logits(hidden), draws(4))


@pytest.mark.parametrize(("top_k", "top_p"), [(5, 1.0), (0, 0.6), (20, 0.5), (1, 1.0), (0, 1e-9)])
def test_top_k_and_top_p_leave_what_transformers_leaves(top_k: int, top_p: float) -> None:
    logits = logits_of(1, 150, scale=1.5)
    left = logits.clone()
    if top_k:
        left = TopKLogitsWarper(top_k)(torch.zeros(1, 1), left)
    if top_p < 1:
        left = TopPLogitsWarper(top_p)(torch.zeros(1, 1), left)
    chooser = Chooser(SamplingParams(1, top_k=top_k, top_p=top_p))
    choice = chooser.from_logits(logits.expand(5000, -1), draws(5000))
    assert choice.tokens.tolist() == naive(left.expand(5000, -1), draws(5000))
    # The log-probs are the model's: those of the restricted distribution would be larger.
    expected = logits.log_softmax(-1)[0][choice.tokens]
    assert float((choice.logprobs - expected).abs().max()) < 3e-6
    assert set(choice.tokens.tolist()) < set(range(150))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_logits_that_are_no_numbers_are_an_error(bad: float) -> None:
    logits = logits_of(3, 20)
    logits[1, 4] = bad
    with pytest.raises(NumericError, match="not finite"):
        Chooser(SamplingParams(1)).from_logits(logits, draws(3))
