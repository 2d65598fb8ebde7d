"""One on-policy run of trimtab, through the path of the command line, timed rollout by rollout.

python -m benchmarks.trimtab_on_policy JOB.json
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.measure import Recorder, emit
from benchmarks.on_policy import REWARD, fixed_responses
from benchmarks.trimtab_side import PATHS, common_keys


def recipe_keys(job: dict[str, Any]) -> dict[str, Any]:
    """The job as keys of a recipe. What is not named is the verb's default."""
    keys = common_keys(job) | {
        "max_steps": job["steps"] * job["passes"],
        "max_completion_length": job["new_tokens"],
        "num_generations": job["responses_per_row"],
        "temperature": 1.0,
    }
    if job["verb"] == "ppo":
        return keys | {"num_ppo_epochs": job["passes"], **job["other_models"]}
    return keys | {"num_iterations": job["passes"], "reward_funcs": [REWARD]}


class Watch:
    """Times rollouts from outside, replays the first one, and notes what is checked of it."""

    def __init__(self, recorder: Recorder, job: dict[str, Any]) -> None:
        self.recorder = recorder
        self.job = job
        self.trees: list[list[dict[str, Any]]] = []  # of every rollout, as lengths
        self.checks: dict[str, float] = {}

    def install(self) -> None:
        """Put itself around the loop's steps and the collection of rollouts."""
        from trimtab.algorithms.on_policy import OnPolicy
        from trimtab.rewards.reward_model import RewardModel
        from trimtab.rollout import Sampler
        from trimtab.training.loop import Loop

        step, sampled, collect, make = (
            Loop.train_step,
            OnPolicy.sampled,
            OnPolicy.collect,
            Sampler.__init__,
        )

        def timed_step(loop: Any) -> None:
            each = loop.algorithm.steps_per_rollout
            if loop.state.step % each == 0:
                self.recorder.begin()
            step(loop)
            if loop.state.step % each == 0:
                self.recorder.end()

        def replayed(stage: Any, number: int, *rest: Any) -> Any:
            found = sampled(stage, number, *rest)
            return self.replay(stage, found) if number == 0 else found

        def noted(stage: Any, number: int) -> Any:
            found = collect(stage, number)
            self.note(found)
            return found

        def endless(sampler: Any, model: Any, **keys: Any) -> None:
            make(sampler, model, **{**keys, "stop_ids": ()})

        Loop.train_step = timed_step
        OnPolicy.sampled = replayed  # type: ignore[method-assign]
        OnPolicy.collect = noted  # type: ignore[method-assign]
        Sampler.__init__ = endless  # type: ignore[method-assign]
        # Nobody ends here, and TRL reads a score at the last sampled token.
        RewardModel.stop_after = lambda *_: None  # type: ignore[method-assign]

    def replay(self, stage: Any, sampled: Any) -> Any:
        """The fixed responses in the place of the sampled ones; log-probs are the trainer's."""
        import torch

        from trimtab.algorithms.experience import Experience, response_tree
        from trimtab.algorithms.policy import frozen

        each, vocabulary = self.job["responses_per_row"], stage.policy.model.config.vocab_size
        count = len(sampled.trees) * each
        fixed = fixed_responses(count, self.job["new_tokens"], vocabulary, self.job["seed"])
        trees = [
            response_tree(tree.trunk.ids, fixed[i * each : (i + 1) * each], tree.origin)
            for i, tree in enumerate(sampled.trees)
        ]
        experience = Experience(sampled.number, trees, sampled.rows)
        parts: list[Any] = []
        with frozen(stage.policy.model):
            for micro in experience.micros(range(len(trees)), stage.stream.token_budget):
                parts.append(stage.policy.token_stats(micro.batch).logp)
        experience.tokens["old"] = torch.cat(parts)
        experience.responses["ended"] = torch.zeros(count, dtype=torch.bool)
        return experience

    def note(self, experience: Any) -> None:
        """Lengths of a rollout; of the first one also what both sides must agree on."""
        from trimtab.algorithms.on_policy import sequence_sums

        lengths = [
            {"trunk": len(tree.trunk.ids), "branches": [len(b.ids) for b in tree.branches]}
            for tree in experience.trees
        ]
        self.trees.append([{**one, "targets": sum(one["branches"])} for one in lengths])
        if self.checks:
            return
        tokens = experience.tokens
        kl = sequence_sums(tokens["old"] - tokens["reference"], experience)
        self.checks = {
            "reward": experience.responses["score"].mean().item(),
            "logps": tokens["old"].mean().item(),
            "kl": kl.mean().item(),
        }
        if "values" in tokens:
            self.checks["values"] = tokens["values"].mean().item()


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    recorder = Recorder(job["started"])

    import torch

    from trimtab import __version__
    from trimtab.algorithms.run import train
    from trimtab.config.resolve import recipe_from_kwargs
    from trimtab.training.metrics import read_metrics

    recorder.imported()
    watch = Watch(recorder, job)
    watch.install()
    keys = recipe_keys(job)
    resolved = recipe_from_kwargs(job["verb"], env={}, quiet=True, **keys)
    run = train(resolved, command=["trimtab", job["verb"]])
    records = [r for r in read_metrics(run.output_dir / "metrics.jsonl") if "loss" in r]
    first = {name: records[0][name] for name in ("loss", "grad_norm")}
    hidden = (*PATHS, *job["other_models"])
    emit(
        {
            **recorder.result(),
            "precision": job["arm"]["precision"],
            "rows": [sum(len(tree["branches"]) for tree in step) for step in watch.trees],
            "trees": watch.trees,
            "checks": watch.checks | first,
            "log": [{"loss": r["loss"]} for r in records[: job["passes"]]],
            "settings": {k: v for k, v in keys.items() if k not in hidden},
            "threads": torch.get_num_threads(),
            "versions": {"trimtab": __version__}
            | {n: version(n) for n in ("torch", "transformers")},
        }
    )


if __name__ == "__main__":
    main()
