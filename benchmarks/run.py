"""Run the benchmark: trimtab and TRL in turn, case by case, on this machine.

    python -m benchmarks.run --data FOLDER [--cases dpo-9m-hh ...] [--repeats 3] [--quick]

Every measurement is a process of its own. Results go to benchmarks/results as JSON and Markdown,
after every case, so that a run that is ended early has what it measured.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from benchmarks import help_time, machine, models, on_policy, rows, table
from trimtab.plan.flops import llama_shape

ROOT = Path(__file__).parents[1]
ENVIRONMENTS = ROOT / "build" / "bench"
RESULTS = ROOT / "benchmarks" / "results"
LIMIT_SECONDS = 3600
# What a case has that says nothing of it.
UNNAMED: dict[str, Any] = {
    "measures": "rows",
    "keys": {},
    "lora": None,
    "kind": "as_is",
    "pairs_per_row": 1,
    "peer": "trl",
    # On-policy cases: responses to a prompt, their tokens, passes over a rollout, other models.
    "responses_per_row": 1,
    "new_tokens": 0,
    "passes": 1,
    "other_models": {},
}
# Mean length of the responses of a rollout, as a share of what was asked for.
SHORTEST = 0.97
# How much faster matrix products must be in bf16 to pay for autocast's casts.
BF16_PAYS = 1.2


# Of the parent: trimtab sets the last one for itself when it is imported, in its own process.
_OURS = ("TRIMTAB_", "HF_", "THP_")


class RunFailed(Exception):
    """A process ended badly; the message has its last lines."""


def cases_of(
    names: Sequence[str] | None, *, quick: bool, device: str = "cpu"
) -> dict[str, dict[str, Any]]:
    """The cases as they will be run."""
    file = "cases.yaml" if device == "cpu" else "cases-gpu.yaml"
    text = yaml.safe_load((rows.INPUTS / file).read_text())
    unknown = set(names or ()) - set(text["cases"]) - {"help"}
    if unknown:
        raise SystemExit(
            f"no case {', '.join(sorted(unknown))}; cases are {', '.join(text['cases'])}, help"
        )
    found: dict[str, dict[str, Any]] = {}
    for name, own in text["cases"].items():
        if names and name not in names:
            continue
        case = {**UNNAMED, **text["defaults"], **own}
        if quick:
            case |= {"batch": 2, "steps": min(case["steps"], 2), "repeats": 1}
        found[name] = case
    return found


# ---------------------------------------------------------------------- processes


def process(python: Path, module: str, job: dict[str, Any], threads: int) -> dict[str, Any]:
    """Run one side on a job; its last line of output is the result."""
    with tempfile.TemporaryDirectory(prefix="trimtab-bench-") as scratch:
        folder = Path(scratch)
        if "rows" in job:
            job = {**job, "data": str(rows.write(folder / "rows.jsonl", job["rows"]))}
            del job["rows"]
        path = folder / "job.json"
        path.write_text(json.dumps({**job, "scratch": scratch, "started": time.time()}))
        environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith(_OURS)},
            "OMP_NUM_THREADS": str(threads),
            "HF_HOME": str(folder / "hf"),  # nothing is cached from an earlier run
            "HF_HUB_OFFLINE": "1",
        }
        done = subprocess.run(
            [str(python), "-m", module, str(path)],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=LIMIT_SECONDS,
        )
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise RunFailed(f"{module} ended with {done.returncode}: {' | '.join(lines[-3:])}")
    return json.loads(done.stdout.splitlines()[-1])


def measure_machine(
    model: str, tokens: int, targets: int, threads: int, dtypes: Sequence[str], device: str
) -> dict[str, Any]:
    """The GEMM rates at a model's shapes."""
    job: dict[str, Any] = {"model": str(models.folder(model)), "dtypes": list(dtypes)}
    job |= {"tokens": tokens, "targets": targets}
    job |= {"threads": threads, "repeats": 7, "device": device}
    found = process(Path(sys.executable), "benchmarks.machine", job, threads)
    return {**found, "tokens": tokens, "targets": targets}


