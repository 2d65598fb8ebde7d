"""Tiny models and files, and whole runs on them: what the tests of stages share."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from tests import tiny_runs
from transformers import AutoTokenizer

import trimtab
from trimtab.algorithms.run import RunResult
from trimtab.catalogue.metrics import metric_of
from trimtab.training.metrics import read_metrics, without_timings


class World:
    """Models and data files; ``run`` trains on them for three steps of four rows."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.count = 0
        for seed, name in enumerate(("model", "other")):
            tiny_runs.save_tiny_model(root / name, seed=seed)
        for name, make in (
            ("texts", tiny_runs.texts),
            ("answers", tiny_runs.answers),
            ("pairs", tiny_runs.pairs),
            ("labelled", tiny_runs.labelled),
            ("rankings", tiny_runs.rankings),
            ("scored", tiny_runs.scored),
            ("reviews", tiny_runs.reviews),
        ):
            tiny_runs.write_rows(root / f"{name}.jsonl", make(12))
            tiny_runs.write_rows(root / f"{name}_held.jsonl", make(5, 50))

    def rows(self, name: str) -> dict[str, str]:
        """Training and held-out rows as recipe keys."""
        return {
            "dataset_name": str(self.root / f"{name}.jsonl"),
            "eval_dataset_name": str(self.root / f"{name}_held.jsonl"),
        }

    def keys(self, data: str, **keys: Any) -> dict[str, Any]:
        """Recipe keys of a run in a folder of its own."""
        self.count += 1
        common: dict[str, Any] = {
            "model_name_or_path": str(self.root / "model"),
            "output_dir": str(self.root / f"run-{self.count}"),
            "cache_dir": str(self.root / "cache"),
            "precision": "fp32",
            "device": "cpu",
            "max_steps": 3,
            "per_device_train_batch_size": 4,
            "token_budget": 100,
            "learning_rate": 1e-2,
            "lr_scheduler_type": "constant",
            "warmup_steps": 0,
            "logging_steps": 1,
            "save_steps": None,
            "sample_prompts": 0,
            "self_check": False,
            "quiet": True,
            **self.rows(data),
        }
        found = {**common, **keys}
        return {key: value for key, value in found.items() if value is not ...}

    def run(self, verb: str, data: str, **keys: Any) -> Run:
        """Train; ``...`` as a value leaves a key out."""
        return Run(getattr(trimtab, verb)(**self.keys(data, **keys)))


class Run:
    """A finished run and its metrics."""

    def __init__(self, result: RunResult) -> None:
        self.folder = result.output_dir
        self.results = result.results
        self.records = list(read_metrics(self.folder / "metrics.jsonl"))
        unknown = {name for record in self.records for name in record if metric_of(name) is None}
        assert not unknown, "catalogue/metrics.py has to explain every name that is logged"

    @property
    def trained(self) -> list[dict[str, Any]]:
        """Records of training."""
        return [without_timings(record) for record in self.records if "loss" in record]

    @property
    def evaluated(self) -> list[dict[str, Any]]:
        """Records of evaluations."""
        return [without_timings(record) for record in self.records if "eval_loss" in record]


# Adam's first step is the sign of a gradient: rounding of one that is nearly 0 is a whole step.
# And beta-DPO filters by gaps, which are all rounding where the policy is its reference.
CONTINUOUS = {"optim": "sgd", "learning_rate": 0.3}


def apart(one: Run, other: Run, tolerance: float = 1e-5) -> list[str]:
    """Metrics in which two runs differ, by a share of the larger value or of 1."""
    assert len(one.records) == len(other.records)
    found: list[str] = []
    for here, there in zip(
        [*one.trained, *one.evaluated], [*other.trained, *other.evaluated], strict=True
    ):
        # Which of two equal numbers is the higher is rounding, and so are these shares of signs.
        signs = {n for n in here.keys() | there.keys() if "lengths/" in n or "both_fell" in n}
        assert here.keys() - signs == there.keys() - signs
        skipped = {"num_tokens", *signs}  # tokens: a layout may have more
        if abs(here.get("rewards/margins", 1.0)) < 1e-5:  # at the reference: signs of rounding
            skipped.add("rewards/accuracies")
        for key in here.keys() - skipped:
            if isinstance(here[key], dict):  # counts of a confusion, shares of counts
                if here[key] != there[key]:
                    found.append(f"{key} at {here['step']}: {here[key]} and {there[key]}")
                continue
            values = torch.tensor([here[key]]).flatten(), torch.tensor([there[key]]).flatten()
            scale = max(1.0, float(values[0].abs().max()))
            if float((values[0] - values[1]).abs().max()) > tolerance * scale:
                found.append(f"{key} at {here['step']}: {here[key]} and {there[key]}")
    return found


# ---------------------------------------------------------------------- an independent reader


def plain_logprobs(model: Any, folder: Path, rows: Iterable[tuple[str, str]]) -> list[float]:
    """Summed log-probs of responses, with transformers alone: its logits, row by row."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    found = []
    for prompt, response in rows:
        before = tokenizer(prompt).input_ids
        ids = [*before, *tokenizer(response).input_ids, tokenizer.eos_token_id]
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        start = max(1, len(before))
        targets = torch.tensor(ids[start:])
        found.append(logits[start - 1 : -1].gather(1, targets[:, None]).sum().item())
    return found


def held_pairs(world: World, side: str) -> list[tuple[str, str]]:
    lines = (world.root / "pairs_held.jsonl").read_text().splitlines()
    return [(row["prompt"], row[side]) for row in map(json.loads, lines)]


def mean(values: list[float]) -> float:
    return sum(values) / len(values)
