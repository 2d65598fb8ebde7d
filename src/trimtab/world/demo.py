"""``trimtab demo``: the ladder on a laptop, in one process: tokenizer, pretrain, sft, dpo.

Text, demonstrations and preferences come from the world in this package, so that the gold reward
of every model's stories can be computed exactly, on requests that no training row combines.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trimtab.errors import UsageError
from trimtab.world.corpus import (
    held_out_requests,
    judged_pairs,
    pretrain_documents,
    sft_rows,
    train_requests,
    write_jsonl,
)
from trimtab.world.gold import gold_reward


@dataclasses.dataclass(frozen=True)
class Size:
    """How much of everything the demo takes."""

    documents: int
    pretrain_steps: int
    demonstrations: int
    sft_steps: int
    asked: int
    dpo_steps: int
    requests: int


FULL = Size(4000, 210, 1500, 50, 180, 40, 48)
FAST = Size(1200, 60, 300, 15, 48, 8, 16)
SAMPLES = 4  # stories on each request that pairs are made of

WHAT = {
    "pretrain": "a model of 1 M parameters learns to continue text, with a tokenizer made for it",
    "sft": "it learns to answer: only the story is trained, given the request",
    "dpo": "it learns which of its own stories people prefer, measured against itself before",
}


def run_demo(*, output_dir: str, seed: int = 0, fast: bool = False) -> int:
    """Run the demo into ``output_dir``; returns the exit code. A finished demo is refused."""
    folder = Path(output_dir)
    if (folder / "summary.json").exists():
        raise UsageError(
            f"output_dir={folder}: holds a finished demo; remove it, or give another --output-dir"
        )
    start = time.perf_counter()
    size = FAST if fast else FULL
    _same_settings(folder, {"seed": seed, "fast": fast})
    _say(f"trimtab demo: three rungs of the ladder into {folder}, seed {seed}")
    data = _write_data(folder / "data", size, seed)
    from trimtab.algorithms.run import train
    from trimtab.config.resolve import recipe_from_kwargs

    models: dict[str, Path] = {}
    for number, (verb, keys) in enumerate(_stages(folder, data, size, seed).items(), 1):
        _say(f"\n[{number}/3] {verb}: {WHAT[verb]}")
        if _finished(folder / verb):
            _say("done in an earlier start")
            models[verb] = folder / verb
            continue
        if verb == "dpo" and not Path(data["pairs_eval"]).exists():
            _write_pairs(data, models["sft"], size, seed)
        command = ["trimtab", "demo", "--output-dir", str(folder), "--seed", str(seed)]
        result = train(recipe_from_kwargs(verb, **keys), command=command)
        if result.interrupted:
            _say("stopped; the same command goes on from there")
            return 130
        models[verb] = result.output_dir
    _say("\nasking each model for stories about things that no training row combined ...")
    asked = held_out_requests(size.requests, seed)
    told = {verb: _stories(path, asked, seed) for verb, path in models.items()}
    summary = _summary(told, seed, time.perf_counter() - start)
    for line in _table(summary, told):
        _say(line)
    (folder / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    _say(
        f"\n{summary['seconds']:.0f} s. Look at {folder / 'dpo' / 'README.md'} and metrics.jsonl "
        f"beside it. Next, your own pairs:\n  trimtab dpo --model-name-or-path {folder / 'sft'} "
        "--dataset-name my_pairs.jsonl --output-dir runs/mine"
    )
    return 0


def _finished(run: Path) -> bool:
    record = run / "run.json"
    return record.exists() and json.loads(record.read_text())["state"] == "finished"


def _same_settings(folder: Path, settings: dict[str, Any]) -> None:
    """A folder holds one demo: refuse to go on with another seed or size."""
    path = folder / "demo.json"
    if path.exists() and json.loads(path.read_text()) != settings:
        raise UsageError(
            f"output_dir={folder}: holds an unfinished demo with {path.read_text().strip()}; "
            "remove it, give the same options, or another --output-dir"
        )
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(settings) + "\n")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _write_data(folder: Path, size: Size, seed: int) -> dict[str, str]:
    """The world's rows as files, as a user would bring them."""
    folder.mkdir(parents=True, exist_ok=True)
    rows: dict[str, Sequence[Any]] = {
        "text": [{"text": text} for text in pretrain_documents(size.documents, seed)],
        "answers": sft_rows(size.demonstrations, seed),
        "text_eval": [{"text": text} for text in pretrain_documents(64, seed + 1)],
        "answers_eval": sft_rows(64, seed, split="held_out"),
    }
    found: dict[str, str] = {}
    for name, part in rows.items():
        path = folder / f"{name}.jsonl"
        write_jsonl(path, part)
        found[name] = str(path)
    for name in ("pairs", "pairs_eval"):
        found[name] = str(folder / f"{name}.jsonl")
    return found


