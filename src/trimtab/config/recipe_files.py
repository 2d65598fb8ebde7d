"""The recipes that come with trimtab: which there are, what they say of themselves, copies."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import NamedTuple

from trimtab.config.suggest import did_you_mean
from trimtab.config.values import as_mapping
from trimtab.config.verbs import VERBS
from trimtab.config.yaml_text import read_file
from trimtab.errors import RecipeError, RunError
from trimtab.shipped import RECIPES, shipped

COMPARE = "compare"  # the one verb with recipes that is no training verb


class RecipeFile(NamedTuple):
    """A recipe; ``about`` is its header's first paragraph: what, on which hardware, how long."""

    name: str
    verb: str
    about: str
    path: Path

    @property
    def in_short(self) -> str:
        """The first sentence of it."""
        return re.split(r"(?<=\.)\s", self.about, maxsplit=1)[0]


def recipe_files() -> list[RecipeFile]:
    """All that are shipped, by name (``tiny/dpo``)."""
    top = _top()
    return [_read(path, top) for path in sorted(top.rglob("*.yaml"))]


def find_recipe_file(name: str) -> Path:
    """A shipped file by ``tiny/dpo``, ``tiny/dpo.yaml`` or ``recipes/tiny/dpo.yaml``; RecipeError.

    What recipes name beside themselves (``smollm2/cheerful.py``) is found, too.
    """
    top = _top()
    short = Path(name).as_posix().removeprefix(f"{RECIPES}/")
    files = {path.relative_to(top).as_posix(): path for path in sorted(top.rglob("*.*"))}
    for found in (short, f"{short}.yaml"):
        if found in files:
            return files[found]
    known = [file.removesuffix(".yaml") for file in files]
    raise RecipeError(f"{name}: no such recipe (trimtab recipes ls){did_you_mean(short, known)}")


def recipe_that_makes(folder: str) -> str | None:
    """The shipped recipe (``recipes/tiny/sft.yaml``) that writes to a folder, by its own words."""
    top = shipped(RECIPES)
    if top is None:
        return None
    for path in sorted(top.rglob("*.yaml")):
        made = (as_mapping(read_file(path).value) or {}).get("output_dir")
        if made is not None and Path(made) == Path(folder):
            return f"{RECIPES}/{path.relative_to(top).as_posix()}"
    return None


def verb_of_file(path: Path) -> str | None:
    """The verb that a recipe's ``verb:`` line names; None where there is no such line.

    RecipeError for a file that cannot be read, or a verb that does not exist.
    """
    text = read_file(path)
    values = as_mapping(text.value) or {}
    verb = values.get("verb")
    if verb is None and "methods" in values:
        return COMPARE  # nothing else has methods
    if verb not in (None, COMPARE) and verb not in VERBS:
        raise RecipeError(
            f"verb: {verb!r} is no training verb ({path}:{text.lines['verb']})"
            f"{did_you_mean(str(verb), VERBS)}"
        )
    return verb


def copy_recipe_file(name: str, destination: str, *, overwrite: bool = False) -> Path:
    """Copy a shipped file to a new file, or into a folder; returns where it is.

    RecipeError where a file is there already and ``overwrite`` is not set.
    """
    source = find_recipe_file(name)
    target = Path(destination).expanduser()
    if target.is_dir() or destination.endswith(("/", "\\")):
        target = target / source.name
    if target.is_dir():
        raise RecipeError(f"{target}: is a folder; name another file")
    if target.exists() and not overwrite:
        raise RecipeError(f"{target}: exists already; name another file, or --overwrite to replace")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
    except OSError as error:
        raise RunError(f"{target}: cannot be written ({error.strerror or error})") from None
    return target


def files_named(path: Path) -> list[str]:
    """Shipped files that a recipe's text names (reward functions), as it names them."""
    words = re.findall(rf"\b{RECIPES}/[\w./-]+\.py\b", path.read_text(encoding="utf-8"))
    return sorted(set(words))


def _top() -> Path:
    top = shipped(RECIPES)
    if top is None:
        raise RunError("recipes: this installation of trimtab has none; install it again")
    return top


def _read(path: Path, top: Path) -> RecipeFile:
    verb = verb_of_file(path)
    assert verb is not None, f"{path}: a shipped recipe names its verb"
    name = path.relative_to(top).with_suffix("").as_posix()
    return RecipeFile(name, verb, _about(path.read_text(encoding="utf-8")), path)


def _about(text: str) -> str:
    lines: list[str] = []
    for line in text.splitlines():
        if not line.startswith("#") or line.strip() == "#":
            break
        lines.append(line.lstrip("# ").strip())
    return " ".join(lines)
