"""Exports: the merged model is the adapter's, casts are measured, nonsense is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from tests.tiny_models import tiny_model
from tests.tiny_runs import make_tokenizer, save_tiny_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from trimtab.cli import main
from trimtab.errors import RecipeError, RunError
from trimtab.models import export as module
from trimtab.models import lora
from trimtab.models.export import ExportOptions, export
from trimtab.models.hub import locate
from trimtab.models.load import load_model
from trimtab.models.save import save_model
from trimtab.models.score_head import ScoreHead, attach_head
from trimtab.models.scored import load_scored


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("base") / "base")


def adapter_on(base: Path, folder: Path, **options: Any) -> Path:
    """An adapter that changes something: its B is not 0."""
    model = lora.attach(load_model(base), r=options.pop("r", 4), seed=1, **options)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.1)
    save_model(model, make_tokenizer(), folder)
    (folder / "README.md").write_text("---\nlibrary_name: peft\n---\n# mine\n")
    return folder


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return adapter_on(base, tmp_path_factory.mktemp("adapter") / "adapter")


IDS = torch.tensor([[5, 9, 30, 77, 120, 200, 4]])


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model.eval()(input_ids=IDS).logits.float()


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")  # PEFT's own
def test_the_merged_model_is_the_adapters(base: Path, adapter: Path, tmp_path: Path) -> None:
    made = export(ExportOptions(run=str(adapter), output=str(tmp_path / "new" / "merged")))
    folder = tmp_path / "new" / "merged"
    assert made.folder == str(folder) and made.dtype == "fp32" and made.cast_difference is None
    assert made.merged_difference is not None and made.merged_difference < 1e-5
    expected = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)
    merged = AutoModelForCausalLM.from_pretrained(folder)  # plain transformers, no PEFT
    scale = logits(expected).abs().max()
    assert (logits(merged) - logits(expected)).abs().max() <= 1e-5 * scale
    assert (logits(AutoModelForCausalLM.from_pretrained(base)) - logits(merged)).abs().max() > (
        0.01 * scale
    )
    assert not (folder / "adapter_config.json").exists()
    assert "library_name: transformers" in (folder / "README.md").read_text()
    assert made.commands["vLLM"] == [f"vllm serve {folder}"]
    assert made.commands["GGUF"][0] == (
        f"python convert_hf_to_gguf.py {folder} --outfile {folder}.gguf --outtype f32"
    )
    assert any("get_vocab_base_pre()" in note for note in made.notes)  # our own tokenizer
    assert sorted(file.name for file in folder.parent.iterdir()) == ["merged"]  # nothing left over


def test_a_cast_is_measured(adapter: Path, tmp_path: Path) -> None:
    made = export(ExportOptions(run=str(adapter), output=str(tmp_path / "half"), dtype="bf16"))
    weights = load_file(tmp_path / "half" / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    assert json.loads((tmp_path / "half" / "config.json").read_text())["dtype"] == "bfloat16"
    assert made.cast_difference is not None and 1e-4 < made.cast_difference < 0.1
    assert made.merged_difference is not None and made.merged_difference < 1e-5
    assert "--outtype bf16" in made.commands["GGUF"][0]


def test_a_whole_model_is_exported_as_it_is(base: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    made = export(ExportOptions(run=str(base), output=str(empty)))
    assert (made.merged_difference, made.cast_difference) == (None, None)
    before = load_file(base / "model.safetensors")
    after = load_file(empty / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_an_adapter_alone(base: Path, adapter: Path, tmp_path: Path) -> None:
    made = export(ExportOptions(run=str(adapter), output=str(tmp_path / "a"), format="adapter"))
    bytes_ = (adapter / "adapter_model.safetensors").read_bytes()
    assert (tmp_path / "a" / "adapter_model.safetensors").read_bytes() == bytes_
    line = f"vllm serve {base} --enable-lora --lora-modules a={tmp_path / 'a'}"
    assert made.commands["vLLM"] == [line]
    assert made.commands["GGUF"][0].startswith(f"python convert_lora_to_gguf.py {tmp_path / 'a'} ")
    options = ExportOptions(
        run=str(adapter), output=str(tmp_path / "b"), format="adapter", base_model="me/base"
    )
    assert "vllm serve me/base --enable-lora" in export(options).commands["vLLM"][0]
    settings = json.loads((tmp_path / "b" / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == "me/base" and settings["r"] == 4


@pytest.mark.parametrize(("rank", "told"), [(16, ""), (17, " --max-lora-rank 32")])
def test_vllm_is_told_of_a_high_rank(base: Path, tmp_path: Path, rank: int, told: str) -> None:
    run = adapter_on(base, tmp_path / "run", r=rank, target_modules=["q_proj"])
    made = export(ExportOptions(run=str(run), output=str(tmp_path / "a"), format="adapter"))
    assert made.commands["vLLM"][0].endswith(f"a={tmp_path / 'a'}{told}")


def test_models_with_scores(base: Path, tmp_path: Path) -> None:
    """A reward model's adapter: the head goes along, and its scores are checked, too."""
    head = ScoreHead("reward", pad_token_id=0, offset=0.5)
    model = lora.attach(
        attach_head(load_model(base), head, std=0.1, seed=3), modules_to_save=["score"], seed=1
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name or ("score" in name and parameter.requires_grad):
                parameter.normal_(0, 0.1)
    run = tmp_path / "reward"
    save_model(model, make_tokenizer(), run)
    made = export(ExportOptions(run=str(run), output=str(tmp_path / "merged")))
    assert made.architecture == "LlamaForSequenceClassification"
    assert made.merged_difference is not None and made.merged_difference < 1e-5
    assert made.commands == {"vLLM": [f"vllm serve {tmp_path / 'merged'} --runner pooling"]}
    merged = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
    peft: Any = load_scored(locate(run))
    with torch.no_grad():
        states = peft(input_ids=IDS, output_hidden_states=True).hidden_states[-1]
        expected = peft.get_base_model().score(states[:, -1])
        assert torch.allclose(merged.eval()(input_ids=IDS).logits, expected, atol=1e-5)
    assert merged.config.reward_offset == 0.5
    made = export(ExportOptions(run=str(run), output=str(tmp_path / "a"), format="adapter"))
    assert "vLLM takes no adapter with whole modules (score)" in made.notes[0]
    assert (tmp_path / "a" / "score_head.json").is_file()


# ---------------------------------------------------------------------- refusals


def test_nothing_is_overwritten(adapter: Path, tmp_path: Path, capsys: Any) -> None:
    output = tmp_path / "there"
    output.mkdir()
    (output / "mine.txt").write_text("mine")
    assert main(["export", str(adapter), "--output", str(output)]) == 2
    assert "exists already; name a folder that does not" in capsys.readouterr().err
    assert main(["export", str(adapter), "--output", str(adapter)]) == 2
    assert [file.name for file in output.iterdir()] == ["mine.txt"]


def test_what_makes_no_sense(base: Path, adapter: Path, tmp_path: Path) -> None:
    output = str(tmp_path / "o")
    for options, message in (
        ({"run": str(base), "format": "adapter"}, "is a whole model, without an adapter"),
        ({"run": str(adapter), "format": "adapter", "dtype": "bf16"}, "exported as it is"),
        ({"run": str(adapter), "base_model": "x"}, "use format=adapter"),
        ({"run": str(tmp_path)}, "not a model folder, it is empty"),
        ({"run": str(tmp_path / "no")}, "no such folder"),
    ):
        with pytest.raises(RecipeError, match=message):
            export(ExportOptions(output=output, **options))
    assert list(tmp_path.iterdir()) == []


def test_what_would_be_wrong_is_not_written(
    adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    big = tiny_model("llama", vocab_size=len(make_tokenizer()))
    with torch.no_grad():
        big.model.layers[0].mlp.down_proj.weight[0, 0] = 1e6
    save_model(big, make_tokenizer(), tmp_path / "big")
    with pytest.raises(RunError, match=r"dtype=fp16: .*down_proj.weight leaves its range"):
        export(ExportOptions(run=str(tmp_path / "big"), output=str(tmp_path / "o"), dtype="fp16"))

    real = module.merge_adapter

    def wrong(model: Any, ids: torch.Tensor) -> Any:
        merged = real(model, ids)
        with torch.no_grad():
            merged.model.layers[0].mlp.down_proj.weight.mul_(1.01)
        return merged

    monkeypatch.setattr(module, "merge_adapter", wrong)
    with pytest.raises(RunError, match=r"merge: outputs changed by .* export it with format=adap"):
        export(ExportOptions(run=str(adapter), output=str(tmp_path / "o")))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["big"]