def _write_pairs(data: dict[str, str], model: Path, size: Size, seed: int) -> None:
    """Pairs of the model's own stories, compared by a simulated annotator."""
    _say(f"asking it for {SAMPLES} stories on each of {size.asked} requests, and judging them ...")
    for name, requests in (
        ("pairs", train_requests(size.asked, seed)),
        ("pairs_eval", held_out_requests(size.requests, seed + 1)),
    ):
        asked = [request for request in requests for _ in range(SAMPLES)]
        told = [story for _, story in _stories(model, asked, seed)]
        samples = [told[i : i + SAMPLES] for i in range(0, len(told), SAMPLES)]
        write_jsonl(data[name], judged_pairs(requests, samples, seed))


def _stages(folder: Path, data: dict[str, str], size: Size, seed: int) -> dict[str, dict[str, Any]]:
    """The recipes, as keys of the verbs."""
    common: dict[str, Any] = {
        "seed": seed,
        "precision": "fp32",
        "eval_steps": None,
        "sample_prompts": 1,
        "sample_max_new_tokens": 48,
        "save_total_limit": 1,
        "cache_dir": str(folder / "cache"),
    }
    return {
        "pretrain": {
            **common,
            "dataset_name": data["text"],
            "eval_dataset_name": data["text_eval"],
            "new_tokenizer": {"vocab_size": 1024},
            "new_model": {
                "hidden_size": 128,
                "num_hidden_layers": 4,
                "max_position_embeddings": 512,
            },
            "context_length": 160,
            "per_device_train_batch_size": 16,
            "learning_rate": 3e-3,
            "max_steps": size.pretrain_steps,
            "logging_steps": 20,
            "output_dir": str(folder / "pretrain"),
        },
        "sft": {
            **common,
            "model_name_or_path": str(folder / "pretrain"),
            "dataset_name": data["answers"],
            "eval_dataset_name": data["answers_eval"],
            "max_length": 320,
            "per_device_train_batch_size": 16,
            "learning_rate": 1e-3,
            "max_steps": size.sft_steps,
            "output_dir": str(folder / "sft"),
        },
        "dpo": {
            **common,
            "model_name_or_path": str(folder / "sft"),
            "dataset_name": data["pairs"],
            "eval_dataset_name": data["pairs_eval"],
            "max_length": 320,
            "per_device_train_batch_size": 16,
            "learning_rate": 1e-4,
            "beta": 0.1,
            "nll_weight": 0.5,
            "max_steps": size.dpo_steps,
            "output_dir": str(folder / "dpo"),
        },
    }


def _stories(
    model: Path, requests: Sequence[str], seed: int, batch: int = 64
) -> list[tuple[str, str]]:
    """(request, story) for each request, sampled at temperature 1 under the demo's seed."""
    import torch

    from trimtab.data.chat import ChatRenderer
    from trimtab.models.load import load_model, load_tokenizer
    from trimtab.training.seeds import derive

    tokenizer = load_tokenizer(model)
    policy: Any = load_model(model, dtype=torch.float32)
    renderer = ChatRenderer(tokenizer)
    found: list[tuple[str, str]] = []
    torch.manual_seed(derive(seed, "demo stories"))
    for first in range(0, len(requests), batch):
        chunk = requests[first : first + batch]
        prompts = [renderer.prompt_ids(request) for request in chunk]
        width = max(map(len, prompts))
        ids = torch.tensor([[0] * (width - len(p)) + list(p) for p in prompts])
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
        stops = sorted(renderer.stop_ids)
        with torch.no_grad():
            out = policy.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=140,
                do_sample=True,
                temperature=1.0,
                top_k=0,
                eos_token_id=stops,
                pad_token_id=stops[0],
            )
        stories = tokenizer.batch_decode(out[:, width:], skip_special_tokens=True)
        found += list(zip(chunk, stories, strict=True))
    return found


def _summary(told: dict[str, list[tuple[str, str]]], seed: int, seconds: float) -> dict[str, Any]:
    """Gold reward of each model's stories, with 95 % intervals over requests."""
    import numpy as np

    from trimtab.evaluation.statistics import mean_interval

    models: dict[str, Any] = {}
    for verb, stories in told.items():
        scores = np.array([gold_reward(request, story).total for request, story in stories])
        interval = mean_interval(scores)
        models[verb] = {
            "gold_reward": interval.mean,
            "gold_reward_ci95": [interval.low, interval.high],
            "stories": interval.n,
        }
    return {"seed": seed, "seconds": round(seconds, 1), "models": models}


def _table(summary: dict[str, Any], told: dict[str, list[tuple[str, str]]]) -> list[str]:
    lines = ["", "gold reward of stories on held-out requests (0 to 1, 95 % interval):"]
    for verb, found in summary["models"].items():
        low, high = found["gold_reward_ci95"]
        lines.append(f"  {verb:<9} {found['gold_reward']:.3f}  [{low:.3f}, {high:.3f}]")
    lines.append("\nthe same request before and after:")
    request = told["sft"][0][0]
    lines.append(f"  request: {request.strip()}")
    for verb, stories in told.items():
        lines.append(f"  {verb:<9} {stories[0][1].strip()[:300]}")
    return lines
