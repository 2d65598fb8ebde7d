"""``trimtab evaluate``."""

from __future__ import annotations

from typing import Annotated, Literal

from cyclopts import Parameter

from trimtab.data.rows import Kind

_Words = Annotated[tuple[str, ...], Parameter(negative="", consume_multiple=True)]


def evaluate(
    model: str,
    /,
    *,
    dataset_name: Annotated[str | None, Parameter(name=["--dataset-name", "--dataset"])] = None,
    baseline: Annotated[str | None, Parameter(name=["--baseline", "--vs"])] = None,
    columns: _Words = (),
    kind: Kind | None = None,
    dataset_split: str = "test",
    max_rows: int | None = None,
    max_length: int = 1024,
    max_bad_rows: float = 0.0,
    token_budget: int = 8192,
    reward_model: str | None = None,
    reward_funcs: _Words = (),
    judge_url: str | None = None,
    judge_model: str | None = None,
    judge_key_env: str | None = None,
    judge_options: str | None = None,
    judge_timeout: float | None = None,
    judge_retries: int | None = None,
    judge_parallel: int | None = None,
    num_generations: int | None = None,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    max_completion_length: int | None = None,
    batch_slots: int | None = None,
    precision: Literal["auto", "fp32", "bf16"] | None = None,
    write_outputs: _Words = (),
    lm_eval: str | None = None,
    output_dir: str | None = None,
    seed: int = 0,
    restart: Annotated[bool, Parameter(negative="")] = False,
    as_json: Annotated[bool, Parameter(name="--json", negative="")] = False,
) -> int:
    """Write a report card: a model on held-out comparisons or text, or by its answers to prompts.

    A reward model is evaluated on comparisons; a language model on those, on text or by answers.
    Answers are what is evaluated where the rows are prompts, or where a reward, a judge or an
    option of sampling is given.

    Parameters
    ----------
    model
        Reward model, ensemble of them or causal language model: folder or hub id. Or a file of
        answers: AlpacaEval's model outputs, or rows of prompt + completion or responses.
    dataset_name
        Held-out rows: file (.jsonl .json .csv .parquet), folder or hub id.
    baseline
        A second model, or file of answers, on the same rows; differences are paired.
    columns
        Our column = theirs, e.g. prompt=question chosen=good.
    kind
        Type of the rows; otherwise recognised from the columns.
    dataset_split
        Split of a hub dataset or of a folder of splits.
    max_rows
        Take so many rows from the start of the file (of lm-eval's tasks, documents).
    max_length
        Longest prompt + response in tokens.
    max_bad_rows
        Bad rows to leave out: below 1 a share of the rows, from 1 on a count.
    token_budget
        Tokens in one forward pass.
    reward_model
        Scores answers, and judges them against the baseline's: folder or hub id.
    reward_funcs
        Reward functions that do: built-in names, FILE.py:FUNCTION or MODULE:FUNCTION.
    judge_url
        Address of an OpenAI-compatible server whose model judges answers against the baseline's,
        e.g. http://localhost:8000/v1. Nobody is asked without it.
    judge_model
        Name of the judging model there.
    judge_key_env
        Name of the environment variable that holds the server's key.
    judge_options
        Fields of the request as a JSON object, null leaving one out ({"temperature": 0,
        "max_tokens": 1024}).
    judge_timeout
        Seconds that an answer may take (60).
    judge_retries
        Attempts after the first one, where the server is busy or silent (5).
    judge_parallel
        Requests at a time (4).
    num_generations
        Answers to a prompt (1).
    temperature
        Divides the logits (1); 0 is greedy.
    top_k
        Only the k likeliest tokens; 0 is all (0).
    top_p
        Only the likeliest tokens that together have this probability; 1 is all (1).
    max_completion_length
        Tokens after which an answer is cut off (256).
    batch_slots
        Answers that run at a time (64).
    precision
        Of sampling; auto: bf16 where its products run at least 1.5 times as fast.
    write_outputs
        FORMAT:FILE, e.g. alpaca_eval:outputs.json (answers) or rewardbench:scores.json (pairs).
    lm_eval
        Tasks of lm-eval, by comma: names or YAML files. Needs pip install 'trimtab[lm-eval]'.
    output_dir
        Folder of the report card; otherwise runs/evaluate-MODEL-DATA.
    seed
        Of sampling and of the bootstrap intervals.
    restart
        Drop what an unfinished evaluation left, and a judge's verdicts.
    as_json
        Print the whole card as one JSON object instead of its verdict.
    """
    from trimtab.config.resolve import read_columns
    from trimtab.evaluation.answer_options import AnswerOptions, JudgeOptions, Sampling
    from trimtab.evaluation.answer_rewards import Rewards
    from trimtab.evaluation.evaluate import EvaluateOptions, evaluate_file

    answers = AnswerOptions(
        rewards=Rewards(reward_model, reward_funcs),
        judge=JudgeOptions(
            url=judge_url,
            model=judge_model,
            key_env=judge_key_env,
            options=judge_options,
            timeout=judge_timeout,
            retries=judge_retries,
            parallel=judge_parallel,
        ),
        sampling=Sampling(
            num_generations=num_generations,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            max_completion_length=max_completion_length,
            batch_slots=batch_slots,
            precision=precision,
        ),
    )
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
        answers=answers,
        write_outputs=write_outputs,
        lm_eval=tuple(filter(None, (lm_eval or "").split(","))),
        restart=restart,
    )
    return evaluate_file(options, as_json=as_json)
