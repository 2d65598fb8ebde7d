"""The rules for each kind of row: what is the prompt, what continues it, what is trained.

Plain prompts and continuations are tokenised apart, so that a boundary never moves with what
follows it; conversations go through the chat template (``chat.py``). EOS ends every plain
continuation and text, unless the tokenizer has none or it is already there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

from trimtab.data.chat import ChatRenderer
from trimtab.data.chat_template import RowProblem
from trimtab.data.chat_tokens import Steps, name_of, shared_length, side_by_side
from trimtab.data.labels import ClassName, place_of
from trimtab.data.rows import (
    ChatExample,
    CompletionExample,
    Example,
    LabelledExample,
    Message,
    PreferenceExample,
    PromptExample,
    RankedExample,
    Text,
    TextExample,
)
from trimtab.data.tokenise_trees import (
    Draft,
    Limits,
    Margins,
    Planted,
    TruncationMode,
    compare_by_rank,
    for_scores,
    plant,
    ranks_of,
    windows,
)
from trimtab.data.trees import Comparison
from trimtab.errors import DataError, RecipeError

PROMPT_DIFFERS = "the chat template renders the prompt differently for each response"

Masked: TypeAlias = tuple[list[int], list[bool]]


@dataclass(frozen=True, kw_only=True)
class TokeniseOptions:
    """How rows become trees. Lengths are in tokens; None is no limit.

    max_length          of a prompt with its longest continuation; continuations lose their end
    max_prompt_length   of a prompt, cut before anything else; without it prompts stay whole
    truncation_mode     which part of a prompt stays: keep_end (BOS stays too) or keep_start
    completion_only     prompt+completion rows: None and True train the completion, False also
                        the prompt; True refuses rows that have no prompt
    assistant_only      conversations: train the assistant's turns, or every token
    train_trunk         prompts are trained too (ORPO's likelihood over prompt and response)
    context_length      documents are cut into windows of this many trained tokens (pretraining);
                        max_length is not used on them
    stride              windows after the first train this many tokens and show earlier ones
    unpaired            preference rows get labels: chosen True, rejected False
    group_by_prompt     rows with the same prompt become one tree
    group_by_weight     but only those of one weight: the likelihood of responses is trained, too
    scored              for reward models: nothing is trained, a row's comparisons share its weight
                        (and for classes where the language-model loss has no weight)
    classes             of labelled rows, in the order of their numbers
    margins             of comparisons: the row's own margin, differences of its scores, or none
    margin_scale        factor of all margins
    """

    max_length: int | None = 1024
    max_prompt_length: int | None = None
    truncation_mode: TruncationMode = "keep_end"
    completion_only: bool | None = None
    assistant_only: bool = True
    train_trunk: bool = False
    context_length: int | None = None
    stride: int | None = None
    unpaired: bool = False
    group_by_prompt: bool = False
    group_by_weight: bool = False
    scored: bool = False
    classes: tuple[ClassName, ...] = ()
    margins: Margins = "column"
    margin_scale: float = 1.0

    def __post_init__(self) -> None:
        for name in ("max_length", "max_prompt_length", "context_length", "stride"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise RecipeError(f"{name}={value}: must be at least 1")
        if self.truncation_mode not in ("keep_end", "keep_start"):
            raise RecipeError(
                f"truncation_mode={self.truncation_mode}: must be keep_end or keep_start"
            )
        if self.stride is not None and (self.context_length or 0) < self.stride:
            raise RecipeError(
                f"stride={self.stride}: must be at most context_length={self.context_length}"
            )

    def to_json(self) -> dict[str, Any]:
        """All options as JSON types, for cache keys."""
        return dataclasses.asdict(self)


class Drop(NamedTuple):
    """A row that gives no tree: ``reason`` to count by, ``detail`` of this row."""

    reason: str
    detail: str = ""


class RowRules:
    """The rules for each kind of row."""

    def __init__(self, renderer: ChatRenderer, options: TokeniseOptions) -> None:
        self.renderer = renderer
        self.encoder = renderer.encoder
        self.options = options
        self.limits = Limits(
            options.max_length, options.max_prompt_length, options.truncation_mode, self.encoder.bos
        )

    def trees(self, example: Example) -> Steps[list[Planted]]:
        """Dispatch on the kind of row."""
        drafts: list[Draft]
        match example:
            case TextExample() | ChatExample() if self.options.context_length is not None:
                return (yield from self.windows(example, self.options.context_length))
            case TextExample():
                drafts = [(yield from self.text(example))]
            case LabelledExample():
                drafts = [(yield from self.labelled(example))]
            case ChatExample():
                drafts = yield from self.chat(example)
            case PromptExample():
                prompt = yield from self.renderer.prompt_steps(example.prompt, example.tools)
                drafts = [Draft(example.origin, prompt, [], example.weight)]
            case CompletionExample():
                drafts = [(yield from self.completion(example))]
            case PreferenceExample():
                drafts = [(yield from self.preference(example))]
            case RankedExample():
                drafts = [(yield from self.ranked(example))]
            case _:
                raise AssertionError(f"no rule for {type(example).__name__}")
        planted = [plant(draft, self.limits) for draft in drafts]
        if self.options.scored:
            margins, scale = self.options.margins, self.options.margin_scale
            planted = [p._replace(tree=for_scores(p.tree, margins, scale)) for p in planted]
        for part, one in enumerate(planted):
            origin = one.tree.origin._replace(part=part)
            planted[part] = one._replace(tree=one.tree._replace(origin=origin))
        return planted

    def windows(self, example: TextExample | ChatExample, length: int) -> Steps[list[Planted]]:
        """A document cut so that every token is trained once."""
        encoder = self.encoder
        context: list[int] = []
        if isinstance(example, TextExample):
            (encoding,) = yield [example.text]
            ids = encoder.with_eos(encoding.ids, self.renderer.stop_ids)
            separator = encoder.eos if encoder.bos is None else encoder.bos
            context = list(encoder.prefix) or ([] if separator is None else [separator])
            if ids[: len(context)] == context:
                ids = ids[len(context) :]
        else:
            ids = yield from self._whole(example.messages, example.tools)
            if ids[:1] == [encoder.bos]:
                context, ids = ids[:1], ids[1:]
        stride = self.options.stride
        return list(windows(context, ids, length, stride, example.origin, example.weight))

    def text(self, example: TextExample) -> Steps[Draft]:
        """A text without a prompt: all of it is trained but the token that starts it."""
        if self.options.completion_only:
            raise RowProblem("completion_only=true, but the row has no prompt")
        (encoding,) = yield [example.text]
        ids = self.encoder.with_prefix(encoding.ids)
        return self._all_trained(example, self.encoder.with_eos(ids, self.renderer.stop_ids))

    def labelled(self, example: LabelledExample) -> Steps[Draft]:
        """A text as above, always with an end token behind it, which stays whatever is cut.

        The class is read there: a state that has seen the whole text and stands for no word of it.
        """
        if self.encoder.eos is None:
            raise DataError(
                f"tokenizer {name_of(self.encoder.tokenizer)}: it has no end token (eos_token), at "
                "which the class of a text is read; set eos_token in its tokenizer_config.json"
            )
        (encoding,) = yield [example.text]
        ids = [*self.encoder.with_prefix(encoding.ids), self.encoder.eos]
        draft = self._all_trained(example, ids)
        draft.ending = 1
        if self.options.classes:
            draft.classes = (place_of(example.label, self.options.classes),)
        return draft

    def chat(self, example: ChatExample) -> Steps[list[Draft]]:
        """A conversation: one tree, or one for each assistant turn."""
        if not self.options.assistant_only:
            ids = yield from self._whole(example.messages, example.tools)
            return [self._all_trained(example, ids)]
        self.renderer.require_template()
        found = yield from self.renderer.conversation_steps(example.messages, example.tools)
        return [
            Draft(
                example.origin,
                one.ids[: one.prompt],
                [(one.ids[one.prompt :], one.trained[one.prompt :])],
                example.weight,
                train_trunk=self.options.train_trunk,
            )
            for one in found
        ]

    def completion(self, example: CompletionExample) -> Steps[Draft]:
        """A prompt with one continuation."""
        draft = yield from self._draft(example, example.prompt, [example.completion])
        if self.options.completion_only is False:
            draft.train_trunk = True
        if example.label is not None:
            draft.labels = (example.label,)
        return draft

    def preference(self, example: PreferenceExample) -> Steps[Draft]:
        """Chosen and rejected: branches 0 and 1, ranks 1 and 2."""
        responses = [example.chosen, example.rejected]
        if example.prompt is None:
            draft = yield from self._implicit(example, responses)
        else:
            draft = yield from self._draft(example, example.prompt, responses)
        draft.comparisons = [Comparison(0, 1, example.weight, example.margin)]
        draft.ranks = (1.0, 2.0)
        if self.options.unpaired:
            draft.labels = (True, False)
        return draft

    def ranked(self, example: RankedExample) -> Steps[Draft]:
        """K continuations in the order given; all pairs that the ranks order are compared."""
        draft = yield from self._draft(example, example.prompt, example.responses)
        scores = tuple(example.scores or ())
        ranks = tuple(example.ranks) if example.ranks else ranks_of(scores)
        draft.ranks, draft.scores = ranks, scores
        draft.comparisons = compare_by_rank(ranks, example.weight)
        return draft

    def _draft(self, example: Example, prompt: Text, responses: Sequence[Text]) -> Steps[Draft]:
        if isinstance(prompt, str):
            ids, branches = yield from self._plain(prompt, responses)
        else:
            ids, branches = yield from self._conversational(prompt, responses, example.tools)
        return Draft(
            example.origin, ids, branches, example.weight, train_trunk=self.options.train_trunk
        )

    def _plain(
        self, prompt: str, responses: Sequence[Text]
    ) -> Steps[tuple[list[int], list[Masked]]]:
        """Prompt and continuations apart: the boundary is the same whatever follows it."""
        ids = yield from self.renderer.prompt_steps(prompt, None)
        texts = [text for text in responses if isinstance(text, str)]
        assert len(texts) == len(responses), "a plain prompt with conversational responses"
        if not all(text.strip() for text in texts):
            raise RowProblem("a response is empty")
        found = yield from self.encoder.continuations(texts)
        stops = self.renderer.stop_ids
        ended = [self.encoder.with_eos(response, stops) for response in found]
        return ids, [(response, [True] * len(response)) for response in ended]

    def _conversational(
        self, prompt: list[Message], responses: Sequence[Text], tools: list[dict[str, Any]] | None
    ) -> Steps[tuple[list[int], list[Masked]]]:
        """The template renders each continuation; what all have in common is the trunk."""
        self.renderer.require_template()
        texts = [response for response in responses if not isinstance(response, str)]
        assert len(texts) == len(responses), "a conversational prompt with a plain response"
        # All before the first step: the renderer keeps the text of the last prompt only.
        conversations = [self.renderer.completion(prompt, text, tools) for text in texts]
        found = yield from side_by_side([*map(self.renderer.completion_steps, conversations)])
        # A response without reasoning has its empty reasoning block before the trained part: it
        # stays untrained in that branch, where another response does reason.
        length = min(one.prompt for one in found)
        trunk = found[0].ids[:length]
        if any(one.ids[:length] != trunk for one in found):
            raise RowProblem(PROMPT_DIFFERS)
        return trunk, [(one.ids[length:], one.trained[length:]) for one in found]

    def _implicit(self, example: PreferenceExample, texts: Sequence[Text]) -> Steps[Draft]:
        """The prompt is what both have in common, token by token."""
        plain = [text for text in texts if isinstance(text, str)]
        assert len(plain) == 2, "a conversation without a prompt: the loader makes it explicit"
        encodings = yield plain
        stops = self.renderer.stop_ids
        ids = [
            self.encoder.with_eos(self.encoder.with_prefix(encoding.ids), stops)
            for encoding in encodings
        ]
        length = shared_length(*ids)
        branches = [(one[length:], [True] * (len(one) - length)) for one in ids]
        if not all(branch for branch, _ in branches):
            raise RowProblem("chosen and rejected are the same")
        return Draft(
            example.origin,
            ids[0][:length],
            branches,
            example.weight,
            train_trunk=self.options.train_trunk,
        )

    def _whole(
        self, messages: list[Message], tools: list[dict[str, Any]] | None
    ) -> Steps[list[int]]:
        self.renderer.require_template()
        return (yield from self.renderer.whole_steps(messages, tools))

    def _all_trained(self, example: Example, ids: list[int]) -> Draft:
        prefix = list(self.encoder.prefix)
        begins = bool(prefix) and ids[: len(prefix)] == prefix
        start = len(prefix) if begins else 1
        branch = (ids[start:], [True] * (len(ids) - start))
        unscored = int(not begins and ids[:1] != [self.encoder.bos])
        return Draft(example.origin, ids[:start], [branch], example.weight, unscored=unscored)
