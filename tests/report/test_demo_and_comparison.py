"""Reports of demos and comparisons: the tables say what the JSON holds, and no more than it can."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.report.test_page import EVIL, dpo_run, text_of, write_run

from trimtab.cli import main
from trimtab.errors import UsageError
from trimtab.report.page import MOST_BYTES, report_line, write_report


def measured(mean: float, half: float, **more: Any) -> dict[str, Any]:
    return {"mean": mean, "low": mean - half, "high": mean + half, "n": 100, **more}


def cells(page: str, caption: str) -> dict[str, list[str]]:
    """The rows of a table by their first cell."""
    table = re.search(rf'class="caption">{re.escape(caption)}.*?</table>', page, re.DOTALL)
    assert table, caption
    rows = re.findall(r"<tr>(.*?)</tr>", table[0], re.DOTALL)
    found = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in rows]
    return {row[0]: row[1:] for row in found}


def chart_of(page: str, title: str) -> str:
    """The chart whose title begins so."""
    charts = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    return next(one for one in charts if f"<title>{title}" in one)


# ---------------------------------------------------------------------- demo


def model(gold: float, learned: float, kl: float) -> dict[str, Any]:
    return {
        "gold_reward": measured(gold, 0.012),
        "win_rate": measured(gold + 0.2, 0.03),
        "kl": measured(kl, 0.4),
        "length": measured(80 + kl, 1.2),
        "learned_reward": measured(learned, 0.1),
        "ends": measured(0.9, 0.02),
    }


def checkpoints(end: dict[str, Any]) -> list[dict[str, Any]]:
    """A model's way: two thirds of the gain at a third of the KL, and its end."""
    gold, kl = end["gold_reward"]["mean"], end["kl"]["mean"]
    half = {"step": 16, "gold": measured(0.481 + 2 * (gold - 0.481) / 3, 0.02),
            "kl": measured(kl / 3, 0.3), "learned": measured(-0.3, 0.2)}  # fmt: skip
    return [half, {"step": None, "gold": end["gold_reward"], "kl": end["kl"],
                   "learned": end["learned_reward"]}]  # fmt: skip


def write_demo(folder: Path, **models: dict[str, Any]) -> Path:
    told = {"pretrain": model(0.4, -1.9, 3), "sft": model(0.481, -1.3, 0), **models}
    summary = {
        "seed": 0, "seeds": 1, "requests": 192, "tellings": 2, "kl": "k1", "models": told,
        "intervals": "95 %, bootstrap over requests", "demonstrations_gold_reward": 0.65045,
        "stages": {"dpo": "it learns to prefer"}, "seconds": 280.1,
        "frontier": [{"method": name, "points": checkpoints(told[name])} for name in models],
    }  # fmt: skip
    dpo_run(folder / "dpo", keys={"model_name_or_path": str(folder / "sft")})
    rewards = {"rewards/reward/mean": 1.0, "watch/gold/mean": 0.5}
    log = [{"step": s, "loss": 0.1, "reward": s / 4, "objective/kl": s, **rewards} for s in (4, 8)]
    write_run(folder / "ppo", "ppo", log, keys={"reward_model": "runs/reward"})
    rollout = {"reward": [0.5, 1.5], "watch/gold": [0.25, 0.75], "tokens": [70, 90]}
    (folder / "ppo" / "completions").mkdir()
    pq.write_table(pa.table(rollout), folder / "ppo" / "completions" / "rollout_0.parquet")
    (folder / "stories").mkdir()
    for place, name in enumerate(told):
        line = {"request": f"A story, {EVIL}", "story": f"{name} {EVIL}", "gold": 0.1 * place,
                "learned": -1.5, "tokens": 80 + place}  # fmt: skip
        (folder / "stories" / f"{name}.jsonl").write_text(4 * (json.dumps(line) + "\n"))
    (folder / "demo.json").write_text("{}")
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def test_a_demo_in_numbers(tmp_path: Path) -> None:
    folder = write_demo(
        tmp_path / "demo",
        ppo=model(0.6704, 1.03, 4.3),
        dpo=model(0.6738, 0.8, 4.8),
        orpo=model(0.61, 0.1, 1.8),
    )
    page = write_report(folder).read_text()
    rows = cells(page, "Every model")
    models = json.loads((folder / "summary.json").read_text())["models"]
    for name, measures in models.items():
        gold = measures["gold_reward"]
        assert rows[name][0] == f"{gold['mean']:.3f} [{gold['low']:.3f}, {gold['high']:.3f}]"
        assert rows[name][4].startswith(f"{measures['length']['mean']:.1f} [")
    assert rows["sft"][2:4] == ["–", "–"]
    assert rows["pretrain"][1] == "−1.90 [−2.00, −1.80]"
    said = text_of(page)
    assert "dpo tells the best stories: a gold reward of 0.674 [0.662, 0.686]" in said
    assert "(ppo is too close to it to call)" in said, "their intervals overlap, orpo's does not"
    assert "Above sft with their whole interval: ppo, dpo and orpo." in said
    assert "learned −1.50 81 tokens" in said and "it learns to prefer" in said
    assert "<script" not in page and len(page.encode()) < MOST_BYTES
    stages = cells(page, "The stages")
    assert stages["dpo"][0] == "dpo" and stages["dpo"][4:6] == ["10", "190 k"]
    for name in ("frontier", "calibration", "tokens"):
        assert f'id="{name}"' not in page
    ends = chart_of(page, "Gold reward against KL")
    assert "dpo: 0.674 [0.662, 0.686] at 4.80 [4.40, 5.20]" in ends
    assert "KL to sft, nats a story" in ends and ">gold reward<" in ends


