"""Installed packages against what trimtab needs (pyproject.toml) and what it was tested with."""

from __future__ import annotations

import importlib.metadata
import re
from typing import Literal, NamedTuple

from trimtab.shipped import CONSTRAINTS, shipped

NEEDED = (
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "numpy",
    "pyarrow",
    "peft",
    "pydantic",
    "cyclopts",
    "rich",
    "PyYAML",
    "Jinja2",
)
"""What ``pip install trimtab`` brings; a test compares it with pyproject.toml."""

EXTRAS = {
    "hub": ("datasets", "rows from the hub"),
    "gguf": ("gguf", "GGUF files"),
    "tensorboard": ("tensorboard", "report_to: tensorboard"),
    "trackio": ("trackio", "report_to: trackio"),
    "wandb": ("wandb", "report_to: wandb"),
    "mlflow": ("mlflow", "report_to: mlflow"),
    "lm-eval": ("lm-eval", "trimtab evaluate --lm-eval"),
}
"""Extra -> the package that makes it work, and what for."""


class Package(NamedTuple):
    """``state``: tested, other (than the tested version), old (below the bound), missing."""

    name: str
    installed: str | None
    tested: str | None
    bound: str | None
    state: Literal["tested", "other", "old", "missing"]


def installed(name: str) -> str | None:
    """The version of a package, None where it is not installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def tested_set() -> dict[str, str]:
    """Version by normalised name, as constraints.txt pins them."""
    file = shipped(CONSTRAINTS)
    if file is None:
        return {}
    lines = file.read_text(encoding="utf-8").splitlines()
    pins = (line.split("==") for line in lines if "==" in line and not line.startswith("#"))
    return {normal(name): version.strip() for name, version in pins}


def packages() -> list[Package]:
    """The needed ones."""
    tested, bounds = tested_set(), lower_bounds()
    return [
        judge(name, installed(name), tested.get(normal(name)), bounds.get(normal(name)))
        for name in NEEDED
    ]


def judge(name: str, version: str | None, tested: str | None, bound: str | None) -> Package:
    """One package; a local build (``2.13.0+cpu``) counts as its version."""
    if version is None:
        state = "missing"
    elif bound is not None and release(version) < release(bound):
        state = "old"
    else:
        state = "tested" if version.partition("+")[0] == tested else "other"
    return Package(name, version, tested, bound, state)


def lower_bounds() -> dict[str, str]:
    """``name>=version`` of the installed trimtab; empty where it runs without being installed."""
    try:
        lines = importlib.metadata.requires("trimtab") or []
    except importlib.metadata.PackageNotFoundError:
        return {}
    found = (re.match(r"([\w.-]+)\s*>=\s*([\d.]+)\s*$", line) for line in lines)
    return {normal(match[1]): match[2] for match in found if match}


def release(version: str) -> tuple[int, ...]:
    """The numbers of ``2.13.0+cpu``, to compare: (2, 13, 0); of a pre-release those before it."""
    found = re.match(r"\d+(\.\d+)*", version)
    return tuple(map(int, found[0].split("."))) if found else ()


def normal(name: str) -> str:
    """A package's name as indexes compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()
