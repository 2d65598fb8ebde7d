"""How a reward model reads what was sampled."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tests import tiny_runs
from tests.algorithms.stage_world import World

from trimtab.algorithms.judge import Asked, by_reward_model, with_stop
from trimtab.data.chat import ChatRenderer
from trimtab.data.rows import CompletionExample, Text
from trimtab.data.tokenise import Drop
from trimtab.data.trees import Branch, Origin, TokenTree
from trimtab.errors import RunError
from trimtab.rewards.reward_model import RewardModel

STOP, OTHER_STOP = 7, 8
CHAT = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def asked(
    prompt: Text, ids: Sequence[int], text: Text, *, ended: bool, trunk: Any = (1, 2)
) -> Asked:
    branches = (Branch(tuple(ids), (True,) * len(ids)),)
    tree = TokenTree(Branch(tuple(trunk), (False,) * len(trunk)), branches, (), Origin("rows", 3))
    return Asked(prompt, text, {}, tree, ended)


@pytest.mark.parametrize(
    ("ids", "ended", "positions", "read"),
    [
        ((4, 5, STOP), True, None, (4, 5, STOP)),  # as its rows end
        ((4, 5), False, None, (4, 5, STOP)),  # cut off
        ((4, 5, OTHER_STOP), True, None, (4, 5, STOP)),  # ended by another stop token
        ((OTHER_STOP,), True, None, (STOP,)),
        ((4, 5), False, 5, (4, 5, STOP)),  # just room enough
        ((4, 5), False, 4, (4, STOP)),  # none: the last token makes room
        ((4, 5, STOP), True, 5, (4, 5, STOP)),
    ],
)
def test_a_score_is_read_at_the_stop_token(
    ids: tuple[int, ...], ended: bool, positions: int | None, read: tuple[int, ...]
) -> None:
    item = asked("ask", ids, "say", ended=ended)
    tree = with_stop(item, STOP, positions)
    assert tree.branches[0].ids == read and len(tree.branches[0].trained) == len(read)
    assert tree.trunk == item.tree.trunk
    assert with_stop(item, None, positions) is item.tree


@pytest.fixture(scope="module", params=["plain", "chat"])
def model(request: pytest.FixtureRequest, world: World, tmp_path_factory: Any) -> RewardModel:
    keys: dict[str, Any] = {"sample_prompts": ..., "max_steps": 1}
    if request.param == "chat":
        folder: Path = tmp_path_factory.mktemp("chat") / "model"
        tiny_runs.save_tiny_model(folder, seed=3, chat_template=CHAT)
        keys["model_name_or_path"] = str(folder)
    return RewardModel.load(world.run("reward", "pairs", **keys).folder)


def test_cut_off_responses_are_read_as_the_rows_of_training(model: RewardModel) -> None:
    """The same text has the same score, sampled or rendered; with the sampled end it had not."""
    chat = bool(model.tokenizer.chat_template)
    prompt: Text = [{"role": "user", "content": "ab cd"}] if chat else "ab cd"
    texts = ["ba dc", "a", "cab bad"]
    said: list[Text] = [[{"role": "assistant", "content": t}] if chat else t for t in texts]
    rendered: list[TokenTree] = []
    for text in said:
        example = CompletionExample(origin=Origin("rows", 3), prompt=prompt, completion=text)
        (found,) = model.trees([example])
        assert not isinstance(found, Drop)
        rendered += found
    stop = model.stop_after(prompt)
    assert stop == model.tokenizer.eos_token_id
    items: list[Asked] = []
    for ended in (True, False):
        for text, tree in zip(said, rendered, strict=True):
            ids = tree.branches[0].ids if ended else tree.branches[0].ids[:-1]
            items.append(asked(prompt, ids, text, ended=ended, trunk=tree.trunk.ids))
    read = by_reward_model(model, model.tokenizer, on_bad="stop")
    wanted = [score for (score,) in model.score_trees(rendered)]
    assert read(items).values == pytest.approx([*wanted, *wanted], abs=1e-6)
    wrong = [score for (score,) in model.score_trees([item.tree for item in items[3:]])]
    assert all(abs(a - b) > 1e-4 for a, b in zip(wrong, wanted, strict=True))


def test_rows_that_end_without_a_stop_token_are_read_as_sampled(model: RewardModel) -> None:
    tokenizer = copy.deepcopy(model.tokenizer)
    tokenizer.eos_token = None
    tokenizer.chat_template = CHAT.replace("{{ eos_token }}", "; ")
    other = RewardModel("other", model.members, ChatRenderer(tokenizer), 100)
    assert other.stop_after("ab") is None
    assert other.stop_after([{"role": "user", "content": "ab"}]) is None
    assert other.stop_after([{"role": "nobody"}]) is None  # a row that cannot be rendered


def test_what_it_has_no_positions_for_is_named(
    model: RewardModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RewardModel, "positions", 6)
    prompt: Text = [{"role": "user", "content": "a"}] if model.tokenizer.chat_template else "a"
    read = by_reward_model(model, model.tokenizer, on_bad="stop", key="watch_model")
    assert read([asked(prompt, [4, 5, 6, 4], "said", ended=False)]).values  # makes room
    with pytest.raises(RunError, match=r"watch_model=.*rows:3 .*have 8 tokens, and it reads 6"):
        read([asked(prompt, [4, 5, 6, 4, 5], "said", ended=False)])