def test_the_frontier_of_a_demo_has_every_checkpoint(tmp_path: Path) -> None:
    folder = write_demo(tmp_path / "demo", ppo=model(0.6704, 1.03, 4.3), dpo=model(0.67, 0.8, 4.8))
    page = write_report(folder).read_text()
    frontier = chart_of(page, "Frontier: gold reward gained for KL to sft")
    assert re.findall(r"<title>(\w+, .*?): ", frontier) == [
        "ppo, step 16", "ppo, its end", "dpo, step 16", "dpo, its end"
    ]  # fmt: skip
    assert "dpo, step 16: 0.607 [0.587, 0.627] at 1.60 [1.30, 1.90]" in frontier
    assert frontier.count('class="l0" style="stroke-width:1.5"') == 2 * (1 + 2 * 2), "both ways"
    assert "upright: gold reward" in frontier and "across: KL to sft, nats a story" in frontier
    assert all(f'class="b">{name}</text>' in frontier for name in ("ppo", "dpo"))
    rows = re.findall(r'<tr><th scope="row">dpo</th><td class="n">16</td>(.*?)</tr>', page)
    assert "0.607 [0.587, 0.627]" in rows[0] and "1.60 [1.30, 1.90]" in rows[0]
    summary = json.loads((folder / "summary.json").read_text())
    del summary["frontier"]
    (folder / "summary.json").write_text(json.dumps(summary))
    assert "Frontier: gold reward gained" not in write_report(folder).read_text(), "an older demo"


def test_the_gold_reward_of_ppo_is_watched(tmp_path: Path) -> None:
    page = write_report(write_demo(tmp_path / "demo", ppo=model(0.67, 1, 4))).read_text()
    assert "only watched: gold" in chart_of(page, "Reward: ppo")
    assert "gold, only watched" in chart_of(page, "Watched and optimised reward: ppo")
    assert "Only watched, on rollouts: gold 0.500 to 0.500." in text_of(page)


def test_a_demo_without_a_clear_gain_says_so(tmp_path: Path) -> None:
    folder = write_demo(tmp_path / "demo", dpo=model(0.49, 0, 1))
    assert "No aligned model is clearly better than the sft" in text_of(
        write_report(folder).read_text()
    )


def test_demos_that_are_none_yet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_demo(tmp_path / "demo", dpo=model(0.6, 0, 1))
    summary = json.loads((folder / "summary.json").read_text())
    del summary["models"]["sft"]["gold_reward"]["mean"]
    (folder / "summary.json").write_text(json.dumps(summary))
    with pytest.raises(UsageError, match=r"summary\.json: models\.sft\.gold_reward\.mean: field r"):
        write_report(folder)
    assert report_line(folder).startswith("report.html could not be written (")
    (folder / "summary.json").unlink()
    assert main(["report", str(folder)]) == 2
    assert "a demo that is not finished" in capsys.readouterr().err
    assert main(["report", str(folder / "dpo")]) == 0, "its stages have pages of their own"


