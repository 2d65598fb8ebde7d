"""One run of trimtab, through the path that the command line takes, timed step by step.

python -m benchmarks.trimtab_side JOB.json
"""

from __future__ import annotations

import json
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.measure import LOGGED, Recorder, emit

PATHS = ("output_dir", "cache_dir", "model_name_or_path", "dataset_name")


def common_keys(job: dict[str, Any]) -> dict[str, Any]:
    """Keys of a recipe that every verb has, and the case's own."""
    return {
        "model_name_or_path": job["model"],
        "dataset_name": job["data"],
        "output_dir": str(Path(job["scratch"]) / "run"),
        "cache_dir": str(Path(job["scratch"]) / "cache"),
        "precision": job["arm"]["precision"],
        "threads": job["threads"],
        "device": job["device"],
        "max_steps": job["steps"],
        "per_device_train_batch_size": job["batch"],
        "token_budget": job["token_budget"],
        "learning_rate": job["learning_rate"],
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
        "weight_decay": 0.0,
        "max_grad_norm": job["max_grad_norm"],
        "shuffle": False,
        "seed": job["seed"],
        "logging_steps": 1,
        "save_steps": None,
        "sample_prompts": 0,
        **job["keys"],
    }


def recipe_keys(job: dict[str, Any]) -> dict[str, Any]:
    """The job as keys of a recipe. What is not named is the verb's default."""
    keys = common_keys(job)
    if job["verb"] == "pretrain":
        keys["context_length"] = job["max_length"]
    else:
        keys["max_length"] = job["max_length"]
    if job["arm"].get("lora"):
        keys |= {"use_peft": True, "lora_r": job["lora"]["r"], "lora_alpha": job["lora"]["alpha"]}
    return keys


def instrument(recorder: Recorder, loops: list[Any]) -> None:
    """Time every step and the reference pass from outside; what is computed stays as it is."""
    from trimtab.algorithms.reference import ReferenceCache
    from trimtab.training.loop import Loop

    step, compute = Loop.train_step, ReferenceCache.compute

    def timed_step(self: Any) -> None:
        loops[:] = [self]
        recorder.begin()
        step(self)
        recorder.end()

    def timed_compute(self: Any, policy: Any, stream: Any, rows: Any, *rest: Any) -> Any:
        start = time.perf_counter()
        found = compute(self, policy, stream, rows, *rest)
        recorder.reference_seconds += time.perf_counter() - start
        recorder.reference_rows += len(set(rows))
        return found

    Loop.train_step = timed_step
    ReferenceCache.compute = timed_compute  # type: ignore[method-assign]


def trees_of(loop: Any, steps: int) -> list[list[dict[str, Any]]]:
    """The trees of every step as lengths, for the count of useful operations."""
    from trimtab.data.batch import pack

    stream = loop.algorithm.stream
    found: list[list[dict[str, Any]]] = []
    for step in range(steps):
        trees = [stream.tree(row) for row in stream.rows(step)]
        found.append(
            [
                {
                    "trunk": len(tree.trunk.ids),
                    "branches": [len(branch.ids) for branch in tree.branches],
                    "targets": pack([tree]).predictor.unique().numel(),
                    "trained": tree.trained_count,
                }
                for tree in trees
            ]
        )
    return found


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    recorder = Recorder(job["started"])

    import torch

    from trimtab import __version__
    from trimtab.algorithms.run import train
    from trimtab.config.resolve import recipe_from_kwargs
    from trimtab.training.metrics import read_metrics

    recorder.imported()
    if job["device"] == "cuda":
        recorder.accelerator = torch.cuda
    loops: list[Any] = []
    instrument(recorder, loops)
    keys = recipe_keys(job)
    resolved = recipe_from_kwargs(job["verb"], env={}, quiet=True, **keys)
    run = train(resolved, command=["trimtab", job["verb"]])
    records = [r for r in read_metrics(run.output_dir / "metrics.jsonl") if "loss" in r]
    trees = trees_of(loops[0], job["steps"])
    dtype = next(loops[0].algorithm.model.parameters()).dtype
    emit(
        {
            **recorder.result(),
            "precision": "bf16" if dtype == torch.bfloat16 else "fp32",
            "rows": [len(step) for step in trees],
            "trees": trees,
            "log": [{k: r[k] for k in LOGGED if k in r} for r in records],
            # Paths are those of the scratch folder, and say nothing.
            "settings": {k: v for k, v in keys.items() if k not in PATHS},
            "threads": torch.get_num_threads(),
            "versions": {"trimtab": __version__}
            | {n: version(n) for n in ("torch", "transformers", "peft")},
        }
    )


if __name__ == "__main__":
    main()
