"""Plans: what is counted in thought is what real tensors take, for models of any size."""

from __future__ import annotations

import gc
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny_runs import pairs, save_tiny_model, write_rows
from transformers import AutoConfig

from trimtab.cli import main
from trimtab.cli.plan_verb import _verb
from trimtab.config.recipe_files import COMPARE, recipe_files
from trimtab.config.resolve import resolve
from trimtab.data.batch import split_by_tokens
from trimtab.errors import RecipeError, UsageError
from trimtab.models import lora
from trimtab.models.attention import install
from trimtab.models.build import model_from_config
from trimtab.models.forward import hidden_states
from trimtab.plan import plan as module
from trimtab.plan.batches import split, tokens
from trimtab.plan.flops import Tree, llama_shape
from trimtab.plan.memory import LIBRARIES, TIGHT
from trimtab.plan.plan import plan
from trimtab.plan.shapes import find_shape, known_shapes
from trimtab.plan.skeleton import Skeleton
from trimtab.plan.time import shape_of
from trimtab.plan.trace import _Meter, batch_of, reading_work, training_work

RECIPES = recipe_files()
TREES = [Tree(20, (30, 10), 40), Tree(1, (64,), 64), Tree(40, (25, 25, 25), 70)]
SIZES = {
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_hidden_layers": 5,
    "max_position_embeddings": 256,
}
GATED = {**SIZES, "intermediate_size": 160, "num_key_value_heads": 2, "head_dim": 16}


def config_of(name: str) -> Any:
    more = {"n_inner": 160} if name == "gpt2" else {}
    sizes = GATED if name != "gpt2" else SIZES
    ids = {"bos_token_id": None, "eos_token_id": None}
    return AutoConfig.for_model(name, **sizes, **more, **ids, vocab_size=300)


@pytest.mark.parametrize(
    ("name", "dtype", "adapters"),
    [
        ("llama", torch.float32, False),
        ("llama", torch.bfloat16, True),
        pytest.param("gemma3_text", torch.float32, False, marks=pytest.mark.slow),
        ("qwen3", torch.float32, False),
        ("gpt2", torch.float32, False),
    ],
)
def test_what_is_kept_is_what_real_tensors_keep(
    name: str, dtype: torch.dtype, adapters: bool
) -> None:
    skeleton = Skeleton(config_of(name), dtype, (4, ("all-linear",)) if adapters else None)
    planned = training_work(skeleton, TREES)  # from two and three layers

    kind = {"gemma3_text": "gemma3"}.get(name, name)
    sizes = {**SIZES, "n_inner": 160} if name == "gpt2" else GATED
    model: Any = model_from_config(kind, sizes, vocab_size=300, seed=0, dtype=dtype)
    model = lora.attach(model, r=4, seed=0) if adapters else model.requires_grad_(True)
    install(model.train())
    batch = batch_of(TREES)
    with _Meter([*model.parameters(), *model.buffers()]) as meter:  # on real tensors, five layers
        states = hidden_states(model, batch, "shared").targets()
        gc.collect()
        kept = meter.now
        meter.peak = kept
        states.sum().backward()
        moment = meter.peak - kept
    assert planned.kept == pytest.approx(kept, rel=0.03)
    assert planned.kept > 0.8 * 5 * batch.ids.numel() * 64 * dtype.itemsize * 8
    assert planned.moment == pytest.approx(moment, rel=0.5)


def test_reading_and_checkpointing_need_less() -> None:
    skeleton = Skeleton(config_of("llama"), torch.float32)
    whole = training_work(skeleton, TREES)
    again = training_work(skeleton, TREES, checkpointing=True)
    assert again.kept < whole.kept / 3 and again.moment > whole.moment
    assert reading_work(skeleton, TREES) < whole.kept / 3
    assert reading_work(skeleton, TREES) == reading_work(
        Skeleton(module.with_layers(config_of("llama"), 50), torch.float32), TREES
    )


# ---------------------------------------------------------------------- shapes


@pytest.mark.parametrize(
    ("name", "weights", "trained"),
    [  # as the models' cards and QLoRA's code have them
        pytest.param(
            *("Qwen/Qwen2.5-1.5B-Instruct", 1_543_714_304, 18_464_768), marks=pytest.mark.slow
        ),
        pytest.param("Qwen/Qwen2.5-7B", 7_615_616_512, 40_370_176, marks=pytest.mark.slow),
        ("meta-llama/Llama-2-7b-chat-hf", 6_738_415_616, 39_976_960),
    ],
)
def test_large_models_are_counted_without_weights(name: str, weights: int, trained: int) -> None:
    shape = find_shape(name, key="model_name_or_path")
    assert shape.source is None and shape.where == "a shape that trimtab knows"
    assert Skeleton(shape.config, torch.bfloat16).counts == (weights, weights)
    found = Skeleton(shape.config, torch.bfloat16, (16, ("all-linear",))).counts
    assert found == (weights + trained, trained)


