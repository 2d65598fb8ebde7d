"""``trimtab sample``: what is written for which rows, kills, and one line for what is wrong."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from tests import tiny_runs

from trimtab.cli import main
from trimtab.config.data_keys import DatasetSpec
from trimtab.data.chat import ChatRenderer
from trimtab.data.rows import RankedExample
from trimtab.data.sources import load_examples
from trimtab.errors import UsageError
from trimtab.models.load import load_model, load_tokenizer
from trimtab.models.tokenizers import CHAT_TEMPLATE
from trimtab.rollout import Sampler, SamplingParams
from trimtab.rollout import sample_file as module
from trimtab.rollout.sample_file import SampleOptions, sample_file
from trimtab.rollout.sample_journal import SampleJournal, journal_of
from trimtab.training import files

Row = dict[str, Any]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    tiny_runs.save_tiny_model(root / "plain")
    tiny_runs.save_tiny_model(root / "chat", chat_template=CHAT_TEMPLATE)
    return root


@pytest.fixture
def here(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with both models and a file of prompts; chunks are of two rows."""
    for name in ("plain", "chat"):
        (tmp_path / name).symlink_to(models / name)
    prompts = [{"prompt": row["prompt"], "id": i} for i, row in enumerate(tiny_runs.answers(7))]
    tiny_runs.write_rows(tmp_path / "prompts.jsonl", prompts)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(module, "CHUNK", 6)
    return tmp_path


def run(model: str = "plain", file: str = "prompts.jsonl", **more: Any) -> list[Row]:
    """Sample quietly into out.jsonl, and read it."""
    settings: Row = {"num_generations": 3, "max_completion_length": 8, "precision": "fp32"}
    settings |= {"output": "out.jsonl", **more}
    options = SampleOptions(model_name_or_path=model, dataset_name=file, **settings)
    assert sample_file(options, mode="quiet") == 0
    return read(settings["output"])


