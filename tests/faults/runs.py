"""Whole runs in forked children that are killed at a chosen event, and what they leave.

An event is an operation of ``trimtab.training.files`` (each write, fsync, rename, ... of
checkpoints, logs, records and caches), a forward pass, or the beginning or end of a step, an
optimizer update, an evaluation, a sample, a save. Events are counted by the phase in which they
happen: start (rows, model, reference, self-check), train, evaluate, sample, save, log (between
those, where metrics are written) and finish.

A child is forked from a process that has imported everything, so a kill costs a second. Every run
has a folder of its own as working directory and relative paths: its files can be compared as bytes.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from tests import tiny_runs

from trimtab.training import files
from trimtab.training.metrics import read_metrics, without_timings

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
PHASES = ("start", "train", "log", "evaluate", "sample", "save", "finish")
STEPS = 7  # with 15 rows and 3 a step, an epoch ends inside


def _words(text: str) -> list[str]:
    return text.split()


_SHARED = _words(
    "--output-dir run --cache-dir cache --precision fp32 --device cpu --threads 1 "
    f"--max-steps {STEPS} --per-device-train-batch-size 3 --token-budget 72 --learning-rate 1e-2 "
    "--save-steps 3 --logging-steps 2 --eval-steps 4"
)
_SAMPLES = _words("--sample-steps 5 --sample-prompts 1 --sample-max-new-tokens 3")
_SILENT = ("reward", "classify")  # these write no text
_ROWS = "--dataset ../pairs.jsonl --eval-dataset ../pairs_held.jsonl"
_PAIRS = f"--model ../model {_ROWS}"
STAGES: dict[str, list[str]] = {
    "pretrain": _words(
        "pretrain --dataset ../texts.jsonl --eval-dataset ../texts_held.jsonl --context-length 8 "
        "--new-tokenizer.vocab-size 270 --new-model.hidden-size 16 --new-model.num-hidden-layers 2"
    ),
    "sft": _words(
        "sft --model ../model --dataset ../answers.jsonl --eval-dataset ../answers_held.jsonl "
        "--mix.dataset-name ../texts.jsonl --mix.weight 0.5"
    ),
    "classify": _words(
        "classify --model ../model --dataset ../reviews.jsonl --eval-dataset ../reviews_held.jsonl "
        "--mix.dataset-name ../texts.jsonl --mix.weight 0.5"
    ),
    "dpo": _words(f"dpo {_PAIRS}"),
    "dpo_lora": _words(f"dpo {_PAIRS} --use-peft --lora-r 2 --lora-dropout 0.1"),
    "beta_dpo": _words(f"dpo {_PAIRS} --loss beta_dpo"),
    "kto": _words(f"kto {_PAIRS}"),
    "bco": _words(f"bco {_PAIRS}"),
    "sum": _words(f"dpo {_PAIRS} --loss 0.5*kto+bco --loss.kto.beta 0.2 --loss.bco.beta 0.1"),
    "orpo": _words(f"orpo {_PAIRS}"),
    "tdpo2": _words(f"dpo {_PAIRS} --loss tdpo2"),
    "reward": _words(f"reward {_PAIRS} --backbone.share 0.9"),
    "ppo": _words(
        f"ppo {_PAIRS} --reward-funcs ../rewards.py:vowels --num-ppo-epochs 2 --kl-target 0.5 "
        "--kl-controller adaptive --kl-horizon 20 --max-completion-length 6 --num-generations 2 "
        "--mix.dataset-name ../texts.jsonl --mix.weight 0.5 --watch-funcs ../rewards.py:brief "
        "--metric-for-best-model eval_kl --load-best-model-at-end"
    ),
    "grpo": _words(
        f"grpo {_PAIRS} --reward-funcs ../rewards.py:vowels --num-iterations 2 "
        "--num-mini-batches 2 --max-completion-length 6 --num-generations 3"
    ),
    "online_dpo": _words(
        f"online_dpo {_PAIRS} --reward-funcs ../rewards.py:vowels --num-iterations 2 "
        "--ref-model-sync-steps 4 --max-completion-length 6 --num-generations 3 --pairs all "
        "--annotator bradley_terry"
    ),
    "raft": _words(
        f"raft {_PAIRS} --reward-funcs ../rewards.py:vowels --num-iterations 2 --keep-top 2 "
        "--max-completion-length 6 --num-generations 3"
    ),
    "dpo_on_lora": _words(f"dpo --model ../adapter/run {_ROWS} --use-peft --lora-r 2"),
}


class Kill(NamedTuple):
    """A signal at the ``at``-th event (from 1) of a phase, ``times`` over.

    In the phase "delay", ``at`` is in milliseconds: a moment that no event marks.
    """

    phase: str
    at: int
    signal: int = signal.SIGKILL
    times: int = 1


def after(milliseconds: int) -> Kill:
    """An end from outside, whatever is going on: SIGALRM's default ends a process like SIGKILL."""
    return Kill("delay", milliseconds, signal.SIGALRM)


class Ended(NamedTuple):
    """How a child ended: its exit code, or minus the signal that killed it; its events."""

    code: int
    events: Counter[str]


def make_inputs(folder: Path) -> None:
    """The model and all data files that ``STAGES`` name; ``dpo_on_lora`` needs more."""
    tiny_runs.save_tiny_model(folder / "model")
    (folder / "rewards.py").write_text(
        "def vowels(completions, **_):\n"
        "    return [sum(map(text.count, 'aeiou')) / (1 + len(text)) for text in completions]\n"
        "def brief(completions, **_):\n"
        "    return [-float(len(text)) for text in completions]\n"
    )
    for name, make in (
        ("texts", tiny_runs.texts),
        ("answers", tiny_runs.answers),
        ("pairs", tiny_runs.pairs),
        ("reviews", tiny_runs.reviews),
    ):
        tiny_runs.write_rows(folder / f"{name}.jsonl", make(15))
        tiny_runs.write_rows(folder / f"{name}_held.jsonl", make(6, 50))


