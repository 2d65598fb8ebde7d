"""Where entries come from: ``SOURCES`` has a function a kind of names, all entries by name."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from trimtab.catalogue.metrics import METRICS, metric_of
from trimtab.cli.explain.entry import Entry, entry
from trimtab.cli.texts import TRAINING
from trimtab.config.diagnoses import FAMILIES
from trimtab.config.hints import ALIASES, EXPLAINED, LOSS_TYPES, RENAMED
from trimtab.config.loss_schema import loss_functions, loss_schemas
from trimtab.config.schema import Key, recipe_keys
from trimtab.config.suggest import did_you_mean
from trimtab.config.verbs import LOSS_DEFAULTS, VERBS
from trimtab.errors import UsageError

_PAPER = re.compile(r"arXiv:\d{4}\.\d{4,5}")


def diagnoses() -> dict[str, Entry]:
    """What can be found of a run."""
    from trimtab.algorithms.diagnosis.catalogue import CATALOGUE

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
            paper=_papers(one.paper),
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
            paper=_papers(one.paper),
        )
        for one in METRICS
    }


def losses() -> dict[str, Entry]:
    """Preference losses by name, and the other functions of ``trimtab.losses``."""
    found: dict[str, Entry] = {}
    for name, schema in loss_schemas().items():
        defaults = ", ".join(f"{key}={p.default}" for key, p in schema.parameters.items())
        beside = ", ".join(f"{key}={value}" for key, value in LOSS_DEFAULTS.get(name, {}).items())
        verb = next((v.name for v in VERBS.values() if v.loss == name), None)
        title, formula, rest = _docstring(schema.text)
        found[name] = entry(
            "loss",
            name,
            f"{title}: a loss of {_OF[schema.kind]}.",
            formula=formula,
            about=rest,
            hyper_parameters=defaults,
            comes_with=beside,
            healthy=_LOSS_HEALTHY if schema.needs_reference else "falls",
            use=f"trimtab {verb}" if verb else f"trimtab dpo --loss {name}",
            paper=_papers(schema.text),
        )
    for name, text in loss_functions().items():
        title, formula, rest = _docstring(text)
        found.setdefault(
            name,
            entry(
                "loss",
                name,
                f"{title}: a function of trimtab.losses.",
                formula=formula,
                about=rest,
                use=f"from trimtab.losses import {name}",
                paper=_papers(text),
            ),
        )
    return found


_OF = {"pair": "pairs", "unpaired": "single responses", "ranking": "rankings"}
_LOSS_HEALTHY = "falls from what it is where the policy is its reference (docs/losses.md)"


def _docstring(text: str) -> tuple[str, str, str]:
    """What stands before the colon of the first line, the formula behind it, and the rest."""
    first = " ".join(text.replace("``", "").split("\n\n")[0].split())
    title, colon, formula = first.partition(": ")
    _, _, rest = text.partition("\n\n")
    plain = "" if rest.count("====") else " ".join(rest.replace("``", "").split())
    return (title if colon else first).rstrip("."), formula.removesuffix("."), plain


def keys() -> dict[str, Entry]:
    """Recipe keys, with the default of every verb."""
    found: dict[str, list[tuple[str, Key]]] = {}
    for verb in VERBS.values():
        for path, key in recipe_keys(verb.recipe).items():
            found.setdefault(path, []).append((verb.name, key))
    return {path: _key_entry(path, owners) for path, owners in found.items()}


def _key_entry(path: str, owners: list[tuple[str, Key]]) -> Entry:
    key = owners[0][1]
    by_default: dict[str, list[str]] = {}
    by_text: dict[str, list[str]] = {}
    for verb, one in owners:
        by_text.setdefault(one.description, []).append(verb)
        preset = LOSS_DEFAULTS.get(VERBS[verb].loss or "", {})
        by_default.setdefault(_shown(preset.get(path, one.default)), []).append(verb)
    defaults = "; ".join(
        value if len(by_default) == 1 else f"{value} ({', '.join(verbs)})"
        for value, verbs in by_default.items()
    )
    per_loss = path.startswith("loss.") and path not in ("loss.name", "loss.file")
    short = path.removeprefix("loss.") if per_loss else path
    verbs = [verb for verb, _ in owners]
    return entry(
        "key",
        path,
        " ".join(
            text if len(by_text) == 1 else f"{', '.join(verbs)}: {text}"
            for text, verbs in by_text.items()
        ),
        type="true or false" if key.shape == "flag" else key.type_label.replace("|", ", "),
        default="" if per_loss else defaults,
        verbs="all" if len(verbs) == len(VERBS) else ", ".join(verbs),
        option=f"--{short.replace('_', '-')}",
        paper="docs/defaults.md has the source of the default; trimtab explain LOSS the formula"
        if per_loss
        else "docs/defaults.md has the source of the default",
    )


def _shown(value: Any) -> str:
    if value is ...:
        return "required"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, float):
        return f"{value:g}"
    return str(value) if value or value == 0 else "none"


def verbs() -> dict[str, Entry]:
    """The training verbs."""
    return {
        name: entry("verb", name, text.summary, formula=text.objective, example=text.example)
        for name, text in TRAINING.items()
    }


def _papers(text: str) -> str:
    """The papers named in a text, as links."""
    ids = dict.fromkeys(_PAPER.findall(text))
    return ", ".join(f"https://arxiv.org/abs/{one.removeprefix('arXiv:')}" for one in ids)


# Kind, as it stands in a list of all -> its entries.
SOURCES: Mapping[str, Callable[[], dict[str, Entry]]] = {
    "diagnosis": functools.cache(diagnoses),
    "finding": functools.cache(findings),
    "metric": functools.cache(metrics),
    "loss": functools.cache(losses),
    "verb": functools.cache(verbs),
    "key": functools.cache(keys),
}


def explain(name: str) -> list[Entry]:
    """All that is known by a name: a diagnosis and a metric may share one.

    Raises UsageError for a name that nobody has, with the nearest one there is.
    """
    plain = name.strip().lstrip("-").partition("=")[0].replace("-", "_")
    found = list(_entries(plain))
    if found:
        return found
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
    for kind, source in SOURCES.items():
        known = source()
        if kind == "metric":
            row = metric_of(name)
            if row is not None:
                one = known[row.name]
                held_out = "Held out. " if name.startswith("eval_") else ""
                interval = "95 % interval [low, high]. " if name.endswith("_ci95") else ""
                yield one._replace(name=name, what=f"{held_out}{interval}{one.what}")
        elif name in known:
            yield known[name]
        elif kind == "finding" and (dashed := name.replace("_", "-")) in known:
            yield known[dashed]
        if kind == "key":  # a hyper-parameter is given without its group, too
            for path in (f"loss.{name}", f"mix.{name}"):
                if path in known:
                    yield known[path]
