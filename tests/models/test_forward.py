"""Choosing a layout by trial, and reading hidden states from whichever was chosen."""

from __future__ import annotations

from typing import Any

import peft
import pytest
import torch
from tests.tiny_models import random_trees, tiny_model
from torch import Tensor

from trimtab.data.batch import pack
from trimtab.errors import RecipeError
from trimtab.models import forward
from trimtab.models.attention import install, is_installed, plain_attention
from trimtab.models.attention_kernels import block_attention_works
from trimtab.models.forward import (
    Layout,
    LayoutChoice,
    backbone,
    choose_layout,
    end_hidden,
    hidden_states,
    target_hidden,
)
from trimtab.models.last_layer import takes_rows

SUPPORTED = ("llama", "qwen3", "gemma3_text", "gemma2", "mistral", "gpt2", "opt", "gpt_oss")


@pytest.mark.parametrize("name", SUPPORTED)
def test_supported_architectures_are_shared(name: str) -> None:
    model = tiny_model(name)
    assert choose_layout(model).layout == "shared"
    assert is_installed(model)


@pytest.mark.parametrize("name", ["bloom", "falcon"])
def test_unsupported_architectures_are_padded(name: str) -> None:
    model = tiny_model(name)
    choice = choose_layout(model)
    assert choice.layout == "padded"
    assert "its attention cannot be replaced" in choice.reason
    assert not is_installed(model)
    states = target_hidden(model, pack(random_trees(0)), choice.layout)
    assert states.isfinite().all() and states.shape[1] == 32
    with pytest.raises(RecipeError) as caught:
        choose_layout(model, "shared")
    assert str(caught.value) == (
        f"layout: 'shared' is impossible for {type(model).__name__} (its attention cannot be "
        "replaced); use auto or padded"
    )


def test_explicit_layouts() -> None:
    model = tiny_model("llama")
    assert choose_layout(model, "packed").layout == "packed"
    assert is_installed(model)
    assert choose_layout(model, "padded") == LayoutChoice("padded", "asked for")
    assert not is_installed(model)
    with pytest.raises(RecipeError, match=r"^layout: 'flat' is unknown; use auto, shared, packed"):
        choose_layout(model, "flat")  # type: ignore[arg-type]


def mixed_with_neighbour(states: Tensor) -> Tensor:
    """A short convolution, as state-space and hybrid models have: not only attention mixes."""
    return states + 0.3 * states.roll(1, dims=1)


def test_trial_notices_mixing_outside_attention() -> None:
    model = tiny_model("llama")
    mlp = model.model.layers[1].mlp
    real = mlp.forward
    mlp.forward = lambda x: real(x)
    assert choose_layout(model).layout == "shared"
    mlp.forward = lambda x: real(mixed_with_neighbour(x))
    choice = choose_layout(model)
    assert choice.layout == "padded"
    assert "differs from its own attention by" in choice.reason


def test_trial_notices_a_layer_that_calls_no_attention() -> None:
    model = tiny_model("llama")
    model.model.layers[1].self_attn.forward = lambda hidden_states, **_: (hidden_states, None)
    assert "2 calls of tree attention for 3 layers" in choose_layout(model).reason


def test_trial_notices_a_window_that_is_not_passed() -> None:
    """The window is longer than the trial: only what the layers report can show it."""
    model = tiny_model("gemma3_text", sliding_window=300)
    assert choose_layout(model).layout == "shared"
    model.model.layers[2].self_attn.sliding_window = None
    choice = choose_layout(model)
    assert choice.layout == "padded"
    assert "do not say which window" in choice.reason


def test_trial_notices_an_error_and_names_it() -> None:
    model = tiny_model("llama")
    real = model.model.forward

    def without_more(input_ids: Tensor, attention_mask: Tensor, use_cache: bool) -> Any:
        return real(input_ids=input_ids, attention_mask=attention_mask, use_cache=use_cache)

    model.model.forward = without_more
    choice = choose_layout(model)
    assert choice.layout == "padded"
    assert "a trial call failed: TypeError: " in choice.reason
    assert "\n" not in choice.reason


def test_trial_leaves_the_model_as_it_was() -> None:
    model = tiny_model("llama")
    model.model.layers[0].eval()
    before = [module.training for module in model.modules()]
    choose_layout(model)
    assert [module.training for module in model.modules()] == before
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert len(set(before)) == 2


def test_trial_fits_short_learned_positions() -> None:
    assert choose_layout(tiny_model("gpt2", n_positions=16)).layout == "shared"


def test_trial_in_half_precision() -> None:
    for name in ("llama", "gemma3_text", "gpt2"):
        assert choose_layout(tiny_model(name, dtype=torch.bfloat16)).layout == "shared"


@pytest.mark.filterwarnings("ignore::FutureWarning")  # PEFT uses a deprecated property
def test_backbone_is_below_every_head() -> None:
    for name in ("llama", "gpt2", "opt"):
        model = tiny_model(name)
        body = backbone(model)
        assert "lm_head" not in dict(body.named_children())
        assert backbone(body) is body
        if name != "gpt2":  # PEFT warns of its transposed weights
            wrapped = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules="all-linear"))
            assert backbone(wrapped) is body


