"""Sample generations during a run: fixed prompts, the same seed, written beside the metrics."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from trimtab.algorithms.completion_table import write_table
from trimtab.algorithms.experience import response_tree
from trimtab.algorithms.policy import Policy, frozen
from trimtab.data.trees import Origin, TokenTree
from trimtab.models.attention import plain_attention
from trimtab.training.seeds import derive


class SamplePrompt(NamedTuple):
    """A prompt as ids, exactly as training renders it, and as text; ``origin``: of which row."""

    ids: tuple[int, ...]
    text: str
    origin: Origin | None = None


# Trees of a prompt with one response each, and whether they ended -> rewards by name.
Rewards = Callable[[Sequence[TokenTree], Sequence[bool]], Mapping[str, list[float]]]


class Samples:
    """Greedy continuations of fixed prompts, so that two steps differ by the weights alone."""

    def __init__(
        self,
        policy: Policy,
        tokenizer: Any,
        prompts: Sequence[SamplePrompt],
        *,
        stop_ids: Sequence[int],
        max_new_tokens: int,
        folder: Path,
        seed: int,
        rewards: Rewards | None = None,
    ) -> None:
        """``rewards`` judges the completions of prompts that are rows, where somebody can."""
        self.rewards = rewards
        self.policy = policy
        self.tokenizer = tokenizer
        self.prompts = prompts
        self.stop_ids = list(stop_ids)
        self.max_new_tokens = max_new_tokens
        self.folder = folder
        self.seed = seed

    def generate(self, step: int) -> list[tuple[str, str]]:
        """(prompt, completion) of every prompt, written to ``completions_<step>.parquet``."""
        told = [self._continue(prompt) for prompt in self.prompts]
        texts = [self.tokenizer.decode(ids, skip_special_tokens=True) for ids in told]
        rows = [(prompt.text, text) for prompt, text in zip(self.prompts, texts, strict=True)]
        columns = {
            "step": [step] * len(rows),
            "prompt": [prompt for prompt, _ in rows],
            "completion": texts,
            "tokens": [len(ids) for ids in told],
            **self._judged(told),
        }
        write_table(self.folder / f"completions_{step:05d}.parquet", columns)
        return rows

    def _judged(self, told: Sequence[Sequence[int]]) -> Mapping[str, list[float]]:
        """Rewards of all completions; none where a prompt is no row, or nothing was said."""
        pairs = list(zip(self.prompts, told, strict=True))
        if self.rewards is None or not all(prompt.origin and ids for prompt, ids in pairs):
            return {}
        trees = [
            response_tree(prompt.ids, [ids], prompt.origin)
            for prompt, ids in pairs
            if prompt.origin
        ]
        return self.rewards(trees, [ids[-1] in self.stop_ids for ids in told])

    def _continue(self, prompt: SamplePrompt) -> list[int]:
        """The sampled ids, the one that ended them included."""
        ids = torch.tensor([prompt.ids], device=self.policy.device)
        model: Any = self.policy.model
        # Past its last position a model fails (learned positions) or babbles.
        limit = getattr(model.config, "max_position_embeddings", None)
        room = self.max_new_tokens if limit is None else limit - len(prompt.ids)
        if room < 1:
            return []
        torch.manual_seed(derive(self.seed, "samples"))
        with frozen(model), plain_attention(model):
            out = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=min(self.max_new_tokens, room),
                do_sample=False,
                temperature=None,
                top_p=None,
                top_k=None,
                eos_token_id=self.stop_ids or None,
                pad_token_id=self.stop_ids[0] if self.stop_ids else 0,
                use_cache=True,
            )
        return out[0, ids.shape[1] :].tolist()


def prompts_of_trees(
    tokenizer: Any, trees: Sequence[TokenTree], opening: int = 0
) -> list[SamplePrompt]:
    """The trunks of trees as prompts, with ``opening`` tokens of the text itself (documents)."""
    prompts: list[SamplePrompt] = []
    for tree in trees:
        ids = tree.trunk.ids + (tree.branches[0].ids[:opening] if tree.branches else ())
        if ids:
            text = tokenizer.decode(ids, skip_special_tokens=True)
            prompts.append(SamplePrompt(ids, text, tree.origin))
    return prompts
