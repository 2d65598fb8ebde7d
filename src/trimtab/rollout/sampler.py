"""The sampler: rollouts of any causal language model, by the quickest way that it can take.

    llama     our own step for Llama's family, the model itself for reading prompts
    model     the model itself, through its attention interface
    generate  transformers' ``generate``, for architectures that cannot take the interface

Which way is taken is found out by a trial on a few tokens when the sampler is made: the hidden
states of a way must be those of the model alone. All ways draw the same tokens from the same
numbers, up to the rounding of their products.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, Literal, get_args

import torch
from torch import nn

from trimtab.errors import DataError, RecipeError
from trimtab.models.attention import install, is_installed, uninstall, unwrap
from trimtab.models.forward import choose_layout
from trimtab.models.head import LogitHead
from trimtab.rollout.by_generate import Generation
from trimtab.rollout.engine import Engine
from trimtab.rollout.llama_steps import llama_steps
from trimtab.rollout.params import Rollout, SamplingParams
from trimtab.rollout.steps import ModelSteps
from trimtab.rollout.trial import Trial, try_steps

Way = Literal["llama", "model", "generate"]

CACHE_BYTES = 4 << 30
"""What keys and values of all slots may take; with longer sequences fewer rows run at a time."""


class Sampler:
    """Samples from a model; one per policy, for as long as that lives.

    ``way`` is the way that is taken and ``reason`` says why, in a few words.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        stop_ids: Collection[int],
        slots: int = 64,
        dtype: torch.dtype | None = None,
        cache_bytes: int = CACHE_BYTES,
        way: Literal["auto"] | Way = "auto",
    ) -> None:
        """Find the way for ``model`` (PEFT-wrapped or not), which is left as it was.

        ``stop_ids`` end a continuation (``ChatRenderer.stop_ids``; none: all are cut off). At most
        ``slots`` continuations run at a time. ``dtype`` None or the model's own samples with its
        very tensors; another one with a copy, which ``refresh`` brings up to date. Raises
        RecipeError where a way was asked for that the model cannot take.
        """
        if slots < 1:
            raise RecipeError(f"slots={slots}: must be at least 1")
        if way not in ("auto", *get_args(Way)):
            raise RecipeError(f"way={way!r}: must be auto, {', '.join(get_args(Way))}")
        self._source = model
        own = unwrap(model).get_input_embeddings().weight.dtype
        self.model = model if dtype in (None, own) else _copied(model, dtype)
        self.stop_ids = frozenset(stop_ids)
        self.slots = slots
        self.cache_bytes = cache_bytes
        self.device: torch.device = unwrap(model).get_input_embeddings().weight.device
        config = unwrap(model).config.get_text_config(decoder=True)
        self.context: int | None = getattr(config, "max_position_embeddings", None)
        with _sampling(self.model):
            self._trial = _find_way(self.model, way)
        self.way: Way = self._trial.way
        self.reason = self._trial.reason

    @torch.no_grad()
    def refresh(self) -> None:
        """Take over the weights after an optimizer step; nothing to do where they are shared."""
        if self.model is self._source:
            return
        source = dict(self._source.named_parameters())
        for name, parameter in self.model.named_parameters():
            parameter.copy_(source[name])

    def room(self, prompt_tokens: int, params: SamplingParams) -> int:
        """How many tokens may follow a prompt: 0 where it fills the model's context."""
        if self.context is None:
            return params.max_new_tokens
        return max(0, min(params.max_new_tokens, self.context - prompt_tokens))

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        n: int,
        params: SamplingParams,
        *,
        seed: int,
        done: Callable[[int], None] | None = None,
        each: Callable[[int, int, int], None] | None = None,
        numbers: Sequence[int] | None = None,
        training: bool = False,
    ) -> list[list[Rollout]]:
        """``n`` rollouts of each of ``prompts`` (token ids, as ``ChatRenderer.prompt_ids``).

        A rollout is a function of ``seed``, its prompt's number (of ``numbers``, which must differ;
        else its place in ``prompts``), its own number below n, and the weights, up to the rounding
        of products; which others there are does not matter. A prompt that fills the context has
        rollouts without a token (``Rollout.no_room``). ``done`` is told, now and then, how many are
        finished, ``each`` every token as it comes (number of its prompt, of its sample, id): an
        exception of its own ends the sampling. ``training`` refuses ways of sampling that
        importance ratios would be wrong for.

        Raises RecipeError for such a way, DataError for an empty prompt, NumericError for logits
        that are not finite.
        """
        if n < 1:
            raise RecipeError(f"n={n}: at least one sample a prompt")
        if training:
            params.check_training()
        numbers = range(len(prompts)) if numbers is None else numbers
        assert len(set(numbers)) == len(prompts), "two prompts would share their randomness"
        for number, ids in zip(numbers, prompts, strict=True):
            if not len(ids):
                raise DataError(
                    f"prompt {number}: it has no token, and a model needs one to go on from"
                )
        found: list[list[Rollout]] = [
            [Rollout(number, k, (), (), False) for k in range(n)] for number in numbers
        ]
        limits = [self.room(len(ids), params) for ids in prompts]
        places = [place for place, limit in enumerate(limits) if limit]
        if places:
            with _sampling(self.model):
                rollouts = self._run(
                    [prompts[place] for place in places],
                    [limits[place] for place in places],
                    [numbers[place] for place in places],
                    n,
                    params,
                    seed,
                    done or (lambda _: None),
                    each,
                )
            for place, own in zip(places, rollouts, strict=True):
                found[place] = own
        return found

    def _run(
        self,
        prompts: Sequence[Sequence[int]],
        limits: Sequence[int],
        numbers: Sequence[int],
        n: int,
        params: SamplingParams,
        seed: int,
        done: Callable[[int], None],
        each: Callable[[int, int, int], None] | None,
    ) -> list[list[Rollout]]:
        slots = self._slots(max(map(len, prompts)) + max(limits))
        common: dict[str, Any] = {
            "stop_ids": self.stop_ids,
            "slots": slots,
            "seed": seed,
            "device": self.device,
            "done": done,
            "each": each,
        }
        if self._trial.steps is None:
            return Generation(self.model, params, **common).run(prompts, limits, numbers, n)
        head = LogitHead.of(self.model)
        was_installed = is_installed(self.model)
        install(self.model)
        try:
            engine = Engine(self._trial.steps, head, params, **common)
            return engine.run(prompts, limits, numbers, n)
        finally:
            if not was_installed:
                uninstall(self.model)

    def _slots(self, longest: int) -> int:
        """How many rows of ``longest`` tokens the cache holds, at most ``slots``."""
        token_bytes = self._trial.token_bytes
        if not token_bytes:
            return self.slots
        return max(1, min(self.slots, self.cache_bytes // (token_bytes * longest)))


def _copied(model: nn.Module, dtype: torch.dtype) -> Any:
    made: Any = copy.deepcopy(model)
    return made.to(dtype).requires_grad_(False)


def _find_way(model: nn.Module, way: Literal["auto"] | Way) -> Trial:
    """Try the ways from the quickest on; raises RecipeError where the one asked for fails."""
    if way == "generate":
        return Trial("generate", "asked for")
    obstacle = _no_tree_attention(model)
    if obstacle is None:
        quick = llama_steps(model) if way != "model" else None
        if quick is not None:
            trial = try_steps(model, quick, "llama")
            if trial.steps is not None:
                return trial
            obstacle = trial.reason
        if way == "llama":
            raise _impossible(model, way, obstacle or "its layers have other code")
        trial = try_steps(model, ModelSteps(model), "model")
        if trial.steps is not None:
            return trial
        obstacle = trial.reason
    if way != "auto":
        raise _impossible(model, way, obstacle)
    name = type(unwrap(model)).__name__
    return Trial("generate", f"{name}: {obstacle.removeprefix(f'{name}: ')}")


def _impossible(model: nn.Module, way: str, reason: str) -> RecipeError:
    name = type(unwrap(model)).__name__
    return RecipeError(f"way={way!r}: impossible for {name} ({reason}); use auto")


def _no_tree_attention(model: nn.Module) -> str | None:
    """Why tree attention cannot serve a model; None where it can, or does already."""
    if is_installed(model):
        return None
    choice = choose_layout(model)
    uninstall(model)
    return None if choice.layout == "shared" else choice.reason


@contextlib.contextmanager
def _sampling(model: nn.Module) -> Iterator[None]:
    """No gradients, evaluation mode; every module's mode is put back afterwards."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        # Not inference_mode: buffers that a model renews there could not be trained with later.
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True
