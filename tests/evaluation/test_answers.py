"""``trimtab evaluate`` on answers: sampled, read, scored, judged; killed and gone on with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests import tiny_runs
from tests.evaluation.fake_judge import Body, Reply, Server, answers, serving
from tests.evaluation.test_evaluate import evaluated, save_reward_model

from trimtab.cli import main
from trimtab.evaluation import evaluate_answers as evaluating
from trimtab.evaluation.rewardbench import SECTIONS

Row = dict[str, Any]
SHORT = ("--max-completion-length", "6")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("answers")
    base = tiny_runs.save_tiny_model(root / "lm")
    tiny_runs.save_tiny_model(root / "other", seed=1)
    save_reward_model(root / "reward", base, seed=0)
    prompts = [{"prompt": row["prompt"]} for row in tiny_runs.answers(12)]
    tiny_runs.write_rows(root / "prompts.jsonl", prompts)
    ours = [
        {"dataset": "helpful_base", "instruction": f"Ask {i}?", "output": "word " * (i + 1),
         "generator": "ours"}
        for i in range(8)
    ]  # fmt: skip
    theirs = [row | {"output": "word " * (8 - i), "generator": "theirs"}
              for i, row in enumerate(ours)]  # fmt: skip
    (root / "ours.json").write_text(json.dumps(ours))
    (root / "theirs.json").write_text(json.dumps(theirs[::-1]))
    return root


def rows_of(name: str) -> list[Row]:
    return [json.loads(line) for line in Path(name).read_text().splitlines()]


def refused(capsys: pytest.CaptureFixture[str], *tokens: str) -> str:
    assert main(["evaluate", *tokens, "--output-dir", "out"]) == 2
    return capsys.readouterr().err


def every_number(found: Any, where: str = "") -> list[str]:
    """Places in a card where a value stands without its interval or its count."""
    if isinstance(found, dict):
        if "value" in found:
            return [] if {"low", "high", "n"} <= found.keys() and found["n"] else [where]
        return [p for k, v in found.items() for p in every_number(v, f"{where}.{k}")]
    return []


def test_sampled_answers_against_a_baseline(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokens = ("lm", "--dataset-name", "prompts.jsonl", "--baseline", "other", *SHORT,
              "--num-generations", "2", "--reward-model", "reward", "--reward-funcs",
              "length(target=3)", "--seed", "5")  # fmt: skip
    card = evaluated(*tokens)
    shown = capsys.readouterr().out
    lines = rows_of("out/scores.jsonl")
    assert len(lines) == 24 and card["seed"] == 5 and card["answers"]["answers"] == 24
    for name in ("reward", "length"):
        values = [line["rewards"][name] for line in lines if line["rewards"][name] is not None]
        found = card["answers"]["rewards"][name]
        assert found["value"] == pytest.approx(sum(values) / len(values))
        assert (found["n"], found["prompts"]) == (len(values), 12)
    wins = [
        0.5 if line["rewards"]["length"] == line["baseline_rewards"]["length"]
        else float(line["rewards"]["length"] > line["baseline_rewards"]["length"])
        for line in lines
    ]  # fmt: skip
    found = card["baseline"]["win_rates"]["length"]
    assert found["win_rate"]["value"] == pytest.approx(sum(wins) / 24)
    assert found["ties"] == wins.count(0.5) and found["undecided"] == 0
    assert card["answers"]["tokens"]["value"] <= 6
    assert card["answers"]["ended"]["value"] == sum(line["ended"] for line in lines) / 24
    assert card["answers"]["diversity"]["self_bleu_references"] == "prompt"
    assert every_number(card) == []
    page = Path("out/report_card.md").read_text()
    assert f"{found['win_rate']['value']:.3f} [" in page and "seed 5" in page and "seed 5" in shown
    assert "win rate, ties as one half" in shown and "n = 24, 12 prompts" in shown
    assert not list(Path("out").glob(".*")), "nothing unfinished is left"
    before = {path.name: path.read_bytes() for path in Path("out").iterdir()}
    evaluated(*tokens)
    assert {path.name: path.read_bytes() for path in Path("out").iterdir()} == before


def test_a_killed_evaluation_goes_on(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Killed between the two sides, then in the rewards: what is there is not made again."""
    tokens = ("lm", "--dataset-name", "prompts.jsonl", "--baseline", "other", *SHORT,
              "--reward-model", "reward")  # fmt: skip
    sampled: list[str] = []
    real = evaluating.sample

    def dies(options: Any, progress: Any) -> Any:
        sampled.append(options.model_name_or_path)
        if options.model_name_or_path == "other" and len(sampled) == 2:
            raise KeyboardInterrupt
        return real(options, progress)

    monkeypatch.setattr(evaluating, "sample", dies)
    assert main(["evaluate", *tokens, "--output-dir", "out"]) == 130
    assert Path("out/answers.jsonl").exists() and not Path("out/report_card.json").exists()
    said = refused(capsys, *tokens, "--temperature", "0.5")
    assert "unfinished evaluation has temperature 1.0, not 0.5" in said and "--restart" in said
    evaluated(*tokens)
    assert sampled == ["lm", "other", "other"]
    whole = Path("out/report_card.json").read_bytes()
    assert evaluated(*tokens, "--restart") == json.loads(whole)
    assert Path("out/report_card.json").read_bytes() == whole, "as one that was never killed"


