"""The manifest of an ensemble of reward models: a folder with one model folder a member."""

from __future__ import annotations

from pathlib import Path

from trimtab.errors import RecipeError
from trimtab.models.hub import read_json

MANIFEST = "ensemble.json"
KIND = "reward_ensemble"


def model_folders(path: str | Path, key: str = "reward_model") -> list[str | Path]:
    """The members' folders of an ensemble's, or the path itself for one model or a hub id."""
    folder = Path(path).expanduser()
    return [*members_of(folder, key)] if (folder / MANIFEST).is_file() else [path]


def members_of(folder: Path, key: str = "reward_model") -> list[Path]:
    """The members' folders; RecipeError for a manifest of something else, or a missing member."""
    content = read_json(folder / MANIFEST)
    names = content.get("members")
    if content.get("kind") != KIND or not isinstance(names, list) or not names:
        raise RecipeError(
            f"{key}={str(folder)!r}: its {MANIFEST} is no manifest of reward models; train it again"
        )
    members = [folder / str(name) for name in names]
    for member in members:
        if not member.is_dir():
            raise RecipeError(f"{key}={str(folder)!r}: its member {member.name} is missing")
    return members
