"""What ``trimtab plan`` says against what runs take: memory and time, as a table.

    python -m benchmarks.plan --data FOLDER --output FILE.json [--cases NAME ... | large]

Every case is planned and then run for a few steps, in processes of their own. Measured is the
peak of the process's own memory less what it was when Python and all libraries were loaded (Linux:
RssAnon, looked at every 20 ms; ``resident`` is VmHWM less VmRSS, in which pages of the weights'
file count, too, though the system may take them back at any time), and the seconds of a training
step as the run's own log has them. ``large``
stands for models of 1.5 and 7 B weights, drawn at random in bf16 (16 GB of disk, some minutes).
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

from benchmarks.measure import emit
from benchmarks.models import ensure, folder

NINE, SMOL = "llama-9m", "smollm2-135m"
_FILES = {
    "sft": "sft.jsonl",
    "dpo": "preference.jsonl",
    "simpo": "preference.jsonl",
    "orpo": "preference.jsonl",
    "reward": "preference.jsonl",
    "ppo": "preference.jsonl",
    "grpo": "preference.jsonl",
}
_COMMON = ["--max-train-rows", "400", "--sample-prompts", "0", "--logging-steps", "1", "--quiet"]
_ROWS = ["--max-length", "512", "--precision", "fp32"]
_PROMPTS = ["--max-prompt-length", "256", "--precision", "fp32", "--max-completion-length", "64"]
_PROMPTS += ["--reward-funcs", "length(target=40)"]

CASES: dict[str, tuple[str, str, list[str]]] = {
    "sft-9m": ("sft", NINE, [*_ROWS, "--max-steps", "6"]),
    "dpo-9m": ("dpo", NINE, [*_ROWS, "--max-steps", "4", "--per-device-train-batch-size", "16"]),
    "simpo-9m": (
        "simpo", NINE, [*_ROWS, "--max-steps", "4", "--per-device-train-batch-size", "16"]
    ),
    "orpo-9m": ("orpo", NINE, [*_ROWS, "--max-steps", "6"]),
    "reward-9m": (
        "reward", NINE, [*_ROWS, "--max-steps", "4", "--per-device-train-batch-size", "16"]
    ),
    "ppo-9m": ("ppo", NINE, [*_PROMPTS, "--max-steps", "8", "--per-device-train-batch-size", "32"]),
    "grpo-9m": (
        "grpo", NINE, [*_PROMPTS, "--max-steps", "2", "--per-device-train-batch-size", "8"]
    ),
    "dpo-9m-lora": (
        "dpo", NINE,
        [*_ROWS, "--max-steps", "4", "--per-device-train-batch-size", "16", "--use-peft"],
    ),
    "sft-smollm2": ("sft", SMOL, [*_ROWS, "--max-steps", "3", "--token-budget", "2048"]),
    "sft-smollm2-lora": (
        "sft", SMOL, [*_ROWS, "--max-steps", "3", "--token-budget", "2048", "--use-peft"]
    ),
    "dpo-smollm2": (
        "dpo", SMOL,
        ["--max-length", "256", "--precision", "fp32", "--max-steps", "2", "--token-budget",
         "1024", "--per-device-train-batch-size", "4"],
    ),
    "grpo-smollm2": (
        "grpo", SMOL,
        [*_PROMPTS, "--max-steps", "2", "--token-budget", "2048",
         "--per-device-train-batch-size", "2", "--num-generations", "4"],
    ),
}  # fmt: skip

QWEN, LLAMA = "Qwen/Qwen2.5-1.5B", "meta-llama/Llama-2-7b-hf"
_LORA = ["--use-peft", "--lora-r", "16", "--max-steps", "1", "--per-device-train-batch-size", "1"]
LARGE: dict[str, tuple[str, str, list[str]]] = {
    "sft-1.5b-lora": (
        "sft", QWEN,
        [*_LORA, "--max-length", "512", "--token-budget", "1024", "--precision", "fp32"],
    ),
    "dpo-1.5b-lora": (
        "dpo", QWEN,
        [*_LORA, "--max-length", "256", "--token-budget", "512", "--precision", "fp32"],
    ),
    "sft-7b-lora": (
        "sft", LLAMA,
        [*_LORA, "--max-length", "16", "--max-prompt-length", "8", "--precision", "bf16",
         "--gradient-checkpointing", "--no-self-check"],
    ),
}  # fmt: skip


def place_of(model: str) -> Path:
    """The folder of a model, of models.json or of a shape that trimtab knows."""
    return folder(model) if "/" not in model else folder(NINE).parent / Path(model).name


def draw(name: str) -> None:
    """Make a folder of the shape ``name`` with random weights and the 9 M model's tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM

    from trimtab.models.load import load_tokenizer
    from trimtab.plan.shapes import find_shape

    place = place_of(name)
    if (place / "config.json").exists():
        return
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(
            find_shape(name, key="model").config, dtype=torch.bfloat16
        )
    model = model.to_empty(device="cpu")
    # A tile of random numbers, over and over: billions of draws would take longer than the run.
    tile = 0.02 * torch.randn(1_000_003, generator=torch.Generator().manual_seed(0))
    tile = tile.to(torch.bfloat16)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.data.fill_(1.0)
            continue
        for part in parameter.data.view(-1).split(len(tile)):
            part.copy_(tile[: len(part)])
    model.tie_weights()
    model.save_pretrained(place)
    load_tokenizer(folder(NINE)).save_pretrained(place)


