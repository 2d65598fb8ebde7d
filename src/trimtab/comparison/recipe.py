"""Reading the recipe of a comparison: a file, keys of the command line over it, and where each is.

Values stay text until the recipe's own types read them, as in every other recipe; keys of training
verbs inside ``common``, ``offline``, ``on_policy`` and ``methods`` are read by those verbs.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from trimtab.config.compare_recipe import CompareRecipe
from trimtab.config.merge import COMMAND_LINE
from trimtab.config.messages import one_line, within
from trimtab.config.values import as_mapping
from trimtab.config.yaml_text import parse, read_file
from trimtab.errors import RecipeError
from trimtab.shipped import or_shipped, recipe_named

VERB = "compare"
CONTROLS = {
    "jobs": "Cells that are trained at a time, each a process of one thread (default 1).",
    "dry_run": "Resolve every run, say what would be done and what is there already; train "
    "nothing.",
    "quiet": "Print errors and the result only.",
}


@dataclasses.dataclass(frozen=True)
class Control:
    """What belongs to one command and not to the recipe."""

    jobs: int = 1
    dry_run: bool = False
    quiet: bool = False


@dataclasses.dataclass(frozen=True)
class Read:
    """A recipe with what says where each dotted key was given (None: nowhere)."""

    recipe: CompareRecipe
    places: Mapping[str, str]
    control: Control

    def where(self, key: str) -> str:
        """The nearest place that is known: of the key, or of the group that it is in."""
        while key:
            if key in self.places:
                return self.places[key]
            key = key.rpartition(".")[0]
        return "recipe"

    def origins(self) -> dict[str, str]:
        """Where each value of the recipe was given; those that are left out are defaults."""
        return {key: self.places[key] for key in _leaves(self.recipe.model_dump(), "")
                if key in self.places}  # fmt: skip


def _leaves(value: Any, path: str) -> Iterator[str]:
    """The dotted keys of all values but groups."""
    inside = as_mapping(value)
    if not inside:
        yield path
    for key, one in (inside or {}).items():
        yield from _leaves(one, f"{path}.{key}" if path else key)


def read_recipe(tokens: Sequence[str]) -> Read:
    """``recipe.yaml [--key value | --group.key value]``; RecipeError for what is wrong with it."""
    file, given, controls = _split(tokens)
    if file is None and not given:
        raise RecipeError(
            "recipe: missing; name a file, such as recipes/compare/tiny.yaml (--help)"
        )
    values: dict[str, Any] = {}
    places: dict[str, str] = {}
    if file is not None:
        file = str(recipe_named(Path(file)))
        text = read_file(or_shipped(Path(file)))
        values = as_mapping(text.value) or {}
        if not values:
            raise RecipeError(f"{file}: is not a recipe: no 'key: value' lines at its top level")
        places = {key: f"{file}:{line}" for key, line in text.lines.items()}
        values.setdefault("name", Path(file).stem)
        if (verb := values.pop("verb", VERB)) != VERB:
            raise RecipeError(
                f"verb: this recipe is for trimtab {verb} ({places['verb']}), and the command is "
                f"trimtab {VERB}"
            )
    for path, word in given.items():
        text = parse(word, COMMAND_LINE)
        _put(values, path, text.value)
        places = {k: v for k, v in places.items() if not k.startswith(f"{path}.")}
        places |= {f"{path}.{inner}" if inner else path: COMMAND_LINE for inner in text.lines}
        places[path] = COMMAND_LINE  # of nothing, too

    try:
        recipe = CompareRecipe.model_validate(values)
    except ValidationError as error:
        raise RecipeError(one_line(error, CompareRecipe, within(places))) from None
    if recipe.output_dir is None:
        folder = re.sub(r"[^A-Za-z0-9._]+", "-", recipe.title).strip("-.") or "comparison"
        recipe = recipe.model_copy(update={"output_dir": f"runs/compare-{folder}"})
    return Read(recipe, places, controls)


def _split(tokens: Sequence[str]) -> tuple[str | None, dict[str, str], Control]:
    """The recipe file, raw values by dotted key, and the controls."""
    file: str | None = None
    given: dict[str, str] = {}
    controls: dict[str, Any] = {}
    rest = list(tokens)
    while rest:
        token = rest.pop(0)
        if not token.startswith("--"):
            if file is not None:
                raise RecipeError(f"{token}: one recipe file at most, and {file} is given already")
            file = token
            continue
        raw, equals, word = token[2:].partition("=")
        # Names of methods are the user's own: - and _ differ in them.
        words = raw.split(".")
        own = 1 if words[0] == "methods" else None
        path = ".".join(w if at == own else w.replace("-", "_") for at, w in enumerate(words))
        if path in ("dry_run", "quiet"):
            if equals:
                raise RecipeError(f"--{raw}={word}: --{raw} takes no value")
            controls[path] = True
            continue
        if not equals:
            if not rest or rest[0].startswith("--"):
                raise RecipeError(f"--{raw}: a value is missing ({COMMAND_LINE})")
            word = rest.pop(0)
        if path == "config":
            rest.insert(0, word)
        elif path == "jobs":
            controls["jobs"] = _jobs(word)
        elif path in given:
            raise RecipeError(f"{path}: given twice ({COMMAND_LINE})")
        else:
            given[path] = word
    return file, given, Control(**controls)


def _jobs(word: str) -> int:
    if not re.fullmatch(r"[0-9]+", word) or int(word) < 1:
        raise RecipeError(f"jobs: {word!r} is not a whole number of 1 or more ({COMMAND_LINE})")
    return int(word)


def _put(values: dict[str, Any], path: str, value: Any) -> None:
    *groups, leaf = path.split(".")
    inner = values
    for group in groups:
        found = as_mapping(inner.get(group))
        inner[group] = {} if found is None else found
        inner = inner[group]
    inner[leaf] = value
