"""``trimtab score``."""

from __future__ import annotations

from typing import Annotated, Literal

from cyclopts import Parameter


def score(
    file: str,
    /,
    *,
    output: str,
    reward_model: str | None = None,
    reward_funcs: Annotated[tuple[str, ...], Parameter(negative="", consume_multiple=True)] = (),
    reward_weights: Annotated[
        tuple[float, ...], Parameter(negative="", consume_multiple=True)
    ] = (),
    columns: Annotated[tuple[str, ...], Parameter(negative="", consume_multiple=True)] = (),
    dataset_split: str = "train",
    max_rows: int | None = None,
    max_bad_rows: float = 0.01,
    max_length: int | None = None,
    token_budget: int | None = None,
    isolate: Annotated[bool, Parameter(negative="")] = False,
    time_limit: float | None = None,
    on_bad: Literal["stop", "drop"] = "stop",
    overwrite: Annotated[bool, Parameter(negative="")] = False,
    drop_tied: Literal["none", "all", "any"] = "none",
    keep: Literal["all", "best", "pair"] = "all",
    keep_top: int | None = None,
    min_score: float | None = None,
    restart: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """Score the responses of a file with a reward model, reward functions, or both.

    Parameters
    ----------
    file
        Rows with prompt + responses, prompt + completion, or prompt + chosen + rejected.
    output
        File (.jsonl) of the same rows with scores and ranks (1 = best), score, or margin.
    reward_model
        Reward model or ensemble of them: folder or hub id.
    reward_funcs
        Reward functions: built-in names, FILE.py:FUNCTION or MODULE:FUNCTION, with options as in
        'length(target=200)'.
    reward_weights
        Factor of each reward, the model's first; otherwise 1 each.
    columns
        Our column = theirs, e.g. prompt=question responses=answers.
    dataset_split
        Split of a hub dataset or of a folder of splits.
    max_rows
        Take so many rows from the start of the file.
    max_bad_rows
        Bad rows to leave out: below 1 a share of the rows, from 1 on a count.
    max_length
        Longest prompt + response in tokens that the reward model reads (1024).
    token_budget
        Tokens in one forward pass of the reward model (8192).
    isolate
        Run the functions in processes of their own, with limits.
    time_limit
        Seconds that a function may take for a call, of at most 64 rows (60).
    on_bad
        When a function fails, or a score is NaN: stop, or leave the row out.
    overwrite
        Replace scores that the rows have already.
    drop_tied
        Leave out rows of responses: all: those that rank nothing, any: those with any tie.
    keep
        What is written of a row of responses: all with their scores; best: the best as completion,
        for sft; pair: the best and the worst as chosen and rejected, for dpo.
    keep_top
        With keep best: so many of the best, a row each (1).
    min_score
        With keep: only responses with at least this score (of a pair, the chosen one).
    restart
        Score anew: replace the output, and what an unfinished run left of it.
    """
    from trimtab.config.resolve import read_columns
    from trimtab.rewards.score_file import ScoreOptions, score_file

    options = ScoreOptions(
        file=file,
        output=output,
        reward_model=reward_model,
        reward_funcs=reward_funcs,
        reward_weights=reward_weights or None,
        columns=read_columns(columns),
        dataset_split=dataset_split,
        max_rows=max_rows,
        max_bad_rows=max_bad_rows,
        max_length=max_length,
        token_budget=token_budget,
        isolate=isolate,
        time_limit=time_limit,
        on_bad=on_bad,
        overwrite=overwrite,
        drop_tied=drop_tied,
        keep=keep,
        keep_top=keep_top,
        min_score=min_score,
        restart=restart,
    )
    return score_file(options)
