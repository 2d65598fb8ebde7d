"""Where entries come from: ``SOURCES`` has a function a kind of names, all entries by name."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping

from trimtab.catalogue.metrics import METRICS, metric_of
from trimtab.cli.explain.entry import Entry, entry, papers
from trimtab.cli.explain.tool_names import options, tools
from trimtab.cli.texts import TRAINING
from trimtab.errors import UsageError


def diagnoses() -> dict[str, Entry]:
    """What can be found of a run."""
    from trimtab.algorithms.diagnosis.catalogue import CATALOGUE
    from trimtab.config.diagnoses import FAMILIES

    found: dict[str, Entry] = {}
    for name, one in CATALOGUE.items():
        families = [family for family, names in FAMILIES.items() if name in names]
        found[name] = entry(
            "diagnosis",
            name,
            one.what,
            told_when=one.when,
            means=one.means,
            change=one.change,
            reads=one.looks,
            of=", ".join(families),
            paper=papers(one.paper),
        )
    return found


def findings() -> dict[str, Entry]:
    """What ``trimtab data check`` can find in rows."""
    from trimtab.data.doctor.faults import FAULTS

    needs = {"rows": "", "held-out": "--against HELD_OUT", "model": "--model MODEL"}
    return {
        one.name: entry(
            "finding",
            one.name,
            f"{one.meaning[0].upper()}{one.meaning[1:]}.",
            severity=one.severity,
            change=one.remedy,
            of="trimtab data check",
            needs=needs[one.needs],
        )
        for one in FAULTS
    }


def metrics() -> dict[str, Entry]:
    """The numbers of metrics.jsonl."""
    return {
        one.name: entry(
            "metric",
            one.name,
            one.what,
            formula=one.formula,
            unit=one.unit,
            healthy=one.healthy,
            logged_by=one.of,
            paper=papers(one.paper),
        )
        for one in METRICS
    }


def verbs() -> dict[str, Entry]:
    """The training verbs."""
    return {
        name: entry("verb", name, text.summary, formula=text.objective, example=text.example)
        for name, text in TRAINING.items()
    }


def _losses() -> dict[str, Entry]:
    from trimtab.cli.explain.recipe_names import losses

    return losses()


def _keys() -> dict[str, Entry]:
    from trimtab.cli.explain.recipe_names import keys

    return keys()


# Kind, as it stands in a list of all -> its entries.
SOURCES: Mapping[str, Callable[[], dict[str, Entry]]] = {
    "diagnosis": functools.cache(diagnoses),
    "finding": functools.cache(findings),
    "metric": functools.cache(metrics),
    "loss": functools.cache(_losses),
    "verb": functools.cache(verbs),
    "tool": functools.cache(tools),
    "key": functools.cache(_keys),
    "option": functools.cache(options),
}


def explain(name: str) -> list[Entry]:
    """All that is known by a name: a diagnosis and a metric may share one.

    Raises UsageError for a name that nobody has, with the nearest one there is.
    """
    plain = name.strip().lstrip("-").partition("=")[0].replace("-", "_")
    found = list(_entries(plain))
    if found:
        return found
    from trimtab.config.hints import ALIASES, EXPLAINED, LOSS_TYPES, RENAMED
    from trimtab.config.suggest import did_you_mean

    if plain in EXPLAINED:
        return [entry("key", plain, f"No key here: {EXPLAINED[plain]}.")]
    ours, whose = RENAMED.get(plain, (ALIASES.get(plain) or LOSS_TYPES.get(plain) or "", ""))
    if ours:
        note = f"{plain}{f' of {whose}' if whose else ''} is {ours} here."
        return [one._replace(what=f"{note} {one.what}") for one in _entries(ours)]
    everything = [known for source in SOURCES.values() for known in source()]
    last = {known.rpartition(".")[2].rpartition("/")[2] for known in everything}
    hint = did_you_mean(plain, everything) or did_you_mean(plain, last)
    raise UsageError(
        f"{name}: nothing here is called that{hint or '; trimtab explain lists every name'}"
    )


def _entries(name: str) -> Iterator[Entry]:
    if "/" in name:  # as metrics alone are called: nothing else need be read
        yield from _metric(name)
        return
    for kind, source in SOURCES.items():
        if kind == "metric":
            yield from _metric(name)
        elif kind == "key":
            yield from _named_keys(name)
        else:  # findings have dashes, a tool may be two words
            spelt = (name.replace("_", between) for between in "_- ")
            yield from (source()[one] for one in dict.fromkeys(spelt) if one in source())


def _metric(name: str) -> Iterator[Entry]:
    row = metric_of(name)
    if row is None:
        return
    one = SOURCES["metric"]()[row.name]
    held_out = "Held out. " if name.startswith("eval_") else ""
    interval = "95 % interval [low, high]. " if name.endswith("_ci95") else ""
    yield one._replace(name=name, what=f"{held_out}{interval}{one.what}")


def _named_keys(name: str) -> Iterator[Entry]:
    """Keys of that name; a hyper-parameter is given without its group, too."""
    from trimtab.cli.explain.recipe_names import key_named

    yield from filter(None, map(key_named, (name, f"loss.{name}", f"mix.{name}")))
