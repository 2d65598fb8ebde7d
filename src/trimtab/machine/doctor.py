"""``trimtab doctor``: is this machine and its Python fit for trimtab, and if not, what to do.

It asks the system, reads versions, multiplies matrices for a second and writes a byte where runs
and caches go. It uses no network.
"""

from __future__ import annotations

import dataclasses
import importlib
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from trimtab.machine import versions
from trimtab.machine.memory import GIB, memory

State = Literal["ok", "note", "warning", "failed"]

LOWEST_PYTHON = (3, 11)
FEW_BYTES = {"memory": 4 * GIB, "disk": 5 * GIB}  # make demo and SmolLM2-135M need less
OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")
FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")  # what decides torch's speed on a CPU
WIDTH = 512  # of the products that are timed


@dataclasses.dataclass(frozen=True)
class Finding:
    """What one check found. Only ``failed`` makes the doctor's exit code 1.

    says     for people, one line           remedy  what to do, None where there is nothing to do
    facts    the same for programs, JSON types
    """

    name: str
    state: State
    says: str
    remedy: str | None = None
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def examine() -> list[Finding]:
    """Run every check; one that cannot run is a finding, too."""
    checks: dict[str, Callable[[], Finding]] = {
        "python": _python,
        "packages": _packages,
        "imports": _imports,
        "threads": _threads,
        "products": _products,
        "accelerator": _accelerator,
        "memory": _memory,
        "disk": _disk,
        "writing": _writing,
        "network": _network,
        "extras": _extras,
    }
    found: list[Finding] = []
    failed: set[str] = set()
    for name, check in checks.items():
        if name in ("threads", "products", "accelerator") and "imports" in failed:
            continue  # they need torch
        try:
            found.append(check())
        except Exception as error:  # a machine unlike those it was tried on
            says = f"could not be checked: {type(error).__name__}: {' '.join(str(error).split())}"
            found.append(Finding(name, "warning", says))
        if found[-1].state == "failed":
            failed.add(name)
    return found


# ---------------------------------------------------------------------- software


def _python() -> Finding:
    version = platform.python_version()
    facts = {"version": version, "platform": platform.platform()}
    says = f"{version} on {platform.platform()}"
    if sys.version_info < LOWEST_PYTHON:
        wanted = ".".join(map(str, LOWEST_PYTHON))
        return Finding("python", "failed", says, f"install Python {wanted} or newer", facts)
    return Finding("python", "ok", says, None, facts)


def _packages() -> Finding:
    found = versions.packages()
    facts = {one.name: one._asdict() for one in found}
    lists = {state: [one for one in found if one.state == state] for state in ("missing", "old")}
    if bad := [*lists["missing"], *lists["old"]]:
        said = [f"{one.name} {one.installed or 'missing'} (needed: {one.bound})" for one in bad]
        wanted = " ".join(f"'{one.name}>={one.bound}'" for one in bad if one.bound) or bad[0].name
        return Finding(
            "packages", "failed", ", ".join(said), f"python -m pip install {wanted}", facts
        )
    main = ", ".join(f"{one.name} {one.installed}" for one in found[:2] + found[6:7])
    if other := [one for one in found if one.state == "other"]:
        said = ", ".join(f"{one.name} {one.installed} (tested: {one.tested})" for one in other)
        return Finding(
            "packages",
            "note",
            f"{main}; not the tested versions: {said}",
            "nothing, while all works; the tested set is constraints.txt (pip install -c)",
            facts,
        )
    return Finding("packages", "ok", f"{main} and the rest: the tested set", None, facts)


