"""Where the time of a step goes: one step of a case's trimtab side, by part.

    python -m benchmarks.profile_step --data FOLDER --case dpo-9m-hh [--threads 2]

The second step of the case, with torch's profiler; in the on-policy cases the second rollout with
all its passes, by stage as well. The profiler slows small operations down, so that shares count
and seconds do not; stages are timed in a run of their own, without it.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import models, on_policy, rows, run, trimtab_on_policy, trimtab_side

# By the beginnings of torch's names; what matches none is the rest.
PARTS: Mapping[str, tuple[str, ...]] = {
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "mkldnn::"),
    "attention": ("aten::_scaled_dot_product", "aten::_flash"),
    "softmax, log-probs": ("aten::exp", "aten::logsumexp", "aten::_softmax", "aten::_log_softmax"),
    "optimizer, clipping": ("aten::_foreach", "aten::_fused", "aten::linalg_vector_norm"),
}
REST = "everything else"
STAGES = ("sampled", "judged", "_reference_and_old", "complete")


def part_of(operation: str) -> str:
    """The part that one of torch's operations belongs to."""
    for part, names in PARTS.items():
        if operation.startswith(names):
            return part
    return REST


def by_part(operations: Mapping[str, float]) -> dict[str, float]:
    """Seconds of each part, all parts named, from seconds of each operation."""
    found = dict.fromkeys((*PARTS, REST), 0.0)
    for name, seconds in operations.items():
        found[part_of(name)] += seconds
    return found


class Profile:
    """Around the loop's steps: takes the time of those between the first and the last."""

    def __init__(self, first: int, last: int, *, trace: bool) -> None:
        self.first, self.last, self.trace = first, last, trace
        self.operations: dict[str, float] = {}
        self.stages: dict[str, float] = dict.fromkeys(STAGES, 0.0)
        self.seconds = 0.0
        self.running = False
        self.inside = False  # an overriding method calls the one it overrides

    def install(self) -> Callable[[], None]:
        """Take the places of the loop's step and of a rollout's stages; call to give them back."""
        import torch

        from trimtab.algorithms.group import GroupPolicyGradient
        from trimtab.algorithms.on_policy import OnPolicy
        from trimtab.algorithms.ppo import PPO
        from trimtab.training.loop import Loop

        step, profiler = Loop.train_step, torch.profiler.profile()
        kept: dict[tuple[type, str], Any] = {
            (owner, name): vars(owner)[name]
            for owner in (OnPolicy, PPO, GroupPolicyGradient)
            for name in STAGES
            if name in vars(owner)
        }

        def profiled(loop: Any) -> None:
            if loop.state.step == self.first:
                self.running = True
                if self.trace:
                    profiler.start()
                self.seconds = -time.perf_counter()
            step(loop)
            if loop.state.step == self.last:
                self.seconds += time.perf_counter()
                self.running = False
                if self.trace:
                    profiler.stop()
                    for event in profiler.key_averages():
                        self.operations[event.key] = event.self_cpu_time_total / 1e6

        def timed(name: str, method: Any) -> Any:
            return lambda stage, *rest: self._stage(name, method, stage, *rest)

        Loop.train_step = profiled
        for (owner, name), method in kept.items():
            setattr(owner, name, timed(name, method))

        def restore() -> None:
            Loop.train_step = step
            for (owner, name), method in kept.items():
                setattr(owner, name, method)

        return restore

    def _stage(self, name: str, method: Any, *arguments: Any) -> Any:
        if self.inside or not self.running:
            return method(*arguments)
        self.inside = True
        start = time.perf_counter()
        found = method(*arguments)
        self.stages[name] += time.perf_counter() - start
        self.inside = False
        return found


def profile(case: Mapping[str, Any], data: Path, threads: int, *, trace: bool) -> Profile:
    """Train the case's first two steps, or rollouts, in a scratch folder."""
    from trimtab.algorithms.run import train
    from trimtab.config.resolve import recipe_from_kwargs

    rollouts = case["verb"] in on_policy.VERBS
    side: Any = trimtab_on_policy if rollouts else trimtab_side
    with tempfile.TemporaryDirectory(prefix="trimtab-profile-") as scratch:
        arm = next(iter(case["arms"].values()))
        pin = rows.read(case["rows"], rows.pinned()[case["rows"]], data)
        job = run.job_of({**case, "steps": 2}, arm, pin, threads)
        job |= {"data": str(rows.write(Path(scratch) / "rows.jsonl", job.pop("rows")))}
        keys = side.recipe_keys({**job, "scratch": scratch}) | {"self_check": False}
        found = Profile(case["passes"], 2 * case["passes"], trace=trace)
        restore = found.install()
        try:
            train(
                recipe_from_kwargs(case["verb"], env={}, quiet=True, **keys),
                command=["trimtab", case["verb"]],
            )
        finally:
            restore()
    return found


def lines(title: str, seconds: Mapping[str, float], whole: float) -> list[str]:
    """A table of seconds and shares of ``whole``."""
    return [
        f"{title:40s} {'s':>8s} {'share':>6s}",
        *(f"{name[:40]:40s} {s:8.3f} {s / whole:6.1%}" for name, s in seconds.items()),
        "",
    ]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the pinned files")
    parser.add_argument("--case", required=True, help="of inputs/cases.yaml")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--top", type=int, default=12, help="operations of the rest to show")
    arguments = parser.parse_args(argv)
    case = run.cases_of([arguments.case], quick=False)[arguments.case]
    for model in (case["model"], *case["other_models"].values()):
        models.ensure(model, arguments.data)
    text: list[str] = []
    if case["verb"] in on_policy.VERBS:
        plain = profile(case, arguments.data, arguments.threads, trace=False)
        stages = {**plain.stages, "training": plain.seconds - sum(plain.stages.values())}
        text += lines("stage", stages, plain.seconds)
    traced = profile(case, arguments.data, arguments.threads, trace=True)
    whole = sum(traced.operations.values())
    text += lines("part", by_part(traced.operations), whole)
    rest = {n: s for n, s in traced.operations.items() if part_of(n) == REST}
    largest = dict(sorted(rest.items(), key=lambda one: -one[1])[: arguments.top])
    text += lines("of everything else", largest, whole)
    print("\n".join(text))


if __name__ == "__main__":
    main()