# ---------------------------------------------------------------------- comparison


def write_comparison(folder: Path, methods: list[str], **changes: Any) -> Path:
    points: list[dict[str, Any]] = []
    frontier: list[dict[str, Any]] = []
    for place, method in enumerate(methods):
        line: list[dict[str, Any]] = []
        for step in (8, 16):
            gold, kl = 0.5 + 0.01 * place + step / 200, step / 4
            point = {"gold": measured(gold, 0.02), "proxy": measured(kl - 1, 0.1),
                     "kl": measured(kl, 0.2), "length": measured(80.5, 1),
                     "text_loss": measured(0.5, 0.001), "label": "beta 0.1",
                     "step": step}  # fmt: skip
            line.append(point)
            for seed in (0, 1):
                points.append({**point, "method": method, "seed": seed, "run": f"runs/{method}"})
        frontier.append({"method": method, "points": line})
    pair = {"a": methods[0], "b": methods[-1], "win_rate": measured(0.4, 0.05), "p": 0.0002,
            "p_adjusted": 0.03, "differs": True}  # fmt: skip
    answer = {"method": methods[0], "text": EVIL, "gold": 0.25, "proxy": -0.5, "length": 77}
    record = {
        "kind": "comparison", "version": 1, "name": f"all of them {EVIL}", "seconds": 5400.0,
        "command": "trimtab compare recipe.yaml", "environment": {"cpu": "a cpu", "cpu_count": 2},
        "recipe": {"dpo": {"beta": [0.1]}}, "seeds": [0, 1], "prompts": 256,
        "budget": {"unit": "prompts", "amount": 768, "sentence": "768 prompts for each."},
        "judge": {"name": "gold"}, "proxy": {"name": "learned"}, "kl_estimator": "k1",
        "base": {"name": "sft", "gold": measured(0.48, 0.02), "proxy": measured(-1.3, 0.1),
                 "length": measured(83, 1), "end_rate": measured(0.56, 0.03),
                 "text_loss": measured(0.49, 0.001), "run": "runs/sft"},
        "points": points, "frontier": frontier, "pairs": [pair], "correction": "Holm",
        "chosen": [{"method": line["method"], "chosen_on": "64 other prompts", "seconds": 70.0,
                    "tokens": 1000, **line["points"][-1]} for line in frontier],
        "at_kl": [{"kl": 2.0, "gold": {methods[0]: measured(0.54, 0.02), methods[-1]: None}}],
        "failed": [{"cell": "rloo, seed 1", "error": f"loss not finite {EVIL}"}],
        "samples": [{"prompt": EVIL, "answers": [answer]}],
        "verdict": ["dpo gains most.", "The others do not differ."], **changes,
    }  # fmt: skip
    folder.mkdir()
    (folder / "comparison.json").write_text(json.dumps(record))
    return folder


def test_a_comparison_in_numbers(tmp_path: Path) -> None:
    methods = [f"m{i}" for i in range(9)]
    page = write_report(write_comparison(tmp_path / "all", methods)).read_text()
    worth, cost = cells(page, "What it is worth"), cells(page, "What came with it")
    assert worth["sft"] == ["", "", "0.480 [0.460, 0.500]", "−1.300 [−1.400, −1.200]", "0"]
    assert worth["m3"][1:3] == ["16", "0.610 [0.590, 0.630]"] and worth["m3"][4] == (
        "4.00 [3.80, 4.20]"
    )
    assert cost["m3"] == ["80.5 [79.5, 81.5]", "–", "0.5000 [0.4990, 0.5010]", "–", "70 s", "1 k"]
    equal = cells(page, "gold at equal KL")
    assert (equal["m0"], equal["m8"]) == (["0.540 [0.520, 0.560]"], ["–"])
    said = text_of(page)
    assert "dpo gains most. The others do not differ. 768 prompts for each." in said
    assert "after the correction for so many comparisons (Holm): 1 of 1." in said
    assert cells(page, "Win rates")["m0 against m8"] == [
        "0.400 [0.350, 0.450]", "&lt; 0.001", "0.030", "yes"
    ]  # fmt: skip
    assert "gold 0.250 learned −0.500 77 tokens" in said and "dpo.beta [0.1]" in said
    assert "<script" not in page and len(page.encode()) < MOST_BYTES
    assert "failed: rloo, seed 1 loss not finite <script>" in said
    chart = chart_of(page, "Reward against KL")
    assert "a panel each" in chart and "upright: gold" in chart, "nine are too many for one chart"
    assert all(f">{name}</text>" in chart for name in methods)
    assert "m3 beta 0.1, step 16: 0.610 [0.590, 0.630] at 4.00 [3.80, 4.20]" in chart