def _imports() -> Finding:
    """Versions say what is installed, not whether it loads (a wrong build, a missing library)."""
    start = time.perf_counter()
    for name in ("torch", "transformers", "peft", "tokenizers", "safetensors"):
        try:
            importlib.import_module(name)
        except Exception as error:
            text = " ".join(str(error).split())[:200]
            says = f"import {name} fails: {type(error).__name__}: {text}"
            remedy = f"python -m pip install --force-reinstall {name}"
            return Finding("imports", "failed", says, remedy, {"failed": name})
    seconds = time.perf_counter() - start
    says = f"torch, transformers and peft load in {seconds:.1f} s"
    return Finding("imports", "ok", says, None, {"seconds": round(seconds, 2)})


def _extras() -> Finding:
    facts = {
        extra: {"package": package, "installed": versions.installed(package)}
        for extra, (package, _) in versions.EXTRAS.items()
    }
    here = [name for name, one in facts.items() if one["installed"]]
    away = [f"{name} ({versions.EXTRAS[name][1]})" for name in facts if name not in here]
    says = f"installed: {', '.join(here) or 'none'}"
    if not away:
        return Finding("extras", "ok", says, None, facts)
    remedy = "only where you want one: pip install 'trimtab[NAME]'"
    return Finding("extras", "ok", f"{says}; not: {', '.join(away)}", remedy, facts)


# ---------------------------------------------------------------------- speed


def _threads() -> Finding:
    import torch

    threads, cores = torch.get_num_threads(), usable_cores()
    facts = {
        "threads": threads,
        "cores": cores,
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS"),
        "flags": cpu_flags(),
    }
    flags = f", {' '.join(facts['flags'])}" if facts["flags"] else ""
    says = f"{threads} of {cores} usable cores{flags}"
    if threads > cores:
        remedy = f"threads: {cores} in the recipe, or OMP_NUM_THREADS={cores}: more only wait"
        return Finding("threads", "warning", says, remedy, facts)
    if threads < cores and facts["OMP_NUM_THREADS"]:
        remedy = f"unset OMP_NUM_THREADS, or set it to {cores}, unless other work needs the rest"
        return Finding("threads", "note", says, remedy, facts)
    return Finding("threads", "ok", says, None, facts)


def _products() -> Finding:
    import torch

    from trimtab.training.precision import gemm_rate

    cpu = torch.device("cpu")
    full, half = (gemm_rate(dtype, cpu, WIDTH) for dtype in (torch.float32, torch.bfloat16))
    facts = {"fp32_gflops": round(full, 1), "bf16_gflops": round(half, 1), "width": WIDTH}
    chosen = "bf16" if half >= 1.5 * full else "fp32"
    says = (
        f"{full:.0f} GFLOP/s in fp32, {half:.0f} in bf16 (CPU, width {WIDTH}): "
        f"precision auto takes {chosen}"
    )
    return Finding("products", "ok", says, None, facts)


def _accelerator() -> Finding:
    import torch

    if torch.cuda.is_available():
        cards = []
        for number in range(torch.cuda.device_count()):
            card = torch.cuda.get_device_properties(number)
            cards.append({"name": card.name, "bytes": card.total_memory})
        says = ", ".join(f"{one['name']} ({one['bytes'] / GIB:.0f} GiB)" for one in cards)
        facts = {"kind": "cuda", "cards": cards, "cuda": torch.version.cuda}
        return Finding("accelerator", "ok", f"{says}, CUDA {torch.version.cuda}", None, facts)
    if torch.backends.mps.is_available():
        return Finding("accelerator", "ok", "Apple GPU (mps)", None, {"kind": "mps"})
    facts = {"kind": None, "torch_cuda": torch.version.cuda}
    if shutil.which("nvidia-smi") and Path("/dev/nvidia0").exists():
        says = "an NVIDIA card is there, and torch does not see it"
        remedy = (
            "install the CUDA build of torch that pytorch.org shows for your driver"
            if torch.version.cuda is None
            else "see what nvidia-smi says: driver and CUDA must fit torch's"
        )
        return Finding("accelerator", "warning", says, remedy, facts)
    return Finding("accelerator", "ok", "none; not needed", None, facts)


