"""report.html: its numbers are the files', its text is text, and it needs nothing but itself."""

from __future__ import annotations

import html
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trimtab.catalogue.metrics import METRICS
from trimtab.cli import main
from trimtab.config.resolve import recipe_from_kwargs
from trimtab.config.resolved import recipe_lines, to_yaml
from trimtab.errors import UsageError
from trimtab.report.charts import Point
from trimtab.report.curves import MOST_POINTS, thinned
from trimtab.report.page import MOST_BYTES, write_report
from trimtab.report.run import load_run

EVIL = '<script>alert("x")</script>&<img src=x onerror=alert(1)>'
SOURCE = Path(__file__).resolve().parents[2] / "src"


def write_run(folder: Path, verb: str, records: list[dict[str, Any]], **more: Any) -> Path:
    """A run's folder by hand: the recipe of ``verb``, a log, and JSON files by their stem."""
    folder.mkdir(parents=True)
    keys = {"dataset_name": "pairs.jsonl", "output_dir": str(folder), **more.pop("keys", {})}
    if verb != "pretrain":
        keys["model_name_or_path"] = keys.get("model_name_or_path", "runs/base")
    record = {
        "state": "finished",
        "recipe": to_yaml(recipe_from_kwargs(verb, **keys)),
        "starts": [{"time": 1e9, "command": f"trimtab {verb} {EVIL}", "decision": "fresh"}],
        "environment": {"python": "3.11", "packages": {"torch": "2"}, "cpu": EVIL, "cpu_count": 2},
        "time": 1e9 + 4000,
        **more.pop("record", {}),
    }
    (folder / "run.json").write_text(json.dumps(record))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records))
    for name, content in more.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def test_time_is_that_of_all_starts(tmp_path: Path) -> None:
    starts = [{"time": 1e9, "ended": 1e9 + 60.0}, {"time": 2e9}]
    known = write_run(tmp_path / "a", "dpo", [], record={"starts": starts, "time": 2e9 + 5.0})
    assert load_run(known).seconds == 65.0
    killed = write_run(tmp_path / "b", "dpo", [], record={"starts": [{"time": 1e9}, *starts]})
    assert load_run(killed).seconds is None


def dpo_log() -> list[dict[str, Any]]:
    held = {"eval_rewards/accuracies": 0.9167, "eval_rewards/accuracies_ci95": [0.8045, 0.9671]}
    steps = [
        {"step": s, "loss": 0.7 - s / 100, "rewards/margins": s / 10, "grad_norm": 1.0}
        for s in range(1, 11)
    ]
    return [{"step": 0, "eval_loss": 0.6931}, *steps, {"step": 10, **held, "eval_pairs": 48}]


def dpo_run(folder: Path, **more: Any) -> Path:
    results = {"steps": 10, "num_tokens": 190130, **more.pop("all_results", {})}
    return write_run(folder, "dpo", dpo_log(), all_results=results, **more)


def text_of(page: str) -> str:
    """What a reader sees, white space aside."""
    body = re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", body)).split())


def test_a_run_in_numbers_and_words(tmp_path: Path) -> None:
    page = write_report(dpo_run(tmp_path / "mine", keys={"loss": {"beta": 0.25}})).read_text()
    said = text_of(page)
    assert "higher in 0.917 [0.804, 0.967] of 48 held-out pairs; a coin is right in 0.5." in said
    assert "loss.beta 0.25 argument" in said and "learning_rate 1.0e-06 default" in said
    assert "67 min" in said and "190 k" in said and "trimtab dpo" in said
    assert "No diagnosis fired" in said
    assert 'id="samples"' not in page and 'id="rollouts"' not in page and 'id="tokens"' not in page
    assert page.count("<h1>") == 1 and page.count("<style>") == 2
    assert len(page) < MOST_BYTES
    for chart in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
        assert ">optimizer steps</text>" in chart and "aria-label" in chart


