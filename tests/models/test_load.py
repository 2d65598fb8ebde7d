"""Loading: what is found where, what is refused in one line, and that nothing is random."""

from __future__ import annotations

import json
import shutil
import socket
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.models.small_models import IDS, logits, small, tokenizer
from torch import nn

from trimtab.errors import RecipeError
from trimtab.models import hub
from trimtab.models.build import model_from_config
from trimtab.models.load import (
    base_of,
    checkpoint_activations,
    disable_dropout,
    load_model,
    load_tokenizer,
    locate,
)
from trimtab.models.lora import attach
from trimtab.models.save import save_model


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise OSError("the network was touched")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_model(small("llama"), tokenizer(), tmp_path / "model")
    return tmp_path / "model"


def refused(function: Any, *args: Any, **kwargs: Any) -> str:
    with pytest.raises(RecipeError) as caught:
        function(*args, **kwargs)
    message = str(caught.value)
    assert "\n" not in message
    return message


# --- finding --------------------------------------------------------------------------------------


def test_local_folder_needs_no_network(folder: Path) -> None:
    source = locate(folder)
    assert (source.kind, source.revision) == ("model", None)
    assert "local folder" in source.notice
    assert torch.equal(logits(load_model(source)), logits(small("llama")))
    assert load_tokenizer(source).eos_token == "<|im_end|>"


def test_local_folder_wins_over_hub_id(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    (folder.parent / "org").mkdir()
    folder.rename(folder.parent / "org" / "name")
    source = locate("org/name")
    assert source.revision is None
    assert load_model("org/name").name_or_path == "org/name"


def test_missing_folder_and_no_hub() -> None:
    message = refused(load_model, "someone/sft")
    assert message.startswith(
        "model_name_or_path='someone/sft': no such folder, and the hub could not"
    )
    assert "the network was touched" in message and "give a local model folder" in message
    assert refused(load_model, "./runs/sft") == (
        "model_name_or_path='./runs/sft': no such folder; give a model folder or a hub id"
    )
    assert refused(load_tokenizer, "a/b/c").startswith("tokenizer_name_or_path='a/b/c': no such")


def test_a_path_is_never_asked_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "smollm2-135m-instruct").mkdir(parents=True)
    meant = "did you mean models/smollm2-135m-instruct?"
    for name, remedy in {
        "models/smollm2": meant,
        "./models/smollm2-135m-instuct": meant,
        "models/other": "give a model folder or a hub id",
        "runs/sft": "give a model folder or a hub id",
        f"{tmp_path}/models/gpt": "give a model folder or a hub id",
        "~/nothing/there": "give a model folder or a hub id",
        "runs/tiny/sft": "recipes/tiny/sft.yaml makes it: run that first",
    }.items():
        expected = f"model_name_or_path={name!r}: no such folder; {remedy}"
        assert refused(load_model, name) == expected
    message = refused(load_model, "model")  # may be a hub id: asked, and a folder here is near
    assert "the network was touched" in message and message.endswith("; did you mean models?")


def test_hub_refusals_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    import httpx2 as httpx
    import huggingface_hub
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    answer = httpx.Response(401, request=httpx.Request("GET", "https://huggingface.co"))

    def found(*args: Any, **kwargs: Any) -> Any:
        raise urllib.error.HTTPError("u", 401, "no", None, None)  # type: ignore[arg-type]

    monkeypatch.setattr(urllib.request, "urlopen", found)
    for error, words in (
        (RepositoryNotFoundError("x\ny", response=answer), "the hub knows no such model"),
        (GatedRepoError("x\ny", response=answer), "accept its terms"),
    ):

        def download(*args: Any, error: Exception = error, **kwargs: Any) -> str:
            raise error

        monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
        assert words in refused(load_model, "org/name")


