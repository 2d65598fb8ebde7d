"""What is said of preference losses and of recipe keys, read from their source and their schema."""

from __future__ import annotations

from typing import Any

from trimtab.cli.explain.entry import Entry, entry, papers
from trimtab.config.loss_schema import loss_functions, loss_schemas
from trimtab.config.schema import Key, recipe_key, recipe_keys
from trimtab.config.verbs import LOSS_DEFAULTS, VERBS


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
            paper=papers(schema.text),
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
                paper=papers(text),
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


def key_named(path: str) -> Entry | None:
    """One of them, or None, without reading all the others."""
    found = ((verb.name, recipe_key(verb.recipe, path)) for verb in VERBS.values())
    owners = [(verb, key) for verb, key in found if key is not None]
    return _key_entry(path, owners) if owners else None


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
