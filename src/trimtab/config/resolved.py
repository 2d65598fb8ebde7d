"""The resolved recipe as YAML that can be run again, and what differs between two of them."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from pydantic import ValidationError

from trimtab.config.messages import one_line
from trimtab.config.recipes import TrainRecipe
from trimtab.config.schema import recipe_keys
from trimtab.config.values import as_list, as_mapping
from trimtab.config.verbs import VERBS
from trimtab.config.yaml_text import YamlText, parse, read_file
from trimtab.errors import RecipeError

RESOLVED_NAME = "config.resolved.yaml"

# Keys that change neither a weight nor a metric: another value of them still continues a run.
RESUME_FREE = frozenset(
    {
        "output_dir",
        "run_name",
        "report_to",
        "save_steps",
        "save_total_limit",
        "cache_dir",
        "max_bad_rows",
        "max_dropped_rows",
        "self_check",
    }
)


@dataclasses.dataclass(frozen=True)
class Control:
    """What belongs to one command and not to the recipe; see ``hints.CONTROLS``."""

    restart: bool = False
    resume: str | None = None
    dry_run: bool = False
    quiet: bool = False
    json: bool = False
    offline: bool = False


@dataclasses.dataclass(frozen=True)
class Resolved:
    """A recipe ready to run.

    ``provenance``: dotted key -> "command line", "recipes/x.yaml:12", "environment TRIMTAB_SEED",
    "argument", "default" or "default of simpo". ``notes``: lines to show before the run.
    """

    verb: str
    recipe: TrainRecipe
    provenance: Mapping[str, str]
    control: Control = Control()
    notes: tuple[str, ...] = ()

    @property
    def output_dir(self) -> str:
        """Folder of the run; ``resolve`` fills it in where the recipe has none."""
        assert self.recipe.output_dir is not None
        return self.recipe.output_dir

    def placed(self, error: RecipeError, key: str) -> RecipeError:
        """An error about a key's value, with the line of the recipe file that gave it."""
        place = self.provenance.get(key, "")
        return RecipeError(f"{error} ({place})") if re.search(r":\d+$", place) else error


def to_yaml(resolved: Resolved) -> str:
    """The whole recipe as YAML, each value with a comment that says where it came from.

    The text is a recipe again: ``load_text(to_yaml(r))`` has the same verb and recipe.
    """
    lines = [
        f"# trimtab {resolved.verb}, every key with its value and where the value came from.",
        f"verb: {resolved.verb}",
    ]
    title = None
    values = resolved.recipe.model_dump()
    for key in recipe_keys(type(resolved.recipe)).values():
        if key.title != title:
            title = key.title
            lines += ["", f"# {title}"]
        if "." not in key.path:
            lines += _lines(key.path, values[key.path], key.path, resolved.provenance, 0)
    return "\n".join(lines) + "\n"


def _lines(
    name: str, value: Any, path: str, provenance: Mapping[str, str], depth: int
) -> Iterator[str]:
    start = f"{'  ' * depth}{_scalar(name)}:"
    comment = f"  # {_comment(provenance[path])}" if path in provenance else ""
    entries, items = as_mapping(value), as_list(value)
    if not entries and not items:
        yield f"{start} {_flow(value)}{comment}"
        return
    yield start + comment
    for inner, item in (entries or {}).items():
        yield from _lines(inner, item, f"{path}.{inner}", provenance, depth + 1)
    for item in items or ():
        yield f"{'  ' * (depth + 1)}- {_flow(item)}"


def _comment(text: str) -> str:
    """A file name can hold anything; a comment ends with its line."""
    return "".join(c if c.isprintable() else "?" for c in text)


def _flow(value: Any) -> str:
    """A value in one line."""
    entries, items = as_mapping(value), as_list(value)
    if entries is not None:
        return "{" + ", ".join(f"{_scalar(k)}: {_flow(v)}" for k, v in entries.items()) + "}"
    if items is not None:
        return "[" + ", ".join(map(_flow, items)) + "]"
    return _scalar(value)


