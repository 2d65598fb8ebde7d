"""Where a model is: a local folder, a run folder, an adapter folder, or a hub id.

A local folder always wins, and then nothing touches the network. Only a name that is no folder and
looks like a hub id is asked of the hub, once, for all the files that are needed; from there on it
is a local folder too. What can only be a path of this machine is never asked of it.
"""

from __future__ import annotations

import json
import os
import re
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, Literal, NamedTuple

from trimtab.config.recipe_files import recipe_that_makes
from trimtab.config.suggest import nearest_beside
from trimtab.errors import RecipeError

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_FILES = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt", "*.tiktoken"]
_NOT_FILES = ["*/*", "consolidated*", "*.gguf"]
_TIMEOUT = 10.0  # seconds until the hub counts as out of reach


class ModelSource(NamedTuple):
    """A model that was found.

    name      as the user wrote it; what adapters record as their base
    folder    local folder with config.json or adapter_config.json
    kind      "model": whole weights; "adapter": PEFT files on top of ``base``
    revision  commit of a hub model, None for local folders
    """

    name: str
    folder: Path
    kind: Literal["model", "adapter"]
    revision: str | None = None

    @property
    def notice(self) -> str:
        """One line that says what was taken, for the run's log."""
        what = "adapter" if self.kind == "adapter" else "model"
        if self.revision is None:
            return f"{what} {self.name}: local folder {self.folder}"
        return f"{what} {self.name}: from the hub, revision {self.revision[:12]}"


def quiet() -> None:
    """Turn off telemetry and progress bars of the Hugging Face libraries, before and after import.

    ``from_pretrained`` would also offer to have missing safetensors converted on the hub.
    """
    for name in (
        "HF_HUB_DISABLE_TELEMETRY",
        "HF_HUB_DISABLE_PROGRESS_BARS",
        "DISABLE_SAFETENSORS_CONVERSION",
    ):
        os.environ.setdefault(name, "1")
    from huggingface_hub import constants
    from huggingface_hub.utils import disable_progress_bars
    from transformers.utils import logging

    constants.HF_HUB_DISABLE_TELEMETRY = True
    if not constants.HF_HUB_DISABLE_PROGRESS_BARS:
        disable_progress_bars()
    logging.disable_progress_bar()
    logging.set_verbosity_error()  # what matters in its warnings is checked and raised here


def is_scored(source: ModelSource) -> bool:
    """Whether a folder holds a model with scores."""
    if source.kind == "adapter":
        task = read_json(source.folder / "adapter_config.json").get("task_type")
        return task == "SEQ_CLS"
    names = read_json(source.folder / "config.json").get("architectures") or []
    return any(str(name).endswith("ForSequenceClassification") for name in names)


def locate(
    name: str | Path,
    *,
    revision: str | None = None,
    key: str = "model_name_or_path",
    code: bool = False,
) -> ModelSource:
    """Find a model; ``key`` is the recipe key that errors name, ``code`` fetches its Python too.

    Raises RecipeError: no such folder and no such hub model; a folder without a model in it; a hub
    that cannot be reached.
    """
    return here(name, key=key) or _from_hub(os.fspath(name), revision, key, code)


def here(name: str | Path, *, key: str = "model_name_or_path") -> ModelSource | None:
    """The same without the hub: None for what may be a hub id and is no folder."""
    text = os.fspath(name)
    path = Path(text).expanduser()
    if path.is_dir():
        return _local(text, path, key)
    if path.exists():
        raise RecipeError(f"{key}={text!r}: this is a file; give the folder that holds the model")
    if names_folder(text):
        raise no_folder(text, key)
    return None


def names_folder(name: str) -> bool:
    """Whether a name can only be a folder of this machine, there or not.

    It is no hub id, or in runs/ or another folder that is here.
    """
    first, slash, _ = name.partition("/")
    inside = bool(slash) and (first == "runs" or Path(first).is_dir())
    return inside or _HUB_ID.fullmatch(name) is None


def no_folder(name: str, key: str) -> RecipeError:
    """For a folder that is not there: which is meant, or what makes it."""
    start = f"{key}={name!r}: no such folder"
    recipe = recipe_that_makes(name)
    if recipe is not None:
        return RecipeError(f"{start}; {recipe} makes it: run that first")
    near = _near(name)
    if near is not None:
        return RecipeError(f"{start}; did you mean {near}?")
    return RecipeError(f"{start}; give a model folder or a hub id")


def _near(name: str) -> str | None:
    path = Path(name).expanduser()
    try:
        return nearest_beside(path, [one.name for one in path.parent.iterdir() if one.is_dir()])
    except OSError:  # no such folder, or none that may be read
        return None


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; a damaged file is a RecipeError that names it."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RecipeError(
            f"{path}: not readable as JSON ({error}); fetch or save the model again"
        ) from None
    if not isinstance(content, dict):
        raise RecipeError(f"{path}: not a JSON object; fetch or save the model again")
    return content


def _kind(folder: Path) -> Literal["model", "adapter"] | None:
    if (folder / "adapter_config.json").is_file():
        return "adapter"
    return "model" if (folder / "config.json").is_file() else None


def _local(text: str, path: Path, key: str) -> ModelSource:
    kind = _kind(path)
    if kind is not None:
        return ModelSource(text, path, kind)
    if (path / "run.json").is_file() or any(path.glob("checkpoint-*")):
        raise RecipeError(
            f"{key}={text!r}: this run is not finished, so it has no model yet; "
            "run its command again to finish it"
        )
    found = sorted(child.name for child in path.iterdir())[:5]
    inside = f"it holds {', '.join(found)}" if found else "it is empty"
    raise RecipeError(
        f"{key}={text!r}: not a model folder, {inside}; "
        "one with config.json (or adapter_config.json) is needed"
    )


def _from_hub(text: str, revision: str | None, key: str, code: bool) -> ModelSource:
    quiet()
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    obstacle = _obstacle(text, constants)
    try:
        folder = Path(
            snapshot_download(
                text,
                revision=revision,
                allow_patterns=_FILES + (["*.py"] if code else []),
                ignore_patterns=_NOT_FILES,
                local_files_only=obstacle is not None,
            )
        )
    except GatedRepoError:
        problem = "the hub asks you to accept its terms first, then set HF_TOKEN"
    except RepositoryNotFoundError:
        problem = "the hub knows no such model (a private one needs HF_TOKEN)"
    except RevisionNotFoundError:
        problem = f"the hub has no revision {revision!r} of it; see model_revision"
    except HFValidationError:
        problem = "and no valid hub id either; check the spelling"
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        reason = obstacle or type(error).__name__
        near = _near(text)
        remedy = f"did you mean {near}?" if near is not None else "give a local model folder"
        problem = f"the hub could not be reached ({reason}); {remedy}"
    else:
        kind = _kind(folder)
        if kind is not None:
            return ModelSource(text, folder, kind, folder.name)
        problem = "this hub repository has no config.json; give one of a transformers model"
    raise RecipeError(f"{key}={text!r}: no such folder, and {problem}")


def _obstacle(text: str, constants: Any) -> str | None:
    """Why the hub is out of reach, or None; its own client would try for half a minute."""
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    request = urllib.request.Request(
        f"{constants.ENDPOINT}/{text}/resolve/main/config.json", method="HEAD"
    )
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT):
            return None
    except urllib.error.HTTPError:
        return None  # an answer: what it means is for the hub's client to find out
    except OSError as error:
        reason = getattr(error, "reason", error)
        return str(getattr(reason, "strerror", None) or reason).rstrip(".").lower()
