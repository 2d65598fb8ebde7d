"""``trimtab sample``."""

from __future__ import annotations

from typing import Annotated, Literal

from cyclopts import Parameter


def sample(
    *,
    model_name_or_path: Annotated[str, Parameter(name=["--model-name-or-path", "--model"])],
    dataset_name: Annotated[str, Parameter(name=["--dataset-name", "--dataset"])],
    output: str,
    num_generations: int | None = None,
    best_of: int | None = None,
    reward_model: str | None = None,
    reward_funcs: Annotated[tuple[str, ...], Parameter(negative="", consume_multiple=True)] = (),
    reward_weights: Annotated[
        tuple[float, ...], Parameter(negative="", consume_multiple=True)
    ] = (),
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    max_completion_length: int = 256,
    columns: Annotated[tuple[str, ...], Parameter(negative="", consume_multiple=True)] = (),
    dataset_split: str = "train",
    max_rows: int | None = None,
    max_bad_rows: float = 0.01,
    seed: int = 0,
    batch_slots: int = 64,
    precision: Literal["auto", "fp32", "bf16"] = "auto",
    restart: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """Answer the prompts of a file, several times each: the way from a model to rankings.

    Parameters
    ----------
    model_name_or_path
        Causal language model: folder (a run folder too) or hub id.
    dataset_name
        Rows with prompts: file (.jsonl .json .csv .parquet), folder or hub id. Of a chat, all
        before its last assistant turn is the prompt.
    output
        File (.jsonl) of rows with prompt, responses, ended (or cut off), and the row's other
        columns. With best_of, of rows with prompt, completion, score and ended.
    num_generations
        Responses to a prompt (4).
    best_of
        Answer every prompt so many times and write the answer with the highest score; needs a
        reward.
    reward_model
        With best_of: reward model or ensemble of them: folder or hub id.
    reward_funcs
        With best_of: reward functions, as in score.
    reward_weights
        With best_of: factor of each reward, the model's first; otherwise 1 each.
    temperature
        Divides the logits; 0 is greedy.
    top_k
        Only the k likeliest tokens; 0 is all.
    top_p
        Only the likeliest tokens that together have this probability; 1 is all.
    max_completion_length
        Tokens after which a response is cut off.
    columns
        Our column = theirs, e.g. prompt=question.
    dataset_split
        Split of a hub dataset or of a folder of splits.
    max_rows
        Take so many rows from the start of the file.
    max_bad_rows
        Bad rows to leave out: below 1 a share of the rows, from 1 on a count.
    seed
        Of the draws: what is sampled is a function of it, the row's number and the model.
    batch_slots
        Responses that run at a time.
    precision
        auto: bf16 where its products run at least 1.5 times as fast.
    restart
        Replace the output, and what an unfinished run with other settings left of it.
    """
    from trimtab.config.resolve import read_columns
    from trimtab.evaluation.best_of_file import BestOfReward, best_of_file, count_of
    from trimtab.rollout.sample_file import SampleOptions, sample_file

    reward = BestOfReward(reward_model, reward_funcs, reward_weights or None)
    options = SampleOptions(
        model_name_or_path=model_name_or_path,
        dataset_name=dataset_name,
        output=output,
        num_generations=count_of(num_generations, best_of, reward),
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        max_completion_length=max_completion_length,
        columns=read_columns(columns),
        dataset_split=dataset_split,
        max_rows=max_rows,
        max_bad_rows=max_bad_rows,
        seed=seed,
        batch_slots=batch_slots,
        precision=precision,
        restart=restart,
    )
    return sample_file(options) if best_of is None else best_of_file(options, reward)
