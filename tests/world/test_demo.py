"""The demo at a size of seconds: the whole flow, its files, and that a seed fixes its numbers."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from trimtab.config.resolve import recipe_from_kwargs
from trimtab.errors import UsageError
from trimtab.models.tokenizers import train_byte_level_bpe
from trimtab.world import demo, demo_stories
from trimtab.world.corpus import held_out_requests, pretrain_documents, sft_rows
from trimtab.world.demo_stages import FAST, FULL, Size, stages
from trimtab.world.demo_stories import Storyteller, Told, best_and_worst
from trimtab.world.gold import gold_reward

TINY = Size(60, 3, 24, 2, 6, 4, 2, 2, 2, 3, 2, 1)
MODELS = ["pretrain", "sft", "dpo", "simpo", "orpo", "orpo-pretrained"]


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "FULL", TINY)
    monkeypatch.setattr(demo_stories, "LONGEST", 16)


def summary(folder: Path) -> dict[str, Any]:
    found = json.loads((folder / "summary.json").read_text())
    assert found.pop("seconds") >= 0
    return found


@pytest.mark.usefixtures("tiny")
def test_the_demo_leaves_every_number_and_a_seed_fixes_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, again = tmp_path / "first", tmp_path / "again"
    assert demo.run_demo(output_dir=str(first), seed=3) == 0
    said = capsys.readouterr().err
    assert said.startswith("trimtab demo: ")
    assert all(f"[{number}/8]" in said for number in range(1, 9))
    assert said.count("\n> ") == 3
    found = summary(first)
    assert list(found["models"]) == MODELS
    assert found["models"]["sft"]["kl"]["mean"] == 0
    for name in MODELS:
        measures = found["models"][name]
        for key in ("gold_reward", "win_rate", "kl", "length"):
            assert measures[key]["low"] <= measures[key]["mean"] <= measures[key]["high"]
        stories = demo_stories.read_stories(first / "stories" / f"{name}.jsonl")
        assert len(stories) == TINY.requests * TINY.tellings
        assert all(s["gold"] == gold_reward(s["request"], s["story"]).total for s in stories)
    assert (first / "dpo" / "model.safetensors").exists()

    # What is done is not done again, and comes to the same.
    (first / "summary.json").unlink()
    (first / "stories" / "dpo.jsonl").unlink()
    assert demo.run_demo(output_dir=str(first), seed=3) == 0
    assert capsys.readouterr().err.count("done in an earlier start") == 7
    assert summary(first) == found
    assert demo.run_demo(output_dir=str(again), seed=3) == 0
    assert summary(again) == found


@pytest.mark.usefixtures("tiny")
def test_two_seeds_and_ctrl_c_between_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two ladders in folders of their own, their requests the same; interrupted, it goes on."""
    tell = Storyteller.tell

    def interrupted(self: Storyteller, *given: Any) -> Any:
        if "seed-5" in str(self.tokenizer.name_or_path):
            raise KeyboardInterrupt
        return tell(self, *given)

    with monkeypatch.context() as patch:
        patch.setattr(Storyteller, "tell", interrupted)
        assert demo.run_demo(output_dir=str(tmp_path), seed=4, seeds=2) == 130
    assert "the same command goes on from there" in capsys.readouterr().err
    assert not (tmp_path / "summary.json").exists()
    assert demo.run_demo(output_dir=str(tmp_path), seed=4, seeds=2) == 0
    found = summary(tmp_path)
    assert found["intervals"].endswith("over requests and seeds")
    means, asked = [], []
    for seed in (4, 5):
        stories = demo_stories.read_stories(tmp_path / f"seed-{seed}" / "stories" / "dpo.jsonl")
        means.append(sum(s["gold"] for s in stories) / len(stories))
        asked.append([s["request"] for s in stories])
    assert asked[0] == asked[1]
    assert found["models"]["dpo"]["gold_reward"]["mean"] == pytest.approx(sum(means) / 2)


def test_a_folder_holds_one_demo(tmp_path: Path) -> None:
    (tmp_path / "demo.json").write_text(json.dumps({"seed": 1, "seeds": 1, "fast": False}))
    with pytest.raises(UsageError, match=r"unfinished demo with .*\"seed\": 1"):
        demo.run_demo(output_dir=str(tmp_path), seed=2)
    (tmp_path / "summary.json").write_text("{}")
    with pytest.raises(UsageError, match="holds a finished demo"):
        demo.run_demo(output_dir=str(tmp_path), seed=1)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "sft").mkdir()
    with pytest.raises(UsageError, match="something else than a demo"):
        demo.run_demo(output_dir=str(tmp_path / "other"))
    with pytest.raises(UsageError, match="--seeds 0"):
        demo.run_demo(output_dir=str(tmp_path / "new"), seeds=0)


