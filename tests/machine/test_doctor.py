"""The doctor: every finding is provoked once, and a healthy machine has none of them."""

from __future__ import annotations

import json
import shutil
import tempfile
import tomllib
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest

from trimtab.cli import main
from trimtab.machine import doctor, versions
from trimtab.machine.memory import GIB, Memory, memory, peak_rss

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def healthy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine with room, whatever the one that runs the tests is like."""
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(doctor, "memory", lambda: Memory(16 * GIB, 12 * GIB))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(100 * GIB, 0, 90 * GIB))
    monkeypatch.setattr("trimtab.training.precision.gemm_rate", lambda dtype, *_: 50.0)
    monkeypatch.setattr(doctor, "usable_cores", lambda: 4)
    monkeypatch.setattr("torch.get_num_threads", lambda: 4)
    monkeypatch.chdir(tmp_path)
    for name in (*doctor.OFFLINE, "HF_ENDPOINT", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)


def found(name: str) -> doctor.Finding:
    return {one.name: one for one in doctor.examine()}[name]


def test_a_healthy_machine(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["ok"] is True
    states = {one["name"]: one["state"] for one in record["findings"]}
    assert len(states) == 11 and not {"warning", "failed"} & {
        state for name, state in states.items() if name != "accelerator"
    }
    assert main(["doctor"]) == 0
    assert "next: trimtab demo" in capsys.readouterr().out


def test_the_tables_are_those_of_pyproject() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = {versions.normal(line.split(">=")[0]) for line in project["dependencies"]}
    assert {versions.normal(name) for name in versions.NEEDED} == needed
    extras = project["optional-dependencies"]
    assert set(versions.EXTRAS) == set(extras) - {"dev"}
    for extra, (package, _) in versions.EXTRAS.items():
        assert extras[extra][0].startswith(package)
    tested = versions.tested_set()
    assert needed <= set(tested)
    assert tested["torch"] == "2.13.0"


@pytest.mark.parametrize(
    ("installed", "state"),
    [
        ("2.13.0", "tested"),
        ("2.13.0+cpu", "tested"),
        ("2.12.1", "other"),
        ("2.6", "other"),
        ("2.6.0", "other"),
        ("2.5.9", "old"),
        (None, "missing"),
    ],
)
def test_versions(installed: str | None, state: str) -> None:
    assert versions.judge("torch", installed, "2.13.0", "2.6").state == state


def test_packages(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(versions, "lower_bounds", lambda: {"peft": "0.18"})
    real = versions.installed
    monkeypatch.setattr(versions, "installed", lambda n: "0.20.0" if n == "peft" else real(n))
    other = found("packages")
    assert other.state == "note" and "peft 0.20.0 (tested: 0.21.2)" in other.says
    monkeypatch.setattr(versions, "installed", lambda n: "0.17.1" if n == "peft" else real(n))
    old = found("packages")
    assert (old.state, old.says) == ("failed", "peft 0.17.1 (needed: 0.18)")
    assert old.remedy == "python -m pip install 'peft>=0.18'"
    assert main(["doctor"]) == 1
    assert "mend what has failed first" in capsys.readouterr().out


def test_an_import_that_fails_leaves_out_what_needs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> Any:
        raise OSError("libcudart.so.12: cannot open shared object file")

    monkeypatch.setattr(doctor.importlib, "import_module", broken)
    every = {one.name: one for one in doctor.examine()}
    assert every["imports"].state == "failed"
    assert every["imports"].says.startswith("import torch fails: OSError: libcudart")
    assert not {"threads", "products", "accelerator"} & set(every)
    assert every["memory"].state == "ok"


def test_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.get_num_threads", lambda: 8)
    assert found("threads").state == "warning"
    monkeypatch.setattr("torch.get_num_threads", lambda: 1)
    assert found("threads").state == "ok"  # torch's own choice is left alone
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert (found("threads").state, "set it to 4" in str(found("threads").remedy)) == ("note", True)


def test_products_say_what_auto_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "takes fp32" in found("products").says
    rates = {"torch.float32": 50.0, "torch.bfloat16": 75.0}
    monkeypatch.setattr("trimtab.training.precision.gemm_rate", lambda d, *_: rates[str(d)])
    assert "75 in bf16 (CPU, width 512): precision auto takes bf16" in found("products").says


def test_room(monkeypatch: pytest.MonkeyPatch) -> None:
    assert found("memory").says == "16.0 GiB, 12.0 free"
    monkeypatch.setattr(doctor, "memory", lambda: Memory(16 * GIB, 3 * GIB))
    assert found("memory").state == "warning"
    monkeypatch.setattr(doctor, "memory", lambda: Memory(None, None))
    assert found("memory").state == "note"
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(9, 9, 1 * GIB))
    assert found("disk").state == "warning" and "1 GiB free" in found("disk").says


def test_writing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert found("writing").state == "ok" and not list(tmp_path.iterdir())

    def refused(dir: Path) -> Any:
        raise PermissionError(13, "Permission denied", str(dir))

    monkeypatch.setattr(tempfile, "TemporaryFile", refused)
    writing = found("writing")
    assert writing.state == "failed" and f"{tmp_path}: Permission denied" in writing.says
    assert "--output-dir ELSEWHERE" in str(writing.remedy)


def test_network(monkeypatch: pytest.MonkeyPatch) -> None:
    assert found("network").facts["offline"] == []
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert found("network").state == "note"
    for name in doctor.OFFLINE:
        monkeypatch.setenv(name, "1")
    assert found("network").says.startswith("off ")
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert found("network").facts["token"] is True and "secret" not in str(found("network"))


def test_a_check_that_breaks_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "memory", lambda: 1 / 0)
    assert found("memory").state == "warning" and "ZeroDivisionError" in found("memory").says


def test_memory_is_that_of_the_system() -> None:
    here = memory()
    assert here.total is None or here.total > 100 << 20
    assert here.available is None or here.total is None or here.available <= here.total
    before = peak_rss()
    filled = bytearray(before + (64 << 20))  # more than there ever was
    filled[:: 1 << 12] = b"1" * len(filled[:: 1 << 12])
    assert peak_rss() > before