def judge(number: int, body: Body) -> str:
    one, other = answers(body)
    return "[[A]]" if len(one) > len(other) else "[[B]]" if len(other) > len(one) else "[[C]]"


def judged(server: Server, *tokens: str) -> Row:
    return evaluated("ours.json", "--baseline", "theirs.json", "--judge-url", server.url,
                     "--judge-model", "gpt", "--judge-retries", "0", *tokens)  # fmt: skip


def test_files_of_outputs_are_judged(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """AlpacaEval's files in other orders; of eight pairs, ours is the longer one of four."""
    monkeypatch.setenv("JUDGE_KEY", "secret")
    with serving(judge) as server:
        card = judged(server, "--judge-key-env", "JUDGE_KEY")
        assert len(server.asked) == 16
        assert server.headers[0]["Authorization"] == "Bearer secret"
        assert judged(server) == card
        assert len(server.asked) == 16, "verdicts are kept"
    found = card["baseline"]["win_rates"]["judge"]
    assert (found["wins"], found["ties"], found["losses"]) == (4, 0, 4)
    assert found["win_rate"]["value"] == 0.5 and found["orders_agree"]["value"] == 1.0
    assert found["first_place_wins"]["value"] == 0.5 and found["malformed"] == 0
    assert (card["model"]["name"], card["baseline"]["model"]["name"]) == ("ours", "theirs")
    assert card["sampling"] is None and card["answers"]["tokens"] is None
    assert every_number(card) == []
    assert "secret" not in "".join(p.read_text() for p in Path("out").iterdir())


def test_a_judge_that_fails_is_gone_on_with(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = [True]

    def sometimes(number: int, body: Body) -> Reply | str:
        if broken[0] and number >= 6:
            return Reply(status=500, raw=b"down")
        if "Ask 3?" in body["messages"][1]["content"]:
            return "I cannot say."
        return judge(number, body)

    with serving(sometimes) as server:
        with pytest.raises(AssertionError):
            judged(server, "--judge-parallel", "1")
        assert "500 Internal Server Error: down" in capsys.readouterr().err
        assert len(rows_of("out/verdicts.jsonl")) == 6
        broken[0] = False
        card = judged(server)
        assert len(server.asked) == 16 + 1
    found = card["baseline"]["win_rates"]["judge"]
    assert (found["malformed"], found["undecided"], found["replies"]) == (2, 1, 16)
    assert found["win_rate"]["n"] == 7
    assert "2 of the judge's 16 replies had no verdict; 1 comparisons" in " ".join(card["verdict"])


def test_alpaca_eval_is_written_as_it_is_read(here: Path) -> None:
    card = evaluated("lm", "--dataset-name", "prompts.jsonl", *SHORT, "--write-outputs",
                     "alpaca_eval:written.json", "--reward-funcs", "length(target=3)")  # fmt: skip
    written = json.loads(Path("written.json").read_text())
    assert [set(row) for row in written] == [{"instruction", "output", "generator"}] * 12
    assert written[0]["instruction"] == rows_of("prompts.jsonl")[0]["prompt"]
    assert written[0]["output"] == rows_of("out/scores.jsonl")[0]["answer"]
    assert {row["generator"] for row in written} == {"lm"}
    # Read back they are judged alike; its converter makes chats of them, and lengths are words.
    again = evaluated("written.json", "--reward-funcs", "length(target=3)")
    assert again["answers"]["characters"] == card["answers"]["characters"]
    evaluated("ours.json", "--write-outputs", "alpaca_eval:copy.json")
    assert json.loads(Path("copy.json").read_text()) == json.loads(Path("ours.json").read_text())


def test_rewardbench_rows_have_sections(here: Path) -> None:
    names = [name for sizes in SECTIONS.values() for name in sizes]
    assert len(names) == 23 and sum(sum(s.values()) for s in SECTIONS.values()) == 2985 + 984 - 447
    rows = [
        {**row, "subset": names[i % 23], "id": 1000 + i, "chosen_model": "m"}
        for i, row in enumerate(tiny_runs.pairs(69))
    ]
    tiny_runs.write_rows(Path("bench.jsonl"), rows)
    card = evaluated("reward", "--dataset-name", "bench.jsonl", "--write-outputs",
                     "rewardbench:scores.json")  # fmt: skip
    found = card["scorings"]["reward"]["rewardbench"]
    written = json.loads(Path("scores.json").read_text())
    right: dict[str, list[int]] = {}
    for row in written:
        assert row["results"] == int(row["scores_chosen"] > row["scores_rejected"])
        right.setdefault(row["subset"], []).append(row["results"])
    assert [row["id"] for row in written] == [1000 + i for i in range(69)]
    assert written[0]["chosen_model"] == "m" and written[0]["prompt"] == rows[0]["prompt"]
    sections = {}
    for section, sizes in SECTIONS.items():
        total = sum(size * sum(right[n]) / len(right[n]) for n, size in sizes.items())
        sections[section] = total / sum(sizes.values())
    for one in found["sections"]:
        assert one["value"] == pytest.approx(sections[one["name"]]) and one["missing"] == []
        assert one["low"] < one["value"] < one["high"]
    assert found["score"]["value"] == pytest.approx(sum(sections.values()) / 4)
    assert every_number(card) == []
    assert "section Chat Hard" in Path("out/report_card.md").read_text()
    part = [row for row in rows if row["subset"] in ("hep-cpp", "math-prm", "my-own")]
    tiny_runs.write_rows(Path("part.jsonl"), part)
    found = evaluated("reward", "--dataset-name", "part.jsonl")["scorings"]["reward"]["rewardbench"]
    assert found["score"] is None and "hep-go" in found["sections"][0]["missing"]


def test_errors_are_one_line(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = ("--dataset-name", "prompts.jsonl")
    for tokens, said in [
        (("lm",), "dataset_name: missing"),
        (("lm", *rows, "--judge-url", "http://x", "--judge-model", "m"), "name the other side's"),
        (("lm", *rows, "--judge-model", "m"), "judge_model: nobody is asked"),
        (("lm", *rows, "--judge-url", "http://x", "--baseline", "other"), "judge_model: missing"),
        (("lm", *rows, "--baseline", "other", "--judge-url", "http://x", "--judge-model", "m",
          "--judge-key-env", "NO_SUCH_KEY"), "NO_SUCH_KEY: no such environment variable"),
        (("lm", *rows, "--baseline", "other", "--judge-url", "http://x", "--judge-model", "m",
          "--judge-options", "[1]"), "wanted a JSON object"),
        (("reward", *rows, "--reward-model", "reward"), "a reward model, which gives no answers"),
        (("lm", *rows, "--baseline", "reward", *SHORT), "a reward model gives no answers"),
        (("lm", *rows, "--temperature", "-1"), "temperature=-1"),
        (("lm", *rows, "--num-generations", "0"), "num_generations=0"),
        (("lm", *rows, "--reward-funcs", "no_such"), "no_such"),
        (("lm", *rows, "--write-outputs", "alpaca:x.json"), "wanted FORMAT:FILE"),
        (("lm", *rows, "--write-outputs", "alpaca_eval:x.txt"), "written as .json or .jsonl"),
        (("ours.json", "--temperature", "1"), "has prompts and answers already"),
        (("ours.json", *rows), "has prompts and answers already"),
        (("lm", *rows, "--baseline", "ours.json", *SHORT), "none of its 8 prompts"),
        (("lm", "--lm-eval", "arc_easy", *rows), "--lm-eval brings its own data"),
        (("lm", "--lm-eval", "no.yaml"), "no such file"),
    ]:  # fmt: skip
        err = refused(capsys, *tokens, "--restart")
        assert said in err.splitlines()[-1], (tokens, err)
