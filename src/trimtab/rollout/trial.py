"""A trial of a way to sample, on a few tokens: are its hidden states those of the model alone?

Names and code prove little: an architecture may mix neighbouring tokens, keep a state of its own,
or add a bias that attention never sees. So a few prompts get rollouts, with siblings, rows that
come late and rows that move, and the hidden states behind every token are compared with those of
the model over whole sequences, padded and under its own attention.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from trimtab.data.batch import pack
from trimtab.data.trees import Branch, Origin, TokenTree
from trimtab.models.attention import install, is_installed, plain_attention, uninstall, unwrap
from trimtab.models.forward import hidden_states
from trimtab.models.head import LogitHead
from trimtab.rollout.engine import Engine
from trimtab.rollout.params import Rollout, SamplingParams
from trimtab.rollout.steps import Steps

_LENGTHS = (3, 1, 17)  # tokens of the prompts
_LIMITS = (4, 2, 3)  # tokens of each one's continuations
_EACH = 2
_SLOTS = 4

States = dict[tuple[int, int], list[Tensor]]
"""Of each prompt and sample, the hidden states [d] that chose its tokens."""


@dataclasses.dataclass(frozen=True)
class Trial:
    """What was found: a way with its steps, or ``generate`` and no steps, and in words why.

    ``token_bytes`` is what a token takes in the cache, over all layers; 0 where that is not known.
    """

    way: Literal["llama", "model", "generate"]
    reason: str
    steps: Steps | None = None
    token_bytes: int = 0


@torch.no_grad()
def try_steps(model: nn.Module, steps: Steps, way: Literal["llama", "model"]) -> Trial:
    """Sample a few tokens by ``steps`` and compare what chose them with the model's own states."""
    was_installed = is_installed(model)
    install(model)
    try:
        rollouts, states, token_bytes = _sampled(model, steps)
    except Exception as error:
        # Whatever an unknown architecture raises here, generate still serves it.
        text = " ".join(str(error).split())[:200]
        return Trial("generate", f"a trial call failed: {type(error).__name__}: {text}")
    finally:
        if not was_installed:
            uninstall(model)
    if steps.step_windows != steps.prompt_windows:
        return Trial("generate", "its layers attend to other windows in a step than in a prompt")
    with plain_attention(model):
        expected = _expected(model, rollouts)
    found = torch.stack([state for key in sorted(states) for state in states[key]])
    a, b = found.cpu().double(), expected.cpu().double()  # on the CPU: MPS has no fp64
    error = float((a - b).norm() / b.norm())
    half = expected.dtype in (torch.bfloat16, torch.float16)
    if not error < (0.1 if half else 1e-4):
        return Trial("generate", f"a trial step differs from the model's own by {error:.1g}")
    return Trial(way, "its steps agree with the model's own", steps, token_bytes)


def _prompts(inner: Any) -> list[list[int]]:
    vocabulary = inner.get_input_embeddings().num_embeddings
    starts = range(0, 11 * len(_LENGTHS), 11)
    return [
        [(7 * i + 3 * start + 1) % vocabulary for i in range(start, start + length)]
        for start, length in zip(starts, _LENGTHS, strict=True)
    ]


def _sampled(model: nn.Module, steps: Steps) -> tuple[list[list[Rollout]], States, int]:
    """Rollouts, the states that chose their tokens, and the bytes of a token in the cache."""
    states: States = {}

    def watch(keys: Sequence[tuple[int, int]], hidden: Tensor) -> None:
        for key, state in zip(keys, hidden, strict=True):
            states.setdefault(key, []).append(state.clone())

    inner = unwrap(model)
    engine = Engine(
        steps,
        LogitHead.of(model),
        SamplingParams(max(_LIMITS)),
        stop_ids=(),
        slots=_SLOTS,
        seed=0,
        device=inner.device,
        watch=watch,
    )
    rollouts = engine.run(_prompts(inner), _LIMITS, range(len(_LENGTHS)), _EACH)
    return rollouts, states, engine.cache.token_bytes()


def _expected(model: nn.Module, rollouts: Sequence[Sequence[Rollout]]) -> Tensor:
    """[M, d] the states that predict the tokens, prompt by prompt and sample by sample."""
    inner = unwrap(model)
    trees = [
        TokenTree(
            Branch(tuple(prompt), (False,) * len(prompt)),
            tuple(Branch(one.ids, (True,) * len(one.ids)) for one in own),
            (),
            Origin("trial", number + 1),
        )
        for number, (prompt, own) in enumerate(zip(_prompts(inner), rollouts, strict=True))
    ]
    return hidden_states(model, pack(trees).to(inner.device), "padded").targets()