def make_adapter(root: Path) -> None:
    """What ``dpo_on_lora`` goes on from: the run folder of an sft with LoRA."""
    rows = "--dataset ../answers.jsonl --eval-dataset ../answers_held.jsonl"
    words = f"sft --model ../model {rows} --use-peft --lora-r 2"
    ended = run(root / "adapter", words.split())
    assert ended.code == 0, output(root / "adapter")


def run(
    folder: Path,
    words: Sequence[str],
    kill: Kill | None = None,
    patch: Callable[[], object] = lambda: None,
) -> Ended:
    """``trimtab WORDS`` in a child whose working directory is ``folder``.

    ``patch`` is called in the child first: it may break trimtab, and nobody else will notice.
    """
    folder.mkdir(exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        code = 70
        try:
            code = _in_child(folder, words, kill, patch)
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    counts = folder / "events.json"
    events = Counter(json.loads(counts.read_text())) if counts.exists() else Counter()
    return Ended(os.waitstatus_to_exitcode(status), events)


def _in_child(
    folder: Path, words: Sequence[str], kill: Kill | None, patch: Callable[[], object]
) -> int:
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(120)  # a child that hangs is a failure, not a night
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(folder)
    output = os.open("output.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.stdout = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115 - the child ends soon
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    from trimtab.cli import main

    patch()
    watch = Watch(kill)
    watch.install()
    if kill is not None and kill.phase == "delay":
        signal.setitimer(signal.ITIMER_REAL, kill.at / 1000)
    with files.hooked(watch.operation):
        code = main([*words, *_SHARED, *(() if words[0] in _SILENT else _SAMPLES)])
    Path("events.json").write_text(json.dumps(watch.counts))
    return code


class Watch:
    """Counts events by phase, and kills its own process at one of them."""

    def __init__(self, kill: Kill | None) -> None:
        self.kill = kill
        self.phase = "start"
        self.counts: Counter[str] = Counter()

    def event(self) -> None:
        self.counts[self.phase] += 1
        if self.kill is not None and self.kill[:2] == (self.phase, self.counts[self.phase]):
            for _ in range(self.kill.times):
                os.kill(os.getpid(), self.kill.signal)

    def operation(self, name: str, path: Path, size: int) -> int | None:
        self.event()
        return None

    def install(self) -> None:
        from trimtab.algorithms import completion_table, samples
        from trimtab.algorithms import run as run_module
        from trimtab.algorithms.policy import Policy
        from trimtab.data import store_cache
        from trimtab.training.checkpoint import CheckpointStore
        from trimtab.training.loop import Loop

        self._wrap(Policy, "hidden")
        self._wrap(Policy, "scores")
        self._wrap(Policy, "scores_and_stats")
        self._wrap(store_cache, "_publish")
        self._wrap(Loop, "_update")
        self._wrap(Loop, "train_step", "train")
        self._wrap(Loop, "_evaluate", "evaluate")
        self._wrap(Loop, "run", "log")
        self._wrap(samples.Samples, "generate", "sample")
        self._wrap(completion_table.pq, "write_table")
        self._wrap(CheckpointStore, "save", "save")
        self._wrap(run_module, "finish", "finish")

    def _wrap(self, owner: Any, name: str, phase: str | None = None) -> None:
        """An event before and after every call; within it, the phase is another one."""
        original = getattr(owner, name)

        def wrapped(*arguments: Any, **keys: Any) -> Any:
            before, self.phase = self.phase, phase or self.phase
            self.event()
            try:
                found = original(*arguments, **keys)
                self.event()
                return found
            finally:
                self.phase = before

        setattr(owner, name, wrapped)


# What differs from one run of a recipe to the next: times, and the account of the starts.
_OWN = {"run.json", "environment.json", "selfcheck.json", "report.html", ".lock"}


def outcome(folder: Path) -> dict[str, Any]:
    """All that a run gives, by file: hashes, and the records of metrics.jsonl without timings.

    Of checkpoints only the last one: a kill between a save and the removal of an older one leaves
    one more.
    """
    run_folder = folder / "run"
    found: dict[str, Any] = {}
    for path in files.files_below(run_folder):
        name = path.relative_to(run_folder).as_posix()
        if name in _OWN or (name.startswith("checkpoint-") and path.parent.name != LAST):
            continue
        assert not name.startswith("."), f"left behind: {name}"
        found[name] = files.measure_file(path).sha256
    found["metrics.jsonl"] = [
        without_timings(record) for record in read_metrics(run_folder / "metrics.jsonl")
    ]
    assert {f"{LAST}/masters.safetensors", f"{LAST}/optimizer.safetensors"} < found.keys()
    return found


LAST = f"checkpoint-{STEPS}"


def state(folder: Path) -> str | None:
    """How the run stands by its own record; None before there is one."""
    record = folder / "run/run.json"
    return json.loads(record.read_text())["state"] if record.exists() else None


def differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Names of the files that differ."""
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))


def output(folder: Path) -> str:
    """What the children in this folder printed, for messages."""
    return (folder / "output.txt").read_text()


def clear(folder: Path) -> None:
    """Remove a run's folder."""
    shutil.rmtree(folder, ignore_errors=True)
