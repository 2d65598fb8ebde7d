"""What is written down of a rollout: its metrics under TRL's names, its completions as a table."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trimtab.algorithms.completion_table import write_table
from trimtab.algorithms.experience import Experience
from trimtab.algorithms.judge import DISAGREEMENT, REWARD, WATCH, Asked
from trimtab.training.terms import Metric

NGRAM = 4  # tokens; repeated ones are the plainest sign of a reward that is being gamed


def completion_metrics(experience: Experience) -> dict[str, Metric]:
    """Rewards, lengths, ends, repetition and variety of a rollout's responses."""
    r = experience.responses
    valid, ended = r["valid"].bool(), r["ended"].bool()
    lengths = experience.lengths.float()
    score = r["score"][valid]
    found = {
        "reward": mean(score),
        "reward_std": Metric(_spread(score), 1.0),
        "completions/mean_length": mean(lengths),
        "completions/min_length": least(lengths),
        "completions/max_length": greatest(lengths),
        "completions/clipped_ratio": mean((~ended).float()),
    }
    found |= {name: Metric(value, 1.0) for name, value in texture(experience).items()}
    found |= {"min_reward": least(score), "max_reward": greatest(score)}
    if ended.any():
        found |= {
            "completions/mean_terminated_length": mean(lengths[ended]),
            "completions/min_terminated_length": least(lengths[ended]),
            "completions/max_terminated_length": greatest(lengths[ended]),
        }
    if bool((~valid).any()):
        found["rewards/dropped"] = mean((~valid).float())
    for name, values in reward_columns(r):
        known = values[~values.isnan()]
        if len(known):
            found[name] = mean(known)
            if name.endswith("/mean"):
                found[f"{name[:-5]}/std"] = Metric(_spread(known), 1.0)
    correlation = _correlation(lengths[valid], score)
    if correlation is not None:
        found["rewards/length_correlation"] = Metric(correlation, 1.0)
    return found


def reward_columns(responses: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """The metric's name and the values [N] of every reward, watched one and disagreement."""
    for name, values in responses.items():
        if name.startswith(REWARD):
            yield f"rewards/{name.removeprefix(REWARD)}/mean", values
        elif name.startswith(WATCH):
            yield f"watch/{name.removeprefix(WATCH)}/mean", values
        elif name == DISAGREEMENT:
            yield "rewards/disagreement", values


def texture(experience: Experience) -> dict[str, float]:
    """How often responses repeat themselves, and how various they are together."""
    return {
        "completions/repetition": repetition(experience).double().mean().item(),
        "completions/distinct_1": distinct(experience, 1),
        "completions/distinct_2": distinct(experience, 2),
    }


def distinct(experience: Experience, n: int) -> float:
    """Different token n-grams of all responses together, by all of them (arXiv:1510.03055).

    0 to 1, and 1 where there are none. It falls by itself as responses grow longer or more.
    """
    seen: set[tuple[int, ...]] = set()
    count = 0
    for tree in experience.trees:
        for branch in tree.branches:
            grams = [branch.ids[i : i + n] for i in range(len(branch.ids) - n + 1)]
            seen.update(grams)
            count += len(grams)
    return len(seen) / count if count else 1.0


def repetition(experience: Experience) -> Tensor:
    """[N] share of a response's token 4-grams that it has said before; 0 for shorter ones."""
    found: list[float] = []
    for tree in experience.trees:
        for branch in tree.branches:
            grams = [branch.ids[i : i + NGRAM] for i in range(len(branch.ids) - NGRAM + 1)]
            found.append(1 - len(set(grams)) / len(grams) if grams else 0.0)
    return torch.tensor(found)


def mean(values: Tensor) -> Metric:
    """Mean of values as a metric."""
    return Metric(values.double().sum().item(), float(values.numel()))


def least(values: Tensor) -> Metric:
    """The least of a step's values; no number where there are none."""
    return Metric(values.min().item(), 1.0, "min") if values.numel() else Metric(0.0, 0.0, "min")


def greatest(values: Tensor) -> Metric:
    """The greatest of a step's values; no number where there are none."""
    return Metric(values.max().item(), 1.0, "max") if values.numel() else Metric(0.0, 0.0, "max")


def _spread(values: Tensor) -> float:
    return values.double().std().item() if values.numel() > 1 else 0.0


def _correlation(one: Tensor, other: Tensor) -> float | None:
    if one.numel() < 3 or one.std() == 0 or other.std() == 0:
        return None
    return torch.corrcoef(torch.stack([one, other]).double())[0, 1].item()


def write_completions(experience: Experience, asked: Sequence[Asked], folder: Path) -> None:
    """``completions/rollout_<number>.parquet``: prompt, completion, rewards, advantage, KL."""
    r, sequence = experience.responses, experience.sequence
    count = len(asked)
    table: dict[str, list[Any]] = {
        "rollout": [experience.number] * count,
        "prompt": [_text(one.prompt) for one in asked],
        "completion": [_text(one.completion) for one in asked],
        "ended": r["ended"].tolist(),
        "tokens": experience.lengths.tolist(),
        "reward": torch.where(r["valid"].bool(), r["score"], math.nan).tolist(),
    }
    for name, values in r.items():
        if name.startswith(REWARD):
            table[f"rewards/{name.removeprefix(REWARD)}"] = values.tolist()
        elif name.startswith(WATCH):
            table[f"watch/{name.removeprefix(WATCH)}"] = values.tolist()
        elif name == DISAGREEMENT:
            table[name] = values.tolist()
    for column in ("kl", "advantages"):
        if column in experience.tokens:
            sums = torch.zeros(count).index_add(0, sequence, experience.tokens[column].float())
            name = "advantage" if column == "advantages" else column
            shown = sums / experience.lengths if column == "advantages" else sums
            table[name] = shown.tolist()
    path = folder / "completions" / f"rollout_{experience.number:06d}.parquet"
    write_table(path, table)


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    return "\n".join(str(message.get("content", "")) for message in value)
