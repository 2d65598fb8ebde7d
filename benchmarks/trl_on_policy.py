"""One on-policy run of TRL, in a virtual environment of its own, timed rollout by rollout.

build/bench/trl-1.12/bin/python -m benchmarks.trl_on_policy JOB.json     verb ppo
build/bench/trl/bin/python -m benchmarks.trl_on_policy JOB.json          verb grpo

Imports no trimtab. ``on_policy.py`` says what the first rollout is for.
"""

# TRL and datasets are in those environments only.
# pyright: reportMissingImports=false

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import Recorder, emit
from benchmarks.on_policy import fixed_responses, vowels

_ARM = ("side", "steps", "repeats", "needs")
_MICRO = 8  # transformers' default of per_device_train_batch_size


def arguments(job: dict[str, Any]) -> dict[str, Any]:
    """The job as TRL's keys. What is not named is TRL's default."""
    responses = job["batch"] * job["responses_per_row"]
    own = {key: value for key, value in job["arm"].items() if key not in _ARM}
    micro = min(own.pop("per_device_train_batch_size", _MICRO), responses)
    keys: dict[str, Any] = {
        "output_dir": str(Path(job["scratch"]) / "run"),
        "use_cpu": job["device"] == "cpu",
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": responses // micro,
        "learning_rate": job["learning_rate"],
        "lr_scheduler_type": "constant",
        "seed": job["seed"],
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "temperature": 1.0,
    }
    given = job["keys"]
    if job["verb"] == "ppo":
        keys |= {
            "total_episodes": job["steps"] * responses,
            "num_ppo_epochs": job["passes"],
            "response_length": job["new_tokens"],
            "kl_coef": given["kl_coef"],
        }
    else:
        keys |= {
            "max_steps": job["steps"] * job["passes"],
            "num_iterations": job["passes"],
            "num_generations": job["responses_per_row"],
            "max_completion_length": job["new_tokens"],
            "max_grad_norm": job["max_grad_norm"],
            "beta": given["kl_coef"],
            "loss_type": "grpo",
            "shuffle_dataset": False,
            # Sampling goes on behind an end token, as on the other side.
            "generation_kwargs": {"eos_token_id": None},
        }
    return keys | own


class Watch:
    """What is noted of a run: times of rollouts, lengths, and of the first one what is checked."""

    def __init__(self, recorder: Recorder, job: dict[str, Any]) -> None:
        self.recorder = recorder
        self.job = job
        self.checks: dict[str, float] = {}
        self.losses: list[float] = []  # of the first rollout's optimizer steps
        self.responses: list[int] = []  # of every rollout
        self.tokens: list[float] = []  # mean length in every rollout

    def callback(self) -> Any:
        """The recorder as a callback: from the end of one rollout's last step to the next's."""
        from transformers import TrainerCallback

        recorder, passes = self.recorder, self.job["passes"]
        ppo = self.job["verb"] == "ppo"

        class Times(TrainerCallback):
            def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                recorder.begin()

            def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                # Of PPOTrainer a step is a whole rollout with all its passes.
                if ppo or state.global_step % passes == 0:
                    recorder.end()
                    recorder.begin()

        return Times()

    def sampled(self, ids: Any) -> bool:
        """Take down what was sampled; True where it is the rollout to be replayed."""
        lengths = [len(one) for one in ids]
        self.responses.append(len(lengths))
        self.tokens.append(sum(lengths) / len(lengths))
        return len(self.responses) == 1

    def fixed(self, count: int, vocabulary: int) -> list[list[int]]:
        """The responses that both sides go on with in the first rollout."""
        return fixed_responses(count, self.job["new_tokens"], vocabulary, self.job["seed"])


def norm_of(parameters: Iterable[Any]) -> float:
    """The norm of all gradients."""
    return math.sqrt(sum(float(p.grad.square().sum()) for p in parameters if p.grad is not None))


# ---------------------------------------------------------------------- PPO


def ppo_trainer(job: dict[str, Any], watch: Watch) -> Any:
    """TRL's experimental PPO trainer with its own value and reward models, rows in file order."""
    from torch.utils.data import DataLoader
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
    from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

    tokenizer = AutoTokenizer.from_pretrained(job["model"], padding_side="left")
    scored = AutoModelForSequenceClassification.from_pretrained
    others = {name: scored(path, dtype="float32") for name, path in job["other_models"].items()}
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype="float32")
    trainer = PPOTrainer(
        args=PPOConfig(**arguments(job)),
        processing_class=tokenizer,
        model=model,
        ref_model=None,
        train_dataset=read_prompts(job, tokenizer),
        callbacks=[watch.callback()],
        **others,
    )
    in_order = DataLoader(
        trainer.train_dataset,
        batch_size=trainer.local_dataloader_batch_size,
        collate_fn=trainer.data_collator,
    )
    trainer.dataloader = trainer.accelerator.prepare(in_order)
    replay_ppo(ppo_trainer, trainer, watch)
    return trainer