def usable_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu_flags() -> list[str]:
    """Which of ``FLAGS`` the processor has, where the system tells (Linux on x86)."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            line = next((line for line in file if line.startswith("flags")), "")
    except OSError:
        return []
    return [flag for flag in FLAGS if flag in line.split()]


# ---------------------------------------------------------------------- room


def _memory() -> Finding:
    found = memory()
    facts = found._asdict()
    if found.total is None:
        return Finding("memory", "note", "the system does not say how much there is", None, facts)
    says = f"{found.total / GIB:.1f} GiB"
    if found.available is not None:
        says += f", {found.available / GIB:.1f} free"
    if (found.available or found.total) < FEW_BYTES["memory"]:
        remedy = "close other programs; trimtab plan says what a recipe needs"
        return Finding("memory", "warning", says, remedy, facts)
    return Finding("memory", "ok", says, None, facts)


def _places() -> dict[str, Path]:
    from trimtab.data.store_cache import default_cache_dir

    return {"runs": Path.cwd(), "cache": default_cache_dir(), "temporary": Path(_temporary())}


def _temporary() -> str:
    try:
        return tempfile.gettempdir()
    except OSError:  # no folder that can be written to
        return os.environ.get("TMPDIR") or "/tmp"


def _disk() -> Finding:
    free = {}
    for name, place in _places().items():
        there = next(one for one in (place, *place.parents) if one.exists())
        free[name] = shutil.disk_usage(there).free
    says = ", ".join(f"{name} {size / GIB:.0f} GiB free" for name, size in free.items())
    if min(free["runs"], free["cache"]) < FEW_BYTES["disk"]:
        remedy = (
            "make room, or run elsewhere: --output-dir and --cache-dir (or TRIMTAB_CACHE); a "
            "checkpoint takes 12 bytes a trained weight, save_total_limit says how many are kept"
        )
        return Finding("disk", "warning", says, remedy, free)
    return Finding("disk", "ok", says, None, free)


def _writing() -> Finding:
    """Write, and take away again, a file where runs, caches and scratch files go."""
    bad: dict[str, str] = {}
    for name, place in _places().items():
        # A cache folder that is not there yet stays away: its parent has to let it be made.
        there = next(one for one in (place, *place.parents) if one.exists())
        try:
            with tempfile.TemporaryFile(dir=there) as file:
                file.write(b"0")
        except OSError as error:
            bad[name] = f"{place}: {error.strerror or error}"
    if not bad:
        return Finding("writing", "ok", "the working directory, cache and temporary folder", None)
    remedies = {
        "runs": "--output-dir ELSEWHERE",
        "cache": "--cache-dir ELSEWHERE or TRIMTAB_CACHE",
        "temporary": "TMPDIR=ELSEWHERE",
    }
    remedy = "; ".join(remedies[name] for name in bad)
    return Finding("writing", "failed", "; ".join(bad.values()), remedy, bad)


def _network() -> Finding:
    """Settings alone: nothing is contacted, and a token's value is nobody's business."""
    offline = [name for name in OFFLINE if os.environ.get(name, "").lower() in _TRUE]
    facts = {
        "offline": offline,
        "endpoint": os.environ.get("HF_ENDPOINT"),
        "token": bool(os.environ.get("HF_TOKEN")),
    }
    where = facts["endpoint"] or "the Hugging Face hub"
    if len(offline) == len(OFFLINE):
        says = "off (HF_HUB_OFFLINE and the like): hub ids only out of the cache"
        return Finding("network", "ok", says, None, facts)
    if offline:
        says = f"{', '.join(offline)} set, {', '.join(n for n in OFFLINE if n not in offline)} not"
        return Finding("network", "note", says, "set all of them, or --offline", facts)
    says = f"used only for a hub id that is no folder here ({where})"
    return Finding("network", "ok", says, None, facts)


_TRUE = ("1", "true", "yes", "on")
