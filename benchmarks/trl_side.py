"""One run of TRL, in its own virtual environment, timed step by step. Imports no trimtab.

build/bench/trl/bin/python -m benchmarks.trl_side JOB.json
"""

# TRL and datasets are in that environment only.
# pyright: reportMissingImports=false

from __future__ import annotations

import json
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.measure import LOGGED, Recorder, emit
from benchmarks.rows import pairs_of


def arguments(job: dict[str, Any]) -> dict[str, Any]:
    """The job as TRL's keys. What is not named is TRL's default."""
    keys: dict[str, Any] = {
        "output_dir": str(Path(job["scratch"]) / "run"),
        "use_cpu": job["device"] == "cpu",
        "max_steps": job["steps"],
        "per_device_train_batch_size": job["batch"],
        # A ranking is so many pairs; each micro-batch has as many pairs as a step has rows.
        "gradient_accumulation_steps": job["pairs_per_row"],
        "learning_rate": job["learning_rate"],
        "lr_scheduler_type": "constant",
        "max_grad_norm": job["max_grad_norm"],
        "train_sampling_strategy": "sequential",
        "seed": job["seed"],
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "max_length": job["max_length"],
    }
    own = job["keys"]
    if "beta" in own:
        keys["beta"] = own["beta"]
    if job["verb"] == "simpo":
        keys |= {"loss_type": "simpo", "cpo_alpha": 0.0, "simpo_gamma": own["gamma"]}
    if job["verb"] == "pretrain":
        keys["max_length"] += 1  # the token before a document is not counted on the other side
    ours = ("side", "lora", "steps", "repeats", "needs")
    return keys | {key: value for key, value in job["arm"].items() if key not in ours}


def trainer_of(verb: str) -> tuple[Any, Any]:
    """Trainer and configuration class of a verb; TRL keeps two of them apart as experimental."""
    if verb in ("sft", "pretrain"):
        from trl import SFTConfig, SFTTrainer

        return SFTTrainer, SFTConfig
    if verb == "dpo":
        from trl import DPOConfig, DPOTrainer

        return DPOTrainer, DPOConfig
    if verb == "reward":
        from trl import RewardConfig, RewardTrainer

        return RewardTrainer, RewardConfig
    if verb == "simpo":
        from trl.experimental.cpo import CPOConfig, CPOTrainer

        return CPOTrainer, CPOConfig
    if verb == "orpo":
        from trl.experimental.orpo import ORPOConfig, ORPOTrainer

        return ORPOTrainer, ORPOConfig
    raise SystemExit(f"no trainer for {verb}")


def timed(trainer: Any, recorder: Recorder) -> Any:
    """The trainer's class, with its reference pass timed."""

    class Timed(trainer):  # type: ignore[misc, valid-type]
        def _precompute_ref_logps(self, dataset: Any, *rest: Any) -> Any:
            start = time.perf_counter()
            found = super()._precompute_ref_logps(dataset, *rest)
            recorder.reference_seconds += time.perf_counter() - start
            recorder.reference_rows += len(dataset)
            return found

    return Timed


def callback(recorder: Recorder) -> Any:
    """The recorder as a callback of the Trainer."""
    from transformers import TrainerCallback

    class Times(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            recorder.begin()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            recorder.end()

    return Times()


def read_rows(job: dict[str, Any], tokenizer: Any) -> Any:
    """The rows as a ``Dataset``: rankings as pairs, documents behind trimtab's first token."""
    from datasets import Dataset

    with Path(job["data"]).open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    if job["verb"] == "pretrain":
        rows = [{"text": tokenizer.bos_token + row["text"]} for row in rows]
    if job["verb"] == "reward":
        rows = [pair for row in rows for pair in pairs_of(row)]
    return Dataset.from_list(rows)


def build(job: dict[str, Any], recorder: Recorder) -> Any:
    """The trainer, ready to train."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    trainer, config = trainer_of(job["verb"])
    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    adapter = None
    if job["arm"].get("lora"):
        from peft import LoraConfig

        adapter = LoraConfig(
            r=job["lora"]["r"],
            lora_alpha=job["lora"]["alpha"],
            lora_dropout=0.0,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        )
    model: Any = job["model"]
    if job["verb"] in ("simpo", "orpo"):
        # These two load a path in the dtype of the file and not, as the others, in fp32.
        model = AutoModelForCausalLM.from_pretrained(model, dtype="float32")
    rows = read_rows(job, tokenizer)
    made = timed(trainer, recorder)(
        model=model,
        args=config(**arguments(job)),
        train_dataset=rows,
        processing_class=tokenizer,
        peft_config=adapter,
        callbacks=[callback(recorder)],
    )
    if job["verb"] == "reward" and len(made.train_dataset) != len(rows):
        # It leaves out what is longer than max_length, where the others cut.
        raise SystemExit(f"{len(rows)} pairs, and {len(made.train_dataset)} after its filter")
    return made


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    recorder = Recorder(job["started"])

    import torch

    torch.set_num_threads(job["threads"])
    trainer_of(job["verb"])
    recorder.imported()
    if job["device"] == "cuda":
        recorder.accelerator = torch.cuda
    trainer = build(job, recorder)
    trainer.train()
    records = [r for r in trainer.state.log_history if "loss" in r]
    args = trainer.args
    names = ("gradient_checkpointing", "bf16", "precompute_ref_log_probs", "padding_free")
    emit(
        {
            **recorder.result(),
            "precision": "bf16" if args.bf16 else "fp32",
            "rows": [job["batch"]] * len(recorder.ends),
            "log": [{k: float(r[k]) for k in (*LOGGED, "nll_loss") if k in r} for r in records],
            "settings": {
                **arguments(job),
                **{name: getattr(args, name) for name in names if hasattr(args, name)},
                "output_dir": None,
            },
            "threads": torch.get_num_threads(),
            "versions": {n: version(n) for n in ("trl", "torch", "transformers", "peft")},
        }
    )


if __name__ == "__main__":
    main()
