"""Whole classify runs: what they leave is what plain transformers reads, labels included."""

from __future__ import annotations

import contextlib
import io
import json
import math
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests import tiny_runs
from tests.algorithms.stage_world import CONTINUOUS, World, apart
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from trimtab.algorithms.finish import table
from trimtab.cli import main
from trimtab.errors import DataError, RecipeError
from trimtab.models.scored import ADAPTER_FACTS

LABELS = ["bad", "good", "odd"]


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def snippet(folder: Path, text: str) -> list[dict[str, Any]]:
    """What the model card's own lines print for a text."""
    card = (folder / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", card, re.S)
    code = code.replace("path/to/this/folder", str(folder)).replace('"A text"', json.dumps(text))
    said = io.StringIO()
    with contextlib.redirect_stdout(said), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec(code, {})
    found = eval(said.getvalue().strip().splitlines()[-1])
    return found[0] if isinstance(found[0], list) else found


def plain_probabilities(folder: Path, texts: list[str]) -> torch.Tensor:
    """[N, C] by transformers alone, one text at a time."""
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        logits = [
            model(torch.tensor([[*tokenizer(text).input_ids, tokenizer.eos_token_id]])).logits
            for text in texts
        ]
    return torch.cat(logits).softmax(-1)


# ---------------------------------------------------------------------- what a run leaves


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_the_folder_is_what_plain_transformers_reads(world: World, architecture: str) -> None:
    folder = world.root / f"base-{architecture}"
    tiny_runs.save_tiny_model(folder, name=architecture)
    data = world.root / "reviews.jsonl"  # what it has learnt by heart
    keys = {"model_name_or_path": str(folder), "eval_dataset_name": str(data), "max_steps": 8}
    run = world.run("classify", "reviews", self_check=True, **keys)
    rows = rows_of(data)
    found = plain_probabilities(run.folder, [row["text"] for row in rows])
    truth = torch.tensor([LABELS.index(row["label"]) for row in rows])
    loss = F.nll_loss(found.log(), truth).item()
    assert run.results["eval_loss"] == pytest.approx(loss, rel=1e-5)
    right = (found.argmax(-1) == truth).float().mean().item()
    assert run.results["eval_accuracy"] == pytest.approx(right)
    assert run.results["eval_loss"] < run.results["eval_loss_before"] - 0.1
    assert list(run.results["eval_confusion"]) == LABELS
    config = json.loads((run.folder / "config.json").read_text())
    assert config["id2label"] == {"0": "bad", "1": "good", "2": "odd"}
    assert config["architectures"][0].endswith("ForSequenceClassification")
    # The card's own lines: the same labels and probabilities.
    for number in (0, 1):
        shown = snippet(run.folder, rows[number]["text"])
        assert {one["label"]: one["score"] for one in shown} == {
            name: pytest.approx(found[number, i].item(), abs=1e-6) for i, name in enumerate(LABELS)
        }
        # Without the end token it is another state, and another answer.
        card = (run.folder / "README.md").read_text()
        assert '"A text" + end' in card
        tokenizer = AutoTokenizer.from_pretrained(run.folder)
        model = AutoModelForSequenceClassification.from_pretrained(run.folder)
        ids = torch.tensor([tokenizer(rows[number]["text"]).input_ids])
        with torch.no_grad():
            other = model(ids).logits.softmax(-1)[0]
        assert float((other - found[number]).abs().max()) > 1e-4


def test_language_model_loss_is_that_of_sft(world: World) -> None:
    """Before the first step, on the same texts: sft's loss, and the one of plain transformers."""
    run = world.run("classify", "reviews", alpha=0.25, max_steps=1)
    plain = world.run("sft", "reviews", max_steps=1)
    before = plain.evaluated[0]["eval_loss"]
    assert run.evaluated[0]["eval_lm_loss"] == pytest.approx(before, rel=1e-6)
    (record,), (text,) = run.trained, plain.trained
    assert record["loss/nll"] == pytest.approx(text["loss"], rel=1e-6)
    assert record["nll"] == pytest.approx(record["loss/nll"], rel=1e-6)
    expected = record["loss/classification"] + 0.25 * record["loss/nll"]
    assert record["loss"] == pytest.approx(expected, rel=1e-6)
    assert record["loss/classification"] == pytest.approx(math.log(3), abs=0.1)
    base = AutoModelForCausalLM.from_pretrained(world.root / "model")
    tokenizer = AutoTokenizer.from_pretrained(world.root / "model")
    total = tokens = 0.0
    for row in rows_of(world.root / "reviews_held.jsonl"):
        ids = torch.tensor([[*tokenizer(row["text"]).input_ids, tokenizer.eos_token_id]])
        with torch.no_grad():
            total += base(ids, labels=ids).loss.item() * (ids.numel() - 1)
        tokens += ids.numel() - 1
    assert before == pytest.approx(total / tokens, rel=1e-5)


def test_without_alpha_no_token_is_trained(world: World) -> None:
    run = world.run("classify", "reviews", alpha=0, self_check=True)
    assert run.results["trained_tokens"] == 0
    assert "loss/nll" not in run.trained[0] and "nll" not in run.trained[0]
    assert math.isfinite(run.results["eval_lm_loss"])  # what becomes of the language model
    assert run.results["eval_lm_loss"] > 0


def test_mix_is_the_other_stream_of_text(world: World) -> None:
    mixed = {"dataset_name": str(world.root / "texts.jsonl"), "weight": 0.5}
    run = world.run("classify", "reviews", alpha=0, mix=mixed, self_check=True)
    record = run.trained[0]
    expected = record["loss/classification"] + 0.5 * record["loss/mix"]
    assert record["loss"] == pytest.approx(expected, rel=1e-6)
    assert run.results["eval_lm_loss"] < run.results["eval_lm_loss_before"]


def test_lora(world: World) -> None:
    run = world.run("classify", "reviews", use_peft=True, lora_r=2, self_check=True, max_steps=6)
    assert json.loads((run.folder / ADAPTER_FACTS).read_text())["labels"] == LABELS
    saved = load_file(run.folder / "adapter_model.safetensors")
    assert [name for name in saved if name.endswith("score.weight")]
    assert run.results["eval_loss"] < run.results["eval_loss_before"]
    rows = rows_of(world.root / "reviews_held.jsonl")
    shown = [snippet(run.folder, row["text"]) for row in rows]
    losses = [
        -math.log(next(one["score"] for one in found if one["label"] == row["label"]))
        for found, row in zip(shown, rows, strict=True)
    ]
    assert sum(losses) / len(losses) == pytest.approx(run.results["eval_loss"], rel=1e-4)


def test_head_starts_small_and_by_the_seed(world: World) -> None:
    def head(seed: int) -> torch.Tensor:
        rate = {"optim": "sgd", "learning_rate": 1e-12, "max_steps": 1}
        run = world.run("classify", "reviews", seed=seed, eval_on_start=False, **rate)
        return load_file(run.folder / "model.safetensors")["score.weight"]

    one, again, other = head(1), head(1), head(2)
    assert torch.equal(one, again) and not torch.allclose(one, other, atol=1e-3)
    assert one.shape == (3, 32)
    assert one.std().item() == pytest.approx(0.02, rel=0.25)


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_layouts_train_alike(world: World, layout: str) -> None:
    shared = world.run("classify", "reviews", attn_layout="shared", **CONTINUOUS)
    other = world.run("classify", "reviews", attn_layout=layout, **CONTINUOUS)
    assert apart(shared, other) == []
    wrong = world.run("classify", "reviews", attn_layout=layout, alpha=0.4, **CONTINUOUS)
    assert apart(shared, wrong) != []


# ---------------------------------------------------------------------- labels


def relabelled(world: World, name: str, labels: dict[str, Any]) -> str:
    rows = [{**row, "label": labels[row["label"]]} for row in tiny_runs.reviews(12)]
    return str(tiny_runs.write_rows(world.root / name, rows))


def run_with(world: World, data: str, **keys: Any) -> Any:
    return world.run(
        "classify", "reviews", dataset_name=data, eval_dataset_name=data, max_steps=1, **keys
    )


@pytest.mark.parametrize(
    ("labels", "keys", "names"),
    [
        ({"good": 10, "bad": -1, "odd": 2}, {}, ["-1", "2", "10"]),  # by size
        ({"good": "10", "bad": "-1", "odd": "2"}, {}, ["-1", "10", "2"]),  # by the alphabet
        ({"good": True, "bad": False, "odd": False}, {}, ["false", "true"]),
        ({"good": 2.0, "bad": 1.0, "odd": 1}, {}, ["1", "2"]),
        ({"good": 1, "bad": 0, "odd": 0}, {"labels": ["1", "0", "7"]}, ["1", "0", "7"]),
        ({"good": "1", "bad": "0", "odd": "0"}, {"labels": [1, 0]}, ["1", "0"]),
        ({"good": 1, "bad": "x", "odd": 1}, {"labels": "x,1"}, ["x", "1"]),
    ],
)
def test_labels_and_their_order(
    world: World, labels: dict[str, Any], keys: dict[str, Any], names: list[str]
) -> None:
    run = run_with(world, relabelled(world, "relabelled.jsonl", labels), **keys)
    config = json.loads((run.folder / "config.json").read_text())
    assert list(config["id2label"].values()) == names
    assert list(run.results["eval_confusion"]) == names
    truth = [str(value).lower().removesuffix(".0") for value in labels.values()]
    for name in names:
        assert sum(run.results["eval_confusion"][name]) == 4 * truth.count(name)


def test_labels_in_a_table_of_text(world: World) -> None:
    codes = {"good": 10, "bad": 2, "odd": 1}
    lines = ["text,label", *(f"{r['text']},{codes[r['label']]}" for r in tiny_runs.reviews(12))]
    path = world.root / "reviews.csv"
    path.write_text("\n".join(lines) + "\n")
    run = run_with(world, str(path))
    config = json.loads((run.folder / "config.json").read_text())
    assert list(config["id2label"].values()) == ["1", "2", "10"]


def test_another_set_of_labels_is_not_answered_from_the_cache(world: World) -> None:
    found = []
    for order in (["bad", "good", "odd"], ["odd", "good", "bad"]):
        run = world.run("classify", "reviews", labels=order, max_steps=1)
        found.append(run.results["eval_confusion"])
    assert list(found[0]) == list(reversed(found[1]))
    assert sum(found[0]["bad"]) == sum(found[1]["bad"])


def test_rows_of_another_class_are_set_aside(world: World) -> None:
    rows = tiny_runs.reviews(12)
    rows[4]["label"] = "none"
    data = str(tiny_runs.write_rows(world.root / "strange.jsonl", rows))
    run = world.run("classify", "reviews", dataset_name=data, labels=LABELS, max_bad_rows=1)
    (row,) = rows_of(run.folder / "quarantine.training.jsonl")
    assert (row["line"], row["field"]) == (5, "label")
    assert row["reason"] == "not one of the labels: 'none' in bad, good, odd"
    assert run.results["rows"] == 11
    # The same for held-out rows, whose classes are those of the training rows.
    held = world.run("classify", "reviews", eval_dataset_name=data, max_bad_rows=1)
    assert held.results["eval_rows"] == 11
    assert [r["line"] for r in rows_of(held.folder / "quarantine.held-out.jsonl")] == [5]


# ---------------------------------------------------------------------- what goes wrong


def changed(**columns: Any) -> list[dict[str, Any]]:
    rows = tiny_runs.reviews(12)
    rows[2] = {k: v for k, v in {**rows[2], **columns}.items() if v is not ...}
    return rows


@pytest.mark.parametrize(
    ("rows", "keys", "expected"),
    [
        (changed(label="none"), {"labels": LABELS},
         r"rows\.jsonl:3: label: not one of the labels: 'none' in bad, good, odd; 1 of 12 rows is "
         r"bad; the limit is 0\.01 of the rows: mend them, or raise max_bad_rows"),
        (changed(label=3), {}, r"rows\.jsonl:1: label: 'good' is text, and 3 in .*rows\.jsonl:3 is "
         r"a number; write all labels in one way, or name them with labels"),
        (changed(label=0.5), {}, r"rows\.jsonl:3: label: not a whole number or text: found the"),
        (changed(label=""), {}, r"rows\.jsonl:3: label: empty; 1 of 12 rows is bad"),
        (changed(label=None), {}, r"rows\.jsonl:3: label: is null; 1 of 12"),
        (changed(label=...), {}, r"rows\.jsonl:3: label: missing; 1 of 12"),
        ([{**row, "label": "good"} for row in tiny_runs.reviews(12)], {},
         r"rows\.jsonl:1: label: all 12 training rows are 'good': with one class there is nothing"),
        ([{**row, "label": "good"} for row in tiny_runs.reviews(12)], {"labels": LABELS},
         r"rows\.jsonl:1: label: all 12 training rows are 'good'"),
        (tiny_runs.texts(12), {},
         r"rows\.jsonl:1: columns found: text; these are text rows, but this stage takes labelled "
         r"rows \(labelled: text, label\); name yours: --columns label=YOUR_COLUMN"),
        (tiny_runs.labelled(12), {},
         r"rows\.jsonl:1: .*these are unpaired rows, but this stage takes labelled rows"),
        ([{"text": r["text"], "sentiment": r["label"]} for r in tiny_runs.reviews(12)], {},
         r"rows\.jsonl:1: .*; write --columns label=sentiment"),
        (changed(), {"labels": "a,b"},
         r"rows\.jsonl:1: label: not one of the labels: 'good' in a, b; 12 of 12 rows are bad"),
    ],
)  # fmt: skip
def test_rows_that_cannot_be_used(
    world: World, rows: list[dict[str, Any]], keys: dict[str, Any], expected: str
) -> None:
    data = str(tiny_runs.write_rows(world.root / "rows.jsonl", rows))
    with pytest.raises(DataError, match=expected) as caught:
        world.run("classify", "reviews", dataset_name=data, **keys)
    assert "\n" not in str(caught.value)


def test_held_out_rows_of_another_class(world: World) -> None:
    data = str(tiny_runs.write_rows(world.root / "held.jsonl", changed(label="none")))
    with pytest.raises(DataError, match=r"held\.jsonl:3: label: not one of the labels: 'none'"):
        world.run("classify", "reviews", eval_dataset_name=data)


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"labels": "good"}, r"^labels: 'good' is not a list of classes: there must be two"),
        ({"labels": ["a", "b", "a"]}, r"^labels: .* names 'a' twice"),
        ({"labels": [1, "1"]}, r"^labels: .* names '1' twice"),
        ({"alpha": -1}, r"^alpha"),
        ({"sample_prompts": 2}, r"^sample_prompts: a classifier writes no text"),
        ({"num_labels": 3}, r"^num_labels: unknown key .*the classes are those of the rows"),
        ({"max_prompt_length": 5}, r"^max_prompt_length: unknown key"),
    ],
)
def test_recipes_that_are_refused(world: World, keys: dict[str, Any], expected: str) -> None:
    with pytest.raises(RecipeError, match=expected):
        world.run("classify", "reviews", **keys)