def test_a_comparison_shows_length_and_where_its_values_came_from(tmp_path: Path) -> None:
    folder = write_comparison(
        tmp_path / "two", ["dpo", "ppo"],
        recipe={"seeds": [0, 1], "samples": 2, "methods": {"dpo": {"beta": "0.1"}}},
        recipe_from={"methods.dpo.beta": "recipes/x.yaml:7", "seeds": "command line"},
    )  # fmt: skip
    record = json.loads((folder / "comparison.json").read_text())
    more = {**record["points"][0], "step": 4, "length": measured(99.0, 1), "gold": measured(0.4, 0)}
    lines = record["frontier"]
    record["curves"] = [{**line, "points": [*line["points"], more]} for line in lines]
    (folder / "comparison.json").write_text(json.dumps(record))
    example = {"segments": [{"name": "prompt", "ids": [7], "tokens": [" egg"], "trained": [0]}]}
    write_report(dpo_run(folder / "runs" / "dpo", about={"example": example}))
    page = write_report(folder).read_text()
    chart = chart_of(page, "Reward against length")
    assert ">length, tokens</text>" in chart and ">gold</text>" in chart
    told = re.findall(r"<title>((?:dpo|ppo) .*?): ", chart)
    assert told == [
        f"{name} beta 0.1, step {step}" for name in ("dpo", "ppo") for step in (4, 8, 16)
    ]
    rows = cells(page, "What was chosen")
    assert rows == {"key": ["value", "from"], "seeds": ["[0, 1]", "command line"],
                    "methods.dpo.beta": ["0.1", "recipes/x.yaml:7"]}  # fmt: skip
    said = text_of(page)
    assert "samples 2 default" in said and "dpo, seed 0 runs/dpo/report.html" in said
    assert "ppo, seed 0 runs/ppo" not in said, "it is not there"
    assert 'id="runs"' in page and "␣egg" in page


def test_a_comparison_of_everything_stays_small(tmp_path: Path) -> None:
    methods = [f"method {i}" for i in range(30)]
    folder = write_comparison(tmp_path / "large", methods)
    record = json.loads((folder / "comparison.json").read_text())
    record["points"] *= 40
    record["curves"] = [{**line, "points": line["points"] * 30} for line in record["frontier"]]
    record["pairs"] = [{**record["pairs"][0], "a": a, "b": b} for a in methods for b in methods]
    record["samples"][0]["answers"] = [
        {"method": name, "text": "x" * 5000, "gold": 0, "length": 7} for name in methods
    ]
    record["samples"] *= 40
    (folder / "comparison.json").write_text(json.dumps(record))
    page = write_report(folder).read_text()
    assert len(page.encode()) < MOST_BYTES and "4,300 characters more" in page
    assert "left out, to keep this page small" in page


def test_a_small_comparison_shows_what_it_has(tmp_path: Path) -> None:
    folder = write_comparison(tmp_path / "few", ["dpo"], proxy=None, pairs=[], samples=[],
                              chosen=[], recipe={}, failed=[], at_kl=[])  # fmt: skip
    page = write_report(folder).read_text()
    for name in ("pairs", "samples", "best", "recipe", "ladder", "warnings"):
        assert f'id="{name}"' not in page
    assert 'id="frontier"' in page and "Reward against its proxy" not in page


def test_a_broken_comparison_is_named(tmp_path: Path) -> None:
    folder = write_comparison(tmp_path / "none", ["dpo"], budget={"unit": "prompts"})
    with pytest.raises(UsageError, match=r"comparison\.json: budget\.amount: field required"):
        write_report(folder)
