"""``trimtab demo``."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter


def demo(
    *,
    output_dir: str = "runs/demo",
    seed: int = 0,
    seeds: int = 1,
    fast: Annotated[bool, Parameter(negative="")] = False,
    thorough: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """Pretrain, fine-tune and align a tiny model on text made on the spot, in about five minutes.

    Parameters
    ----------
    output_dir
        Folder of the runs.
    seed
        Of the text, the models and the training.
    seeds
        Repeat everything with this many seeds, from ``seed`` on: intervals are then over them, too.
    fast
        Less of everything, in under one minute: does it run at all?
    thorough
        Then compare all methods over grids with five seeds, on all cores; hours. On the folder of a
        finished demo, only that.
    """
    from trimtab.world.demo import run_demo

    if not thorough:
        return run_demo(output_dir=output_dir, seed=seed, seeds=seeds, fast=fast)
    from pathlib import Path

    from trimtab.errors import UsageError
    from trimtab.world.demo_thorough import run_thorough

    if fast or seeds != 1:
        raise UsageError("--thorough: compares from one whole demo; leave --fast and --seeds out")
    folder = Path(output_dir)
    finished = (folder / "summary.json").exists()
    code = 0 if finished else run_demo(output_dir=output_dir, seed=seed)
    return code or run_thorough(folder, seed)