def test_models_that_cannot_be_classifiers(world: World) -> None:
    run = world.run("classify", "reviews", max_steps=1)
    with pytest.raises(RecipeError, match=r"it has scores and no language model's head"):
        world.run("classify", "reviews", model_name_or_path=str(run.folder))
    adapter = world.run("sft", "answers", use_peft=True, lora_r=2, max_steps=1)
    with pytest.raises(RecipeError, match=r"this is an adapter; a model with scores starts from"):
        world.run("classify", "reviews", model_name_or_path=str(adapter.folder), use_peft=True)
    merged = world.run("classify", "reviews", model_name_or_path=str(adapter.folder), max_steps=1)
    assert (merged.folder / "model.safetensors").exists()


def test_a_checkpoint_of_other_classes_is_not_gone_on_with(world: World) -> None:
    """The same number of them in another order: every tensor fits, and every answer is wrong."""
    run = world.run("classify", "reviews", max_steps=2)
    keys = {"resume": str(run.folder / "checkpoint-2"), "max_steps": 3}
    expected = r"its classes are bad, good, odd, and here they are odd, good, bad; name them"
    with pytest.raises(RecipeError, match=expected):
        world.run("classify", "reviews", labels=["odd", "good", "bad"], **keys)
    assert world.run("classify", "reviews", labels=LABELS, **keys).results["steps"] == 3


def test_a_tokenizer_without_an_end_token(
    world: World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_runs.save_tiny_model(world.root / "endless")
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (folder / name).exists():
            settings = json.loads((folder / name).read_text())
            settings.pop("eos_token", None)
            (folder / name).write_text(json.dumps(settings))
    words = ["classify", "--model", str(folder), "--dataset", str(world.root / "reviews.jsonl")]
    monkeypatch.chdir(world.root)
    assert main([*words, "--output-dir", "endless-run", "--precision", "fp32"]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "it has no end token (eos_token), at which the class of a text is read; set" in said


def test_the_last_lines_name_the_recall_of_classes() -> None:
    before = {"eval_loss": 1.0}
    after = {"eval_loss": 0.5, "eval_accuracy": 0.75, "eval_recall": {"bad": 1.0, "good": 0.5}}
    lines = table(before, after)
    assert lines[-1] == "recall by class: bad 1, good 0.5"
    many = {str(number): 0.25 for number in range(20)}
    (line,) = [x for x in table({}, {**after, "eval_recall": many}) if x.startswith("recall")]
    assert line.endswith("11 0.25, ...") and "12 " not in line