def job_of(
    case: Mapping[str, Any],
    arm: Mapping[str, Any],
    data: Sequence[Mapping[str, Any]],
    threads: int,
    device: str = "cpu",
) -> dict[str, Any]:
    """What one side is told."""
    steps = min(arm.get("steps", case["steps"]), case["steps"])
    used = data if case["measures"] == "startup" else data[: steps * case["batch"]]
    names = ("verb", "batch", "max_length", "learning_rate", "max_grad_norm", "pairs_per_row")
    names += ("responses_per_row", "new_tokens", "passes", "token_budget", "seed", "keys", "lora")
    return {
        **{name: case[name] for name in names},
        "model": str(models.folder(case["model"])),
        "other_models": {k: str(models.folder(m)) for k, m in case["other_models"].items()},
        "rows": rows.as_kind(used, case["kind"]),
        "steps": steps,
        "threads": threads,
        "device": device,
        "arm": dict(arm),
    }


def run_arm(
    case: Mapping[str, Any], arm: Mapping[str, Any], job: dict[str, Any], peer: Path
) -> dict[str, Any]:
    """One measurement; a run that did not train on the pinned rows is refused."""
    ours = arm["side"] == "trimtab"
    python = Path(sys.executable) if ours else peer
    which = "on_policy" if case["verb"] in on_policy.VERBS else "side"
    module = f"benchmarks.{'trimtab' if ours else 'trl'}_{which}"
    result = process(python, module, job, job["threads"])
    each = case["batch"] * case["responses_per_row"]
    if case["measures"] != "startup" and result["rows"] != [each] * job["steps"]:
        raise RunFailed(f"trained on {result['rows']} rows, not on {each} a step")
    shortest = min(result.get("mean_tokens") or [case["new_tokens"]])
    if shortest < SHORTEST * case["new_tokens"]:
        raise RunFailed(f"sampled {shortest:.1f} tokens a response, not {case['new_tokens']}")
    return result


def peer_python(name: str, arguments: argparse.Namespace) -> Path:
    """The interpreter of a peer's virtual environment, or the one that was named."""
    return arguments.peer_python or ENVIRONMENTS / name / "bin" / "python"


# ---------------------------------------------------------------------- a case


def arms_of(case: dict[str, Any], only: Sequence[str] | None, bf16_gain: float) -> None:
    """Settle what depends on the machine, and leave out what does not apply to it."""
    pays = bf16_gain >= BF16_PAYS
    kept: dict[str, dict[str, Any]] = {}
    for name, arm in case["arms"].items():
        arm = dict(arm)
        if only and kept and name not in only:  # the first is what ratios are of
            continue
        if arm.pop("needs", None) == "bf16" and not pays:
            case["notes"].append(
                f"{name} left out: matrix products in bf16 run at {bf16_gain:.2f} times the rate "
                "of fp32 here"
            )
            continue
        if arm.get("bf16") == "best":
            arm["bf16"] = pays
        kept[name] = arm
    case["arms"] = kept