def test_shapes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_tiny_model(tmp_path / "m")
    assert find_shape(str(folder), key="m").config.hidden_size == 32
    with pytest.raises(RecipeError, match=r"m=.*: not a model folder, it is empty"):
        (tmp_path / "empty").mkdir()
        find_shape(str(tmp_path / "empty"), key="m")

    def offline(*_: Any, **__: Any) -> Any:
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", offline)
    with pytest.raises(RecipeError, match=r"m='who/knows': no such folder, not among the shapes"):
        find_shape("who/knows", key="m")
    with pytest.raises(RecipeError, match=r"^m='runs/x': no such folder; give a model folder or"):
        find_shape("runs/x", key="m")
    for name in known_shapes():
        assert find_shape(name, key="m").config.vocab_size > 30_000


def test_dense_layers_are_those_of_the_config() -> None:
    shape = find_shape("Qwen/Qwen2.5-1.5B", key="m")
    found = shape_of(Skeleton(shape.config, torch.bfloat16))
    expected = llama_shape(known_shapes()["Qwen/Qwen2.5-1.5B"])
    assert sum(p.weights for p in found.body) == sum(p.weights for p in expected.body)
    assert found.head == expected.head and found[2:] == expected[2:]


# ---------------------------------------------------------------------- batches and plans


def test_batches_are_those_of_the_run(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "m")
    rows = write_rows(tmp_path / "pairs.jsonl", pairs(40))
    words = ["--model", str(folder), "--dataset", str(rows), "--token-budget", "60"]
    words += ["--per-device-train-batch-size", "8", "--cache-dir", str(tmp_path / "cache")]
    found = plan(resolve("dpo", [*words, "--precision", "fp32"], env={})).batches
    assert found.steps == 5 and len(found.rows) == 5
    assert sum(map(len, found.rows)) == 40
    assert found.source.startswith("40 trees of its rows; all batches")

    class Lengths:  # what split_by_tokens reads of a tree
        def __init__(self, count: int) -> None:
            self.token_count = count

    runs = [
        [tree.token_count for tree in run]
        for step in found.rows
        for run in split_by_tokens([Lengths(tree.tokens) for tree in step], 60)  # type: ignore
    ]
    ours = [[tree.tokens for tree in run] for step in found.rows for run in split(step, 60)]
    assert ours == runs
    assert tokens(found.largest) == max(map(sum, runs)) <= 60
    assert found.per_step == len(runs) / 5


def test_the_self_checks_longest_row_counts(tmp_path: Path) -> None:
    rows = [*pairs(6), {**pairs(1)[0], "chosen": "the cat sees the red dog " * 9}]
    words = ["--model", str(save_tiny_model(tmp_path / "m")), "--precision", "fp32"]
    words += ["--dataset", str(write_rows(tmp_path / "rows.jsonl", rows)), "--no-shuffle"]
    words += ["--per-device-train-batch-size", "2", "--max-steps", "1"]
    words += ["--cache-dir", str(tmp_path / "cache")]
    checked = batches_of(resolve("dpo", words, env={}))
    plain = batches_of(resolve("dpo", [*words, "--no-self-check"], env={}))
    assert len(checked.largest) == 1 and tokens(checked.largest) > tokens(plain.largest)
    assert len(plain.largest) == 2 and checked.rows == plain.rows


def batches_of(resolved: Any) -> Any:
    return plan(resolved).batches