def test_nothing_is_fetched_and_nothing_runs(tmp_path: Path) -> None:
    run = dpo_run(
        tmp_path / "run",
        diagnoses={"diagnoses": [{"diagnosis": "stuck", "about": "", "step": 3, "says": EVIL}],
                   "at_end": ["stuck"]},
        about={"example": {"origin": EVIL, "segments": [
            {"name": "prompt", "ids": [1], "tokens": [EVIL], "trained": [0]}]}},
    )  # fmt: skip
    (run / "completions").mkdir()
    for step in (0, 10):
        rows = {"step": [step], "prompt": [EVIL], "completion": [f"{step} {EVIL}"]}
        pq.write_table(pa.table(rows), run / "completions" / f"completions_{step:05d}.parquet")
    page = write_report(run).read_text()
    assert "<script" not in page and "<img" not in page and "onerror=alert(1)>" not in page
    assert text_of(page).count('<script>alert("x")</script>&<img src=x onerror=alert(1)>') >= 6
    addresses = re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?([^"')\s>]+)""", page)
    assert all(one.startswith("#") or one == "data:," for one in addresses if one != "x")
    assert "http://www.w3.org/2000/svg" in page
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", page)
    assert "1 warning is still so at the end: stuck." in text_of(page)


def test_bands_are_those_that_the_words_name() -> None:
    for metric in METRICS:
        for end in metric.band or ():
            if end:
                assert f"{end:g}" in metric.healthy, metric.name


def test_thinning_keeps_the_ends_and_the_peaks() -> None:
    points = [Point(i, 100.0 if i == 4321 else i % 7) for i in range(10_000)]
    kept = thinned(points)
    assert len(kept) <= MOST_POINTS and points[4321] in kept
    assert (kept[0], kept[-1]) == (points[0], points[-1])
    assert [p.x for p in kept] == sorted(p.x for p in kept)
    assert thinned(points[:100]) == points[:100]


def test_a_long_run_is_a_small_page(tmp_path: Path) -> None:
    log = [{"step": s, "loss": s % 13, "grad_norm": s % 7, "rewards/margins": s % 5,
            "rewards/chosen": s % 3, "logps/chosen": -s} for s in range(20_000)]  # fmt: skip
    assert write_report(write_run(tmp_path / "long", "dpo", log)).stat().st_size < 150_000


def test_recipe_lines_are_the_recipe() -> None:
    resolved = recipe_from_kwargs(
        "grpo",
        model_name_or_path='a: "b"  # c',
        dataset_name="d.jsonl",
        reward_funcs=["a.py:f", "b  # x.py:g"],
        reward_weights=[1.0, 0.0],
        columns={"prompt": "a  # b"},
        output_dir="runs/x",
    )
    lines = {line.key: line for line in recipe_lines(to_yaml(resolved))}
    assert lines["model_name_or_path"].value == '"a: \\"b\\"  # c"'
    assert lines["model_name_or_path"].origin == "argument"
    assert lines["reward_funcs"].value == '"a.py:f", "b  # x.py:g"'
    assert lines["columns.prompt"].value == '"a  # b"'
    assert lines["learning_rate"].origin == "default" and lines["learning_rate"].title


def card() -> dict[str, Any]:
    """The numbers of a report card that the page draws."""
    share = {"value": 0.61, "low": 0.561, "high": 0.657, "n": 500}
    curve = [{**share, "predicted": 0.2}, {**share, "predicted": 0.8}]
    scoring = {
        "accuracy": {"overall": share, "by_source": [], "by_k": []},
        "calibration": {"curve": curve, "slope": {**share, "value": 0.45}},
        "length": {"longer_wins": share, "shorter": share, "longer": share},
        "best_of_n": None,
    }
    return {"verdict": ["It is better than chance.", EVIL], "scorings": {"reward": scoring},
            "dataset": "held.jsonl", "model": {"name": "runs/reward"}}  # fmt: skip


def test_a_report_card_is_a_page_and_a_part_of_its_run(tmp_path: Path) -> None:
    folder = tmp_path / "card"
    folder.mkdir()
    (folder / "report_card.json").write_text(json.dumps(card()))
    run = dpo_run(tmp_path / "run")
    (run / "card").mkdir()
    (run / "card" / "report_card.json").write_text(json.dumps(card()))
    for place in (folder, run):
        page = write_report(place).read_text()
        said = text_of(page)
        assert "It is better than chance. <script>" in said and "<script" not in page
        assert "The best factor of its scores is 0.45 [0.56, 0.66]" in said
        assert "predicted 0.200, observed 0.610, n = 500" in page
    broken = card()
    del broken["scorings"]["reward"]["calibration"]["slope"]
    (folder / "report_card.json").write_text(json.dumps(broken))
    with pytest.raises(UsageError, match=r"report_card\.json: is not a .* \(KeyError: 'slope'\)"):
        write_report(folder)


def test_text_that_html_cannot_hold(tmp_path: Path) -> None:
    run = dpo_run(tmp_path / "run", all_results={"stopped": "a\ud800b\x00c\x1bd"})
    assert "a\ufffdb\ufffdc\ufffdd" in write_report(run).read_text()


# ---------------------------------------------------------------------- what is not as it should be


def test_a_run_that_was_killed_says_so(tmp_path: Path) -> None:
    run = dpo_run(tmp_path / "killed", record={"state": "running"})
    (run / "all_results.json").unlink()
    with (run / "metrics.jsonl").open("a") as log:
        log.write('{"step": 11, "lo')
    said = text_of(write_report(run).read_text())
    assert "This run is going on, or was killed after step 10." in said


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("metrics.jsonl", '{"step": 1}\n{"st\n', r"metrics\.jsonl:2: is not JSON"),
        ("diagnoses.json", "[1]", r"diagnoses\.json: holds list"),
        ("run.json", "{", r"run\.json:1: is not JSON"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, name: str, content: str, says: str) -> None:
    run = dpo_run(tmp_path / "broken")
    (run / name).write_text(content)
    with pytest.raises(UsageError, match=says):
        write_report(run)
    assert not (run / "report.html").exists()


def test_the_verb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, page = dpo_run(tmp_path / "run"), tmp_path / "page.html"
    assert main(["report", str(run), "--output", str(page)]) == 0
    assert capsys.readouterr().out == f"{page}\n" and page.is_file()
    assert main(["report", str(tmp_path / "nothing")]) == 2
    (tmp_path / "empty").mkdir()
    assert main(["report", str(tmp_path / "empty")]) == 2
    said = capsys.readouterr().err
    assert "is no folder" in said and "holds no run, demo or comparison" in said


def test_it_imports_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom trimtab.report.page import write_report\nwrite_report(sys.argv[1])\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run(
        [sys.executable, "-c", code, str(dpo_run(tmp_path / "run"))],
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
        timeout=120,
        check=True,
    )