def test_hub_model_is_fetched_once_and_named(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    commit = tmp_path / ("c0ffee" * 6 + "abcd")
    shutil.copytree(folder, commit)
    asked: list[Any] = []

    def download(name: str, **options: Any) -> str:
        asked.append((name, options["revision"], options["local_files_only"]))
        return str(commit)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setattr(hub, "_obstacle", lambda *a: None)
    source = locate("org/name", revision="main")
    assert "from the hub, revision c0ffeec0ffee" in source.notice
    model = load_model(source)
    load_tokenizer(source)
    assert asked == [("org/name", "main", False)]
    assert model.name_or_path == "org/name"  # not the cache's path: adapters record it


def test_cached_hub_model_without_network(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def download(name: str, **options: Any) -> str:
        assert options["local_files_only"]
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert locate("org/name").kind == "model"


def test_folders_that_are_no_models(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "not a model folder, it is empty" in refused(load_model, tmp_path / "empty")
    (tmp_path / "empty" / "notes.txt").write_text("x")
    assert "it holds notes.txt" in refused(load_model, tmp_path / "empty")
    (tmp_path / "empty" / "run.json").write_text("{}")
    assert "this run is not finished" in refused(load_model, tmp_path / "empty")
    assert "this is a file" in refused(load_model, folder / "config.json")
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    assert "no tokenizer in" in refused(load_tokenizer, folder)


# --- damaged models -------------------------------------------------------------------------------


def edit_weights(folder: Path, change: Any) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_missing_weight_is_not_drawn_at_random(folder: Path) -> None:
    edit_weights(folder, lambda tensors: tensors.pop("lm_head.weight"))
    message = refused(load_model, folder)
    assert "1 weights of LlamaForCausalLM are missing in it (lm_head.weight)" in message


def test_weight_of_another_shape(folder: Path) -> None:
    def shrink(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.norm.weight"] = torch.ones(3)

    edit_weights(folder, shrink)
    message = refused(load_model, folder)
    assert "1 weights of LlamaForCausalLM are mismatched in it (model.norm.weight)" in message


def test_truncated_weights(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-50])
    assert "the model could not be loaded" in refused(load_model, folder)


def test_pickled_weights_are_refused(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert "its weights are pickled (pytorch_model.bin)" in refused(load_model, folder)
    (folder / "pytorch_model.bin").unlink()
    assert "no .safetensors file" in refused(load_model, folder)


def test_unknown_architecture_and_remote_code(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "nonesuch"}))
    assert "nonesuch" in refused(load_model, folder)
    code = {**config, "model_type": "own", "auto_map": {"AutoConfig": "m.C"}}
    (folder / "config.json").write_text(json.dumps(code))
    assert "trust_remote_code" in refused(load_model, folder)
    (folder / "config.json").write_text("{")
    refused(load_model, folder)


def test_damaged_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{")
    assert "the tokenizer could not be read" in refused(load_tokenizer, folder)


def test_pad_stays_as_it_is(folder: Path) -> None:
    assert load_tokenizer(folder).pad_token == "<|pad|>"
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    del settings["pad_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    assert load_tokenizer(folder).pad_token is None


# --- dtype, dropout, checkpointing ----------------------------------------------------------------


def test_dtype(folder: Path) -> None:
    assert load_model(folder).dtype == torch.float32
    assert load_model(folder, dtype=torch.bfloat16).dtype == torch.bfloat16


def rates(model: nn.Module) -> set[float]:
    return {m.p for m in model.modules() if isinstance(m, nn.Dropout)}


@pytest.mark.parametrize("name", ["gpt2", "llama", "opt"])
def test_dropout_is_off_in_training_mode(name: str) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = {
        "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2},
        "llama": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2},
        "opt": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2},
    }[name]
    if name == "opt":
        settings |= {"word_embed_proj_dim": 16, "ffn_dim": 24, "layerdrop": 0.3}
    if name == "llama":
        settings |= {"attention_dropout": 0.5, "intermediate_size": 24}
    config = AutoConfig.for_model(name, vocab_size=280, **settings)
    model = AutoModelForCausalLM.from_config(config).train()

    def twice() -> bool:
        a, b = (model(input_ids=IDS[None], use_cache=False).logits for _ in range(2))
        return torch.equal(a, b)

    assert not twice()
    disable_dropout(model)
    assert twice()
    assert rates(model) <= {0.0}


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_activation_checkpointing_changes_no_gradient(name: str) -> None:
    grads = []
    for checkpointed in (False, True):
        model = small(name).train()
        if checkpointed:
            checkpoint_activations(model)
            assert model.is_activation_checkpointing
        model(input_ids=IDS[None], use_cache=False).logits.sin().sum().backward()
        grads.append([p.grad for p in model.parameters()])
    for a, b in zip(*grads, strict=True):
        assert a is not None and a.any()
        assert torch.equal(a, b)


# --- adapters -------------------------------------------------------------------------------------


def adapter_on(folder: Path, target: Path) -> Any:
    model = attach(load_model(folder), r=2, seed=1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2)
    save_model(model, load_tokenizer(folder), target)
    return model


def test_adapter_folder(folder: Path, tmp_path: Path) -> None:
    model = adapter_on(folder, tmp_path / "adapter")
    loaded = load_model(tmp_path / "adapter")
    assert torch.equal(logits(loaded), logits(model))
    assert not torch.equal(logits(loaded), logits(load_model(folder)))
    assert not any(p.requires_grad for n, p in loaded.named_parameters() if "lora" in n)


def test_adapter_base_is_found_beside_it(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "adapter"
    adapter_on(folder, target)
    config = json.loads((target / "adapter_config.json").read_text())

    def based_on(name: str | None) -> None:
        text = json.dumps({**config, "base_model_name_or_path": name})
        (target / "adapter_config.json").write_text(text)

    based_on("../model")
    assert load_model(target).name_or_path == "../model"
    monkeypatch.chdir(tmp_path)
    based_on("model")
    load_model(target)
    assert base_of(locate(target)).folder == Path("model")
    assert base_of(locate("model")) == locate("model")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (target / name).unlink()
    assert load_tokenizer(target).eos_token == "<|im_end|>"  # the base's
    based_on("./gone")
    assert "base model './gone': no such folder" in refused(load_model, target)
    based_on(None)
    assert "names no base model" in refused(load_model, target)


def test_adapter_with_a_missing_tensor(folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "adapter"
    adapter_on(folder, target)
    tensors = load_file(target / "adapter_model.safetensors")
    first = next(iter(tensors))
    dropped = {k: v for k, v in tensors.items() if k != first}
    save_file(dropped, target / "adapter_model.safetensors")
    message = refused(load_model, target)
    assert "1 tensors are missing in its adapter_model.safetensors" in message and first in message
    save_file(
        {**tensors, "base_model.model.more": torch.ones(1)}, target / "adapter_model.safetensors"
    )
    assert "unknown to its base model" in refused(load_model, target)


# --- fresh models ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3", "gpt2"])
def test_fresh_models_depend_on_the_seed_alone(name: str) -> None:
    torch.manual_seed(5)
    a = logits(small(name))
    torch.manual_seed(6)
    before = torch.random.get_rng_state()
    assert torch.equal(logits(small(name)), a)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not torch.equal(logits(small(name, seed=1)), a)
    cast = small(name, dtype=torch.bfloat16)
    for p, q in zip(cast.parameters(), small(name).parameters(), strict=True):
        assert torch.equal(p, q.to(torch.bfloat16))


def test_fresh_model_has_the_special_tokens() -> None:
    model = small("gemma3")
    for config in (model.config, model.generation_config):
        assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (0, 1, 2)
    assert model.config.query_pre_attn_scalar == model.config.head_dim == 8


def test_fresh_model_refusals() -> None:
    def make(architecture: str, **config: Any) -> Any:
        return refused(
            model_from_config, architecture, config, vocab_size=9, seed=0, dtype=torch.float32
        )

    assert make("gpt5") == (
        "new_model.architecture='gpt5': unknown; use one of llama, qwen3, gemma3, gpt2"
    )
    assert make("llama", hidden_sise=64) == (
        "new_model.hidden_sise: llama has no such key; did you mean 'hidden_size'?"
    )
    assert "not a multiple of the number of attention heads" in make(
        "llama", hidden_size=30, num_attention_heads=4, num_hidden_layers=1
    )


def test_rejects_casting_the_rotary_frequencies(tmp_path: Path) -> None:
    """``model.to(bfloat16)`` rounds them: not the model that its own folder holds."""
    right, wrong = small("llama", dtype=torch.bfloat16), small("llama").to(torch.bfloat16)
    save_model(right, tokenizer(), tmp_path)
    again = logits(load_model(tmp_path))
    assert torch.equal(logits(right), again)
    pairs = zip(right.parameters(), wrong.parameters(), strict=True)
    assert all(torch.equal(p, q) for p, q in pairs)
    assert not torch.equal(logits(wrong), again)
