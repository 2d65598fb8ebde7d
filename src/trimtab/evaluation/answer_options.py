"""What is asked of the evaluation of answers: how they are sampled, and who judges them."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from typing import Any, Literal

from trimtab.errors import RecipeError
from trimtab.evaluation.answer_rewards import Rewards
from trimtab.evaluation.chat_client import ChatClient

FORMATS = ("alpaca_eval", "rewardbench")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """How answers are sampled; what is None has the default of ``trimtab sample``, and one answer a

    prompt.
    """

    num_generations: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    max_completion_length: int | None = None
    batch_slots: int | None = None
    precision: Literal["auto", "fp32", "bf16"] | None = None

    @property
    def given(self) -> dict[str, Any]:
        """The keys that were given, for ``SampleOptions``."""
        every = dataclasses.asdict(self)
        return {name: value for name, value in every.items() if value is not None}


@dataclasses.dataclass(frozen=True, kw_only=True)
class JudgeOptions:
    """A language model that judges: its address and name, and how it is asked.

    ``key_env`` is the name of the environment variable that holds the key; ``options`` is a JSON
    object of fields for the request's body, null leaving one out; ``parallel`` requests run at a
    time.
    """

    url: str | None = None
    model: str | None = None
    key_env: str | None = None
    options: str | None = None
    timeout: float | None = None
    retries: int | None = None
    parallel: int | None = None

    @property
    def given(self) -> str | None:
        """The first option that was given."""
        every = dataclasses.asdict(self)
        return next((f"judge_{name}" for name, value in every.items() if value is not None), None)

    def client(self) -> ChatClient | None:
        """Who is asked; None without a judge. RecipeError for what does not go together."""
        if self.url is None:
            if self.given:
                raise RecipeError(f"{self.given}: nobody is asked; give --judge-url, too")
            return None
        if self.model is None:
            raise RecipeError(f"judge_model: missing; which model is to judge at {self.url}?")
        for name, least in (("timeout", 0.001), ("retries", 0), ("parallel", 1)):
            value = getattr(self, name)
            if value is not None and not least <= value < float("inf"):
                raise RecipeError(f"judge_{name}={value}: must be at least {least}")
        patience: dict[str, Any] = {"timeout": self.timeout, "retries": self.retries}
        return ChatClient(
            self.url,
            self.model,
            key=self._key(),
            options={"temperature": 0, "max_tokens": 1024, **self._options()},
            **{name: value for name, value in patience.items() if value is not None},
        )

    def _key(self) -> str | None:
        if self.key_env is None:
            return None
        key = os.environ.get(self.key_env)
        if not key:
            raise RecipeError(
                f"judge_key_env={self.key_env}: no such environment variable, or it is empty; name "
                "the one that holds the key"
            )
        return key

    def _options(self) -> Mapping[str, Any]:
        if self.options is None:
            return {}
        try:
            found = json.loads(self.options)
        except ValueError as error:
            raise RecipeError(f"judge_options={self.options!r}: no JSON: {error}") from None
        if not isinstance(found, dict) or {"model", "messages"} & found.keys():
            raise RecipeError(
                f"judge_options={self.options!r}: wanted a JSON object of fields beside model and "
                'messages, e.g. \'{"max_tokens": null, "max_completion_tokens": 2048}\''
            )
        return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnswerOptions:
    """Everything about answers; with any of it given, answers are what is evaluated."""

    rewards: Rewards = dataclasses.field(default_factory=Rewards)
    judge: JudgeOptions = dataclasses.field(default_factory=JudgeOptions)
    sampling: Sampling = dataclasses.field(default_factory=Sampling)

    @property
    def given(self) -> str | None:
        """The first option that was given."""
        if self.rewards.model is not None:
            return "reward_model"
        if self.rewards.functions:
            return "reward_funcs"
        return self.judge.given or next(iter(self.sampling.given), None)


def write_targets(given: tuple[str, ...]) -> dict[str, str]:
    """``FORMAT:FILE`` as file by format; RecipeError otherwise."""
    found: dict[str, str] = {}
    for one in given:
        name, colon, path = one.partition(":")
        if name not in FORMATS or not colon or not path:
            raise RecipeError(
                f"write_outputs={one!r}: wanted FORMAT:FILE, the format one of {', '.join(FORMATS)}"
            )
        found[name] = path
    return found