def read(path: str) -> list[Row]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def test_rows_are_the_samplers_rollouts(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = run(seed=5, temperature=0.8)
    tokenizer = load_tokenizer("plain")
    renderer, model = ChatRenderer(tokenizer), load_model("plain")
    prompts = [row["prompt"] for row in read("prompts.jsonl")]
    expected = Sampler(model, stop_ids=renderer.stop_ids).sample(
        [renderer.prompt_ids(prompt) for prompt in prompts], 3, SamplingParams(8, 0.8), seed=5
    )
    for number, (row, prompt, own) in enumerate(zip(rows, prompts, expected, strict=True)):
        assert list(row) == ["prompt", "responses", "ended", "id"]
        assert (row["prompt"], row["id"]) == (prompt, number)
        assert row["ended"] == [one.ended for one in own]
        texts = [tokenizer.decode(one.ids, skip_special_tokens=True) for one in own]
        assert row["responses"] == texts
    printed = capsys.readouterr().out
    assert printed.startswith("7 rows, 21 responses\nended ")
    assert "written     out.jsonl" in printed and not list(here.glob(".*"))


MESSAGES = [{"role": "user", "content": "a cat sees"}]
REPLY = [{"role": "assistant", "content": "the dog."}]
KINDS: dict[str, tuple[Row, Any]] = {
    "prompt": ({"prompt": MESSAGES, "solution": 4}, MESSAGES),
    "completion": ({"prompt": "a cat", "completion": " eats.", "solution": 4}, "a cat"),
    "mixed": (
        {"prompt": "a cat", "completion": REPLY, "solution": 4},
        [{"role": "user", "content": "a cat"}],
    ),
    "preference": (
        {
            "prompt": MESSAGES,
            "chosen": REPLY,
            "rejected": [{**REPLY[0], "content": "x"}],
        },
        MESSAGES,
    ),
    "implicit": ({"chosen": "a cat eats a bird.", "rejected": "a cat sees a dog."}, "a cat"),
    "ranked": (
        {"prompt": "a cat", "responses": [" eats.", " sees."], "ranks": [1, 2], "ended": [True]},
        "a cat",
    ),
    "chat": ({"messages": [*MESSAGES, *REPLY, *MESSAGES, *REPLY]}, [*MESSAGES, *REPLY, *MESSAGES]),
    "weighted": ({"prompt": MESSAGES, "weight": 2.0, "tools": [{"name": "f"}]}, MESSAGES),
}


@pytest.mark.parametrize("kind", KINDS)
def test_prompts_of_every_kind(kind: str, here: Path) -> None:
    row, prompt = KINDS[kind]
    tiny_runs.write_rows(here / "rows.jsonl", [row])
    (found,) = run("chat", "rows.jsonl")
    assert found["prompt"] == prompt and len(found["responses"]) == len(found["ended"]) == 3
    text = isinstance(prompt, str)
    for response in found["responses"]:
        assert isinstance(response, str) if text else response[0].keys() == {"role", "content"}
    for name in ("solution", "weight", "tools"):
        assert found.get(name) == row.get(name)
    assert not {"completion", "chosen", "ranks", "messages"} & found.keys()


def test_what_is_written_can_be_scored_and_ranked(here: Path) -> None:
    rows = run("chat", num_generations=2)
    spec = DatasetSpec(path="out.jsonl")
    (prompts,) = load_examples([spec], {"prompt"}).examples
    assert [example.extras["id"] for example in prompts] == list(range(7))
    scored = [
        {**row, "scores": [0.5, 1.5]} for row in rows if all(map(str.strip, row["responses"]))
    ]
    tiny_runs.write_rows(here / "out.jsonl", scored)
    (ranked,) = load_examples([spec], {"ranked"}, max_bad_rows=7).examples
    assert ranked and all(isinstance(example, RankedExample) for example in ranked)
    assert main(["data", "inspect", "out.jsonl", "--model", "chat"]) == 0


def killed(at: int) -> int:
    """Sample in a process that dies at its operation number ``at``; the process's exit code."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    count = 0

    def hook(operation: str, path: Path, size: int) -> int | None:
        nonlocal count
        count += 1
        if count > at or (count == at and operation != "write"):
            os._exit(9)
        return size // 2 if count == at else None  # a write of which half gets through

    code = 1
    try:
        with files.hooked(hook):
            run(max_rows=3)
        code = 0
    finally:
        os._exit(code)


@pytest.mark.usefixtures("cpu_only")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_killed_run_goes_on_and_ends_with_the_same_file(here: Path) -> None:
    """Killed at every write, fsync and rename in turn, until there is none left."""
    run(output="whole.jsonl", max_rows=3)
    whole, out = (here / "whole.jsonl").read_bytes(), here / "out.jsonl"
    at = 1
    while code := killed(at):
        assert code == 9
        assert not out.exists() or out.read_bytes() == whole
        run(max_rows=3, restart=out.exists())
        assert out.read_bytes() == whole and not list(here.glob(".*"))
        out.unlink()
        at += 1
    assert at > 10 and out.read_bytes() == whole


def test_only_what_is_missing_is_sampled(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[int]] = []
    sample = Sampler.sample

    def counted(self: Any, prompts: Any, *args: Any, numbers: Any, **more: Any) -> Any:
        asked.append(list(numbers))
        if len(asked) == 3:
            raise KeyboardInterrupt
        return sample(self, prompts, *args, numbers=numbers, **more)

    monkeypatch.setattr(Sampler, "sample", counted)
    argv = ["sample", "--model", "plain", "--dataset", "prompts.jsonl", "--output", "out.jsonl"]
    argv += ["--num-generations", "3", "--max-completion-length", "8", "--precision", "fp32"]
    assert main(argv) == 130 and not (here / "out.jsonl").exists()
    # Rows 4 and 5 were being sampled; other settings are refused, the same go on with them.
    with pytest.raises(
        UsageError, match=r"unfinished run has 4 rows of it with temperature 1\.0, "
    ):
        run(temperature=0.5)
    assert journal_of(here / "out.jsonl").exists()
    assert main(argv) == 0
    assert asked == [[0, 1], [2, 3], [4, 5], [4, 5], [6]]
    assert run(output="again.jsonl", restart=True) == read("out.jsonl")


def test_a_finished_file_is_replaced_only_when_told_to(here: Path) -> None:
    first = run()
    with pytest.raises(UsageError, match=r"output=out\.jsonl: exists already; .* --restart"):
        run(seed=1)
    assert run(seed=1, restart=True) != first
    Path("out.jsonl").unlink()
    journal = SampleJournal(here / "out.jsonl", {}, 2, restart=False)
    with pytest.raises(UsageError, match=r"output=out\.jsonl: another process is writing it"):
        run()
    journal.close()
    assert run() == first


def test_what_cannot_be_answered_is_left_out_and_counted(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_runs.save_tiny_model(
        here / "short",
        chat_template=CHAT_TEMPLATE + "{% if messages[0]"
        "['content'] == 'no' %}{{ raise_exception('never') }}{% endif %}",
    )
    config = json.loads((here / "short" / "config.json").read_text())
    (here / "short" / "config.json").write_text(
        json.dumps({**config, "max_position_embeddings": 30})
    )
    talk = [{"prompt": [{"role": "user", "content": text}]} for text in ("hi", "no", "a cat " * 40)]
    tiny_runs.write_rows(here / "talk.jsonl", [*talk, {"prompt": []}])
    rows = run("short", "talk.jsonl", max_bad_rows=1, max_completion_length=40)
    assert [row["prompt"] for row in rows] == [talk[0]["prompt"]]
    assert not any(rows[0]["ended"])  # the context ends before 40 tokens
    printed = capsys.readouterr().out
    assert re.search(r"bad rows +1: prompt: empty 1; see _out.quarantine.jsonl", printed)
    assert re.search(r"left out +1 rows: the chat template refuses .*talk.jsonl:2\)", printed)
    assert re.search(
        r"left out +1 rows: the prompt fills .* of 30 tokens .*talk.jsonl:3\)", printed
    )


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"--dataset": "none.jsonl"}, "none.jsonl: no such file"),
        ({"--model": "none"}, "model_name_or_path='none': no such folder"),
        ({"--output": "out.csv"}, "output=out.csv: rows are written as .jsonl"),
        ({"--output": "prompts.jsonl"}, "output=prompts.jsonl: that is the file with the prompts"),
        ({"--num-generations": "0"}, "num_generations=0: must be at least 1"),
        ({"--temperature": "-1"}, "temperature=-1: must be"),
        ({"--top-p": "2"}, "top_p=2: must be"),
        ({"--max-completion-length": "0"}, "max_completion_length=0: must be at least 1"),
        ({"--batch-slots": "0"}, "batch_slots=0: must be at least 1"),
        ({"--dataset": "texts.jsonl"}, "texts.jsonl:1: "),
        ({"--dataset": "talk.jsonl"}, "tokenizer .*: it has no chat template"),
        ({"--temprature": "1"}, "Unknown option: .*temprature"),
    ],
)
def test_mistakes_are_one_line(
    changes: dict[str, str], expected: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_runs.write_rows(here / "texts.jsonl", tiny_runs.texts(3))
    tiny_runs.write_rows(here / "talk.jsonl", [{"prompt": MESSAGES}])
    options = {"--model": "plain", "--dataset": "prompts.jsonl", "--output": "out.jsonl", **changes}
    assert main(["sample", *(word for pair in options.items() for word in pair)]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert re.match(f"trimtab: {expected}", line), line
    assert "Traceback" not in line and not (here / "out.jsonl").exists()


def test_progress_and_first_samples_are_shown(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CI", "1")
    options = SampleOptions(
        model_name_or_path="plain",
        dataset_name="prompts.jsonl",
        output="out.jsonl",
        max_completion_length=4,
        num_generations=3,
        precision="fp32",
    )
    assert sample_file(options) == 0
    told = capsys.readouterr().err
    assert "sampling: llama (its steps agree with the model's own)" in told
    assert re.search(r"prompts.jsonl:1: '.+' -> '", told) and "prompts.jsonl:2: '" in told
