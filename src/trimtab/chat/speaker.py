"""A model that answers: from a conversation to text, token by token as they are sampled."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal

from trimtab.chat.session import Answer, Session, Settings
from trimtab.chat.trained import Manner, Style, manner_of
from trimtab.data.chat import ChatRenderer
from trimtab.data.chat_template import RowProblem
from trimtab.data.rows import Text
from trimtab.errors import DataError, RecipeError
from trimtab.models import load

CONTEXT = 8  # tokens of the prompt that the decoder sees before the first of an answer


class TextStream:
    """Token ids to text, piece by piece: a piece is held back while it ends within a character."""

    def __init__(self, tokenizer: Any, before: Sequence[int]) -> None:
        """``before`` are the ids that the text follows: decoders treat a text's begin apart."""
        self._tokenizer = tokenizer
        self._ids = list(before[-CONTEXT:])
        self._start, self._shown = 0, len(self._ids)
        self.text = ""

    def add(self, token: int) -> str:
        """What ``token`` adds to the text; empty while a character is incomplete."""
        self._ids.append(token)
        return self._piece(last=False)

    def rest(self) -> str:
        """What was held back; a broken character at the end stays a replacement character."""
        return self._piece(last=True)

    def _piece(self, *, last: bool) -> str:
        before = self._decode(self._ids[self._start : self._shown])
        now = self._decode(self._ids[self._start :])
        if len(now) <= len(before) or (now.endswith("\ufffd") and not last):
            return ""
        self._start, self._shown = self._shown, len(self._ids)
        piece = now[len(before) :]
        self.text += piece
        return piece

    def _decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(
            list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )


class Speaker:
    """One model of a conversation. ``style`` and ``newline`` may be changed at any time."""

    def __init__(self, name: str, renderer: ChatRenderer, sampler: Any, manner: Manner) -> None:
        self.name = name
        self.renderer = renderer
        self.sampler = sampler
        self.manner = manner
        self.style: Style = manner.style
        self.newline = manner.newline

    @classmethod
    def load(
        cls,
        path: str,
        *,
        precision: Literal["auto", "fp32", "bf16"] = "auto",
        style: Literal["auto"] | Style = "auto",
        key: str = "run",
        note: Callable[[str], None],
    ) -> Speaker:
        """Load a folder (a run, an adapter) or hub id; RecipeError, naming ``key``."""
        from trimtab.models.device import best_device
        from trimtab.models.hub import quiet
        from trimtab.rollout.sample_prompts import config_of
        from trimtab.rollout.sampler import Sampler
        from trimtab.training.precision import choose_precision

        source = load.locate(path, key=key)
        note(source.notice)
        quiet()
        tokenizer: Any = load.load_tokenizer(source, key=key)
        renderer = ChatRenderer(tokenizer, generation_config=load.generation_config(source, key))
        config = config_of(source)
        device = best_device()
        width = int(config.get("hidden_size") or config.get("n_embd") or 1024)
        chosen = choose_precision(precision, device, width)
        model = load.load_model(source, dtype=chosen.dtype, device=device, key=key)
        sampler = Sampler(model.requires_grad_(False), stop_ids=renderer.stop_ids, slots=1)
        template = bool(renderer.template.source)
        manner = manner_of(source.folder, template=template)
        if style != "auto":
            manner = Manner(style, manner.newline, "asked for")
        speaker = cls(path, renderer, sampler, manner)
        speaker.choose(manner.style)
        return speaker

    def choose(self, style: Style) -> None:
        """Take another style; RecipeError where the tokenizer has no template."""
        if style == "chat" and not self.renderer.template.source:
            raise RecipeError(f"format=chat: the tokenizer of {self.name} has no chat template")
        self.style = style

    def prompt(self, session: Session, model: int, user: str) -> Text:
        """What the model is asked: the conversation, or in plain style this text alone."""
        if self.style == "chat":
            return session.messages(model, user)
        return user + "\n" if self.newline and not user.endswith("\n") else user

    def ids(self, prompt: Text) -> tuple[int, ...]:
        """Its token ids, as training sees them; DataError where the template refuses it."""
        try:
            return tuple(self.renderer.prompt_ids(prompt))
        except RowProblem as error:
            detail = f" ({error.detail})" if error.detail else ""
            raise DataError(f"{self.name}: {error.reason}{detail}") from None

    def answer(
        self,
        ids: Sequence[int],
        settings: Settings,
        number: int,
        piece: Callable[[str], None],
        *,
        begun: Answer | None = None,
    ) -> Answer:
        """Sample an answer to ``ids``, or go on with one; ``piece`` gets its text as it comes.

        Ctrl-C ends the answer: what there is so far comes back. Raises DataError where the prompt
        fills the model's context.
        """
        already = () if begun is None else begun.ids
        before = (*ids, *already)
        stream = TextStream(self.renderer.tokenizer, before)
        sampled: list[int] = []

        def each(_prompt: int, _sample: int, token: int) -> None:
            sampled.append(token)
            if token not in self.renderer.stop_ids and (text := stream.add(token)):
                piece(text)

        if not before or self.sampler.room(len(before), settings.params) < 1:
            context = self.sampler.context
            raise DataError(
                f"{self.name}: nothing to go on from; say something"
                if not before
                else f"{self.name}: {len(before)} tokens fill its context of {context}; /reset, "
                "/undo, or a shorter text"
            )
        start, stopped = time.perf_counter(), False
        try:
            self.sampler.sample(
                [before], 1, settings.params, seed=settings.seed, numbers=[number], each=each
            )
        except KeyboardInterrupt:
            stopped = True
        if text := stream.rest():
            piece(text)
        ended = bool(sampled) and sampled[-1] in self.renderer.stop_ids
        made = Answer(
            stream.text,
            tuple(ids),
            (*already, *sampled),
            ended=ended,
            stopped=stopped and not ended,
            seconds=time.perf_counter() - start,
        )
        if begun is None:
            return made
        return dataclasses.replace(
            made, text=begun.text + made.text, seconds=begun.seconds + made.seconds
        )
