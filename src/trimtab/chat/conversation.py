"""The conversation itself: lines in, answers out, and what the slash commands do."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

from trimtab.chat.commands import help_text, message_of, read_command
from trimtab.chat.judges import Judges
from trimtab.chat.session import Answer, Session, Settings, Turn, read_session, to_json
from trimtab.chat.speaker import Speaker
from trimtab.chat.trained import Style
from trimtab.chat.view import View
from trimtab.data.rows import Text
from trimtab.errors import RecipeError, UsageError
from trimtab.training.files import write_atomic

NUMBERS: dict[str, type] = {
    "temperature": float,
    "top_p": float,
    "top_k": int,
    "max": int,
    "seed": int,
}


class Conversation:
    """One user and one or two models. ``line`` takes a line and says whether to go on."""

    def __init__(
        self, speakers: Sequence[Speaker], settings: Settings, judges: Judges, view: View
    ) -> None:
        self.speakers = list(speakers)
        self.judges = judges
        self.view = view
        self.session = Session(tuple(one.name for one in speakers), settings)
        self._own_file: Path | None = None  # that this conversation was saved to, or read from

    def line(self, line: str) -> bool:
        """A message or a command; False after /quit. Raises UsageError for what makes no sense."""
        line = line.rstrip("\r\n")
        if not line.strip():
            return True
        command = read_command(line)
        if command is None:
            self.ask(message_of(line))
            return True
        name, value = command
        if name == "quit":
            return False
        if name in NUMBERS:
            self._number(name, value)
        else:
            action: Callable[[str], None] = getattr(self, f"_{name}")
            action(value)
        return True

    def ask(self, user: str) -> tuple[Answer, ...]:
        """Answers of all models to ``user``, kept as a turn."""
        answers = self._answers(user)
        self.session.turns.append(Turn(user, answers))
        return answers

    # ------------------------------------------------------------------ answering

    def _answers(self, user: str, begun: Sequence[Answer] | None = None) -> tuple[Answer, ...]:
        """Answers to ``user``, or with ``begun`` those gone on with."""
        prompts = [one.prompt(self.session, i, user) for i, one in enumerate(self.speakers)]
        ids = (
            [one.ids(prompt) for one, prompt in zip(self.speakers, prompts, strict=True)]
            if begun is None
            else [one.prompt for one in begun]
        )
        number = self.session.draw()
        answers: list[Answer] = []
        self.view.begin(user)
        for model, speaker in enumerate(self.speakers):
            before = None if begun is None else begun[model]
            if before is not None:
                self.view.piece(model, before.text)
                if before.ended:
                    answers.append(before)
                    continue
            made = speaker.answer(
                ids[model],
                self.session.settings,
                number,
                lambda text, model=model: self.view.piece(model, text),
                begun=before,
            )
            answers.append(self._judged(prompts[model], made))
            if made.stopped:  # Ctrl-C is about all of them
                answers += [
                    Answer("", ended=False, stopped=True) for _ in self.speakers[model + 1 :]
                ]
                break
        self.view.finish(answers)
        return tuple(answers)

    def _judged(self, prompt: Text, answer: Answer) -> Answer:
        return dataclasses.replace(answer, rewards=self.judges.rewards(prompt, answer.text))

    def _last(self, command: str) -> Turn:
        if not self.session.turns:
            raise UsageError(f"/{command}: nothing has been said yet")
        return self.session.turns[-1]

    def _regenerate(self, _: str) -> None:
        turn = self._last("regenerate")
        self.session.turns.pop()
        try:
            answers = self._answers(turn.user)
        except UsageError:
            self.session.turns.append(turn)
            raise
        self.session.turns.append(Turn(turn.user, answers))

    def _continue(self, _: str) -> None:
        turn = self._last("continue")
        if all(answer.ended for answer in turn.answers):
            raise UsageError("/continue: the last answer came to its end")
        if any(not answer.prompt for answer in turn.answers):
            raise UsageError("/continue: there is no answer to go on with; /regenerate makes one")
        self.session.turns.pop()
        try:
            answers = self._answers(turn.user, begun=turn.answers)
        except UsageError:
            self.session.turns.append(turn)
            raise
        self.session.turns.append(Turn(turn.user, answers))

    def _undo(self, _: str) -> None:
        turn = self._last("undo")
        self.session.turns.pop()
        self.view.say(f"forgotten: {turn.user}")

    def _reset(self, _: str) -> None:
        self.session = Session(self.session.names, self.session.settings)
        self.view.say("the conversation begins anew")

    # ------------------------------------------------------------------ settings

    def _number(self, name: str, value: str) -> None:
        settings = self.session.settings
        if value:
            kind = NUMBERS[name]
            try:
                number: Any = kind(value)
            except ValueError:
                wanted = "a whole number" if kind is int else "a number"
                raise UsageError(f"/{name} {value}: is not {wanted}") from None
            self.session.settings = dataclasses.replace(settings, **{name: number})
        self.view.say(f"{name} {getattr(self.session.settings, name):g}")

    def _system(self, value: str) -> None:
        if value:
            plain = [one.name for one in self.speakers if one.style == "plain"]
            if plain:
                raise UsageError(
                    f"/system: {plain[0]} is asked by plain text, without messages; put it into "
                    "the text, or /format chat"
                )
            text = "" if value == "none" else value
            self.session.settings = dataclasses.replace(self.session.settings, system=text)
        self.view.say(f"system {self.session.settings.system or 'none'}")

    def _format(self, value: str) -> None:
        if value:
            if value not in get_args(Style):
                raise UsageError(f"/format {value}: is chat or plain")
            styles: list[Style] = [one.style for one in self.speakers]
            try:
                for speaker in self.speakers:
                    speaker.choose(value)  # type: ignore[arg-type] - one of Style's
            except RecipeError:
                for speaker, style in zip(self.speakers, styles, strict=True):
                    speaker.style = style
                raise
        self.view.say("; ".join(self._formats()))

    def _formats(self) -> list[str]:
        return [
            f"format {one.style}" + (f" ({one.name})" if len(self.speakers) > 1 else "")
            for one in self.speakers
        ]

    def _newline(self, value: str) -> None:
        if value:
            if value not in ("on", "off"):
                raise UsageError(f"/newline {value}: is on or off")
            for speaker in self.speakers:
                speaker.newline = value == "on"
        self.view.say(f"newline {'on' if self.speakers[0].newline else 'off'}")

    def _settings(self, _: str) -> None:
        values = dataclasses.asdict(self.session.settings)
        lines = [f"{name} {value if value != '' else 'none'}" for name, value in values.items()]
        newline = f"newline {'on' if self.speakers[0].newline else 'off'}"
        self.view.say("\n".join([*lines, *self._formats(), newline]))

    def _help(self, _: str) -> None:
        self.view.say(help_text())

    def _history(self, _: str) -> None:
        if not self.session.turns:
            self.view.say("nothing has been said yet")
        for turn in self.session.turns:
            self.view.say(f"> {turn.user}")
            for name, answer in zip(self.session.names, turn.answers, strict=True):
                self.view.say(f"{name}: {answer.text}" if len(self.speakers) > 1 else answer.text)

    # ------------------------------------------------------------------ files

    def _save(self, value: str) -> None:
        path = Path(value).expanduser()
        if path.exists() and path != self._own_file:
            raise UsageError(f"/save {value}: exists already; name another file")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, to_json(self.session).encode())
        except OSError as error:
            raise UsageError(f"/save {value}: {error.strerror or error}") from None
        self._own_file = path
        self.view.say(f"saved to {path}")

    def _load(self, value: str) -> None:
        path = Path(value).expanduser()
        self.session = read_session(path, self.session.names)
        self._own_file = path
        self.view.say(f"{len(self.session.turns)} turns read from {path}")