def run_case(
    name: str, case: dict[str, Any], data: Path, arguments: argparse.Namespace
) -> dict[str, Any]:
    """All arms of a case, in turn, ``repeats`` times; the machine's rate once a round."""
    models.ensure(case["model"], data)
    pin = rows.read(case["rows"], rows.pinned()[case["rows"]], data)
    if case["measures"] == "startup" and arguments.quick:
        pin = pin[:64]
    runs: dict[str, list[dict[str, Any]]] = {arm: [] for arm in case["arms"]}
    failed: set[str] = set()
    limits: list[dict[str, Any]] = []
    for round_ in range(min(arguments.repeats, case["repeats"])):
        names = list(case["arms"])
        # Each round starts with another arm: what drifts meets all of them.
        for arm_name in names[round_ % len(names) :] + names[: round_ % len(names)]:
            arm = case["arms"][arm_name]
            if arm_name in failed or round_ >= arm.get("repeats", arguments.repeats):
                continue
            job = job_of(case, arm, pin, arguments.threads, arguments.device)
            try:
                result = run_arm(case, arm, job, peer_python(case["peer"], arguments))
            except (RunFailed, subprocess.TimeoutExpired) as error:
                failed.add(arm_name)
                case["notes"].append(f"{arm_name} failed: {error}")
                print(f"  {arm_name}: FAILED: {error}", flush=True)
                continue
            runs[arm_name].append(result)
            print(f"  {arm_name}: {_one_line(case, result)}", flush=True)
        if case["measures"] != "startup":
            limits += _machine(case, runs, arguments)
    case |= {"runs": runs, "machine": limits}
    case["figures"] = table.case_figures(case, _shape(case["model"]))
    base = next(iter(case["figures"].values()), {})
    for arm_name, own in case["figures"].items():
        both = {base["precision"], own["precision"]}
        if "loss_gap" in own and (why := table.disagreement(own["loss_gap"], both)):
            case["notes"].append(f"{arm_name} failed: its ratios compare different work: {why}")
    # The trees are the same in every run.
    for results in runs.values():
        for result in results[1:]:
            result.pop("trees", None)
    return case


def _machine(
    case: Mapping[str, Any], runs: Mapping[str, list[dict[str, Any]]], arguments: argparse.Namespace
) -> list[dict[str, Any]]:
    found = next((r[0]["trees"] for r in runs.values() if r and "trees" in r[0]), None)
    if found is None:
        return []
    tokens = [sum(t["trunk"] + sum(t["branches"]) for t in step) for step in found]
    targets = [sum(t["targets"] for t in step) for step in found]
    mean = (round(sum(tokens) / len(tokens)), round(sum(targets) / len(targets)))
    used = {table.DTYPES[r[0]["precision"]] for r in runs.values() if r}
    return [
        measure_machine(case["model"], *mean, arguments.threads, sorted(used), arguments.device)
    ]


def _shape(model: str) -> Any:
    return llama_shape(json.loads((models.folder(model) / "config.json").read_text()))


def _one_line(case: Mapping[str, Any], result: Mapping[str, Any]) -> str:
    text = f"peak {result['peak_mb']:.0f} MB, first step after "
    text += f"{result['seconds_to_first_step']:.1f} s"
    if case["measures"] == "startup" or len(result["rows"]) <= case["warmup_steps"]:
        return text
    return f"{1 / table.seconds_per_row(result, case['warmup_steps']):.3g} rows/s, {text}"


# ---------------------------------------------------------------------- the whole


def machine_info(device: str) -> dict[str, Any]:
    """What the figures depend on besides the software."""
    cpu, flags = platform.processor() or platform.machine(), ""
    info = Path("/proc/cpuinfo")
    if info.exists():
        text = info.read_text()
        named = re.search(r"model name\s*:\s*(.+)", text)
        cpu = named[1].strip() if named else cpu
        listed = re.search(r"flags\s*:\s*(.+)", text)
        flags = listed[1] if listed else ""
    wide = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16")
    return {
        "cpu": cpu,
        **({"gpu": _gpu()} if device == "cuda" else {}),
        "cores": os.cpu_count(),
        "instructions": [name for name in wide if name in flags.split()],
        "load_average_at_start": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
        "system": platform.system(),
    }


def _gpu() -> str:
    import torch

    return torch.cuda.get_device_name()


def commit() -> str:
    """The commit that is measured, with a mark where files differ from it."""
    found = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True
    )
    return found.stdout.strip() or "unknown"


def result_file(results: Mapping[str, Any]) -> Path:
    """The JSON file of results; its name tells the machine and the day."""
    name = results["machine"].get("gpu") or results["machine"]["cpu"]
    device = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    quick = "-quick" if results["quick"] else ""
    stem = f"{device}-{results['threads']}t-{results['date']}{quick}"
    return (ROOT / "build" / "bench" if quick else RESULTS) / f"{stem}.json"


