"""Several rewards of the same samples, added up with weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from trimtab.data.trees import Origin
from trimtab.errors import RecipeError
from trimtab.rewards.functions import OnBad, Problem, RewardFunction, call


class Summed(NamedTuple):
    """Weighted sums [N], the rewards of every function by name, and what was left out."""

    values: list[float | None]
    parts: dict[str, list[float | None]]
    problems: list[Problem]


def weighted_sum(
    parts: Sequence[Sequence[float | None]], weights: Sequence[float]
) -> list[float | None]:
    """Sum of weight times reward, sample by sample, over the rewards that there are.

    As TRL's ``nansum``: a reward that says nothing of a sample (None) is left out of its sum, and
    the weights of the others stay as they are. Where no reward says anything the sum is None, and
    not TRL's 0.
    """
    return [
        sum(w * v for w, v in zip(weights, values, strict=True) if v is not None)
        if any(v is not None for v in values)
        else None
        for values in zip(*parts, strict=True)
    ]


def names_of(functions: Sequence[RewardFunction]) -> list[str]:
    """Names that tell the functions apart: a second ``length`` is ``length_2``."""
    return told_apart([function.name for function in functions])


def told_apart(names: Sequence[str]) -> list[str]:
    """Every name once: a second ``length`` is ``length_2``."""
    found: list[str] = []
    for plain in names:
        name, count = plain, 2
        while name in found:
            name, count = f"{plain}_{count}", count + 1
        found.append(name)
    return found


def checked_weights(
    weights: Sequence[float] | None, count: int, key: str = "reward_weights"
) -> list[float]:
    """One finite weight a reward, 1 each by default; RecipeError otherwise."""
    if weights is None:
        return [1.0] * count
    if len(weights) != count:
        raise RecipeError(f"{key}: {len(weights)} for {count} rewards; give one each")
    for weight in weights:
        if not abs(weight) < float("inf"):
            raise RecipeError(f"{key}={weight}: is not a finite number")
    return [float(weight) for weight in weights]


class RewardSum:
    """Reward functions with weights as one; ``time_limit`` is in seconds for a call of each."""

    def __init__(
        self,
        functions: Sequence[RewardFunction],
        weights: Sequence[float] | None = None,
        *,
        time_limit: float | None = None,
        on_bad: OnBad = "stop",
        on_bad_key: str = "on_bad",
    ) -> None:
        """Raises RecipeError where there are not as many weights as functions."""
        self.functions = list(functions)
        self.names = names_of(functions)
        self.weights = checked_weights(weights, len(self.functions))
        self.time_limit = time_limit
        self.on_bad: OnBad = on_bad
        self.on_bad_key = on_bad_key

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        columns: Mapping[str, Sequence[Any]],
        *,
        completion_ids: Sequence[Sequence[int]] | None = None,
        origins: Sequence[Origin] | None = None,
    ) -> Summed:
        """Rewards of N samples; arguments and errors are those of ``functions.call``."""
        parts: dict[str, list[float | None]] = {}
        problems: list[Problem] = []
        for name, function in zip(self.names, self.functions, strict=True):
            found = call(
                function,
                prompts,
                completions,
                columns,
                self.time_limit,
                completion_ids=completion_ids,
                origins=origins,
                on_bad=self.on_bad,
                on_bad_key=self.on_bad_key,
            )
            parts[name] = found.values
            told = f"{name}: "
            problems += [problem._replace(text=told + problem.text) for problem in found.problems]
        return Summed(weighted_sum(list(parts.values()), self.weights), parts, problems)

    def close(self) -> None:
        """Close all functions."""
        for function in self.functions:
            function.close()