def _scalar(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        # YAML 1.1 readers (PyYAML) take 1e-06 for text and 1.0e-06 for a number.
        return re.sub(r"^(-?\d+)e", r"\1.0e", repr(value))
    if isinstance(value, int):
        return str(value)
    plain = re.fullmatch(r"[A-Za-z_./][\w./+@=-]*", value, re.ASCII)
    if plain and not value.startswith("...") and yaml.safe_load(value) == value:  # ... ends a text
        return value
    return yaml.safe_dump(value, default_style='"', allow_unicode=True, width=2**30).strip()


# ---------------------------------------------------------------------- reading


def load_resolved(path: Path | str) -> Resolved:
    """Read the ``config.resolved.yaml`` at ``path``, or of the run folder at ``path``."""
    file = Path(path)
    if file.is_dir():
        file = file / RESOLVED_NAME
    return _load(read_file(file), str(file))


def load_text(text: str, name: str = RESOLVED_NAME) -> Resolved:
    """Read what ``to_yaml`` wrote; RecipeError when this version does not know its keys."""
    return _load(parse(text, name), name)


def _load(text: YamlText, name: str) -> Resolved:
    values = as_mapping(text.value) or {}
    verb = VERBS.get(str(values.pop("verb", None)))
    if verb is None:
        raise RecipeError(f"{name}: is not a resolved recipe: it has no 'verb: dpo' line")

    def where(key: str) -> str:
        return f"{name}:{text.lines.get(key, 1)}"

    try:
        recipe = verb.recipe.model_validate(values)
    except ValidationError as error:
        raise RecipeError(one_line(error, verb.recipe, where)) from None
    provenance = {key: where(key) for key in recipe_keys(verb.recipe) if key in text.lines}
    return Resolved(verb.name, recipe, provenance)


class RecipeLine(NamedTuple):
    """A key of a resolved recipe as it stands in the text.

    ``title`` is that of its section, ``key`` dotted, ``origin`` empty where none is noted (within
    a value that came from one place).
    """

    title: str
    key: str
    value: str
    origin: str


def recipe_lines(text: str) -> list[RecipeLine]:
    """What ``to_yaml`` wrote, key by key, whatever version's: no key has to be known.

    The items of a list are the value of their key. Raises nothing: a line that is no key is left
    out.
    """
    lines: list[RecipeLine] = []
    title, path = "", list[str]()
    for raw in text.splitlines():
        bare = raw.strip()
        if raw.startswith("# "):
            title = raw[2:]
        elif bare.startswith("- ") and lines:
            held = f"{lines[-1].value}, " if lines[-1].value else ""
            lines[-1] = lines[-1]._replace(value=held + bare[2:])
        elif found := re.match(r'( *)("(?:[^"\\]|\\.)*"|[^\s:#"]+):(?: (.*)|$)', raw):
            name = str(yaml.safe_load(found[2])) if found[2][0] == '"' else found[2]
            path = [*path[: len(found[1]) // 2], name]
            value, origin = _split(found[3] or "")
            lines.append(RecipeLine(title, ".".join(path), value, origin))
    return [line for line in lines if line.key != "verb"]


def _split(rest: str) -> tuple[str, str]:
    """A value and the comment behind it: the first place where what stands before is YAML."""
    start = rest.find("  # ")
    while start >= 0:
        if '"' not in rest[:start]:  # only a quoted text can hold the mark
            return rest[:start].strip(), rest[start + 4 :]
        try:
            yaml.safe_load(rest[:start])
        except yaml.YAMLError:
            start = rest.find("  # ", start + 1)
        else:
            return rest[:start].strip(), rest[start + 4 :]
    if rest.startswith(" # "):  # a key whose value stands on the lines below
        return "", rest[3:]
    return rest.strip(), ""


# ---------------------------------------------------------------------- comparing


def difference(old: Resolved | str, new: Resolved | str) -> list[str]:
    """One line per key that differs and matters to going on with ``old``'s run.

    Either may be the text that ``to_yaml`` wrote.
    """
    new = load_text(new) if isinstance(new, str) else new
    try:
        old = load_text(old) if isinstance(old, str) else old
    except RecipeError as error:
        whose = "trimtab" if getattr(new.recipe, "loss", None) is None else "trimtab or of its loss"
        return [f"the old recipe is of another version of {whose} ({error})"]
    lines = [] if old.verb == new.verb else [f"verb: {old.verb} there, {new.verb} here"]
    there, here = old.recipe.model_dump(), new.recipe.model_dump()
    for key in [*there, *(k for k in here if k not in there)]:
        if key not in RESUME_FREE:
            lines.extend(_compare(key, there.get(key), here.get(key)))
    return lines


def _compare(key: str, there: Any, here: Any) -> Iterator[str]:
    old, new = as_mapping(there), as_mapping(here)
    if old and new:
        for inner in [*old, *(k for k in new if k not in old)]:
            yield from _compare(f"{key}.{inner}", old.get(inner), new.get(inner))
    elif there != here:
        yield f"{key}: {_brief(there)} there, {_brief(here)} here"


def _brief(value: Any) -> str:
    """A value without those of its keys that say nothing."""
    entries, items = as_mapping(value), as_list(value)
    if entries is not None:
        return _flow({k: v for k, v in entries.items() if v not in (None, {}, [])})
    return _flow(value) if items is None else "[" + ", ".join(map(_brief, items)) + "]"
