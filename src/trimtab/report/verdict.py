"""What came of a run, in a sentence: what was measured, and no more than its intervals support."""

from __future__ import annotations

from trimtab.report import read
from trimtab.report.curves import ON_POLICY, TEXT, watched
from trimtab.report.read import Record
from trimtab.report.run import Run
from trimtab.report.words import count, interval, listed, number


def verdict(run: Run) -> str:
    """The first sentence of the report of a run."""
    state = _state(run)
    if run.verb in TEXT:
        said = _text(run)
    elif run.verb in ON_POLICY:
        said = _reward(run)
    elif run.verb == "reward":
        said = _share(
            run,
            "accuracy",
            "The reward model scores the preferred response higher in",
            "held-out comparisons",
            "pairs",
            chance=0.5,
        )
    elif run.verb == "classify":
        said = _share(run, "accuracy", "The classifier is right on", "held-out texts", "rows")
    else:
        said = _preference(run)
    return f"{state}{said}" if said else f"{state}The log has no numbers yet."


def more(run: Run) -> list[str]:
    """What is to be said next: diagnoses that are still so, and what was not measured."""
    said: list[str] = []
    lasting = at_end(run)
    if lasting:
        those = "warning is" if len(lasting) == 1 else "warnings are"
        said.append(f"{len(lasting)} {those} still so at the end: {listed(lasting)}.")
    elif run.diagnosed:
        said.append("What was warned of during the run was not so any more at its end.")
    if not run.evaluations:
        said.append(
            "Nothing was held out (eval_dataset_name): these numbers are of rows that the model "
            "was trained on, and say little about others."
        )
    return said


def at_end(run: Run) -> list[str]:
    """Names of the diagnoses that are so at the end; all that were told, where that is unknown."""
    found = run.diagnoses.get("at_end")
    if isinstance(found, list):
        return [str(name) for name in found]
    return list(dict.fromkeys(str(one["diagnosis"]) for one in run.diagnosed))


def _state(run: Run) -> str:
    if run.finished:
        return ""
    reason = run.record.get("reason")
    done = f"after step {run.last_step:,}"
    if run.state == "running":
        return f"This run is going on, or was killed {done}. "
    return f"This run is not finished ({run.state} {done}{f': {reason}' if reason else ''}). "


# ---------------------------------------------------------------------- by kind of run


def _text(run: Run) -> str:
    found = run.series("loss", held_out=True)
    if not found:
        return _training_loss(run)
    first, last = found[0][1], found[-1][1]
    after = read.value(last, "eval_loss")
    tokens = read.value(last, "eval_tokens")
    on = "" if tokens is None else f" on {count(tokens, 'held-out token')}"
    if len(found) == 1:
        return f"Held-out loss is {number(after)} nats a token{on}."
    before = read.value(first, "eval_loss")
    assert before is not None and after is not None
    way = "fell" if after < before else "rose" if after > before else "stayed"
    return (
        f"Held-out loss {way} from {number(before)} to {number(after)} nats a token{on}: "
        f"perplexity {number(read.value(first, 'eval_perplexity'))} before, "
        f"{number(read.value(last, 'eval_perplexity'))} after {count(run.last_step, 'step')}."
    )


def _training_loss(run: Run) -> str:
    ends = run.ends_of("loss")
    if ends is None:
        return ""
    before, after = (read.value(one, "loss") for one in ends)
    return (
        f"Training loss went from {number(before)} to {number(after)} in "
        f"{count(run.last_step, 'step')}."
    )


def _share(
    run: Run, name: str, says: str, whose: str, counted: str, chance: float | None = None
) -> str:
    found = run.series(name, held_out=True)
    if not found:
        ends = run.ends_of(name)
        return (
            _training_loss(run)
            if ends is None
            else (f"{says} {number(read.value(ends[1], name), 3)} of its training rows.")
        )
    last = found[-1][1]
    mean, (low, high) = read.value(last, f"eval_{name}"), read.ends(last, f"eval_{name}")
    n = read.value(last, f"eval_{counted}")
    of = f" of {n:,.0f} {whose}" if n is not None else f" of the {whose}"
    said = f"{says} {interval(mean, low, high, 3)}{of}"
    if chance is None or mean is None:
        return f"{said}."
    if low is not None and low > chance:
        return f"{said}; a coin is right in {chance:g}."
    if high is not None and high < chance:
        return f"{said}: worse than a coin ({chance:g}); are the two sides swapped?"
    return f"{said}: no better than a coin ({chance:g}) as far as these rows can tell."


def _preference(run: Run) -> str:
    said = _share(
        run,
        "rewards/accuracies",
        "The implicit reward of the chosen response is higher in",
        "held-out pairs",
        "pairs",
        chance=0.5,
    )
    found = run.series("logps/chosen", held_out=True)
    if len(found) < 2 or not said:
        return said
    before, after = (read.value(one, "eval_logps/chosen") for one in (found[0][1], found[-1][1]))
    assert before is not None and after is not None
    way = "fell" if after < before else "rose"
    return f"{said} Log p(chosen) {way} from {number(before)} to {number(after)} nats."


def _reward(run: Run) -> str:
    found = run.series("reward", held_out=True)
    if len(found) > 1:
        said = _change("Reward on held-out prompts", found[0][1], found[-1][1], "eval_reward")
        kl = read.value(found[-1][1], "eval_kl")
    else:
        rollouts = run.series("reward")
        if not rollouts:
            return _training_loss(run)
        first, last = rollouts[0][1], rollouts[-1][1]
        said = _change("The reward of rollouts", first, last, "reward")
        kl = read.value(last, "objective/kl")
    if kl is not None:
        said += f", at a KL of {number(kl)} nats a response to where it started"
    return said + f".{_watched(run)}"


def _change(what: str, first: Record, last: Record, name: str) -> str:
    before, after = read.value(first, name), read.value(last, name)
    assert before is not None and after is not None
    (a, b), (c, d) = read.ends(first, name), read.ends(last, name)
    ends = f"from {interval(before, a, b, 3)} to {interval(after, c, d, 3)}"
    if a is None or b is None or c is None or d is None:
        return f"{what} went {ends}"
    if c > b:
        return f"{what} rose {ends}"
    if d < a:
        return f"{what} fell {ends}"
    return f"{what} went {ends} (the intervals overlap: no clear change)"


def _watched(run: Run) -> str:
    said: list[str] = []
    for name, _ in watched(run):
        found = run.series(name)
        if len(found) > 1:
            before, after = (read.value(one, name) for one in (found[0][1], found[-1][1]))
            said.append(f"{name.split('/')[1]} {number(before, 3)} to {number(after, 3)}")
    return f" Only watched, on rollouts: {listed(said)}." if said else ""
