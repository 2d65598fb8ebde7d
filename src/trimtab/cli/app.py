"""The entry point: dispatch to verbs, errors as one line, exit codes.

Exit codes: 0 done, 1 the run failed, 2 usage, configuration or data, 130 after Ctrl-C.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Annotated, Literal

import cyclopts
from cyclopts import App, Group, Parameter

from trimtab.cli.data_verbs import data_app
from trimtab.cli.explain.command import explain
from trimtab.cli.texts import TRAINING
from trimtab.data.rows import Kind
from trimtab.errors import TrimtabError, UsageError

_HELP = """Align language models: from raw text to a policy that does what people prefer.

`trimtab VERB --help` lists every key of a verb. A verb takes a recipe (YAML) and overrides:
`trimtab dpo recipe.yaml --beta 0.2`. No telemetry; no network unless a hub id is named.
"""


def main(tokens: Sequence[str] | None = None) -> int:
    """Run ``trimtab TOKENS`` (the process's arguments by default) and return the exit code."""
    arguments = list(sys.argv[1:] if tokens is None else tokens)
    try:
        _refuse_unknown_verb(arguments)
        code = _app()(
            arguments,
            exit_on_error=False,
            print_error=False,
            result_action="return_value",
        )
        sys.stdout.flush()  # here, where a closed pipe can still be met quietly
        return code if isinstance(code, int) else 0
    except TrimtabError as error:
        return _fail(str(error), error.exit_code)
    except cyclopts.CycloptsError as error:
        return _fail(str(error), UsageError.exit_code)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except BrokenPipeError:
        # The reader of our output has left (| head): say nothing, not even at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception:
        traceback.print_exc()
        return _fail("this is a bug of trimtab, please report it with the lines above", 1)


def _fail(message: str, code: int) -> int:
    line = " ".join(message.split())
    print(f"trimtab: {line}", file=sys.stderr)
    return code


# ---------------------------------------------------------------------- verbs


def _app() -> App:
    from trimtab import __version__

    app = App(
        name="trimtab",
        help=_HELP,
        help_format="markdown",
        version=__version__,
        suppress_keyboard_interrupt=False,  # main has the exit code
    )
    training, tools = Group("Training", sort_key=0), Group("Tools", sort_key=1)
    for number, (name, text) in enumerate(TRAINING.items()):
        verb = App(
            name=name,
            help=text.summary,
            help_flags=[],
            version_flags=[],
            group=training,
            sort_key=number,
        )
        verb.default(_training_verb(name))
        app.command(verb)
    app.command(data_app(tools))
    app.command(demo, group=tools)
    app.command(evaluate, group=tools)
    app.command(explain, group=tools)
    app.command(sample, group=tools)
    app.command(score, group=tools)
    bench = App(
        name="verify-loss",
        help="Put a preference loss on the bench: a built-in one, or FILE.py:FUNCTION.",
        help_flags=[],
        version_flags=[],
        group=tools,
    )
    bench.default(verify)  # a loss's hyper-parameters are options that cyclopts does not know
    app.command(bench)
    return app


def _training_verb(name: str) -> Callable[..., int]:
    """The verb as a function of raw words: its keys are the recipe's, which cyclopts never sees."""

    def run(*tokens: Annotated[str, Parameter(allow_leading_hyphen=True, show=False)]) -> int:
        return train(name, tokens)

    return run


def train(verb: str, tokens: Sequence[str]) -> int:
    """``trimtab VERB TOKENS``."""
    if any(token in ("--help", "-h") for token in tokens):
        from trimtab.cli.verb_help import print_verb_help

        print_verb_help(verb)
        return 0
    from trimtab.config.resolve import resolve

    resolved = resolve(verb, tokens)
    if resolved.control.offline:  # before anything reads these, which is at import
        for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE"):
            os.environ[name] = "1"
    from trimtab.algorithms.run import run_resolved

    return run_resolved(resolved, ["trimtab", verb, *tokens])


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


def verify(*tokens: Annotated[str, Parameter(allow_leading_hyphen=True, show=False)]) -> int:
    """``trimtab verify-loss TOKENS``."""
    from trimtab.cli.verify_loss import verify_loss

    return verify_loss(tokens)


# ---------------------------------------------------------------------- wrong verbs


def _refuse_unknown_verb(arguments: Sequence[str]) -> None:
    verbs = [*TRAINING, "data", "demo", "evaluate", "explain", "sample", "score", "verify-loss"]
    if not arguments or arguments[0].startswith("-") or arguments[0] in verbs:
        return
    from trimtab.config.hints import FOREIGN_VERBS, STAGES
    from trimtab.config.suggest import did_you_mean

    verb, *rest = arguments
    words = [word for token in rest for word in token.split("=")]
    if verb in FOREIGN_VERBS:
        stage = next((STAGES[word] for word in words if word in STAGES), None)
        hint = f"use trimtab {stage}" if stage and verb == "train" else FOREIGN_VERBS[verb]
        raise UsageError(f"{verb}: unknown verb; {hint}")
    if verb.endswith((".yaml", ".yml")):
        raise UsageError(f"{verb}: a verb comes first, e.g. trimtab dpo {verb}")
    raise UsageError(
        f"{verb}: unknown verb; verbs are {', '.join(verbs)}{did_you_mean(verb, verbs)}"
    )
