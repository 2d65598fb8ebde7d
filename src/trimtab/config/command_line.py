"""The command line of a training verb: ``[recipe.yaml] --key value --group.key value --flag``.

``-`` and ``_`` are the same in keys. A flag takes no value (``--use-peft``, ``--no-shuffle``), or
one of true and false. A list takes all words up to the next option, or one word with commas.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from trimtab.config.hints import CONTROLS, STAGES
from trimtab.config.merge import COMMAND_LINE, key_path, read_text
from trimtab.config.resolved import RESOLVED_NAME
from trimtab.config.schema import Key, recipe_keys
from trimtab.config.verbs import VERBS, Verb
from trimtab.errors import RecipeError

_DATA = re.compile(r"\.(jsonl|ndjson|json|csv|tsv|parquet|txt)(\.gz)?$", re.IGNORECASE)
_BOOLEANS = {"true", "false", "yes", "no", "on", "off"}


class Line(NamedTuple):
    """``values``: raw key -> text, a tuple of texts, True, False or None."""

    file: str | None
    values: dict[str, Any]
    controls: dict[str, Any]


def read_line(tokens: Sequence[str], verb: Verb) -> Line:
    """Split the command line into recipe file, values and controls. RecipeError if it cannot."""
    line = _Line(tokens, verb)
    while line.rest:
        line.take()
    return Line(line.file, line.values, line.controls)


class _Line:
    def __init__(self, tokens: Sequence[str], verb: Verb) -> None:
        self.verb = verb
        self.keys = recipe_keys(verb.recipe)
        self.rest = list(tokens)
        self.file: str | None = None
        self.values: dict[str, Any] = {}
        self.controls: dict[str, Any] = {}
        self.seen: set[str] = set()

    def take(self) -> None:
        """Take one option with its values, or one word."""
        token = self.rest.pop(0)
        if not token.startswith("--"):
            if token.startswith("-") and not _is_value(token):
                raise RecipeError(f"{token}: unknown option; options begin with two dashes")
            self.take_file(token)
            return
        if token == "--":
            return
        raw, equals, text = token[2:].partition("=")
        value = text if equals else None
        name = raw.replace("-", "_")
        if name == "config":
            self.take_file(value if value is not None else self.word(raw))
        elif name in CONTROLS:
            self.take_control(name, raw, value)
        else:
            self.take_key(raw, name, value)

    def take_file(self, word: str) -> None:
        """A recipe file; anything else is most likely data or a model in the wrong place."""
        if word in VERBS:
            raise RecipeError(f"{word}: trimtab {self.verb.name} is the verb; give one of the two")
        if _DATA.search(word):
            raise RecipeError(f"{word}: is a data file: write --dataset-name {word}")
        if _is_model(Path(word).expanduser()):
            raise RecipeError(f"{word}: is a model folder: write --model-name-or-path {word}")
        if self.file is not None:
            raise RecipeError(f"{word}: one recipe file at most, and {self.file} is given already")
        self.file = word

    def take_control(self, name: str, raw: str, value: str | None) -> None:
        self.once(name)
        if name == "resume":
            self.controls[name] = value if value is not None else self.word(raw)
        elif value is not None:
            raise RecipeError(f"--{raw}={value}: --{raw} takes no value")
        else:
            self.controls[name] = True

    def take_key(self, raw: str, name: str, value: str | None) -> None:
        """A key of the recipe."""
        negated = self.negated(name, value)
        if negated is not None:
            self.once(negated)
            self.values[negated] = False if self.keys[negated].shape == "flag" else None
            return
        self.refuse_stage(name, value)
        path = key_path(name, self.verb, COMMAND_LINE)
        self.once(path)
        key = self.keys.get(path)
        if value is not None:
            self.values[name] = read_text(value, key, COMMAND_LINE)
        elif key is not None and key.shape == "flag":
            follows = bool(self.rest) and self.rest[0].lower() in _BOOLEANS
            self.values[name] = self.rest.pop(0) if follows else True
        elif key is not None and key.shape in ("list", "map"):
            self.values[name] = self.words(raw, key)
        elif name == "bf16":
            follows = bool(self.rest) and self.rest[0].lower() in _BOOLEANS
            self.values[name] = self.rest.pop(0) if follows else "true"
        else:
            self.values[name] = read_text(self.word(raw), key, COMMAND_LINE)

    def negated(self, name: str, value: str | None) -> str | None:
        """``no_shuffle`` -> ``shuffle``, ``mix.no_x`` stays unknown, ``no_mix`` -> ``mix``."""
        path = name.removeprefix("no_")
        if path == name or value is not None or name in self.keys or path not in self.keys:
            return None
        key = self.keys[path]
        return path if key.shape == "flag" or key.optional else None

    def once(self, path: str) -> None:
        """The last of two would win without a word; scripts that append want to know."""
        if path in self.seen:
            raise RecipeError(f"{path}: given twice ({COMMAND_LINE})")
        self.seen.add(path)

    def word(self, raw: str) -> str:
        """The value of an option that needs one."""
        if not self.rest or self.rest[0].startswith("--"):
            raise RecipeError(f"--{raw}: a value is missing ({COMMAND_LINE})")
        return self.rest.pop(0)

    def words(self, raw: str, key: Key) -> Any:
        """All values up to the next option; one alone stays a word, which may hold commas."""
        found = [self.word(raw)]
        while self.rest and not self.rest[0].startswith("--"):
            found.append(self.rest.pop(0))
        return read_text(found[0] if len(found) == 1 else tuple(found), key, COMMAND_LINE)

    def refuse_stage(self, name: str, value: str | None) -> None:
        """``--stage dpo`` of LLaMA-Factory and ``--rl dpo`` of axolotl name the verb."""
        if name in ("stage", "rl"):
            wanted = value if value is not None else (self.rest[0] if self.rest else "")
            if wanted in STAGES:
                raise RecipeError(f"{name}: use trimtab {STAGES[wanted]} ({COMMAND_LINE})")


def _is_model(path: Path) -> bool:
    """A folder of weights; a run that has some stands for its recipe."""
    weights = ("config.json", "adapter_config.json")
    held = any((path / name).is_file() for name in weights)
    return held and not (path / RESOLVED_NAME).is_file()


def _is_value(token: str) -> bool:
    return re.fullmatch(r"-[0-9.].*", token) is not None
