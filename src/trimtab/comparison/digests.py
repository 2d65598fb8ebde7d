"""What a result depends on, as hashes of content: of models, of data files, of reward functions.

A path in a recipe says nothing of what lies there. So in the identity of a training run each path
is replaced by a SHA-256 of its content, and keys that change neither a weight nor a metric are left
out: a comparison that was moved, or whose folder was renamed, still finds its finished parts.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from trimtab.config.compare_recipe import JudgeSpec
from trimtab.config.resolved import RESUME_FREE, Resolved
from trimtab.config.values import as_list, as_mapping

# Part of every key. Raise it with any change of code that changes what a run or an examination
# gives: what was found before is then found anew.
VERSION = 1

_MODELS = frozenset(
    {
        *("model_name_or_path", "tokenizer_name_or_path", "ref_model_name_or_path"),
        *("reward_model", "watch_model", "value_model"),
    }
)
_DATA = frozenset({"dataset_name", "eval_dataset_name", "eval_text_name", "path"})
_FUNCTIONS = frozenset({"reward_funcs", "watch_funcs"})
_SILENT = RESUME_FREE | {"logging_steps", "sample_prompts", "sample_steps"}
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def key_of(identity: Any) -> str:
    """Sixteen hex digits of what a result depends on, JSON types."""
    text = json.dumps(identity, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Digests:
    """Hashes of content, each computed once. Raise RecipeError or DataError for what is missing."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], str] = {}

    def run(self, resolved: Resolved) -> dict[str, Any]:
        """The identity of a training run."""
        recipe = resolved.recipe.model_dump(mode="json")
        kept = {name: value for name, value in recipe.items() if name not in _SILENT}
        return {"version": VERSION, "verb": resolved.verb, "recipe": self._content(kept)}

    def judge(self, spec: JudgeSpec) -> dict[str, Any]:
        """The identity of who judges."""
        return self._content(
            {
                "reward_model": spec.reward_model,
                "reward_funcs": list(spec.reward_funcs),
                "reward_weights": spec.reward_weights,
            }
        )

    def model(self, path: str) -> str:
        """Of weights, configuration and tokenizer; of an adapter or ensemble, of all parts."""
        return self._once("model", path, _model_digest)

    def data(self, path: str) -> str:
        """Of the bytes of a source of rows."""
        return self._once("data", path, _data_digest)

    def function(self, text: str) -> str:
        """Of a reward function's name with its options, and of the file that it stands in."""
        return self._once("function", text, _function_digest)

    def _once(self, kind: str, what: str, find: Any) -> str:
        if (kind, what) not in self._known:
            self._known[kind, what] = find(what)
        return self._known[kind, what]

    def _content(self, value: Any, name: str = "") -> Any:
        entries, items = as_mapping(value), as_list(value)
        if entries is not None:
            return {key: self._content(item, key) for key, item in entries.items()}
        if items is not None:
            return [self._content(item, name) for item in items]
        if not isinstance(value, str):
            return value
        if name in _MODELS and value != "shared":
            return self.model(value)
        if name in _DATA:
            return self.data(value)
        if name == "file":  # of a user's own loss: FILE.py:FUNCTION
            return self._once("file", value, _file_digest)
        return self.function(value) if name in _FUNCTIONS else value


def _model_digest(path: str) -> str:
    from trimtab.models import load
    from trimtab.models.fingerprint import fingerprint
    from trimtab.rewards.manifest import model_folders

    digest = hashlib.sha256()
    for name in model_folders(path, "reward_model") if Path(path).is_dir() else [path]:
        source = load.locate(name)
        for folder in dict.fromkeys((source.folder, load.base_of(source).folder)):
            digest.update(fingerprint(folder).encode())
            for file in _TOKENIZER_FILES:
                if (folder / file).is_file():
                    digest.update((folder / file).read_bytes())
    return digest.hexdigest()


def _data_digest(path: str) -> str:
    from trimtab.config.data_keys import DatasetSpec
    from trimtab.data.locate import locate

    digest = hashlib.sha256()
    for part in locate(DatasetSpec(path=path)).parts:
        digest.update(part.digest())
    return digest.hexdigest()


def _function_digest(text: str) -> str:
    from trimtab.rewards.functions import resolve

    return hashlib.sha256(f"{text}\n{resolve(text).digest}".encode()).hexdigest()


def _file_digest(text: str) -> str:
    path = Path(text.rpartition(":")[0] or text).expanduser()
    content = path.read_bytes() if path.is_file() else b""
    return hashlib.sha256(text.encode() + b"\n" + content).hexdigest()
