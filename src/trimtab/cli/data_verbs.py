"""``trimtab data inspect`` and ``trimtab data check``: look at rows before training on them."""

from __future__ import annotations

from typing import Annotated, Literal

from cyclopts import Parameter

from trimtab.data.rows import Kind

Columns = Annotated[tuple[str, ...], Parameter(negative="", consume_multiple=True)]
Model = Annotated[str | None, Parameter(name=["--model", "--model-name-or-path"])]
Json = Annotated[bool, Parameter(name="--json", negative="")]


def inspect(
    file: str,
    /,
    *,
    model: Model = None,
    kind: Kind | None = None,
    columns: Columns = (),
    max_length: int = 1024,
    rows: int = 3,
    as_json: Json = False,
) -> int:
    """Show what a model will see of a data file: type, counts, lengths, drops, tokens and masks.

    Parameters
    ----------
    file
        File (.jsonl .json .csv .parquet), folder or hub id.
    model
        Model or tokenizer folder or hub id; without one, only the rows themselves are checked.
    kind
        Type of the rows; otherwise recognised from the columns.
    columns
        Our column = theirs, e.g. prompt=question chosen=good.
    max_length
        Longest prompt + response in tokens, as in a recipe.
    rows
        Rows to show token by token.
    as_json
        Print one JSON object instead.
    """
    from trimtab.config.resolve import read_columns
    from trimtab.data.inspect import inspect_file

    return inspect_file(
        file,
        model=model,
        kind=kind,
        columns=read_columns(columns),
        max_length=max_length,
        rows=rows,
        as_json=as_json,
    )


def check(
    *files: str,
    against: Annotated[
        tuple[str, ...],
        Parameter(name=["--against", "--eval-dataset-name"], negative="", consume_multiple=True),
    ] = (),
    model: Model = None,
    kind: Kind | None = None,
    columns: Columns = (),
    dataset_train_split: Annotated[
        str, Parameter(name=["--dataset-train-split", "--dataset-split"])
    ] = "train",
    dataset_test_split: str = "test",
    max_rows: int | None = None,
    max_length: int = 1024,
    max_prompt_length: int | None = None,
    fail_on: Literal["error", "warning", "note", "never"] = "error",
    rows: int = 5,
    as_json: Json = False,
) -> int:
    """Find what is wrong with data: bad and contradictory rows, copies, leaks, biases, templates.

    Parameters
    ----------
    files
        Files (.jsonl .json .csv .parquet), folders or hub ids; several are one training set.
    against
        Held-out files that must not share rows or prompts with them.
    model
        Model or tokenizer folder or hub id, to look at templates, BOS, ends and truncation, too.
    kind
        Type of the rows; otherwise recognised from the columns.
    columns
        Our column = theirs, e.g. prompt=question chosen=good.
    dataset_train_split
        Split of a hub dataset or of a folder of splits.
    dataset_test_split
        The same of the held-out ones.
    max_rows
        Take so many rows from the start of each file.
    max_length
        Longest prompt + response in tokens, as in a recipe.
    max_prompt_length
        Longest prompt in tokens, as in a recipe.
    fail_on
        Exit with code 2 when something of this severity or worse is found.
    rows
        Rows of each finding to print.
    as_json
        Print one JSON object instead, with all rows.
    """
    from trimtab.config.resolve import read_columns
    from trimtab.data.doctor.check import CheckOptions, check_files

    options = CheckOptions(
        files=files,
        against=against,
        model=model,
        kind=kind,
        columns=read_columns(columns),
        dataset_train_split=dataset_train_split,
        dataset_test_split=dataset_test_split,
        max_rows=max_rows,
        max_length=max_length,
        max_prompt_length=max_prompt_length,
        fail_on=fail_on,
        rows=rows,
    )
    return check_files(options, as_json=as_json)
