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
    """
    from trimtab.world.demo import run_demo

    return run_demo(output_dir=output_dir, seed=seed, seeds=seeds, fast=fast)
