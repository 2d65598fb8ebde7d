"""``trimtab sample --best-of N``: a model answers every prompt N times, a reward chooses one.

``trimtab sample`` and ``trimtab score --keep best`` one after the other, with a hidden file of all
responses between them: a run that was killed goes on in whichever of the two it was. Here a
response that was cut off can win, unlike in rows that are made for sft: what is written is the
distribution whose KL is reported, and ``ended`` says it.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trimtab.errors import RecipeError, UsageError
from trimtab.evaluation.best_of_n import kl_bound
from trimtab.rewards.score_file import ScoreOptions, score
from trimtab.rewards.score_file import check as check_score
from trimtab.rewards.score_journal import journal_of as score_journal_of
from trimtab.rollout.sample_file import SampleOptions, sample
from trimtab.rollout.sample_file import check as check_sample
from trimtab.rollout.sample_journal import journal_of
from trimtab.training import files
from trimtab.training.progress import Progress

BLANK = "score and reward refuse their rows"  # what ``sample`` says of them, for rankings
RESPONSES = 4  # to a prompt, where nobody says how many


@dataclasses.dataclass(frozen=True)
class BestOfReward:
    """Who chooses: a reward model (folder or hub id), reward functions, or both with weights."""

    model: str | None = None
    functions: Sequence[str] = ()
    weights: Sequence[float] | None = None

    @property
    def given(self) -> str | None:
        """The first option of these that was given."""
        named = {
            "reward_model": self.model,
            "reward_funcs": self.functions,
            "reward_weights": self.weights,
        }
        return next((name for name, value in named.items() if value), None)


def count_of(num_generations: int | None, best_of: int | None, reward: BestOfReward) -> int:
    """Responses to a prompt; RecipeError for options that do not go together."""
    if best_of is None:
        if reward.given:
            raise RecipeError(
                f"{reward.given}: nobody is asked to choose; give --best-of N, or score the "
                "output with trimtab score"
            )
        return RESPONSES if num_generations is None else num_generations
    if num_generations is not None:
        raise RecipeError(
            f"num_generations={num_generations}: best_of={best_of} says how many; leave one out"
        )
    if best_of < 2:
        raise RecipeError(f"best_of={best_of}: of one response nothing is chosen; take at least 2")
    if reward.model is None and not reward.functions:
        raise RecipeError(
            "reward_model: missing; best_of needs --reward-model FOLDER or --reward-funcs NAME"
        )
    return best_of


def best_of_file(options: SampleOptions, reward: BestOfReward, *, mode: str = "auto") -> int:
    """Sample, score, write the best response of every prompt, print the summary; returns 0.

    ``options.num_generations`` is N. Raises what ``sample_file`` and ``score_file`` raise.
    """
    output = Path(options.output).expanduser()
    between = output.with_name(f".{output.stem}.responses.jsonl")
    begun = output.with_name(f".{output.stem}.best-of.json")
    chosen = _score_options(options, reward, str(between))
    if not begun.exists():
        between.unlink(missing_ok=True)  # of a run that was killed after its end
    check_sample(dataclasses.replace(options, restart=options.restart or begun.exists()))
    check_score(dataclasses.replace(chosen, restart=True))
    fresh = _begin(begun, options, reward)
    with Progress(0, "sample", mode=mode) as progress:  # type: ignore[arg-type] - a Mode
        lines: list[str] = []
        unfinished = journal_of(between).exists()
        if fresh or unfinished or not between.exists():
            sampled = dataclasses.replace(options, output=str(between), restart=fresh)
            lines = sample(sampled, progress)[:-2]  # without where they were written
            lines = [line.replace(BLANK, "no candidates") for line in lines]
        else:
            progress.note("going on with an unfinished run: all responses are there")
        # An output that is there was to be replaced, or is this very run's.
        again = fresh or not score_journal_of(output).exists()
        outcome = score(dataclasses.replace(chosen, restart=again), progress)
    begun.unlink(missing_ok=True)  # first: without it nothing is unfinished
    between.unlink(missing_ok=True)
    n = options.num_generations
    kept = [line for line in outcome.lines if not line.startswith("next")]
    bound = (
        f"best of {n}".ljust(12)
        + f"KL from what was sampled at most log n - (n - 1) / n = {kl_bound(n):.3f} nats"
    )
    print("\n".join([*lines, *kept[:-1], bound, kept[-1]]))
    return 0


def _score_options(options: SampleOptions, reward: BestOfReward, between: str) -> ScoreOptions:
    return ScoreOptions(
        file=between,
        output=options.output,
        reward_model=reward.model,
        reward_funcs=reward.functions,
        reward_weights=reward.weights,
        max_bad_rows=options.max_bad_rows,
        keep="best",
        keep_cut=True,
    )


def _begin(path: Path, options: SampleOptions, reward: BestOfReward) -> bool:
    """Note the settings beside the output; whether this is a new run, and not one that goes on.

    UsageError for an unfinished run with other settings.
    """
    own: dict[str, Any] = dataclasses.asdict(options) | dataclasses.asdict(reward)
    own = json.loads(json.dumps({k: v for k, v in own.items() if k not in ("restart", "output")}))
    if path.exists() and not options.restart:
        try:
            theirs: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            theirs = {}
        for name in own:
            if theirs and theirs.get(name) != own[name]:
                raise UsageError(
                    f"output={options.output}: an unfinished run has {name} {theirs.get(name)}, "
                    f"not {own[name]}; give the same settings to go on, or --restart to drop it"
                )
        return not theirs
    files.write_atomic(path, json.dumps(own).encode())
    return True