@pytest.mark.parametrize("size", [FULL, FAST])
def test_every_stage_is_a_recipe(size: Size, tmp_path: Path) -> None:
    runs = stages(tmp_path, size, 7)
    assert [stage.name for stage in runs] == MODELS
    for stage in runs:
        recipe = recipe_from_kwargs(stage.verb, **stage.keys).recipe
        assert recipe.seed == 7
        assert recipe.output_dir == str(tmp_path / stage.name)
    assert {stage.name: Path(stage.keys["model_name_or_path"]).name for stage in runs[1:]} == {
        "sft": "pretrain",
        "dpo": "sft",
        "simpo": "sft",
        "orpo": "sft",
        "orpo-pretrained": "pretrain",
    }
    for field in dataclasses.fields(Size):
        assert getattr(FAST, field.name) <= getattr(FULL, field.name)


def test_no_row_of_the_demo_is_cut() -> None:
    rows = sft_rows(400)
    tokenizer: Any = train_byte_level_bpe(pretrain_documents(600), 1024)
    lengths = [len(tokenizer(row["prompt"] + row["completion"])["input_ids"]) + 2 for row in rows]
    assert max(lengths) <= 160
    stories = sorted(len(tokenizer(row["completion"])["input_ids"]) + 1 for row in rows)
    assert stories[len(stories) * 99 // 100] <= demo_stories.LONGEST


# ---------------------------------------------------------------------- pairs


def test_pairs_are_the_annotators_first_and_last() -> None:
    requests = held_out_requests(30)
    good, bad, middle = "The end.", "No story.", sft_rows(1)[0]["completion"]
    golds = {story: gold_reward(requests[0], story).total for story in (good, bad, middle)}
    assert golds[good] == golds[bad] == 0 < golds[middle]
    rows = best_and_worst(requests, [[bad, middle, good, bad]] * 30, seed=1, noise=0)
    assert [row["prompt"] for row in rows] == requests
    assert all(row["chosen"] == middle and row["rejected"] != middle for row in rows)
    assert {row["rejected"] for row in rows} == {good, bad}, "ties are broken by a coin"
    assert best_and_worst(requests[:2], [["x", "x"], ["x", "x"]], seed=1) == []
    # An empty answer would be refused as a row, and ten of them would stop the run.
    assert best_and_worst(requests[:2], [[" ", middle], ["", "\n"]], seed=1) == []
    noisy = best_and_worst(requests, [[bad, middle]] * 30, seed=1, noise=2.0)
    assert 0 < sum(row["chosen"] == bad for row in noisy) < 30
    assert noisy == best_and_worst(requests, [[bad, middle]] * 30, seed=1, noise=2.0)


# ---------------------------------------------------------------------- stories


@pytest.fixture(scope="module")
def teller(small_model: Path) -> Storyteller:
    return Storyteller(small_model)


def test_stories_are_a_function_of_seed_and_purpose(
    teller: Storyteller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo_stories, "LONGEST", 8)
    monkeypatch.setattr(demo_stories, "BATCH", 4)
    requests = held_out_requests(6)
    counts: list[int] = []
    told = teller.tell(requests, 1, "test", counts.append)
    assert [one.request for one in told] == requests
    assert counts == [4, 6]
    torch.manual_seed(5)  # of no account
    assert teller.tell(requests, 1, "test") == told
    assert teller.tell(requests, 2, "test") != told
    assert teller.tell(requests, 1, "other") != told
    twice = teller.tell([requests[0]] * 4, 1, "test")
    assert len({one.ids for one in twice}) == 4


def test_sampling_follows_the_models_own_distribution(
    teller: Storyteller, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first token's frequencies, of prompts that are padded beside longer ones."""
    monkeypatch.setattr(demo_stories, "LONGEST", 1)
    short, long = sorted(held_out_requests(40), key=len)[::39]
    told = teller.tell([short, long] * 1500, 4, "frequencies")
    for request in (short, long):
        ids = teller.renderer.prompt_ids(request)
        with torch.no_grad():
            logits = teller.model(input_ids=torch.tensor([ids])).logits[0, -1]
        expected = logits.softmax(-1)
        first = torch.tensor([one.ids[0] for one in told if one.request == request])
        seen = torch.bincount(first, minlength=len(expected)) / len(first)
        error = (expected * (1 - expected) / len(first)).sqrt()
        top = expected.topk(5).indices
        assert (seen[top] - expected[top]).abs().le(4.5 * error[top]).all()


def test_log_probs_of_stories_by_hand(teller: Storyteller) -> None:
    told = [
        Told(request, "", tuple(teller.renderer.prompt_ids(request)), ids)
        for request, ids in zip(
            held_out_requests(3), [(5, 9, 1), (7,), (300, 2, 8, 40)], strict=True
        )
    ]
    expected: list[float] = []
    for one in told:
        with torch.no_grad():
            logits = teller.model(input_ids=torch.tensor([one.prompt_ids + one.ids])).logits[0]
        logp = logits.log_softmax(-1)
        start = len(one.prompt_ids) - 1
        expected.append(sum(float(logp[start + i, token]) for i, token in enumerate(one.ids)))
    assert teller.logprobs(told) == pytest.approx(expected, abs=1e-4)
