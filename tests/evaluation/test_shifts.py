"""Where the probability of a pair went, and whether length decides: by hand, and as identities."""

from __future__ import annotations

import math

import pytest
import torch

from trimtab.evaluation.shifts import by_length, displacement
from trimtab.losses.types import SequenceLogprobs


def logs(*probabilities: float) -> torch.Tensor:
    return torch.tensor(probabilities, dtype=torch.float64).log()


def shifts(paired: bool = True) -> dict[str, torch.Tensor]:
    """Two pairs: one loses from 0.4 + 0.2 to 0.2 + 0.05, one gains."""
    lengths = torch.tensor([4, 2])
    chosen = SequenceLogprobs(logs(0.2, 0.3), lengths)
    rejected = SequenceLogprobs(logs(0.05, 0.3), lengths)
    return displacement((chosen, rejected), (logs(0.4, 0.1), logs(0.2, 0.2)), paired=paired)


def test_by_hand() -> None:
    found = shifts()
    assert found["displacement/chosen"].tolist() == pytest.approx([-math.log(2), math.log(3)])
    assert found["displacement/rejected"].tolist() == pytest.approx([-math.log(4), math.log(1.5)])
    assert found["displacement/chosen_per_token"].tolist() == pytest.approx(
        [-math.log(2) / 4, math.log(3) / 2]
    )
    assert found["displacement/both_fell"].tolist() == [1.0, 0.0]
    assert found["displacement/elsewhere"].tolist() == pytest.approx(
        [math.log(0.6 / 0.25), math.log(0.3 / 0.6)]
    )


def test_chosen_is_its_share_of_the_pair_less_what_went_elsewhere() -> None:
    generator = torch.Generator().manual_seed(0)
    sums = [-40 * torch.rand(50, generator=generator, dtype=torch.float64) for _ in range(4)]
    lengths = torch.full((50,), 10)
    policy = SequenceLogprobs(sums[0], lengths), SequenceLogprobs(sums[1], lengths)
    found = displacement(policy, (sums[2], sums[3]), paired=True)
    share = torch.nn.functional.logsigmoid(sums[0] - sums[1])
    before = torch.nn.functional.logsigmoid(sums[2] - sums[3])
    expected = share - before - found["displacement/elsewhere"]
    torch.testing.assert_close(found["displacement/chosen"], expected)


def test_single_responses_have_no_pair() -> None:
    assert not {"displacement/both_fell", "displacement/elsewhere"} & shifts(paired=False).keys()


def test_length_leaves_ties_out() -> None:
    chosen, rejected = torch.tensor([1.0, 0.0, 2.0, 1.0]), torch.tensor([0.0, 1.0, 2.0, 0.0])
    lengths = torch.tensor([5, 5, 5, 3]), torch.tensor([3, 3, 3, 3])
    found = by_length(chosen, rejected, *lengths)
    # The third pair has one reward, the fourth one length.
    assert found["lengths/compared"].tolist() == [1.0, 1.0, 0.0, 0.0]
    assert found["lengths/chosen_longer"].tolist() == [1.0, 1.0]
    assert found["lengths/longer_rewarded"].tolist() == [1.0, 0.0]
