"""What goes wrong for users: one plain line that names the place and the remedy, exit code 2."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests import tiny_runs

from trimtab.cli import main

Row = dict[str, Any]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("errors")
    backwards = (
        "{% for m in messages %}{{ m['content'] | reverse }}{% endfor %}{{ messages | length }}"
    )
    tiny_runs.save_tiny_model(root / "model")
    tiny_runs.save_tiny_model(root / "opaque", chat_template=backwards)
    tiny_runs.save_tiny_model(root / "unclosed", chat_template="{{ bos_token }}\n{% for m in }")
    for name, make in (
        ("pairs", tiny_runs.pairs),
        ("texts", tiny_runs.texts),
        ("answers", tiny_runs.answers),
        ("rankings", tiny_runs.rankings),
    ):
        tiny_runs.write_rows(root / f"{name}.jsonl", make(12))
    return root


COMMON = [
    "--output-dir",
    "out",
    "--cache-dir",
    "cache",
    "--precision",
    "fp32",
    "--quiet",
    "--max-steps",
    "1",
]
DPO = ["dpo", "--model", "model", *COMMON]
PAIRS = [*DPO, "--dataset", "pairs.jsonl"]
MINE = [*DPO, "--dataset", "mine.jsonl"]
PRETRAIN = ["pretrain", "--dataset", "texts.jsonl", "--new-model.hidden-size", "16", *COMMON]


def refuse(tokens: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> str:
    """Run the command line, and require one line, exit code 2 and a match from its start."""
    code = main(tokens)
    printed = capsys.readouterr()
    assert code == 2, printed.err
    assert printed.out == "" and "Traceback" not in printed.err
    assert printed.err.count("\n") == 1 and printed.err.endswith("\n"), printed.err
    assert re.match(f"trimtab: {expected}", printed.err), printed.err
    return printed.err


# ---------------------------------------------------------------------- recipe and command line

RECIPES = {
    "typo.yaml": "model_name_or_path: model\nlerning_rate: 1e-5\n",
    "type.yaml": "model_name_or_path: model\nmax_steps: many\n",
    "broken.yaml": "dataset_name: [pairs.jsonl\n",
    "group.yaml": "model_name_or_path: model\nmix: {dataset_name: t.jsonl, wieght: 1}\n",
}


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        (["dpo", "typo.yaml"], r"lerning_rate: unknown key \(typo\.yaml:2\)\. Did you mean learn"),
        (["dpo", "group.yaml"], r"mix\.wieght: unknown key \(group\.yaml:2\).*mix\.weight\?"),
        (["dpo", "type.yaml"], r"max_steps: 'many' is not a whole number \(type\.yaml:2\)"),
        (["dpo", "broken.yaml"], r"broken\.yaml:2: not valid YAML: "),
        (["dpo", "nowhere.yaml"], r"nowhere\.yaml: no such recipe file"),
        ([*PAIRS, "--bta", "0.1"], r"bta: unknown key \(command line\)\. Did you mean --beta\?"),
        ([*PAIRS, "--learning-rate", "fast"], r"learning_rate: 'fast' is not a number \(command"),
        ([*PAIRS, "--beta", "-1"], r"loss\.beta=-1\.0: must be a positive number"),
        ([*PAIRS, "--loss", "dppo"], r"loss: 'dppo' is no loss here; .* Did you mean dpo\?"),
        ([*PAIRS, "--lora-r", "4"], r"lora_r: 4: has no effect without use_peft=true"),
        ([*PAIRS, "--device", "cuda"], r"device=cuda: torch finds none here; use auto or cpu"),
        ([*PAIRS, "--report-to", "wandb"], r"report_to=\['wandb'\]: .* pip install 'trimtab\[wand"),
        ([*PAIRS, "--mix.weight", "1"], r"mix\.dataset_name: missing; name the text that mix adds"),
        ([*PAIRS, "--mix.dataset-name", "texts.jsonl"], r"mix\.weight: missing"),
        ([*PAIRS, "--resume", "no/checkpoint-3"], r"resume=no/checkpoint-3: there is no such fold"),
        ([*PAIRS, "--use-peft", "--lora-target-modules", "q_prj"],
         r"lora_target_modules: the model has no module 'q_prj'; did you mean 'q_proj'\?"),
        ([*PRETRAIN, "--new-tokenizer.vocab-size", "258"],
         r"new_tokenizer\.vocab_size=258: .* need at least 260"),
    ],
)  # fmt: skip
def test_recipe(
    here: Path, tokens: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    if "cuda" in tokens and torch.cuda.is_available():
        pytest.skip("there is a cuda device here")
    for name, text in RECIPES.items():
        (here / name).write_text(text)
    refuse(tokens, expected, capsys)


# ---------------------------------------------------------------------- models


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "no/such/model",
            r"model_name_or_path='no/such/model': no such folder; give a model folde",
        ),
        (
            "someone/model",
            r"model_name_or_path='someone/model': no such folder, and the hub",
        ),
        ("pairs.jsonl", r"model_name_or_path='pairs\.jsonl': this is a file; give the folder that"),
        ("empty", r"model_name_or_path='empty': not a model folder, it is empty; one with config"),
    ],
)
def test_model(here: Path, name: str, expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "empty").mkdir()
    refuse(["dpo", "--model", name, "--dataset", "pairs.jsonl", *COMMON], expected, capsys)


# ---------------------------------------------------------------------- rows


def changed(number: int, **columns: Any) -> Callable[[list[Row]], list[Row]]:
    """Row ``number`` (from 1) with other values; None takes a column out."""

    def change(rows: list[Row]) -> list[Row]:
        mixed = {**rows[number - 1], **columns}
        rows[number - 1] = {key: value for key, value in mixed.items() if value is not None}
        return rows

    return change


def everywhere(**columns: Callable[[Row], Any] | None) -> Callable[[list[Row]], list[Row]]:
    """Columns of all rows, from the row."""
    return lambda rows: [
        {
            **{key: value for key, value in row.items() if key not in columns},
            **{key: make(row) for key, make in columns.items() if make},
        }
        for row in rows
    ]


@pytest.mark.parametrize(
    ("change", "more", "expected"),
    [
        (changed(3, chosen=""), [], r"mine\.jsonl:3: chosen: empty; 1 of 12 rows is bad; "),
        (changed(3, chosen=" \n"), [], r"mine\.jsonl:3: chosen: empty; .* max_bad_rows"),
        (changed(5, rejected=None), [], r"mine\.jsonl:5: rejected: missing; 1 of 12 rows is bad"),
        (changed(5, rejected=7), [], r"mine\.jsonl:5: rejected: "),
        (everywhere(rejected=lambda row: row["chosen"]), [],
         r"mine\.jsonl:1: chosen equals rejected; 12 of 12 rows are bad .*out/quarantine\.train"),
        (everywhere(answer=lambda row: row["chosen"], chosen=None), [],
         r"mine\.jsonl:1: columns found: prompt, rejected, answer; .*--columns chosen=YOUR_COLUMN"),
        (everywhere(prompt=lambda row: "the cat " * 99), ["--max-length", "32"],
         r"mine\.jsonl:1: \d+ tokens, max_length 32: the prompt leaves no room for a response \(12 "
         r"of 12 rows\); no row is left to train on; raise max_length, or set max_prompt_length"),
        (everywhere(prompt=lambda row: "the cat " * 299), ["--max-length", "2000"],
         r"mine\.jsonl:\d+: \d+ tokens are more than the model's 512 positions; set max_leng"),
        (lambda rows: [], [], r"mine\.jsonl: empty: there are no rows in it"),
    ],
)  # fmt: skip
def test_rows(
    here: Path,
    change: Callable[[list[Row]], list[Row]],
    more: list[str],
    expected: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tiny_runs.write_rows(here / "mine.jsonl", change(tiny_runs.pairs(12)))
    refuse([*MINE, *more], expected, capsys)


def test_malformed_json_on_line_7(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [json.dumps(row) for row in tiny_runs.pairs(12)]
    lines[6] = '{"prompt": "the cat", "chosen": '
    (here / "mine.jsonl").write_text("\n".join(lines))
    expected = (
        r"mine\.jsonl:7: not valid JSON: .*1 of 12 rows is bad; .*quarantine\.training\.jsonl"
    )
    refuse(MINE, expected, capsys)
    (row,) = map(json.loads, (here / "out/quarantine.training.jsonl").read_text().splitlines())
    assert row["line"] == 7 and "the cat" in json.dumps(row)


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ([*DPO, "--dataset", "nowhere.jsonl"], r"nowhere\.jsonl: no such file or folder"),
        ([*PAIRS, "--eval-dataset", "nowhere.jsonl"], r"nowhere\.jsonl: no such file or folder"),
        ([*PAIRS, "--mix.dataset-name", "nowhere.jsonl", "--mix.weight", "1"],
         r"nowhere\.jsonl: no such file or folder"),
        ([*PAIRS, "--mix.dataset-name", "answers.jsonl", "--mix.weight", "1"],
         r"answers\.jsonl:1: .*this stage takes text or chat rows"),
        ([*DPO, "--dataset", "texts.jsonl"],
         r"texts\.jsonl:1: columns found: text; these are text rows, but this stage takes prefer"),
        ([*PAIRS, "--columns", "chosen=good"],
         r"pairs\.jsonl:1: no column 'good' \(--columns chosen=good\); columns found: prompt, cho"),
        ([*PAIRS, "--dataset-test-split", "test"], r"dataset_test_split=test: .*is a single file"),
        (["kto", *PAIRS[1:], "--per-device-train-batch-size", "1"],
         r"per_device_train_batch_size=1: kto estimates its KL .*; take at least 2 rows a step"),
        ([*PRETRAIN, "--new-tokenizer.vocab-size", "270", "--new-model.max-position-embeddings",
          "16"], r"texts\.jsonl:\d+: \d+ tokens are more than the model's 16 positions; set context"
         r"_length to at most 15"),
    ],
)  # fmt: skip
def test_sources(
    here: Path, tokens: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    refuse(tokens, expected, capsys)


def test_ties_where_a_loss_has_none(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = tiny_runs.rankings(6)
    rows[3]["ranks"] = [1, 1, 2]
    tiny_runs.write_rows(here / "mine.jsonl", rows)
    expected = r"mine\.jsonl:4: ranks: \[1\.0, 1\.0, 2\.0\] holds a tie, .* use --loss dpo"
    refuse([*MINE, "--loss", "plackett_luce"], expected, capsys)
    assert main(MINE) == 0, "as it says: dpo takes the ordered pairs"


# ---------------------------------------------------------------------- chat templates


def chats() -> list[Row]:
    return [
        {
            "messages": [
                {"role": "user", "content": row["prompt"].strip()},
                {"role": "assistant", "content": row["chosen"]},
            ]
        }
        for row in tiny_runs.pairs(6)
    ]


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("model", r"tokenizer model: it has no chat template, but the rows are conversations; put"),
        ("opaque", r"tokenizer opaque: the chat template's .* the trained tokens cannot be found: "
         r".*put a template with \{% generation %\} markers into chat_template\.jinja"),
        ("unclosed", r"tokenizer unclosed: line 2 of its chat template is no valid Jinja: .*; m"),
    ],
)  # fmt: skip
def test_chat_templates(
    here: Path, model: str, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_runs.write_rows(here / "mine.jsonl", chats())
    refuse(["sft", "--model", model, "--dataset", "mine.jsonl", *COMMON], expected, capsys)


# ---------------------------------------------------------------------- folders


def test_output_folders(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "file").write_text("")
    (here / "full").mkdir()
    (here / "full/thesis.tex").write_text("mine")
    for name, expected in (
        ("file", r"output_dir=file: is not a folder; give another --output-dir"),
        ("full", r"output_dir=full: is not empty and holds no run of trimtab's \(thesis\.tex\)"),
    ):
        refuse([*PAIRS[:3], *PAIRS[5:], "--output-dir", name], expected, capsys)
    assert (here / "full/thesis.tex").read_text() == "mine"

    assert main(PAIRS) == 0
    expected = r"output_dir=out: holds a finished run; give another --output-dir, or --restart"
    refuse(PAIRS, expected, capsys)
    assert main([*PAIRS, "--restart"]) == 0


def test_an_unfinished_run_of_another_recipe(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from trimtab.algorithms import run

    class Broken(Exception):
        pass

    def failing(*_: object) -> None:
        raise Broken

    with monkeypatch.context() as patch:
        patch.setattr(run, "finish", failing)
        assert main(PAIRS) == 1
    capsys.readouterr()
    expected = (
        r"output_dir=out: holds an unfinished run of another recipe \(loss\.beta: 0\.1 there, 0\.5 "
        r"here\); give another --output-dir, or --restart .*, or --resume PATH"
    )
    refuse([*PAIRS, "--beta", "0.5"], expected, capsys)
    assert main(PAIRS) == 0, "and the same one goes on"


def test_a_refused_recipe_can_be_mended(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder in which nothing was trained does not hold on to the recipe that was wrong."""
    refuse([*PAIRS, "--max-length", "5"], r"pairs\.jsonl:2: 5 tokens, max_length 5: ", capsys)
    assert json.loads((here / "out/run.json").read_text())["state"] == "refused"
    assert main(PAIRS) == 0
