"""The memory of a plan: how its parts make the total, and what runs really take."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.plan.test_plan import config_of
from tests.tiny_runs import answers, make_tokenizer, pairs, write_rows

from trimtab.config.resolve import resolve
from trimtab.models.build import model_from_config
from trimtab.models.save import save_model
from trimtab.plan import memory
from trimtab.plan import plan as module
from trimtab.plan.batches import Batches
from trimtab.plan.flops import Tree
from trimtab.plan.memory import TIGHT
from trimtab.plan.skeleton import Skeleton
from trimtab.plan.trace import Work


def test_the_total_is_what_stands_the_worst_moment_a_fifth_of_it_and_the_libraries(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The rule of docs/plan.md, its numbers written out: 1.2 of the worst moment, not of the sum.

    Rejected: another factor, a factor on all of it, moments that add up, no libraries.
    """
    kept, work, reading = 50_000_000, 7_000_000, 30_000_000
    monkeypatch.setattr(memory, "training_work", lambda *_, **__: Work(kept, work))
    monkeypatch.setattr(memory, "reading_work", lambda *_: reading)
    trees = [Tree(20, (30, 10), 40)]
    batches = Batches(1, [trees] * 2, [trees] * 4, 2.0, trees, trees, "made up")
    recipe = resolve("dpo", ["--model", "m", "--dataset", "d"], env={}).recipe
    policy = Skeleton(config_of("llama"), torch.float32)
    found = memory.memory_of(recipe, memory.Models(policy), batches)
    weights = policy.counts[0]
    logits = 40 * 300 * 4
    head = 300 * 64 * 4 + logits  # a gradient of the output head, and one chunk
    assert found.parts == {"weights": 4 * weights, "optimizer": 8 * weights}
    assert found.moments == {
        "training": {
            **{"activations": kept, "work": max(work, head), "logits": logits},
            "gradients": 4 * weights,
        },
        "reading": {"activations": reading, "logits": 2 * logits},
    }
    assert found.worst == "training"
    moment = kept + work + logits + 4 * weights
    standing = 12 * weights + 15_000_000 + 1250 * 300  # and rows, and the tokenizer
    assert found.tight == standing + moment
    assert found.peak == pytest.approx(standing + 1.2 * moment, abs=1)
    assert found.total == pytest.approx(standing + 1.2 * moment + 420_000_000, abs=1)


# ---------------------------------------------------------------------- against a run

MEASURE = """
import json, sys
from pathlib import Path
import peft, torch
import transformers.models.llama.modeling_llama
import trimtab.algorithms.run
from trimtab.cli import main
def status(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))
torch.randn(64, 64) @ torch.randn(64, 64)
Path("/proc/self/clear_refs").write_text("5")
before = status("VmRSS")
assert main(sys.argv[1:]) == 0
print(status("VmHWM") - before)
"""


def measured(words: list[str]) -> int:
    """Peak of the resident set over what the libraries take, of a run in its own process.

    Under the setting that keeps the C allocator from holding freed blocks: what it holds depends
    on the sequence of sizes, and is measured in docs/plan.md.
    """
    name, _, value = TIGHT.partition("=")
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *words],
        env={**os.environ, "OMP_NUM_THREADS": "1", name: value},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split()[-1])


ROWS: dict[str, Callable[[], list[dict[str, Any]]]] = {
    "sft": lambda: [{**row, "completion": longer(row["completion"])} for row in answers(24)],
    "grpo": lambda: [{"prompt": row["prompt"]} for row in answers(24)],
}
LARGE = ["--token-budget", "3000"]
SAMPLED = [
    *("--token-budget", "400", "--num-generations", "2", "--max-completion-length", "120"),
    *("--reward-funcs", "length(target=40)"),
]


def words_of(verb: str, tmp_path: Path) -> list[str]:
    """A model of some 3 M weights on rows of some 100 tokens: a few hundred MB.

    The one that samples has many narrow layers: its keys and values are most of its memory.
    """
    rows = ROWS.get(verb, longer_pairs)()
    folder = tmp_path / "model"
    save_wide_model(folder, *((12, 64) if verb == "grpo" else (4, 704)))
    return [
        *(verb, "--model", str(folder), "--precision", "fp32", "--max-steps", "1"),
        *("--dataset", str(write_rows(tmp_path / "rows.jsonl", rows))),
        *("--per-device-train-batch-size", "24", *(SAMPLED if verb == "grpo" else LARGE)),
        *("--sample-prompts", "0", "--quiet", "--cache-dir", str(tmp_path / "cache")),
        *("--output-dir", str(tmp_path / "run")),
    ]


def longer(text: str) -> str:
    return " ".join([text] * 8)


def longer_pairs() -> list[dict[str, Any]]:
    return [
        {**row, **{name: longer(row[name]) for name in ("chosen", "rejected")}} for row in pairs(24)
    ]


def save_wide_model(folder: Path, layers: int, inner: int) -> None:
    tokenizer = make_tokenizer()
    sizes = {
        "hidden_size": 256,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 256,
    }
    more = {"vocab_size": len(tokenizer), "seed": 0, "dtype": torch.float32}
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos")}
    save_model(model_from_config("llama", sizes, **more, **ids), tokenizer, folder)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, and sets glibc's allocator")
@pytest.mark.parametrize(
    ("verb", "more", "worst"),
    [
        ("sft", [], "training"),
        ("dpo", [], "training"),
        ("dpo", ["--use-peft"], "training"),
        ("simpo", [], "training"),
        ("reward", [], "training"),
        ("grpo", [], "sampling"),  # keys and values of 48 running responses
    ],
)
def test_a_run_takes_what_was_planned(
    verb: str, more: list[str], worst: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "duration_of", lambda *_: None)  # it takes seconds
    words = [*words_of(verb, tmp_path), *more]
    found = module.plan(resolve(words[0], words[1:], env={})).memory
    assert found.worst == worst
    assert found.tight < found.peak
    assert found.tight == pytest.approx(measured(words), rel=0.15)
