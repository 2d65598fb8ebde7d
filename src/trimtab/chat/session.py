"""What a conversation is: settings, turns, answers; as a file, too. No model and no terminal."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from trimtab.data.rows import Message
from trimtab.errors import RecipeError
from trimtab.rollout.params import SamplingParams

VERSION = 1


class Reward(NamedTuple):
    """``value`` None where there is none, and then ``why`` says why."""

    name: str
    value: float | None
    why: str = ""


@dataclasses.dataclass(frozen=True)
class Answer:
    """What one model said.

    prompt, ids  token ids before it and of it; empty where it was read from a file
    ended        by a stop token; ``stopped`` by the user; otherwise it was cut off at a limit
    seconds      that it took, reading the prompt included
    """

    text: str
    prompt: tuple[int, ...] = ()
    ids: tuple[int, ...] = ()
    ended: bool = True
    stopped: bool = False
    seconds: float = 0.0
    rewards: tuple[Reward, ...] = ()


@dataclasses.dataclass(frozen=True)
class Turn:
    """What the user said, and an answer from every model."""

    user: str
    answers: tuple[Answer, ...]


@dataclasses.dataclass(frozen=True)
class Settings:
    """How answers are sampled; raises RecipeError for numbers out of range."""

    temperature: float = 0.5
    top_k: int = 0
    top_p: float = 0.9
    max: int = 256
    seed: int = 0
    system: str = ""

    def __post_init__(self) -> None:
        if self.max < 1:
            raise RecipeError(f"max={self.max}: must be at least 1")
        if self.seed < 0:
            raise RecipeError(f"seed={self.seed}: must be at least 0")
        _ = self.params

    @property
    def params(self) -> SamplingParams:
        """The same for the sampler."""
        return SamplingParams(self.max, self.temperature, self.top_k, self.top_p)


@dataclasses.dataclass
class Session:
    """A conversation. ``drawn`` counts what was sampled, so that no two answers share a draw."""

    names: tuple[str, ...]
    settings: Settings
    turns: list[Turn] = dataclasses.field(default_factory=list[Turn])
    drawn: int = 0

    def messages(self, model: int, user: str | None) -> list[Message]:
        """The conversation as model number ``model`` knows it, up to ``user``'s next message."""
        found: list[Message] = []
        if self.settings.system:
            found.append({"role": "system", "content": self.settings.system})
        for turn in self.turns:
            found.append({"role": "user", "content": turn.user})
            found.append({"role": "assistant", "content": turn.answers[model].text})
        if user is not None:
            found.append({"role": "user", "content": user})
        return found

    def draw(self) -> int:
        """The number of the next answer: with the seed it decides what is sampled."""
        self.drawn += 1
        return self.drawn - 1


def to_json(session: Session) -> str:
    """The conversation as text that ``from_json`` reads."""
    turns = [
        {"user": turn.user, "answers": [_record(answer) for answer in turn.answers]}
        for turn in session.turns
    ]
    content = {
        "trimtab_chat": VERSION,
        "models": list(session.names),
        "settings": dataclasses.asdict(session.settings),
        "drawn": session.drawn,
        "turns": turns,
    }
    return json.dumps(content, ensure_ascii=False, indent=1) + "\n"


def _record(answer: Answer) -> dict[str, Any]:
    rewards = {one.name: one.value for one in answer.rewards}
    record = {"text": answer.text, "ended": answer.ended}
    return {**record, "rewards": rewards} if rewards else record


def from_json(text: str, name: str, models: Sequence[str]) -> Session:
    """Read a saved conversation for as many models; RecipeError names the file ``name``."""
    problem = f"{name}: is no conversation that /save wrote"
    try:
        content = json.loads(text)
        version = content["trimtab_chat"]
        count = len(content["models"])
        turns = [
            Turn(
                str(turn["user"]),
                tuple(
                    Answer(
                        str(one["text"]),
                        ended=bool(one["ended"]),
                        rewards=tuple(Reward(*pair) for pair in one.get("rewards", {}).items()),
                    )
                    for one in turn["answers"]
                ),
            )
            for turn in content["turns"]
        ]
        settings, drawn = Settings(**content["settings"]), int(content["drawn"])
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        if isinstance(error, RecipeError):
            raise
        raise RecipeError(problem) from None
    if version != VERSION:
        raise RecipeError(f"{name}: was written by another version of trimtab ({version})")
    if count != len(models) or any(len(turn.answers) != count for turn in turns):
        raise RecipeError(
            f"{name}: is a conversation with {count} models, and here are {len(models)}"
        )
    return Session(tuple(models), settings, turns, drawn)


def read_session(path: Path, models: Sequence[str]) -> Session:
    """The same from a file."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise RecipeError(f"{path}: cannot be read ({reason})") from None
    return from_json(text, str(path), models)
