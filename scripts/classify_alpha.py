"""What the language-model term does for a classifier: alpha of ``trimtab classify``, over seeds.

    python scripts/classify_alpha.py --data labelled.jsonl --pretrain-data texts.jsonl \\
        --output build/classify_alpha

Splits the labelled rows once, pretrains a small model on the texts (or takes ``--model``), trains a
classifier for every alpha and seed, and prints a table: held-out accuracy with intervals over seeds
and rows, the difference to the first alpha on the same rows, and what became of the language model.
A run that is finished is not repeated, so the command can be stopped and given again; the numbers
are in ``results.json`` there. Every run's command is in its folder.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import trimtab
from trimtab.algorithms.policy import Policy, frozen
from trimtab.config.data_keys import DatasetSpec
from trimtab.data.batch import pack, split_by_tokens
from trimtab.data.chat import ChatRenderer
from trimtab.data.sources import load_examples
from trimtab.data.tokenise import TokeniseOptions, tokenise_all
from trimtab.evaluation.statistics import Interval, crossed_mean, wilson_interval
from trimtab.models.forward import choose_layout
from trimtab.models.hub import locate
from trimtab.models.load import load_tokenizer
from trimtab.models.score_head import head_of
from trimtab.models.scored import load_scored
from trimtab.training.metrics import read_metrics

PRETRAIN: dict[str, Any] = {
    "new_model": {"hidden_size": 256, "num_hidden_layers": 6, "initializer_range": 0.06},
    "new_tokenizer": {"vocab_size": 8192},
    "context_length": 256,
    "learning_rate": 1e-3,
    "per_device_train_batch_size": 8,
    "max_eval_rows": 40,
    "sample_prompts": 0,
}


def main() -> None:
    """Run what is not there yet and print the table."""
    args = _arguments()
    args.output.mkdir(parents=True, exist_ok=True)
    train, held_out = _split(args)
    model = args.model or _pretrained(args)
    runs = {
        (alpha, seed): _classifier(args, model, train, held_out, alpha, seed)
        for seed in range(args.seeds)
        for alpha in args.alphas
    }
    results = _results(args, runs)
    (args.output / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    print(_table(results["alphas"]))
    print(f"\nlm loss before the fine-tune: {results['lm_loss_before']:.3f}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n", 1)[0])
    parser.add_argument("--data", type=Path, required=True, help="rows of text and label")
    parser.add_argument("--pretrain-data", type=Path, help="rows of text, to pretrain on")
    parser.add_argument("--model", help="a language model to start from, instead of pretraining")
    parser.add_argument("--output", type=Path, default=Path("build/classify_alpha"))
    parser.add_argument("--alphas", type=float, nargs="+", default=[0.0, 0.1, 0.5, 1.0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--train-rows", type=int, default=5000)
    parser.add_argument("--held-out-rows", type=int, default=1000)
    parser.add_argument("--pretrain-steps", type=int, default=500)
    parser.add_argument("--epochs", type=float, default=3.0)
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--use-peft", action="store_true", help="LoRA instead of all weights")
    args = parser.parse_args()
    if (args.model is None) == (args.pretrain_data is None):
        parser.error("give --pretrain-data, or --model")
    return args


def _split(args: argparse.Namespace) -> tuple[Path, Path]:
    """Training and held-out rows, by a shuffle that is the same every time."""
    lines = args.data.read_text(encoding="utf-8").splitlines()
    random.Random(0).shuffle(lines)
    wanted = args.train_rows + args.held_out_rows
    if len(lines) < wanted:
        raise SystemExit(f"{args.data}: {len(lines)} rows, and {wanted} are asked for")
    parts = {
        "train.jsonl": lines[args.held_out_rows : wanted],
        "held_out.jsonl": lines[: args.held_out_rows],
    }
    for name, rows in parts.items():
        (args.output / name).write_text("\n".join(rows) + "\n", encoding="utf-8")
    return args.output / "train.jsonl", args.output / "held_out.jsonl"


def _common(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    return {
        "output_dir": str(folder),
        "cache_dir": str(args.output / "cache"),
        "precision": "fp32",
        "save_total_limit": 1,
        "logging_steps": 20,
    }


def _pretrained(args: argparse.Namespace) -> str:
    folder = args.output / "pretrained"
    if not (folder / "all_results.json").exists():
        texts = args.pretrain_data.read_text(encoding="utf-8").splitlines()
        random.Random(1).shuffle(texts)
        held_out = args.output / "pretrain_held_out.jsonl"
        rest = args.output / "pretrain.jsonl"
        held_out.write_text("\n".join(texts[:40]) + "\n", encoding="utf-8")
        rest.write_text("\n".join(texts[40:]) + "\n", encoding="utf-8")
        trimtab.pretrain(
            dataset_name=str(rest),
            eval_dataset_name=str(held_out),
            max_steps=args.pretrain_steps,
            **PRETRAIN,
            **_common(args, folder),
        )
        _tidy(folder)
    return str(folder)


def _tidy(folder: Path) -> None:
    """A finished run needs no checkpoints."""
    for checkpoint in folder.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)


def _classifier(
    args: argparse.Namespace, model: str, train: Path, held_out: Path, alpha: float, seed: int
) -> Path:
    """Train one, and keep which held-out rows it gets right."""
    folder = args.output / f"alpha-{alpha:g}-seed-{seed}"
    if not (folder / "all_results.json").exists():
        adapter = {"use_peft": True} if args.use_peft else {}
        first = (alpha, seed) == (args.alphas[0], 0)  # all start from the same model
        trimtab.classify(
            model_name_or_path=model,
            dataset_name=str(train),
            eval_dataset_name=str(held_out),
            alpha=alpha,
            seed=seed,
            learning_rate=args.learning_rate,
            num_train_epochs=args.epochs,
            per_device_train_batch_size=args.batch_size,
            save_steps=None,
            eval_on_start=first,
            self_check=first,
            **adapter,
            **_common(args, folder),
        )
        _tidy(folder)
    if not (folder / "right.json").exists():
        (folder / "right.json").write_text(json.dumps(_right(folder, held_out)))
    return folder


@torch.no_grad()
def _right(folder: Path, rows: Path) -> list[int]:
    """1 for every row whose class the saved model finds, else 0."""
    model = load_scored(locate(folder), key="model")
    head = head_of(model)
    assert head is not None
    renderer = ChatRenderer(load_tokenizer(folder))
    examples = load_examples([DatasetSpec(path=str(rows))], {"labelled"}).examples[0]
    options = TokeniseOptions(max_length=512, classes=head.labels, scored=True)
    store, _ = tokenise_all(examples, renderer, options, max_dropped=0.0)
    policy = Policy(model, choose_layout(model).layout, torch.device("cpu"))
    found: list[int] = []
    with frozen(model):
        for run in split_by_tokens(list(store), 8192):
            batch = pack(run)
            assert batch.classes is not None
            found += (policy.scores(batch).argmax(-1) == batch.classes).int().tolist()
    return found


def _results(args: argparse.Namespace, runs: Mapping[tuple[float, int], Path]) -> dict[str, Any]:
    """Numbers of every alpha, from the files of its runs."""
    right = {key: json.loads((path / "right.json").read_text()) for key, path in runs.items()}
    ended = {key: json.loads((path / "all_results.json").read_text()) for key, path in runs.items()}
    first = _cells(right, args.alphas[0], args.seeds)
    alphas: list[dict[str, Any]] = []
    for alpha in args.alphas:
        cells = _cells(right, alpha, args.seeds)
        results = [ended[alpha, seed] for seed in range(args.seeds)]
        for seed in range(args.seeds):
            assert abs(cells[seed].mean() - results[seed]["eval_accuracy"]) < 1e-9
        alphas.append(
            {
                "alpha": alpha,
                "accuracy": _interval(cells),
                "by_seed": [wilson_interval(row.sum(), row.size)._asdict() for row in cells],
                "more_than_first": _interval(cells - first),
                "loss": [found["eval_loss"] for found in results],
                "macro_f1": [found["eval_macro_f1"] for found in results],
                "lm_loss": [found["eval_lm_loss"] for found in results],
                "train_accuracy": [_last(runs[alpha, seed]) for seed in range(args.seeds)],
            }
        )
    settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()}
    before = ended[args.alphas[0], 0]["eval_lm_loss_before"]
    return {"settings": settings, "lm_loss_before": before, "alphas": alphas}


def _cells(right: Mapping[tuple[float, int], Sequence[int]], alpha: float, seeds: int) -> Any:
    """[seeds, rows]."""
    return np.array([right[alpha, seed] for seed in range(seeds)], np.float64)


def _interval(cells: Any) -> dict[str, float]:
    found: Interval = crossed_mean(cells)
    return found._asdict()


def _last(folder: Path) -> float:
    """Accuracy on the training rows of the last steps that were logged."""
    records = [r for r in read_metrics(folder / "metrics.jsonl") if "accuracy" in r]
    return records[-1]["accuracy"]


def _table(alphas: Sequence[Mapping[str, Any]]) -> str:
    lines = [
        "| alpha | held-out accuracy | by seed | difference to the first | class loss | lm loss |",
        "|---|---|---|---|---|---|",
    ]
    for row in alphas:
        seeds = ", ".join(f"{one['mean']:.3f}" for one in row["by_seed"])
        loss, lm_loss = (sum(row[name]) / len(row[name]) for name in ("loss", "lm_loss"))
        difference = "" if row is alphas[0] else _shown(row["more_than_first"])
        lines.append(
            f"| {row['alpha']:g} | {_shown(row['accuracy'])} | {seeds} | {difference} | "
            f"{loss:.3f} | {lm_loss:.3f} |"
        )
    return "\n".join(lines)


def _shown(interval: Mapping[str, float]) -> str:
    return f"{interval['mean']:.3f} [{interval['low']:.3f}, {interval['high']:.3f}]"


if __name__ == "__main__":
    main()