def words_of(name: str, data: Path, output: Path) -> list[str]:
    """The command line of a case, without ``trimtab``."""
    verb, model, more = (CASES | LARGE)[name]
    rows = ["--dataset-name", str(data / _FILES[verb])]
    if verb in ("ppo", "grpo"):
        # Prompts alone, made of the pairs'.
        made = output.parent / "prompts.jsonl"
        if not made.exists():
            lines = (data / _FILES[verb]).read_text().splitlines()[:400]
            prompts = [{"prompt": json.loads(line)["prompt"]} for line in lines]
            made.write_text("".join(json.dumps(row) + "\n" for row in prompts))
        rows = ["--dataset-name", str(made)]
    places = ["--output-dir", str(output), "--cache-dir", str(output.parent / "cache")]
    return [verb, "--model", str(place_of(model)), *rows, *more, *_COMMON, *places]


def child(words: list[str]) -> None:
    """Run a command line in this process and print what it took."""
    import peft  # noqa: F401 - loaded before anything is measured
    import torch
    import transformers.models.llama.modeling_llama  # noqa: F401
    from transformers import AutoModelForCausalLM  # noqa: F401

    import trimtab.algorithms.run
    from trimtab.cli import main as trimtab

    _ = torch.randn(64, 64) @ torch.randn(64, 64)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before, anonymous = _status("VmRSS"), _status("RssAnon")
    with _Peak("RssAnon") as peak:
        code = trimtab(words)
    assert code == 0, code
    resident = _status("VmHWM") - before
    emit({"peak": peak.most - anonymous, "resident": resident, "libraries": before})


class _Peak:
    """The most of one line of /proc/self/status, looked at from a thread."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.most = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        while not self._over.wait(0.02):
            self.most = max(self.most, _status(self.name))

    def __enter__(self) -> _Peak:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def _run(*words: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, check=False, env=os.environ
    )
    if done.returncode not in (0, 1) or not done.stdout.strip():
        raise RuntimeError(f"{' '.join(words)}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def measure(name: str, data: Path) -> dict[str, Any]:
    """Plan a case and run it."""
    with tempfile.TemporaryDirectory() as scratch:
        output = Path(scratch) / "run"
        words = words_of(name, data, output)
        planned = _run("-m", "trimtab", "plan", *words, "--json")
        taken = _run("-m", "benchmarks.plan", "--child", *words)
        print(json.dumps({"case": name, **taken}), file=sys.stderr, flush=True)  # minutes, maybe
        rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
        taken["step"] = _step_seconds(rows, planned["time"]["rollout_steps"])
    time = planned["time"]
    return {
        "case": name,
        "planned": planned["memory"]["peak"],
        "measured": taken["peak"],
        "ratio": planned["memory"]["peak"] / taken["peak"],
        "worst": planned["memory"]["worst"],
        "resident": taken["resident"],
        "libraries": taken["libraries"],
        "planned_step": time["step"] + time["rollout"] / time["rollout_steps"],
        "measured_step": taken["step"],
        "share": time["share"],
        "parts": planned["memory"],
    }


def _step_seconds(rows: list[dict[str, Any]], together: int) -> float | None:
    """Mean seconds of a step, by the run's own log: of all but the first rollout's steps.

    ``together`` steps have a rollout in common, 1 off policy; None where there is no second time.
    The steps that were timed may have other rows than the average: seconds are per token. A step
    that was the only one stands for itself: of a large model it is minutes.
    """
    logged = [row for row in rows if "loss" in row]
    if len(logged) == together == 1:
        return logged[0]["num_tokens"] / logged[0]["time/tokens_per_second"]
    pairs = itertools.pairwise(logged)
    tokens = [new["num_tokens"] - old["num_tokens"] for old, new in pairs]
    timed = [
        (count, count / row["time/tokens_per_second"])
        for count, row in zip(tokens, logged[1:], strict=True)
    ][together - 1 :]
    timed = timed[: len(timed) // together * together]
    if not timed:
        return None
    per_token = sum(seconds for _, seconds in timed) / sum(count for count, _ in timed)
    return per_token * logged[-1]["num_tokens"] / len(logged)


def table(found: list[dict[str, Any]]) -> str:
    """Markdown."""
    lines = [
        "| case | planned | measured | planned / measured | a step, planned | measured | ratio |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in found:
        step, taken = one["planned_step"], one["measured_step"]
        times = f"{step:.2f} s | {taken:.2f} s | {step / taken:.2f}" if taken else "- | - | -"
        lines.append(
            f"| {one['case']} | {one['planned'] / 1e6:,.0f} MB | {one['measured'] / 1e6:,.0f} MB "
            f"| {one['ratio']:.2f} | {times} |"
        )
    return "\n".join(lines)


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    every = [*CASES, *LARGE, "large"]
    parser.add_argument("--cases", nargs="*", default=list(CASES), choices=every)
    options = parser.parse_args()
    cases = [one for name in options.cases for one in (LARGE if name == "large" else [name])]
    for model in sorted({NINE} | {CASES[name][1] for name in cases if name in CASES}):
        ensure(model, options.data)
    for model in sorted({LARGE[name][1] for name in cases if name in LARGE}):
        draw(model)
    found: list[dict[str, Any]] = []
    for name in cases:
        found.append(measure(name, options.data))
        print(json.dumps({k: v for k, v in found[-1].items() if k != "parts"}), flush=True)
        options.output.write_text(json.dumps(found, indent=1) + "\n")
    print(table(found))


if __name__ == "__main__":
    main()