def replay_ppo(module: Any, trainer: Any, watch: Watch) -> None:
    """Replace the first rollout, and take down what is checked of it."""
    generate, score = module.batch_generation, module.get_reward
    backward = trainer.accelerator.backward
    temperature = trainer.args.temperature + 1e-7

    def batch_generation(model: Any, queries: Any, size: int, pad: int, config: Any) -> Any:
        found, logits = generate(model, queries, size, pad, config)
        if not watch.sampled(found[:, queries.shape[1] :]):
            return found, logits
        fixed = torch.tensor(watch.fixed(len(queries), logits.shape[-1]))
        found = torch.cat([queries, fixed], 1)
        logits = module.forward(model, found, pad).logits[:, queries.shape[1] - 1 : -1]
        logits = logits / temperature
        logps = logits.log_softmax(-1).gather(-1, fixed[..., None])
        watch.checks["logps"] = logps.mean().item()
        return found, logits

    def get_reward(model: Any, ids: Any, pad: int, context: int) -> Any:
        found = score(model, ids, pad, context)
        if model is trainer.value_model and len(watch.responses) == 1:
            watch.checks["values"] = found[0][:, context - 1 : -1].mean().item()
        return found

    def noted_backward(loss: Any, **more: Any) -> None:
        backward(loss, **more)
        if len(watch.responses) > 1:
            return
        watch.losses.append(loss.item())
        if len(watch.losses) == trainer.args.gradient_accumulation_steps:
            watch.checks["grad_norm"] = norm_of(trainer.model.parameters())

    module.batch_generation, module.get_reward = batch_generation, get_reward
    trainer.accelerator.backward = noted_backward


def ppo_checks(trainer: Any, watch: Watch) -> None:
    """The rest of the checks, from the log of the first rollout."""
    first = trainer.state.log_history[0]
    count = trainer.args.gradient_accumulation_steps
    steps = [watch.losses[i : i + count] for i in range(0, len(watch.losses), count)]
    watch.losses = [sum(one) / count for one in steps]
    watch.checks |= {
        "reward": first["objective/scores"],
        "kl": first["objective/kl"],
        "loss": watch.losses[0],
    }


# ---------------------------------------------------------------------- GRPO


def grpo_trainer(job: dict[str, Any], watch: Watch) -> Any:
    """TRL's GRPO trainer, its first rollout replaced."""
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    logps: list[Any] = []

    class Replayed(GRPOTrainer):  # type: ignore[misc, valid-type]
        def _generate_single_turn(self, prompt_ids: Any, *rest: Any, **more: Any) -> Any:
            found, logprobs = super()._generate_single_turn(prompt_ids, *rest, **more)
            if watch.sampled(found):
                found = watch.fixed(len(found), self.model.config.vocab_size)
            return found, logprobs

        def _get_per_token_logps_and_entropies(self, model: Any, *rest: Any, **more: Any) -> Any:
            found = super()._get_per_token_logps_and_entropies(model, *rest, **more)
            if not self.state.global_step and model is not self.ref_model:
                logps.append(found[0].detach())
                watch.checks["logps"] = torch.cat(logps).mean().item()
            return found

    rows = [json.loads(line) for line in Path(job["data"]).read_text().splitlines()]
    return Replayed(
        model=job["model"],
        reward_funcs=vowels,
        args=GRPOConfig(**arguments(job)),
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(job["model"]),
        callbacks=[watch.callback()],
    )


def grpo_checks(trainer: Any, watch: Watch) -> None:
    """The rest of the checks, from the log of the first optimizer step."""
    records = [r for r in trainer.state.log_history if "loss" in r]
    watch.losses = [r["loss"] for r in records[: watch.job["passes"]]]
    first = records[0]
    watch.checks |= {
        # Logged is the mean of a token; a response has new_tokens of them here.
        "kl": first["kl"] * watch.job["new_tokens"],
        "reward": first["reward"],
        "loss": first["loss"],
        "grad_norm": first["grad_norm"],
    }


def read_prompts(job: dict[str, Any], tokenizer: Any) -> Any:
    """The rows as prompts' token ids, which PPOTrainer takes."""
    from datasets import Dataset

    rows = [json.loads(line) for line in Path(job["data"]).read_text().splitlines()]
    texts = [
        tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, tokenize=False)
        for row in rows
    ]
    return Dataset.from_list(
        [{"input_ids": tokenizer(text, add_special_tokens=False).input_ids} for text in texts]
    )


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    recorder = Recorder(job["started"])
    torch.set_num_threads(job["threads"])
    ppo = job["verb"] == "ppo"
    if ppo:
        import trl.experimental.ppo  # noqa: F401
    else:
        from trl import GRPOTrainer  # noqa: F401
    recorder.imported()
    watch = Watch(recorder, job)
    trainer = (ppo_trainer if ppo else grpo_trainer)(job, watch)
    trainer.train()
    (ppo_checks if ppo else grpo_checks)(trainer, watch)
    emit(
        {
            **recorder.result(),
            "precision": "bf16" if trainer.args.bf16 else "fp32",
            "rows": watch.responses,
            "mean_tokens": watch.tokens,
            "checks": watch.checks,
            "log": [{"loss": loss} for loss in watch.losses],
            "settings": {
                **arguments(job),
                "gradient_checkpointing": trainer.args.gradient_checkpointing,
                "output_dir": None,
            },
            "threads": torch.get_num_threads(),
            "versions": {n: version(n) for n in ("trl", "torch", "transformers")},
        }
    )


if __name__ == "__main__":
    main()
