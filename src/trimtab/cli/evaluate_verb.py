"""``trimtab evaluate``."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from trimtab.data.rows import Kind


def evaluate(
    model: str,
    /,
    *,
    dataset_name: Annotated[str, Parameter(name=["--dataset-name", "--dataset"])],
    baseline: str | None = None,
    columns: Annotated[tuple[str, ...], Parameter(negative="", consume_multiple=True)] = (),
    kind: Kind | None = None,
    dataset_split: str = "test",
    max_rows: int | None = None,
    max_length: int = 1024,
    max_bad_rows: float = 0.0,
    token_budget: int = 8192,
    output_dir: str | None = None,
    seed: int = 0,
    as_json: Annotated[bool, Parameter(name="--json", negative="")] = False,
) -> int:
    """Write a report card: a reward model on comparisons, a language model on those or on text.

    Parameters
    ----------
    model
        Reward model, ensemble of them or causal language model: folder or hub id.
    dataset_name
        Held-out rows: file (.jsonl .json .csv .parquet), folder or hub id.
    baseline
        A second model on the same rows; differences are paired.
    columns
        Our column = theirs, e.g. prompt=question chosen=good.
    kind
        Type of the rows; otherwise recognised from the columns.
    dataset_split
        Split of a hub dataset or of a folder of splits.
    max_rows
        Take so many rows from the start of the file.
    max_length
        Longest prompt + response in tokens.
    max_bad_rows
        Bad rows to leave out: below 1 a share of the rows, from 1 on a count.
    token_budget
        Tokens in one forward pass.
    output_dir
        Folder of the report card; otherwise runs/evaluate-MODEL-DATA.
    seed
        Of the bootstrap intervals.
    as_json
        Print the whole card as one JSON object instead of its verdict.
    """
    from trimtab.config.resolve import read_columns
    from trimtab.evaluation.evaluate import EvaluateOptions, evaluate_file

    options = EvaluateOptions(
        model=model,
        dataset_name=dataset_name,
        baseline=baseline,
        columns=read_columns(columns),
        kind=kind,
        dataset_split=dataset_split,
        max_rows=max_rows,
        max_length=max_length,
        max_bad_rows=max_bad_rows,
        token_budget=token_budget,
        output_dir=output_dir,
        seed=seed,
    )
    return evaluate_file(options, as_json=as_json)
