"""Hidden states of a batch of token trees, in three layouts that compute the same numbers.

shared   trees as they are packed: each trunk is computed once for all of its branches
packed   every branch with its own copy of the trunk, end to end, without padding
padded   a rectangle, one row a branch, under a padding mask and without a tree plan: the oracle,
         and the fall-back for architectures that tree attention cannot serve

Whatever the layout, results stand in the batch's own order of targets and branches.
"""

from __future__ import annotations

import contextlib
import dataclasses
import weakref
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from trimtab.data.batch import TreeBatch, pack, unshare
from trimtab.data.trees import Branch, Origin, TokenTree
from trimtab.errors import RecipeError
from trimtab.models.attention import (
    install,
    is_installed,
    plain_attention,
    uninstall,
    unwrap,
)
from trimtab.models.attention_plan import LayerCall, TreePlan
from trimtab.models.last_layer import takes_rows

Layout = Literal["shared", "packed", "padded"]


class LayoutChoice(NamedTuple):
    """The layout that a model takes, and in words why; the run reports both."""

    layout: Layout
    reason: str


@dataclasses.dataclass(frozen=True, eq=False)
class Hidden:
    """Hidden states after the final norm, from one forward pass, and where to read them.

    states     [S, d]  rows of the layout, flattened; padding included in ``padded``, and only what
                       is read after a short last layer
    predictor  [M]     row that predicts each target
    end        [N]     row of each branch's last token
    """

    states: Tensor
    predictor: Tensor
    end: Tensor

    def targets(self) -> Tensor:
        """[M, d] the states that predict the targets, in the batch's order."""
        return self.states.index_select(0, self.predictor)

    def ends(self) -> Tensor:
        """[N, d] the states at the branches' last tokens (for scalar heads)."""
        return self.states.index_select(0, self.end)


@dataclasses.dataclass(frozen=True, eq=False)
class _Route:
    """A batch in one layout: what the backbone is called with, and where the answers lie."""

    inputs: dict[str, Any]
    predictor: Tensor
    end: Tensor
    read: Tensor | None = None  # rows that predict or end something, sorted; None in ``padded``

    def hidden(self, states: Tensor) -> Hidden:
        """Where to read [S, d], of all rows or of those in ``read``."""
        if self.read is None or states.shape[0] == self.inputs["input_ids"].numel():
            return Hidden(states, self.predictor, self.end)
        places = (torch.searchsorted(self.read, x) for x in (self.predictor, self.end))
        return Hidden(states, *places)

    @property
    def plan(self) -> TreePlan:
        return self.inputs["tree_plan"]


_ROUTES: weakref.WeakKeyDictionary[TreeBatch, dict[Layout, _Route]] = weakref.WeakKeyDictionary()
"""Policy, reference and value model read the same batch, an epoch of PPO reads it again."""


def backbone(model: nn.Module) -> nn.Module:
    """Return the model below its language-model or scalar head, PEFT's layers included."""
    inner = unwrap(model)
    # A few classes (Llama 4's) name a base that they have not; their body is still ``model``.
    return inner.base_model if inner.base_model is not inner else getattr(inner, "model", inner)


def hidden_states(
    model: nn.Module, batch: TreeBatch, layout: Layout, *, whole: bool = False
) -> Hidden:
    """Run the backbone once over ``batch``, which lies on the model's device.

    ``shared`` and ``packed`` need a model that ``choose_layout`` (or ``attention.install``) has
    prepared; ``padded`` takes any, and is an oracle under ``attention.plain_attention``. ``whole``
    asks for the states of all rows, also where a short last layer would leave some out.
    """
    route = _route(batch, layout)
    inputs = route.inputs
    if route.read is not None and not whole and takes_rows(unwrap(model)):
        inputs = {**inputs, "tree_rows": route.read}
    output = backbone(model)(**inputs, use_cache=False)
    return route.hidden(output.last_hidden_state.flatten(0, 1))


def target_hidden(model: nn.Module, batch: TreeBatch, layout: Layout) -> Tensor:
    """[M, d] hidden states at the predictor positions, in the batch's target order."""
    return hidden_states(model, batch, layout).targets()


def end_hidden(model: nn.Module, batch: TreeBatch, layout: Layout) -> Tensor:
    """[N, d] hidden states at the branches' last tokens."""
    return hidden_states(model, batch, layout).ends()


def prepare(batch: TreeBatch, layout: Layout) -> None:
    """Make, with the batch's real numbers, what ``hidden_states`` needs of it beside the model."""
    _route(batch, layout)


@torch.inference_mode(False)  # a reference model may be the first to read what a policy trains on
def _route(batch: TreeBatch, layout: Layout) -> _Route:
    routes = _ROUTES.setdefault(batch, {})
    if layout not in routes:
        if layout == "shared":
            routes[layout] = _tree_route(batch)
        else:
            alone = pack([copy for tree in batch.trees for copy in unshare(tree)])
            alone = alone.to(batch.ids.device)
            routes[layout] = _tree_route(alone) if layout == "packed" else _padded_route(alone)
    return routes[layout]


def _tree_route(batch: TreeBatch) -> _Route:
    inputs = {
        "input_ids": batch.ids[None],
        "position_ids": batch.depth[None],
        # Never read. A 4-D mask is handed through by transformers, which for None would build one.
        "attention_mask": batch.ids.new_zeros(1, 1, 1, 1),
        "tree_plan": TreePlan(batch.spans, batch.depth),
    }
    read = torch.cat((batch.predictor, batch.end)).unique()
    return _Route(inputs, batch.predictor, batch.end, read)


