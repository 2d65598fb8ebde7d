"""``trimtab export``."""

from __future__ import annotations

import dataclasses
import json
from typing import Annotated, Literal

from cyclopts import Parameter


def export(
    run: str,
    /,
    *,
    output: str,
    format: Literal["merged", "adapter"] = "merged",
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = "auto",
    base_model: str | None = None,
    as_json: Annotated[bool, Parameter(name="--json", negative="")] = False,
) -> int:
    """Write a run's model for other programs, and print their exact lines (vLLM, llama.cpp's GGUF).

    Parameters
    ----------
    run
        Run folder, model or adapter folder, or hub id.
    output
        Folder to make; nothing is overwritten.
    format
        merged: a plain model, an adapter added into its base; adapter: PEFT's files alone.
    dtype
        Of a merged model's weights; auto: as the model's (an adapter's base) are.
    base_model
        With format adapter: the name of the base that is written into it, such as its hub id.
    as_json
        Print one JSON object instead.
    """
    from trimtab.models.export import ExportOptions
    from trimtab.models.export import export as write

    made = write(
        ExportOptions(run=run, output=output, format=format, dtype=dtype, base_model=base_model)
    )
    if as_json:
        print(json.dumps(dataclasses.asdict(made), ensure_ascii=False))
    else:
        print("\n".join(made.lines()))
    return 0