def keep(results: dict[str, Any]) -> None:
    """Take over what was measured earlier on this day and machine; cases run now replace theirs."""
    path = result_file(results)
    if not path.exists():
        return
    old = json.loads(path.read_text())
    results["cases"] = old["cases"]
    results["machine"]["rates"] = old["machine"].get("rates", {})
    if "help" in old:
        results["help"] = old["help"]


def save(results: Mapping[str, Any]) -> Path:
    """Write the JSON and the table."""
    target = result_file(results)
    target.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(results, indent=1)
    # Innermost lists and objects on one line each.
    text = re.sub(r"([\[{])\s+([^\[\]{}]*?)\s+([\]}])", _flat, text)
    target.write_text(text + "\n")
    path = target.with_suffix(".md")
    path.write_text(table.markdown(results))
    return path


def _flat(found: re.Match[str]) -> str:
    return found[1] + re.sub(r"\n\s+", " ", found[2]) + found[3]


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the pinned files")
    parser.add_argument("--cases", nargs="*", help="these only; `help` is one of them")
    parser.add_argument("--arms", nargs="*", help="these arms only, and the first of each case")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2, help="of torch, on both sides")
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cpu", help="cuda: the cases of cases-gpu.yaml"
    )
    parser.add_argument("--peer-python", type=Path, help="of an environment with TRL")
    parser.add_argument(
        "--keep",
        action="store_true",
        help="add to what was measured earlier today on this machine, instead of replacing it",
    )
    parser.add_argument(
        "--quick", action="store_true", help="2 rows a step, once: does it run at all?"
    )
    return parser.parse_args(argv)


def main() -> int:
    arguments = parse()
    cases = cases_of(arguments.cases, quick=arguments.quick, device=arguments.device)
    for peer in sorted({case["peer"] for case in cases.values()}):
        if not peer_python(peer, arguments).exists():
            raise SystemExit(f"TRL's virtual environment {peer} is missing; make bench makes it")
    results: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "commit": commit(),
        "machine": machine_info(arguments.device),
        "threads": arguments.threads,
        "repeats": arguments.repeats,
        "quick": arguments.quick,
        "cases": {},
    }
    if arguments.keep:
        keep(results)
    try:
        return run_all(cases, results, arguments)
    except (rows.RowsChanged, models.ModelMissing) as error:
        raise SystemExit(str(error)) from None


def run_all(
    cases: dict[str, dict[str, Any]], results: dict[str, Any], arguments: argparse.Namespace
) -> int:
    """Run and save case after case; 1 where an arm failed."""
    for case in cases.values():  # before hours of measuring, not in their midst
        for model in (case["model"], *case["other_models"].values()):
            models.ensure(model, arguments.data)
    if not arguments.cases or "help" in arguments.cases:
        print("help", flush=True)
        results["help"] = help_time.measure(1 if arguments.quick else 5)
        print(f"saved {save(results)}", flush=True)
    for name, case in cases.items():
        print(name, flush=True)
        case["notes"] = []
        gain = _bf16_gain(case["model"], arguments, results)
        arms_of(case, arguments.arms, gain)
        found = run_case(name, case, arguments.data, arguments)
        results["cases"][name] = {**found, "commit": results["commit"]}
        path = save(results)
        print(f"  saved {path.relative_to(ROOT)}", flush=True)
    notes = [note for name in cases for note in results["cases"][name]["notes"]]
    return int(any(" failed: " in note for note in notes))


def _bf16_gain(model: str, arguments: argparse.Namespace, results: dict[str, Any]) -> float:
    """How much faster matrix products are in bf16, measured once a model."""
    known = results["machine"].setdefault("rates", {})
    if model not in known:
        # Few tokens: without bf16 instructions a thousand take minutes.
        known[model] = measure_machine(
            model, 256, 32, arguments.threads, machine.DTYPES, arguments.device
        )["rates"]
    both = known[model]
    return both["bfloat16"]["best_gflops"] / both["float32"]["best_gflops"]


if __name__ == "__main__":
    sys.exit(main())
