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
from trimtab.report.svg import bare
from trimtab.world import demo, demo_stories
from trimtab.world.corpus import held_out_requests, pretrain_documents, sft_rows
from trimtab.world.demo_stages import FAST, FULL, PASSES, Size, stages
from trimtab.world.demo_stories import Storyteller, Told, best_and_worst, ranked
from trimtab.world.gold import gold_reward

TINY = Size(60, 3, 24, 2, 6, 4, 2, 2, 2, 1, 1, 4, 3, 2, 1)
MODELS = ["pretrain", "sft", "ppo", "dpo", "simpo", "orpo", "orpo-pretrained"]
STAGES = [*MODELS[:2], "reward", *MODELS[2:]]


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "FULL", TINY)
    monkeypatch.setattr(demo_stories, "LONGEST", 16)


def summary(folder: Path) -> dict[str, Any]:
    found = json.loads((folder / "summary.json").read_text())
    assert found.pop("seconds") >= 0
    return found


def prompts(path: Path) -> set[str]:
    return {json.loads(line)["prompt"] for line in path.read_text().splitlines()}


@pytest.mark.usefixtures("tiny", "cpu_only")
def test_the_demo_leaves_every_number(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = tmp_path / "first"
    assert demo.run_demo(output_dir=str(first), seed=3) == 0
    said = capsys.readouterr().err
    assert said.startswith("trimtab demo: ")
    assert all(f"[{number}/10]" in said for number in range(1, 11))
    assert said.count("\n> ") == 3
    found = summary(first)
    assert list(found["models"]) == MODELS
    assert found["models"]["sft"]["kl"]["mean"] == 0
    for name in MODELS:
        measures = found["models"][name]
        for key in ("gold_reward", "win_rate", "kl", "length", "learned_reward"):
            assert measures[key]["low"] <= measures[key]["mean"] <= measures[key]["high"]
        stories = demo_stories.read_stories(first / "stories" / f"{name}.jsonl")
        assert len(stories) == TINY.requests * TINY.tellings
        assert all(s["gold"] == gold_reward(s["request"], s["story"]).total for s in stories)
    assert (first / "dpo" / "model.safetensors").exists()
    ways = {one["method"]: [point["step"] for point in one["points"]] for one in found["frontier"]}
    assert ways == {"ppo": [2, None], "dpo": [1, None], "simpo": [1, None], "orpo": [1, None]}
    for one in found["frontier"]:
        assert one["points"][-1]["gold"] == found["models"][one["method"]]["gold_reward"]
    drawn = (first / "frontier.svg").read_text()
    assert drawn.startswith("<svg")
    assert f"report: {first / 'report.html'}" in said
    page = (first / "report.html").read_text()
    assert "ppo, step 2: " in drawn and bare(drawn).strip() in page
    assert all(f'id="{part}"' in page for part in ("charts", "samples", "calibration", "tokens"))
    asked, answered = (
        prompts(first / "data" / f"{name}.jsonl") for name in ("prompts", "rankings")
    )
    assert len(asked) == TINY.ppo_prompts
    assert answered
    assert asked.isdisjoint(answered)

    # What is done is not done again, and comes to the same.
    (first / "summary.json").unlink()
    (first / "stories" / "dpo.jsonl").unlink()
    assert demo.run_demo(output_dir=str(first), seed=3) == 0
    assert capsys.readouterr().err.count("done in an earlier start") == 9
    assert summary(first) == found


@pytest.mark.slow
@pytest.mark.usefixtures("tiny", "cpu_only")
def test_a_seed_fixes_all_numbers(tmp_path: Path) -> None:
    first, again = tmp_path / "first", tmp_path / "again"
    for folder in (first, again):
        assert demo.run_demo(output_dir=str(folder), seed=3) == 0
    assert summary(again) == summary(first)


@pytest.mark.slow
@pytest.mark.usefixtures("tiny")
def test_two_seeds_and_ctrl_c_between_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two ladders in folders of their own, their requests the same; interrupted, it goes on."""
    few = ("pretrain", "sft", "reward", "ppo", "dpo")
    monkeypatch.setattr(
        demo,
        "stages",
        lambda *given: [
            stage._replace(keys={**stage.keys, "self_check": False})
            for stage in stages(*given)
            if stage.name in few
        ],
    )
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
    assert [stage.name for stage in runs] == STAGES
    for stage in runs:
        recipe = recipe_from_kwargs(stage.verb, **stage.keys).recipe
        assert recipe.seed == 7
        assert recipe.output_dir == str(tmp_path / stage.name)
    assert {stage.name: Path(stage.keys["model_name_or_path"]).name for stage in runs[1:]} == {
        "sft": "pretrain",
        "reward": "sft",
        "ppo": "sft",
        "dpo": "sft",
        "simpo": "sft",
        "orpo": "sft",
        "orpo-pretrained": "pretrain",
    }
    ppo = next(stage for stage in runs if stage.name == "ppo")
    assert ppo.keys["mix"]["weight"] > 0, "the ptx term"
    assert size.ppo_prompts == ppo.keys["max_steps"] // PASSES * size.ppo_stories
    for field in dataclasses.fields(Size):
        assert getattr(FAST, field.name) <= getattr(FULL, field.name)


def test_no_row_of_the_demo_is_cut() -> None:
    rows = sft_rows(400)
    tokenizer: Any = train_byte_level_bpe(pretrain_documents(600), 1024)
    lengths = [len(tokenizer(row["prompt"] + row["completion"])["input_ids"]) + 2 for row in rows]
    assert max(lengths) <= 160
    stories = sorted(len(tokenizer(row["completion"])["input_ids"]) + 1 for row in rows)
    assert stories[len(stories) * 99 // 100] <= demo_stories.LONGEST


# ---------------------------------------------------------------------- rankings


def test_rankings_are_the_annotators_and_pairs_their_first_and_last() -> None:
    requests = held_out_requests(30)
    good, bad, middle = "The end.", "No story.", sft_rows(1)[0]["completion"]
    golds = {story: gold_reward(requests[0], story).total for story in (good, bad, middle)}
    assert golds[good] == golds[bad] == 0 < golds[middle]
    rows = ranked(requests, [[bad, middle, good, bad]] * 30, seed=1, noise=0)
    assert [row["prompt"] for row in rows] == requests
    assert all(row["responses"] == [bad, middle, good] for row in rows), "each told once"
    assert all(row["ranks"][1] == 1 and sorted(row["ranks"]) == [1, 2, 3] for row in rows)
    pairs = best_and_worst(rows)
    assert [pair["prompt"] for pair in pairs] == requests
    assert all(pair["chosen"] == middle for pair in pairs)
    assert {pair["rejected"] for pair in pairs} == {good, bad}, "ties are broken by a coin"
    assert ranked(requests[:2], [["x", "x"], ["x", "x"]], seed=1) == []
    # An empty answer would be refused as a row, and ten of them would stop the run.
    assert ranked(requests[:2], [[" ", middle], ["", "\n"]], seed=1) == []
    noisy = ranked(requests, [[bad, middle]] * 30, seed=1, noise=2.0)
    assert 0 < sum(pair["chosen"] == bad for pair in best_and_worst(noisy)) < 30
    assert noisy == ranked(requests, [[bad, middle]] * 30, seed=1, noise=2.0)


# ---------------------------------------------------------------------- stories


@pytest.fixture(scope="module")
def teller(small_model: Path) -> Storyteller:
    return Storyteller(small_model)


def test_stories_are_a_function_of_seed_and_purpose(
    teller: Storyteller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo_stories, "LONGEST", 8)
    requests = held_out_requests(6)
    counts: list[int] = []
    told = teller.tell(requests, 2, 1, "test", counts.append)
    assert [one.request for one in told] == [request for request in requests for _ in range(2)]
    assert counts[-1] == 12
    torch.manual_seed(5)  # of no account
    assert teller.tell(requests, 2, 1, "test") == told
    assert [one.ids for one in teller.tell(requests, 1, 1, "test")] == [
        one.ids for one in told[::2]
    ]
    assert teller.tell(requests, 2, 2, "test") != told
    assert teller.tell(requests, 2, 1, "other") != told
    assert len({one.ids for one in teller.tell(requests[:1], 4, 1, "test")}) == 4


def test_log_prob_of_a_told_story_is_the_models(
    teller: Storyteller, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the sampler recorded against a forward pass over the whole story."""
    monkeypatch.setattr(demo_stories, "LONGEST", 40)
    told = teller.tell(held_out_requests(5), 3, 1, "test")
    assert [one.logprob for one in told] == pytest.approx(teller.logprobs(told), abs=1e-3)


def test_loss_on_text_by_hand(teller: Storyteller) -> None:
    documents = pretrain_documents(3, 9)
    for text, (nats, count) in zip(documents, teller.text_loss(documents), strict=True):
        ids = torch.tensor([teller.tokenizer(text, add_special_tokens=False)["input_ids"]])
        with torch.no_grad():
            logp = teller.model(input_ids=ids).logits[0, :-1].log_softmax(-1)
        assert count == ids.shape[1] - 1
        assert nats == pytest.approx(float(-logp.gather(1, ids[0, 1:, None]).sum()), rel=1e-5)


def test_log_probs_of_stories_by_hand(teller: Storyteller) -> None:
    told = [
        Told(request, "", tuple(teller.renderer.prompt_ids(request)), ids, 0.0)
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
