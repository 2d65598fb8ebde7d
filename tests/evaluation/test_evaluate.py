"""``trimtab evaluate`` on tiny models: the numbers against transformers, the folder, the errors."""

from __future__ import annotations

import json
import math
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
import torch
from tests import tiny_runs
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from trimtab.cli import main
from trimtab.errors import RunError
from trimtab.evaluation import subjects
from trimtab.evaluation.evaluate import EvaluateOptions, default_folder, evaluate_file
from trimtab.evaluation.subjects import find
from trimtab.models.load import load_model, load_tokenizer
from trimtab.models.save import save_model
from trimtab.models.score_head import ScoreHead, attach_head
from trimtab.world.corpus import kwise_rows
from trimtab.world.gold import gold_reward

Row = dict[str, Any]


def save_reward_model(folder: Path, base: Path, *, seed: int, labels: tuple[str, ...] = ()) -> Path:
    model, tokenizer = load_model(base), load_tokenizer(base)
    head = ScoreHead("classify" if labels else "reward", labels, tokenizer.pad_token_id, 0.25)
    save_model(attach_head(model, head, std=0.5, seed=seed), tokenizer, folder)
    return folder


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("evaluate")
    base = tiny_runs.save_tiny_model(root / "lm")
    tiny_runs.save_tiny_model(root / "other", seed=1)
    save_reward_model(root / "reward", base, seed=0)
    save_reward_model(root / "classifier", base, seed=0, labels=("bad", "good"))
    pairs = [
        {**row, "source": "ab"[i % 2], "margin": i % 3, "votes": [2, 1]}
        for i, row in enumerate(tiny_runs.pairs(60))
    ]
    tiny_runs.write_rows(root / "pairs.jsonl", pairs)
    tiny_runs.write_rows(root / "rankings.jsonl", tiny_runs.rankings(12))
    tiny_runs.write_rows(root / "texts.jsonl", tiny_runs.texts(12))
    tiny_runs.write_rows(root / "answers.jsonl", tiny_runs.answers(12))
    tiny_runs.write_rows(root / "labelled.jsonl", tiny_runs.labelled(12))
    tiny_runs.write_rows(root / "world.jsonl", kwise_rows(12, k=3))
    return root


def evaluated(*tokens: str) -> Row:
    """The card that a command writes to ``out``."""
    assert main(["evaluate", *tokens, "--output-dir", "out"]) == 0
    return json.loads(Path("out/report_card.json").read_text())


def lines() -> list[Row]:
    return [json.loads(line) for line in Path("out/scores.jsonl").read_text().splitlines()]


def rows_of(name: str) -> list[Row]:
    return [json.loads(line) for line in Path(name).read_text().splitlines()]