def _padded_route(alone: TreeBatch) -> _Route:
    """Rows padded on the right, where the default positions are the right ones."""
    lengths = torch.tensor([tree.end - tree.start for tree in alone.spans])
    rows, width = len(lengths), int(lengths.max())
    row = torch.arange(rows).repeat_interleave(lengths).to(alone.ids.device)
    cell = row * width + alone.depth
    ids = alone.ids.new_zeros(rows * width).index_copy(0, cell, alone.ids)
    mask = torch.zeros_like(ids).index_fill(0, cell, 1)
    inputs = {"input_ids": ids.view(rows, width), "attention_mask": mask.view(rows, width)}
    return _Route(inputs, cell[alone.predictor], cell[alone.end])


def choose_layout(model: nn.Module, requested: Literal["auto"] | Layout = "auto") -> LayoutChoice:
    """Find the layout for a model, by trying it on a few tokens, and prepare the model for it.

    Afterwards the model has tree attention installed for ``shared`` and ``packed``, and its own
    for ``padded``. Raises RecipeError where a layout was asked for that the architecture cannot
    take.
    """
    if requested not in ("auto", *get_args(Layout)):
        raise RecipeError(
            f"layout: {requested!r} is unknown; use auto, {', '.join(get_args(Layout))}"
        )
    if requested == "padded":
        uninstall(model)
        return LayoutChoice("padded", "asked for")
    obstacle = _obstacle(model)
    if obstacle is None:
        install(model)
        if requested == "auto":
            return LayoutChoice("shared", "tree attention agrees with the model's own")
        return LayoutChoice(requested, "asked for; tree attention agrees with the model's own")
    name = type(unwrap(model)).__name__
    if requested != "auto":
        raise RecipeError(
            f"layout: {requested!r} is impossible for {name} ({obstacle}); use auto or padded"
        )
    uninstall(model)
    return LayoutChoice("padded", f"{name}: {obstacle}")


def _obstacle(model: nn.Module) -> str | None:
    """Why tree attention cannot serve a model, in a few words; None where it can.

    Names prove nothing: Bloom accepts any attention function and calls none, linear attention and
    convolutions mix neighbours of different branches, a mask may carry a bias. So the model is run
    on a few tokens, and both the calls and the numbers are compared.
    """
    inner = unwrap(model)
    if not getattr(inner, "_supports_attention_backend", False):
        return "its attention cannot be replaced"
    expected = _layer_windows(inner.config.get_text_config(decoder=True))
    batch = pack(_canary_trees(inner)).to(inner.device)
    with _evaluating(model), torch.no_grad():
        with plain_attention(model):
            oracle = hidden_states(model, batch, "padded")
        try:
            calls, shared = _recorded(model, batch)
        except Exception as error:
            # Whatever an unknown architecture raises here, padded still serves it.
            return f"a trial call failed: {type(error).__name__}: {_one_line(error)}"
    if len(calls) != len(expected) or len({call.module for call in calls}) != len(calls):
        return f"{len(calls)} calls of tree attention for {len(expected)} layers"
    if [call.window for call in calls] != expected:
        return "its layers do not say which window or pattern they attend to"
    error = _difference(shared, oracle)
    tolerance = 0.1 if shared.states.dtype in (torch.bfloat16, torch.float16) else 1e-4
    if not error < tolerance:
        return f"a trial call differs from its own attention by {error:.1g}"
    return None


def _layer_windows(config: Any) -> list[int | str | None]:
    """Return the window that each layer should report; a word where we know of no such pattern.

    The trial is shorter than real windows, so numbers alone would not show one that is ignored.
    """
    window = getattr(config, "sliding_window", None)
    if getattr(config, "use_sliding_window", True) is False:
        window = None
    layers = config.num_hidden_layers
    types = getattr(config, "layer_types", None)
    if types is None and getattr(config, "attention_chunk_size", None) is not None:
        types = ["chunked_attention"] * layers
    if types is None:
        return [window] * layers
    known = {"full_attention": None, "sliding_attention": window}
    return [known.get(name, name) for name in types]


def _recorded(model: nn.Module, batch: TreeBatch) -> tuple[list[LayerCall], Hidden]:
    """Run ``batch`` shared and return the calls of tree attention that were made."""
    was_installed = is_installed(model)
    plan = _route(batch, "shared").plan
    calls = plan.calls = []
    install(model)
    try:
        return calls, hidden_states(model, batch, "shared")
    finally:
        plan.calls = None
        if not was_installed:
            uninstall(model)


def _difference(shared: Hidden, oracle: Hidden) -> float:
    """Relative distance of the answers of two layouts."""
    a, b = (  # on the CPU: MPS has no fp64
        torch.cat((hidden.targets(), hidden.ends())).cpu().double() for hidden in (shared, oracle)
    )
    return float((a - b).norm() / b.norm())


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _canary_trees(inner: Any) -> list[TokenTree]:
    """Trees that exercise trunks, siblings of different lengths and neighbours in the row."""
    vocabulary = inner.get_input_embeddings().num_embeddings
    positions = getattr(inner.config.get_text_config(decoder=True), "max_position_embeddings", None)

    def run(start: int, length: int) -> Branch:
        ids = tuple((7 * i + 3 * start + 1) % vocabulary for i in range(start, start + length))
        return Branch(ids, (start > 0,) * length)

    shapes = (1, (1, 2)), (5, (4, 3)), (2, (6,)), (1, (1, 2, 5)), (40, (9, 20))
    fitting = [s for s in shapes if positions is None or s[0] + max(s[1]) <= positions]
    return [
        TokenTree(
            run(0, trunk),
            tuple(run(10 * (i + 1), length) for i, length in enumerate(branches)),
            (),
            Origin("canary", number + 1),
        )
        for number, (trunk, branches) in enumerate(fitting)
    ]


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Put every module in evaluation mode for a while, and each back as it was."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
