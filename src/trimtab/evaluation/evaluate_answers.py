"""Evaluating answers: sample or read them, score and judge them, and go on where a kill left off.

In the folder, beside the card: ``answers.jsonl`` and ``baseline_answers.jsonl`` as sampled,
``verdicts.jsonl`` with every reply of a judge. While an evaluation is unfinished a hidden file has
its settings: the same command goes on, another one is refused or begins anew with ``restart``.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trimtab.config.data_keys import DatasetSpec
from trimtab.data.locate import locate as locate_rows
from trimtab.errors import RecipeError, UsageError
from trimtab.evaluation.answer_card import against, contest_pairs, lines, side_statistics
from trimtab.evaluation.answer_rewards import Rated, Raters
from trimtab.evaluation.answers import Side, from_file, from_samples, is_file, matched
from trimtab.evaluation.judge import Judged, Pair, Verdicts, judge_pairs
from trimtab.evaluation.outputs import alpaca_outputs, write_rows
from trimtab.evaluation.subjects import find
from trimtab.models.fingerprint import fingerprint
from trimtab.models.hub import locate
from trimtab.models.load import base_of
from trimtab.rewards.functions import resolve
from trimtab.rewards.scorers import find_model
from trimtab.rollout.sample_file import SampleOptions, sample
from trimtab.rollout.sample_journal import journal_of
from trimtab.training import files
from trimtab.training.progress import Progress

if TYPE_CHECKING:
    from trimtab.evaluation.evaluate import EvaluateOptions

UNFINISHED = ".evaluate.unfinished"
VERDICTS = "verdicts.jsonl"
FILES = {"model": "answers.jsonl", "baseline": "baseline_answers.jsonl"}
_PARALLEL = 4
_SAMPLING = (
    *("num_generations", "temperature", "top_k", "top_p", "max_completion_length", "precision"),
)


@dataclasses.dataclass(frozen=True)
class Found:
    """The card without what every card has, the lines of scores.jsonl, files that lie beside it."""

    card: dict[str, Any]
    lines: list[dict[str, Any]]
    files: list[str]


def check(options: EvaluateOptions) -> None:
    """Refuse what does not go together, before anything is read."""
    answers, baseline = options.answers, options.baseline
    if answers.judge.client() is not None and baseline is None:
        raise RecipeError(
            "judge_url: it compares two answers; name the other side's model or file by --baseline"
        )
    sampled = [name for name in (options.model, baseline) if name and not is_file(name)]
    given = next(iter(answers.sampling.given), None)
    if not sampled and (given or options.dataset_name):
        name = given or "dataset_name"
        raise RecipeError(f"{name}: {options.model} has prompts and answers already; leave it out")
    if answers.rewards.model is not None:
        find_model(answers.rewards.model)
    for spec in answers.rewards.functions:  # a wrong name should not cost the time of sampling
        resolve(spec).close()
    if options.kind is not None and (answers.given or not sampled):
        raise RecipeError(
            f"kind={options.kind}: answers are given to rows of any kind; leave it out"
        )
    every = _sample_options(options, options.model, Path("-.jsonl"))
    _ = every.params  # which refuses what is out of range
    for name in ("num_generations", "max_completion_length", "batch_slots"):
        if getattr(every, name) < 1:
            raise RecipeError(f"{name}={getattr(every, name)}: must be at least 1")


def evaluate_answers(options: EvaluateOptions, folder: Path, progress: Progress) -> Found:
    """Everything but the writing of the card."""
    names = {"model": options.model} | (
        {} if options.baseline is None else {"baseline": options.baseline}
    )
    begin(options, names, folder)
    try:
        sides = {key: _side(options, key, name, folder, progress) for key, name in names.items()}
    except UsageError:
        # Wrong from the start: there is nothing to go on with.
        if not any(
            (folder / n).exists() or journal_of(folder / n).exists() for n in FILES.values()
        ):
            finish(folder)
        raise
    rated = _rated(options, sides, folder, progress)
    ours, theirs = rated["model"], rated.get("baseline")
    seed = options.seed
    card: dict[str, Any] = {
        "task": "answers",
        "model": _facts(options, sides["model"], "model"),
        "seed": seed,
        "sampling": _sampled(options) if any(one.sampled for one in sides.values()) else None,
        "answers": side_statistics(ours, seed),
    }
    verdicts: dict[tuple[int, int], Judged] = {}
    if theirs is not None:
        left, right = _both(ours, theirs)
        judged = _judged(options, left, right, folder, progress)
        places = {row.key: i for i, row in enumerate(ours.side.rows)}
        rows = left.side.rows
        if judged is not None:
            found = zip(contest_pairs(rows, right.side.rows), judged, strict=True)
            verdicts = {(places[rows[i].key], j): one for (i, j), one in found}
        card["baseline"] = {
            "model": _facts(options, sides["baseline"], "baseline"),
            "answers": side_statistics(theirs, seed),
            "compared_prompts": len(rows),
            **against(left, right, judged, seed),
        }
    if "alpaca_eval" in options.targets:
        write_rows(options.targets["alpaca_eval"], alpaca_outputs(sides["model"]))
    beside = [FILES[key] for key, side in sides.items() if side.sampled]
    return Found(card, lines(ours, theirs, verdicts), beside + ([VERDICTS] if verdicts else []))


def finish(folder: Path) -> None:
    """The evaluation is written: what only a run that goes on needs goes away."""
    for name in (UNFINISHED, *(f".{key}_rewards.unfinished" for key in FILES)):
        (folder / name).unlink(missing_ok=True)


# ---------------------------------------------------------------------- going on


def begin(options: EvaluateOptions, names: Mapping[str, str], folder: Path) -> None:
    """Note the settings in the folder; UsageError for an unfinished evaluation with others."""
    settings = _settings(options, names)
    path = folder / UNFINISHED
    if path.exists() and not options.restart:
        try:
            before: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            before = {}
        for name, value in settings.items():
            if before and before.get(name) != value:
                raise UsageError(
                    f"output_dir={folder}: an unfinished evaluation has {name} "
                    f"{_short(before.get(name))}, not {_short(value)}; give the same settings to "
                    "go on, or --restart to drop it"
                )
        if before:
            return
    files.make_folder(folder)
    finish(folder)
    for name in FILES.values():  # of an earlier evaluation
        (folder / name).unlink(missing_ok=True)
    files.write_atomic(path, json.dumps(settings).encode())


def _settings(options: EvaluateOptions, names: Mapping[str, str]) -> dict[str, Any]:
    """All that shapes answers and their rewards; verdicts are kept by what was asked."""
    found: dict[str, Any] = {
        "dataset_name": options.dataset_name,
        "rows": _digest(options.dataset_name, options),
        "columns": dict(options.columns),
        "max_rows": options.max_rows,
        "seed": options.seed,
        "max_length": options.max_length,
        "reward_model": options.answers.rewards.model,
        "reward_funcs": list(options.answers.rewards.functions),
        **_sampled(options),
    }
    for key, name in names.items():
        found[key] = name
        if is_file(name):
            found[f"{key}'s content"] = _digest(name, options)
        elif find(name, key).kind == "reward":
            raise RecipeError(
                f"{key}={name}: a reward model gives no answers; name a language model"
            )
        else:
            source = locate(name, key=key)
            folders = dict.fromkeys((source.folder, base_of(source, key).folder))
            found[f"{key}'s weights"] = ":".join(fingerprint(one) for one in folders)
    return found


def _digest(name: str | None, options: EvaluateOptions) -> str | None:
    if name is None:
        return None
    digest = hashlib.sha256()
    spec = DatasetSpec(path=name, columns=dict(options.columns), split=options.dataset_split)
    for part in locate_rows(spec).parts:
        digest.update(part.digest())
    return digest.hexdigest()


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 24 else f"{text[:12]}..."


# ---------------------------------------------------------------------- the parts


def _sampled(options: EvaluateOptions) -> dict[str, Any]:
    """How answers are sampled, every key."""
    every = _sample_options(options, options.model, Path("-.jsonl"))
    return {name: getattr(every, name) for name in _SAMPLING}


def _sample_options(options: EvaluateOptions, model: str, output: Path) -> SampleOptions:
    return SampleOptions(
        model_name_or_path=model,
        dataset_name=options.dataset_name or options.model,
        output=str(output),
        columns=options.columns,
        dataset_split=options.dataset_split,
        max_rows=options.max_rows,
        max_bad_rows=options.max_bad_rows,
        seed=options.seed,
        count=True,
        **{"num_generations": 1, **options.answers.sampling.given},
    )


def _side(options: EvaluateOptions, key: str, name: str, folder: Path, progress: Progress) -> Side:
    if is_file(name):
        progress.stage(f"reading the answers of {name}")
        split, bad = options.dataset_split, options.max_bad_rows
        side = from_file(name, options.columns, split, bad)
        limit = options.max_rows if key == "model" else None
        return dataclasses.replace(side, rows=side.rows[:limit])
    path = folder / FILES[key]
    if not path.exists():
        sample(_sample_options(options, name, path), progress)
    return from_samples(name, path)


def _rated(
    options: EvaluateOptions, sides: Mapping[str, Side], folder: Path, progress: Progress
) -> dict[str, Rated]:
    rewards = options.answers.rewards
    if not rewards:
        return {key: Rated(side, {}) for key, side in sides.items()}
    raters = Raters(
        rewards,
        max_length=options.max_length,
        token_budget=options.token_budget,
        progress=progress,
    )
    try:
        return {
            key: Rated(side, raters.rate(side, folder / f".{key}_rewards.unfinished", progress))
            for key, side in sides.items()
        }
    finally:
        raters.close()


def _both(ours: Rated, theirs: Rated) -> tuple[Rated, Rated]:
    """The rows that both sides have, in the order of ours."""
    pairs = matched(ours.side, theirs.side)
    left = {id(row): i for i, row in enumerate(ours.side.rows)}
    right = {id(row): i for i, row in enumerate(theirs.side.rows)}
    return ours.of([left[id(a)] for a, _ in pairs]), theirs.of([right[id(b)] for _, b in pairs])


def _judged(
    options: EvaluateOptions, ours: Rated, theirs: Rated, folder: Path, progress: Progress
) -> list[Judged] | None:
    client = options.answers.judge.client()
    if client is None:
        return None
    left, right = ours.side.rows, theirs.side.rows
    pairs = [
        Pair(left[i].key[0], left[i].texts[j], right[i].texts[j])
        for i, j in contest_pairs(left, right)
    ]
    progress.stage(f"asking {client.model} at {client.url}", total=2 * len(pairs))
    verdicts = Verdicts(folder / VERDICTS, restart=options.restart)
    try:
        parallel = options.answers.judge.parallel or _PARALLEL
        return judge_pairs(client, pairs, verdicts, parallel=parallel, update=progress.update)
    except KeyboardInterrupt:
        progress.note(f"verdicts so far are in {verdicts.path}; the same command goes on")
        raise
    finally:
        verdicts.close()


def _facts(options: EvaluateOptions, side: Side, key: str) -> dict[str, Any]:
    return {
        "name": side.name if not side.sampled else str(getattr(options, key)),
        "kind": "language_model" if side.sampled else "answers",
        "source": str(getattr(options, key)),
        "prompts": len(side.rows),
    }