def test_a_recipe_that_does_not_fit_is_told_what_would(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("trimtab.plan.time.gemm_rate", lambda *_, **__: 60.0)
    monkeypatch.setattr(module, "_room", lambda _: 1000)
    folder = save_tiny_model(tmp_path / "m")
    rows = write_rows(tmp_path / "pairs.jsonl", pairs(20))
    words = ["dpo", "--model", str(folder), "--dataset", str(rows), "--token-budget", "200"]
    words += ["--precision", "fp32", "--cache-dir", str(tmp_path / "cache")]
    assert main(["plan", *words, "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    memory, told = found["memory"], {one["change"]: one["total"] for one in found["remedies"]}
    assert found["fits"] is False and found["weights"] == found["trained"]
    assert memory["parts"]["optimizer"] == 8 * found["weights"]
    assert told.pop(f"{TIGHT} in the environment (slower)") == memory["tight"] + LIBRARIES
    assert list(told) == [
        *sorted(list(told)[:-1], key=lambda change: told[change]),
        "precision=bf16 use_peft=true token_budget=50",
    ]
    assert {change.partition("=")[0] for change in list(told)[:-1]} == {
        *("precision", "use_peft", "token_budget")  # of two layers, running one again saves none
    }
    assert all(total < memory["total"] for total in told.values())


@pytest.mark.slow
def test_a_large_recipe(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)  # recipes/ are those that are shipped
    monkeypatch.setattr("trimtab.plan.time.gemm_rate", lambda *_, **__: 60.0)
    monkeypatch.setattr(module, "_room", lambda _: 16 * 10**9)
    assert main(["plan", "recipes/large/llama-7b-sft-lora.yaml", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["weights"], found["trained"]) == (6_778_392_576, 39_976_960)
    assert found["memory"]["parts"]["weights"] == 2 * 6_778_392_576
    assert found["memory"]["parts"]["optimizer"] == 8 * 39_976_960
    assert "every row is taken to be as long as the recipe allows (1024 tokens)" in found["batches"]
    assert {one["change"]: one["total"] for one in found["remedies"]}["token_budget=1024"] < 16e9


def test_a_plan_for_people(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("trimtab.plan.time.gemm_rate", lambda *_, **__: 60.0)
    monkeypatch.setenv("COLUMNS", "200")
    folder = save_tiny_model(tmp_path / "m")
    rows = write_rows(tmp_path / "pairs.jsonl", pairs(20))
    words = ["dpo", "--model", str(folder), "--dataset", str(rows), "--precision", "fp32"]
    assert main(["plan", *words, "--cache-dir", str(tmp_path / "cache")]) == 0
    text = capsys.readouterr().out
    assert "20 trees of its rows; all batches were looked at" in text
    assert "fits: " in text and " free here" in text
    assert "for 1 steps: " in text and "for reference log-probs, once (cached)" in text


def test_the_verb(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "x.yaml"
    file.write_text("model: m\ndataset: d\n")
    for words, message in (
        ([str(file)], "does not say which verb it is for; trimtab plan VERB"),
        (["dop", str(file)], "give a verb or a recipe first, e.g. trimtab plan recipe.yaml. Did"),
        (["nothing.yaml"], "nothing.yaml: no such recipe file"),
        (["dpo", str(file), "--bta", "1"], "bta: unknown key"),
        (
            ["recipes/tiny/dpo.yaml"],
            "model_name_or_path='runs/tiny/sft': no such folder; recipes/"
            "tiny/sft.yaml makes it: run that first (recipes/tiny/dpo.yaml:7)",
        ),
    ):
        assert main(["plan", *words]) == 2
        assert message in capsys.readouterr().err
    assert main(["plan", "--help"]) == 0
    assert capsys.readouterr().out.startswith("Usage: trimtab plan [VERB] [recipe.yaml]")


def test_a_comparison_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.yaml").write_text("methods: {dpo: {verb: dpo}}\n")
    words = [["recipes/compare/tiny.yaml"], ["compare/tiny"], ["own.yaml"]]
    for given in (*words, ["compare", "own.yaml"], ["compare"], ["compare", "--json"]):
        assert main(["plan", *given]) == 2
        recipe = given[-1] if given[-1].endswith(("yaml", "tiny")) else "RECIPE"
        assert capsys.readouterr().err == (
            "trimtab: plan: takes the recipe of one run, and a comparison is many: trimtab compare "
            f"{recipe} --dry-run lists them\n"
        )


def test_every_shipped_recipe_is_known_to_plan() -> None:
    """Verb and keys, in little time; the plans themselves are below."""
    for one in RECIPES:
        if one.verb == COMPARE:
            with pytest.raises(UsageError, match="a comparison is many"):
                _verb([str(one.path)])
        else:
            verb, rest = _verb([f"recipes/{one.name}.yaml"])
            assert resolve(verb, rest, env={}).verb == one.verb


@pytest.mark.slow
@pytest.mark.parametrize(
    "one", [one for one in RECIPES if one.verb != COMPARE], ids=lambda one: one.name
)
def test_every_shipped_recipe_has_a_plan(one: Any) -> None:
    if one.name.startswith(("tiny/sft", "tiny/dpo")):
        pytest.skip("its model is what the recipe before it makes")
    found = plan(resolve(one.verb, [str(one.path)], env={}))
    assert found.memory.peak > found.weights * 2
    assert found.duration.step > 0
