"""The model card: front matter that the hub reads, nothing invented, nothing of the machine."""

from __future__ import annotations

import ast
import dataclasses
import re
from pathlib import Path

import yaml

from trimtab.training.model_card import (
    METHODS,
    Card,
    is_hub_id,
    render_model_card,
    write_model_card,
)

CARD = Card(
    name="dpo-smollm2",
    verb="dpo",
    command="trimtab dpo recipes/smollm2/dpo.yaml",
    base_model="HuggingFaceTB/SmolLM2-135M-Instruct",
    datasets=("trl-lib/ultrafeedback_binarized", "/home/me/secret/prefs.jsonl"),
    data=("1 000 pairs, 12 dropped as identical",),
    hyperparameters={"beta": 0.1, "learning_rate": 5e-07, "a|b": "x\ny"},
    results={"eval_loss": 0.6543219876, "eval_rewards/accuracies": 0.75},
)


def split(text: str) -> tuple[dict, str]:
    _, front, body = text.split("---\n", 2)
    return yaml.safe_load(front), body


def test_front_matter_is_what_the_hub_reads(tmp_path: Path) -> None:
    path = write_model_card(tmp_path, CARD)
    front, body = split(path.read_text())
    assert front == {
        "base_model": "HuggingFaceTB/SmolLM2-135M-Instruct",
        "datasets": ["trl-lib/ultrafeedback_binarized"],
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "model_name": "dpo-smollm2",
        "tags": ["trimtab", "generated_from_trainer", "dpo"],
    }  # no licence: nobody said one
    assert "https://arxiv.org/abs/2305.18290" in body
    assert "trimtab dpo recipes/smollm2/dpo.yaml" in body
    assert "| eval_loss | 0.654322 |" in body
    assert "| learning_rate | 5e-07 |" in body
    assert r"| a\|b | x y |" in body
    assert "`prefs.jsonl`" in body
    assert "/home" not in path.read_text()


def test_a_classifier_is_shown_with_its_end_token() -> None:
    scored = dataclasses.replace(
        CARD, verb="classify", kind="text-classification", classes=("a", "b"), end='<"end">'
    )
    front, body = split(render_model_card(scored))
    assert front["pipeline_tag"] == "text-classification"
    (code,) = re.findall(r"```python\n(.*?)```", body, re.S)
    ast.parse(code)
    assert 'end = "<\\"end\\">"' in code and 'print(classify("A text" + end))' in code
    adapter = render_model_card(dataclasses.replace(scored, adapter=True))
    assert "AutoPeftModelForSequenceClassification" in adapter and '"A text" + end' in adapter
    # A tokenizer that adds the end token by itself would have it twice.
    added = render_model_card(dataclasses.replace(scored, end=""))
    assert 'print(classify("A text"))' in added and "end =" not in added


def test_licence_only_as_the_user_said_it() -> None:
    front, _ = split(render_model_card(dataclasses.replace(CARD, license="apache-2.0")))
    assert front["license"] == "apache-2.0"


def test_local_and_missing_bases(tmp_path: Path) -> None:
    front, body = split(render_model_card(dataclasses.replace(CARD, base_model="runs/sft/final")))
    assert "base_model" not in front
    assert "made from `final`" in body
    front, body = split(render_model_card(dataclasses.replace(CARD, base_model=None)))
    assert "trained from scratch" in body
    (tmp_path / "x").mkdir()
    assert not is_hub_id(str(tmp_path / "x"))
    assert is_hub_id("gpt2")


def test_names_that_yaml_would_misread_stay_names() -> None:
    front, _ = split(render_model_card(dataclasses.replace(CARD, name='yes: "no" #1')))
    assert front["model_name"] == 'yes: "no" #1'


def test_every_snippet_is_python_and_every_paper_a_number() -> None:
    for card in (
        CARD,
        dataclasses.replace(CARD, conversational=False),
        dataclasses.replace(CARD, kind="text-classification", verb="reward"),
    ):
        [snippet] = re.findall(r"```python\n(.*?)```", render_model_card(card), re.DOTALL)
        ast.parse(snippet)
    for verb, method in METHODS.items():
        assert method.arxiv is None or re.fullmatch(r"\d{4}\.\d{5}", method.arxiv), verb
        assert method.title in render_model_card(dataclasses.replace(CARD, verb=verb))
    assert "trained" in render_model_card(dataclasses.replace(CARD, base_model=None, verb="new"))