@pytest.mark.parametrize("layout", ["shared", "packed", "padded"])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_states_are_those_the_head_reads(name: str, layout: forward.Layout) -> None:
    """The final norm is included, targets and ends stand where the batch says they do."""
    model = tiny_model(name)
    install(model)
    trees = random_trees(4, count=3)
    batch = pack(trees)
    with torch.no_grad():
        targets = model.lm_head(target_hidden(model, batch, layout))
        ends = model.lm_head(end_hidden(model, batch, layout))
        expected_targets, expected_ends = [], []
        for tree in trees:
            trunk = list(tree.trunk.ids)
            paths = [(trunk, 0, tree.trunk.trained)]
            paths += [(trunk + list(b.ids), len(trunk), b.trained) for b in tree.branches]
            for number, (ids, start, trained) in enumerate(paths):
                logits = model(torch.tensor([ids])).logits[0] if ids else torch.empty(0)
                chosen = [start + i - 1 for i, is_trained in enumerate(trained) if is_trained]
                expected_targets += [logits[i] for i in chosen]
                expected_ends += [logits[-1]] if number else []
    for got, expected in ((targets, expected_targets), (ends, expected_ends)):
        assert float((got - torch.stack(expected)).abs().max()) < 1e-4


def test_first_branch_token_is_predicted_by_the_trunk() -> None:
    """Twin of the test above: the position before it in the row belongs to a sibling."""
    batch = pack(random_trees(4, count=3))
    assert (batch.predictor != batch.target - 1).any()
    model = tiny_model("llama")
    install(model)
    with torch.no_grad():
        hidden = hidden_states(model, batch, "shared", whole=True)
        wrong = hidden.states[batch.target - 1]
    assert float((wrong - hidden.targets()).abs().max()) > 0.1


def test_one_pass_serves_targets_and_ends_and_reuses_its_plan(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny_model("llama")
    install(model)
    batch = pack(random_trees(1))
    plans = []
    real = forward.TreePlan
    monkeypatch.setattr(forward, "TreePlan", lambda *a: plans.append(real(*a)) or plans[-1])
    hidden = hidden_states(model, batch, "shared")
    assert torch.equal(hidden.targets(), target_hidden(model, batch, "shared"))
    assert torch.equal(hidden.ends(), end_hidden(model, batch, "shared"))
    assert len(plans) == 1
    hidden_states(model, pack(random_trees(1)), "shared")
    assert len(plans) == 2


@pytest.mark.parametrize("name", ["llama", "gemma2"])  # by blocks; by masks
def test_plan_made_in_inference_mode_serves_training(name: str) -> None:
    """A reference pass often comes first, and the plan is kept with the batch."""
    block_attention_works.cache_clear()
    model = tiny_model(name)
    install(model)
    for layout in ("shared", "packed", "padded"):
        batch = pack(random_trees(2))
        with torch.inference_mode():
            before = target_hidden(model, batch, layout)
        states = target_hidden(model, batch, layout)
        states.sum().backward()
        assert torch.equal(states.detach(), before)
    assert block_attention_works()


@pytest.mark.filterwarnings("ignore::FutureWarning")  # PEFT uses a deprecated property
def test_adapters_are_part_of_the_backbone() -> None:
    model = tiny_model("llama")
    batch = pack(random_trees(2))
    with plain_attention(model), torch.no_grad():
        base = target_hidden(model, batch, "padded")
    wrapped = peft.get_peft_model(
        model, peft.LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
    )
    assert choose_layout(wrapped).layout == "shared"
    with torch.no_grad():
        tuned = target_hidden(wrapped, batch, "shared")
        with wrapped.disable_adapter():
            off = target_hidden(wrapped, batch, "shared")
    assert float((off - base).norm() / base.norm()) < 1e-6
    assert float((tuned - base).norm() / base.norm()) > 1e-2


@pytest.mark.parametrize(("name", "short"), [("llama", True), ("qwen3", True), ("gpt2", False)])
@pytest.mark.parametrize("layout", ["shared", "packed"])
def test_a_short_last_layer_changes_no_answer(name: str, short: bool, layout: Layout) -> None:
    """Fewer rows come out of it, and those that are read are the same, gradients too."""
    batch = pack(random_trees(1, longest=40))
    model = tiny_model(name, dtype=torch.float64)
    install(model)
    found = []
    for whole in (False, True):
        model.zero_grad()
        hidden = hidden_states(model, batch, layout, whole=whole)
        states = torch.cat((hidden.targets(), hidden.ends()))
        states.square().sum().backward()
        gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        found.append((hidden.states.shape[0], states.detach(), gradients))
    (few, a, of_a), (every, b, of_b) = found
    assert (few < every) == short
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    for one, other in zip(of_a, of_b, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_the_last_layer_goes_back_to_its_authors() -> None:
    model = tiny_model("llama")
    batch = pack(random_trees(1))
    install(model)
    assert takes_rows(model)
    with plain_attention(model):
        assert not takes_rows(model)
        assert "forward" not in vars(model.model.layers[-1])
        hidden_states(model, batch, "padded")
    assert takes_rows(model)
