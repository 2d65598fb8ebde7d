"""The data doctor with a tokenizer: templates, BOS, ends and truncation."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.data.doctor.checked import MODEL_FAULTS, check, lines
from tests.data.doctor.clean_rows import CLEAN, COUNT
from tests.data.fixtures_tokenizers import make_tokenizer
from tests.data.test_chat import CHATML, CONTROL

# ---------------------------------------------------------------------- with a model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tokenizer with BOS, which its chat template writes, too."""
    folder = tmp_path_factory.mktemp("model")
    # Like many real ones it trims what it is given.
    template = "{{ bos_token }}" + CHATML.replace("+ m.content +", "+ (m.content | trim) +")
    make_tokenizer("bytes, bos added", template, CONTROL).save_pretrained(folder)
    return str(folder)


def test_clean_rows_have_no_finding_with_a_model(tmp_path: Path, model: str) -> None:
    for kind in CLEAN:
        assert lines(check(tmp_path, CLEAN[kind](), model=model)) == {}, kind


@pytest.mark.parametrize("fault", [name for name, change in MODEL_FAULTS.items() if change])
def test_a_fault_planted_for_a_model(fault: str, tmp_path: Path, model: str) -> None:
    rows = CLEAN["messages"]()
    MODEL_FAULTS[fault](rows[6])
    found = lines(check(tmp_path, rows, model=model, max_length=600))
    if fault == "identical-tokens":
        assert found.pop("nearly-identical-pair") == [7]
    assert found == {fault: [7]}


def saved(folder: Path, kind: str, template: str | None) -> str:
    make_tokenizer(kind, template, CONTROL).save_pretrained(folder / "other")
    return str(folder / "other")


def test_doubled_bos(tmp_path: Path) -> None:
    """A text that brings its BOS, in a template that writes one, behind nothing else."""
    plain = "{{ bos_token }}{% for m in messages %}{{ m.content + '<|im_end|>' }}{% endfor %}"
    model = saved(tmp_path, "bytes, bos added", plain)
    rows = CLEAN["messages"]()
    rows[1]["prompt"][0]["content"] = "<|begin_of_text|>Why?"
    assert lines(check(tmp_path, rows, model=model)) == {"doubled-bos": [2]}


def test_plain_text_may_bring_its_own_bos_and_end(tmp_path: Path, model: str) -> None:
    """Neither is written twice; only what looks like a template's marker is told."""
    rows = CLEAN["completion"]()
    rows[1]["prompt"] = "<|begin_of_text|>" + rows[1]["prompt"]
    rows[2]["completion"] += "<|end_of_text|>"
    assert lines(check(tmp_path, rows, model=model)) == {"template-marker": [2, 3]}


def test_missing_end(tmp_path: Path) -> None:
    model = saved(tmp_path, "bytes, no eos", None)
    everywhere = list(range(1, COUNT + 1))
    for kind in ("completion", "labelled"):
        assert lines(check(tmp_path, CLEAN[kind](), model=model)) == {"missing-end": everywhere}
    assert lines(check(tmp_path, CLEAN["text"](), model=model)) == {}


def test_template_unusable(tmp_path: Path) -> None:
    model = saved(tmp_path, "bytes, no bos", None)
    found = check(tmp_path, CLEAN["chat"](), model=model)
    assert lines(found) == {"template-unusable": list(range(1, COUNT + 1))}
    assert "it has no chat template" in found.findings[0].detail


def test_a_template_that_refuses_a_row(tmp_path: Path) -> None:
    strict = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    model = saved(tmp_path, "bytes, no bos", strict + CHATML)
    rows = CLEAN["chat"]()
    rows[3]["messages"].insert(0, {"role": "system", "content": "Be kind."})
    found = check(tmp_path, rows, model=model)
    assert lines(found) == {"template-unusable": [4]}
    assert found.findings[0].rows[0].note == "no system"


def test_prompt_token_mismatch(tmp_path: Path) -> None:
    """One of two responses opens with reasoning, which changes this template's first line."""
    marked = "{% if '</think>' in messages[-1].content %}{{ 'Reason.' }}{% endif %}" + CHATML
    generation = "{% generation %}{{ m.content + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}"
    marked = marked.replace(
        "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}",
        "{{ '<|im_start|>' + m.role + '\n' }}" + generation,
    )
    model = saved(tmp_path, "bytes, no bos", marked)
    rows = CLEAN["messages"]()
    rows[4]["chosen"][0]["content"] = "<think>Well.</think>" + rows[4]["chosen"][0]["content"]
    assert lines(check(tmp_path, rows, model=model)) == {"prompt-token-mismatch": [5]}
