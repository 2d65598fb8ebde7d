"""Values from the command line, the environment, a file and defaults, as one table of keys.

Every source becomes dotted key -> ``Given(value, where)``; sources are then laid over each other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from pydantic import BaseModel

from trimtab.config.hints import ALIASES, CONTROLS, EXPLAINED, LOSS_TYPES, RENAMED
from trimtab.config.hints_trl import OF_VERB
from trimtab.config.loss_schema import loss_schemas
from trimtab.config.loss_sum import WEIGHT, is_member
from trimtab.config.schema import Key, loss_keys, recipe_keys
from trimtab.config.suggest import nearest
from trimtab.config.values import as_list, as_mapping, parse_columns
from trimtab.config.verbs import VERBS, Verb
from trimtab.config.yaml_text import parse
from trimtab.errors import RecipeError

COMMAND_LINE = "command line"


class Given(NamedTuple):
    """A value and where it came from; ``places``: the same for what lies inside it, by path."""

    value: Any
    where: str
    places: Mapping[str, str]


class Flat(NamedTuple):
    """One source: dotted key -> value; ``notes`` says what was read under another name."""

    values: dict[str, Given]
    notes: list[str]


def key_path(raw: str, verb: Verb, where: str) -> str:
    """The dotted key that ``raw`` means. RecipeError, with a suggestion, when it means none."""
    name = raw.strip().replace("-", "_")
    keys = recipe_keys(verb.recipe)
    if name in keys:
        return name
    if name in loss_keys(verb.recipe):
        return loss_keys(verb.recipe)[name]
    if name == "max_length" and "context_length" in keys:
        return "context_length"
    if ALIASES.get(name) in keys:
        return ALIASES[name]
    parent, _, rest = name.partition(".")
    if rest and parent in keys:
        if keys[parent].shape == "list":
            raise RecipeError(
                f"{name}: {parent} is a list; give it whole, such as [{{path: a}}, {{path: b}}] "
                f"({where})"
            )
        # A loss's own hyper-parameters are checked when the loss is known.
        if keys[parent].shape == "map" or parent == "loss":
            return name
        if name.rpartition(".")[0] in keys and keys[name.rpartition(".")[0]].shape == "map":
            return name
    raise RecipeError(unknown_key(name, verb, where))


def unknown_key(name: str, verb: Verb, where: str) -> str:
    """Why there is no such key, and what to use instead."""
    keys = recipe_keys(verb.recipe)
    start = f"{name}: unknown key ({where})"
    if name in CONTROLS:
        return f"{name}: belongs on the command line, as --{name.replace('_', '-')} ({where})"
    explained = OF_VERB.get(verb.name, {}).get(name) or EXPLAINED.get(name)
    if explained:
        return f"{start}: {explained}"
    if name in RENAMED:
        ours, whose = RENAMED[name]
        if ours == "max_length" and "context_length" in keys:
            ours = "context_length"
        if ours in keys:
            return f"{start}: {whose}'s name; here it is {_spell(ours, where)}"
    owners = [v.name for v in VERBS.values() if _takes(v, name)]
    if owners:
        return f"{start}: {verb.name} has no such key; it belongs to {', '.join(owners)}"
    if name in RENAMED:
        return f"{start}: {RENAMED[name][1]}'s name; {verb.name} has nothing like it; remove it"
    parent, dot, leaf = name.rpartition(".")
    inside = [k.removeprefix(f"{parent}.") for k in keys if k.startswith(f"{parent}.")]
    if dot and inside:
        found = nearest(leaf, inside)
        hint = f"Did you mean {_spell(f'{parent}.{found}', where)}?" if found else ""
        return f"{start}. {hint or f'{parent} takes ' + ', '.join(inside)}"
    known = [*(k for k in keys if "." not in k), *loss_keys(verb.recipe), *CONTROLS]
    found = nearest(name, known) or nearest(name, keys)
    if found:
        return f"{start}. Did you mean {_spell(found, where)}?"
    return f"{start}. trimtab {verb.name} --help lists all keys"


def _takes(verb: Verb, name: str) -> bool:
    if name in recipe_keys(verb.recipe):
        return True
    if verb.loss is not None:
        return name in loss_schemas()[verb.loss].parameters
    return name in loss_keys(verb.recipe)


def _spell(path: str, where: str) -> str:
    return "--" + path.replace("_", "-") if where == COMMAND_LINE else path


def flatten(values: Mapping[str, Any], verb: Verb, where: Callable[[str], str]) -> Flat:
    """The keys of one source; ``where`` says where a raw dotted path stands."""
    found: dict[str, Given] = {}
    notes: list[str] = []
    _walk(values, "", "", verb, where, found, notes)
    return Flat(found, notes)


def _walk(
    values: Mapping[str, Any],
    prefix: str,
    raw_prefix: str,
    verb: Verb,
    where: Callable[[str], str],
    found: dict[str, Given],
    notes: list[str],
) -> None:
    keys = recipe_keys(verb.recipe)
    for raw, value in values.items():
        raw_path = raw_prefix + raw
        place = where(raw_path)
        path = key_path(prefix + raw, verb, place)
        name = (prefix + raw).replace("-", "_")
        if name in _SPOKEN:
            value = _translate(name, value, place)
            notes.append(f"{name} is read as {_SPOKEN[name]} ({place})")
        if path in found:
            raise RecipeError(f"{path}: given twice ({found[path].where} and {place})")
        key = keys.get(path)
        if path.startswith("loss.") and is_member(path.removeprefix("loss.")):
            _walk_member(value, path, raw_path, where, found)
            continue
        if key is None or key.shape != "group":
            found[path] = Given(value, place, _places(value, raw_path, path, where))
            continue
        inner = value.model_dump() if isinstance(value, BaseModel) else as_mapping(value)
        if inner is not None:
            found[path] = Given({}, place, {})
            _walk(inner, f"{path}.", f"{raw_path}.", verb, where, found, notes)
        elif value is None and key.optional:
            found[path] = Given(None, place, {})
        elif path == "loss":
            if "loss.name" in found:
                raise RecipeError(f"loss: given twice ({found['loss.name'].where} and {place})")
            found["loss.name"] = Given(value, place, {})
        else:
            inside = ", ".join(k.removeprefix(f"{path}.") for k in keys if k.startswith(f"{path}."))
            raise RecipeError(f"{path}: {value!r} is not a group of keys ({place}): {inside}")


def _walk_member(
    value: Any, path: str, raw_path: str, where: Callable[[str], str], found: dict[str, Given]
) -> None:
    """A member of a sum of losses: its weight, or its weight and hyper-parameters."""
    inner = as_mapping(value)
    if inner is None:
        found[f"{path}.{WEIGHT}"] = Given(value, where(raw_path), {})
        return
    for name, item in inner.items():
        found[f"{path}.{name.replace('-', '_')}"] = Given(item, where(f"{raw_path}.{name}"), {})


# Aliases of other tools that a note tells about; short forms of ours need none.
_SPOKEN: Mapping[str, str] = {
    name: ALIASES[name]
    for name in ("loss_type", "simpo_gamma", "rpo_alpha", "ptx_coef", "bf16", "block_size")
}


def _translate(name: str, value: Any, where: str) -> Any:
    if name == "bf16":
        words = {"true": "bf16", "yes": "bf16", "1": "bf16", "false": "fp32", "no": "fp32"}
        found = words.get(str(value).lower())
        if found is None:
            raise RecipeError(f"bf16: {value!r} is not true or false ({where}); use precision")
        return found
    if name == "loss_type":
        if not isinstance(value, str) or value.startswith("["):
            raise RecipeError(
                f"loss_type: {value!r} is not one loss ({where}); use loss with weights, such as "
                "{dpo: 0.8, bco_pair: 0.2, sft: 1.0}"
            )
        return LOSS_TYPES.get(value, value)
    return value


def _places(value: Any, raw_path: str, path: str, where: Callable[[str], str]) -> dict[str, str]:
    """Where the parts of a list or map stand."""
    parts = as_mapping(value)
    if parts is None:
        parts = {str(index): item for index, item in enumerate(as_list(value) or ())}
    found: dict[str, str] = {}
    for name, inner in parts.items():
        found[f"{path}.{name}"] = where(f"{raw_path}.{name}")
        found.update(_places(inner, f"{raw_path}.{name}", f"{path}.{name}", where))
    return found


def read_text(text: str | tuple[str, ...], key: Key | None, where: str) -> Any:
    """A value of the command line or the environment, where lists and null have to be text."""
    if not isinstance(text, str) or key is None:
        return text
    if key.optional and text in ("null", "~"):
        return None
    opening = {"list": "[", "map": "{", "group": "{"}.get(key.shape)
    if key.type_label.endswith("prompts"):  # "[INST] hello" is a prompt and no list
        opening = '["' if text.startswith('["') else "['" if text.startswith("['") else None
    if opening and text.startswith(opening) and text.endswith(("]", "}")):
        return parse(text, where).value
    return text


# Two ways to say one thing: the one of a later source takes the place of the other.
_RIVALS: Mapping[str, str] = {
    "dataset_name": "datasets",
    "datasets": "dataset_name",
    "eval_dataset_name": "eval_datasets",
    "eval_datasets": "eval_dataset_name",
}


def lay_over(sources: Sequence[Mapping[str, Given]], keys: Mapping[str, Key]) -> dict[str, Given]:
    """All sources as one, later ones over earlier ones."""
    merged: dict[str, Given] = {}
    for source in sources:
        for path, given in source.items():
            rival = _RIVALS.get(path)
            if rival is not None and rival not in source and given.value is not None:
                merged.pop(rival, None)
            parent = path.rpartition(".")[0]
            above = merged.get(parent)
            is_map = path in keys and keys[path].shape == "map"
            if given.value is None or is_map:  # a whole value takes away what stood under it
                for inner in [k for k in merged if k.startswith(f"{path}.")]:
                    del merged[inner]
            if above is not None and above.value is None:
                del merged[parent]  # a key of a group switches the group on again
            elif above is not None and keys[parent].shape == "map":
                merged[parent] = _with_entry(above, path, given)
                continue
            merged[path] = given
    return merged


def _with_entry(whole: Given, path: str, given: Given) -> Given:
    """A map that was given whole, with one entry changed."""
    entries = as_mapping(parse_columns(whole.value)) or {}
    entries[path.rpartition(".")[2]] = given.value
    return Given(entries, given.where, {**whole.places, path: given.where})


def nest(values: Mapping[str, Given]) -> dict[str, Any]:
    """Dotted keys as nested dictionaries; a group stands before what is in it."""
    found: dict[str, Any] = {}
    for path in sorted(values, key=lambda p: p.count(".")):
        *groups, leaf = path.split(".")
        inner = found
        for group in groups:
            inner[group] = as_mapping(inner.get(group)) or {}
            inner = inner[group]
        inner[leaf] = values[path].value
    return found