def response_logps(model: Any, tokenizer: Any, prompt: str, response: str) -> torch.Tensor:
    """The slow twin: plain transformers, one sequence at a time."""
    first = tokenizer(prompt)["input_ids"]
    second = tokenizer(response, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
    ids = torch.tensor([first + second])
    logp = model(ids).logits[0, :-1].double().log_softmax(-1)
    return logp.gather(1, ids[0, 1:, None]).squeeze(1)[len(first) - 1 :]


# ---------------------------------------------------------------------- language models


@torch.no_grad()
def test_log_probs_of_a_language_model_are_those_of_transformers(here: Path) -> None:
    card = evaluated("lm", "--dataset-name", "pairs.jsonl", "--token-budget", "64")
    model = AutoModelForCausalLM.from_pretrained("lm", dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained("lm")
    right = 0
    for row, line in zip(rows_of("pairs.jsonl"), lines(), strict=True):
        logps = [
            response_logps(model, tokenizer, row["prompt"], row[key])
            for key in ("chosen", "rejected")
        ]
        assert line["log_prob"] == pytest.approx([x.sum().item() for x in logps], abs=1e-4)
        assert line["log_prob_per_token"] == pytest.approx(
            [x.mean().item() for x in logps], abs=1e-5
        )
        assert line["lengths"] == [len(x) for x in logps]
        right += bool(logps[0].sum() > logps[1].sum())
    overall = card["scorings"]["log_prob"]["accuracy"]["overall"]
    assert overall["value"] == pytest.approx(right / 60) and overall["n"] == 60
    assert set(card["scorings"]) == {"log_prob", "log_prob_per_token"}
    assert card["model"]["kind"] == "language_model" and card["task"] == "comparisons"


@torch.no_grad()
def test_loss_on_completions_is_that_of_transformers(here: Path) -> None:
    card = evaluated("lm", "--dataset", "answers.jsonl")
    model = AutoModelForCausalLM.from_pretrained("lm", dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained("lm")
    logps = [
        response_logps(model, tokenizer, row["prompt"], row["completion"])
        for row in rows_of("answers.jsonl")
    ]
    every = torch.cat(logps)
    text = card["text"]
    assert text["loss"]["value"] == pytest.approx(-every.mean().item(), abs=1e-5)
    assert text["tokens"] == every.numel()
    size = sum(len(row["completion"].encode()) for row in rows_of("answers.jsonl"))
    assert text["bytes"] == size
    assert text["bits_per_byte"]["value"] == pytest.approx(
        -every.sum().item() / math.log(2) / size, rel=1e-5
    )
    assert [line["nll"] for line in lines()] == pytest.approx(
        [-x.sum().item() for x in logps], abs=1e-4
    )
    assert "Held-out loss" in card["verdict"][0]


def test_every_token_of_a_long_text_is_scored_once(here: Path) -> None:
    short = evaluated("lm", "--dataset", "texts.jsonl", "--max-length", "5")
    whole = evaluated("lm", "--dataset", "texts.jsonl")
    assert short["text"]["tokens"] == whole["text"]["tokens"]
    assert short["text"]["bytes"] == whole["text"]["bytes"]
    assert short["text"]["loss"]["value"] != whole["text"]["loss"]["value"], "less context"
    assert len(lines()) == short["counts"]["rows"] == 12


def test_a_language_model_against_another_on_text(here: Path) -> None:
    card = evaluated("lm", "--dataset", "texts.jsonl", "--baseline", "other")
    alone = evaluated("other", "--dataset", "texts.jsonl")
    found = card["baseline"]
    assert found["text"]["loss"]["value"] == pytest.approx(alone["text"]["loss"]["value"])
    assert found["difference"]["loss"]["value"] == pytest.approx(
        card["text"]["loss"]["value"] - alone["text"]["loss"]["value"]
    )
    same = evaluated("lm", "--dataset", "texts.jsonl", "--baseline", "lm")["baseline"]["difference"]
    assert same["loss"]["low"] == same["loss"]["high"] == 0


# ---------------------------------------------------------------------- reward models


@torch.no_grad()
def test_rewards_are_those_of_transformers_less_the_offset(here: Path) -> None:
    card = evaluated("reward", "--dataset", "pairs.jsonl")
    model = AutoModelForSequenceClassification.from_pretrained("reward", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained("reward")
    for row, line in list(zip(rows_of("pairs.jsonl"), lines(), strict=True))[:10]:
        expected = [
            model(
                torch.tensor(
                    [
                        tokenizer(row["prompt"])["input_ids"]
                        + tokenizer(row[key], add_special_tokens=False)["input_ids"]
                        + [tokenizer.eos_token_id]
                    ]
                )
            ).logits.item()
            - 0.25
            for key in ("chosen", "rejected")
        ]
        assert line["reward"] == pytest.approx(expected, abs=1e-4)
    gaps = [line["reward"][0] - line["reward"][1] for line in lines()]
    scoring = card["scorings"]["reward"]
    assert scoring["accuracy"]["overall"]["value"] == sum(g > 0 for g in gaps) / 60
    assert scoring["calibration"]["log_loss"]["value"] == pytest.approx(
        sum(math.log1p(math.exp(-g)) for g in gaps) / 60
    )
    assert card["model"]["offset"] == 0.25 and card["model"]["members"] == 1
    assert {g["name"] for g in scoring["accuracy"]["by_source"]} == {"a", "b"}
    assert scoring["accuracy"]["without_data_margin"] == 20, "a margin of 0 is none"
    assert card["agreement"]["majority"]["value"] == pytest.approx(2 / 3)


def test_the_folder(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    card = evaluated("reward", "--dataset", "world.jsonl", "--baseline", "lm", "--seed", "3")
    printed = capsys.readouterr().out
    assert printed.startswith("The reward model scores the preferred answer higher in ")
    assert "report card: out/report_card.md" in printed
    assert sorted(path.name for path in Path("out").iterdir()) == card["files"]
    page = Path("out/report_card.md").read_text()
    assert page.split("\n")[2].startswith("The reward model scores")
    for name in card["files"]:
        if name.endswith(".svg"):
            assert f"]({name})" in page
            ElementTree.parse(Path("out") / name)
    assert "reward_best_of_n.svg" in card["files"] and card["seed"] == 3
    assert page.count("\n## Against lm\n") == 1
    before = Path("out/report_card.json").read_bytes()
    evaluated("reward", "--dataset", "world.jsonl", "--baseline", "lm", "--seed", "3")
    assert Path("out/report_card.json").read_bytes() == before, "the same command, the same card"
    evaluated("reward", "--dataset", "pairs.jsonl")
    assert not Path("out/reward_best_of_n.svg").exists(), "charts of an earlier card go"


def test_rows_of_the_world_are_held_against_its_gold_reward(here: Path) -> None:
    card = evaluated("reward", "--dataset", "world.jsonl")
    assert card["gold_source"] == "the demo world's gold reward"
    for row, line in zip(rows_of("world.jsonl"), lines(), strict=True):
        golds = [gold_reward(row["prompt"], story).total for story in row["responses"]]
        assert line["gold"] == pytest.approx(golds) and line["ranks"] == row["ranks"]
    curve = card["scorings"]["reward"]["best_of_n"]["curve"]
    assert [point["n"] for point in curve] == [1, 2, 3]
    best = [max(line["gold"]) for line in lines()]
    assert curve[-1]["gold"]["value"] == pytest.approx(sum(best) / len(best))
    assert card["scorings"]["reward"]["gold"]["choices_agree"]["value"] > 0.7
    rankings = evaluated("reward", "--dataset", "rankings.jsonl")
    assert rankings["gold_source"] is None
    assert rankings["scorings"]["reward"]["best_of_n"] is None
    assert rankings["counts"]["comparisons"] == 36


def test_a_baseline_is_compared_on_the_same_comparisons(here: Path) -> None:
    card = evaluated("reward", "--dataset", "pairs.jsonl", "--baseline", "lm")
    alone = evaluated("lm", "--dataset", "pairs.jsonl")
    ours = card["scorings"]["reward"]["accuracy"]["overall"]["value"]
    found = {one["baseline_scoring"]: one for one in card["baseline"]["differences"]}
    assert set(found) == {"log_prob", "log_prob_per_token"}
    for name, one in found.items():
        theirs = alone["scorings"][name]["accuracy"]["overall"]["value"]
        assert one["difference"]["value"] == pytest.approx(ours - theirs)
        assert one["accuracy"]["value"] == theirs
    same = evaluated("lm", "--dataset", "pairs.jsonl", "--baseline", "lm")["baseline"]
    assert [one["scoring"] for one in same["differences"]] == ["log_prob", "log_prob_per_token"]
    assert all(one["difference"]["low"] == one["difference"]["high"] == 0
               for one in same["differences"])  # fmt: skip


def test_an_ensemble_and_json(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_reward_model(here / "team" / "member-1", here / "lm", seed=0)
    save_reward_model(here / "team" / "member-2", here / "lm", seed=1)
    manifest = {"kind": "reward_ensemble", "members": ["member-1", "member-2"]}
    (here / "team" / "ensemble.json").write_text(json.dumps(manifest))
    capsys.readouterr()
    assert main(["evaluate", "team", "--dataset", "pairs.jsonl", "--max-rows", "30", "--json"]) == 0
    card = json.loads(capsys.readouterr().out)
    assert card["model"]["members"] == 2 and card["rows"]["read"] == 30
    assert (here / "runs/evaluate-team-pairs/report_card.json").is_file()


def test_columns_kind_and_rows_that_do_not_fit(here: Path) -> None:
    renamed = [
        {"question": r["prompt"], "good": r["chosen"], "bad": r["rejected"]}
        for r in tiny_runs.pairs(20)
    ]
    renamed.append({"question": "the cat " * 40, "good": "sees.", "bad": "eats."})
    tiny_runs.write_rows(here / "mine.jsonl", renamed)
    card = evaluated(
        "reward", "--dataset", "mine.jsonl", "--columns", "prompt=question", "chosen=good",
        "rejected=bad", "--max-length", "24",
    )  # fmt: skip
    assert (card["rows"]["read"], card["rows"]["evaluated"]) == (21, 20)
    assert list(card["rows"]["dropped"].values()) == [1]


# ---------------------------------------------------------------------- what goes wrong

WRONG = {
    "no model": (["nowhere", "--dataset", "pairs.jsonl"], "model='nowhere': no such folder"),
    "no baseline": (
        ["lm", "--dataset", "pairs.jsonl", "--baseline", "./nowhere"],
        "baseline='./nowhere': no such folder",
    ),
    "none as in chat": (
        ["lm", "--dataset", "pairs.jsonl", "--vs", "./nowhere"],
        "baseline='./nowhere': no such folder",
    ),
    "classifier": (
        ["classifier", "--dataset", "pairs.jsonl"],
        "model='classifier': a classifier of 2 labels; give a reward model",
    ),
    "no tokenizer": (
        ["bare", "--dataset", "pairs.jsonl"],
        "model='bare': no tokenizer in .*bare; copy tokenizer.json",
    ),
    "text": (["reward", "--dataset", "texts.jsonl"], "texts.jsonl:1: .*these are text rows"),
    "labels": (["lm", "--dataset", "labelled.jsonl"], "labelled.jsonl:1: .*unpaired rows"),
    "NaN": (
        ["reward", "--dataset", "nan.jsonl"],
        r"nan.jsonl:2: scores\[1\]: not a finite number: NaN; 1 of 12 rows is bad",
    ),
    "tied": (["reward", "--dataset", "tied.jsonl"], "tied.jsonl:1: ranks: all are tied"),
    "no file": (["reward", "--dataset", "no.jsonl"], "no.jsonl: no such file"),
    "folder": (
        ["lm", "--dataset", "pairs.jsonl", "--output-dir", "pairs.jsonl"],
        "output_dir=pairs.jsonl: pairs.jsonl is no folder; give another",
    ),
    "number": (["lm", "--dataset", "pairs.jsonl", "--max-length", "0"], "max_length=0: must be"),
    "column": (
        ["lm", "--dataset", "pairs.jsonl", "--columns", "chosen=god"],
        "pairs.jsonl:1: no column 'god'",
    ),
    "no name": (["lm", "--dataset", ""], "dataset_name: is empty"),
    "kind": (
        ["reward", "--dataset", "texts.jsonl", "--kind", "text"],
        "texts.jsonl:1: kind 'text', but this stage takes",
    ),
    "nothing left": (
        ["reward", "--dataset", "pairs.jsonl", "--max-length", "2"],
        "pairs.jsonl:1: 4 tokens, max_length 2: the prompt leaves no room",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_one_line(
    name: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "bare").mkdir()
    for file in ("config.json", "model.safetensors"):
        (here / "bare" / file).symlink_to(here / "lm" / file)
    rows = tiny_runs.rankings(12)
    rows[1] = {**rows[1], "scores": [0.1, float("nan"), 0.3]}
    tiny_runs.write_rows(here / "nan.jsonl", rows)
    tied = [{**row, "ranks": [1, 1, 1]} for row in tiny_runs.rankings(2)]
    tiny_runs.write_rows(here / "tied.jsonl", tied)
    tokens, expected = WRONG[name]
    assert main(["evaluate", *tokens]) == 2
    printed = capsys.readouterr()
    last = printed.err.splitlines()[-1]
    assert printed.out == "" and "Traceback" not in printed.err
    assert last.startswith("trimtab: "), printed.err
    assert re.match(f"trimtab: {expected}", last), last
    assert not (here / "runs").exists(), "a refused command leaves nothing behind"


def test_bad_rows_may_be_left_out(here: Path) -> None:
    rows = [*tiny_runs.rankings(12), {"prompt": "x", "responses": ["a", "b"], "ranks": [1, None]}]
    tiny_runs.write_rows(here / "some.jsonl", rows)
    card = evaluated("reward", "--dataset", "some.jsonl", "--max-bad-rows", "1")
    assert card["rows"]["read"] == 13 and sum(card["rows"]["bad"].values()) == 1
    assert "bad: 1 x ranks: not a number" in Path("out/report_card.md").read_text()


def test_scores_that_are_not_finite_stop_it(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        subjects.RewardSubject, "score", lambda self, trees: {"reward": [[float("nan")] * 2]}
    )
    with pytest.raises(RunError, match=r"pairs\.jsonl:1: the model's reward is not finite"):
        evaluate_file(EvaluateOptions(model="reward", dataset_name="pairs.jsonl", token_budget=1))


def test_names() -> None:
    options = EvaluateOptions(model="runs/rm/checkpoint-20", dataset_name="data/a b.jsonl.gz")
    assert default_folder(options) == "runs/evaluate-rm-checkpoint-20-a-b"
    options = EvaluateOptions(model="org/name", dataset_name="..")
    assert default_folder(options) == "runs/evaluate-name-here"


def test_what_a_model_is(here: Path) -> None:
    assert find("lm", "model").kind == "language_model"
    assert find("reward", "model").kind == "reward"
    assert find("reward", "model").accepts == {"preference", "ranked"}
