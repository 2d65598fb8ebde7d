"""The tables of docs/from-trl.md: every field of TRL's configurations, and what it is here.

python scripts/from_trl_page.py                  # say what is out of date (exit code 1)
python scripts/from_trl_page.py --write          # write the tables into docs/from-trl.md
python scripts/from_trl_page.py --read NEW OLD   # read names and defaults into trl_fields.json:
                                                 # two site-packages folders, not imported
"""

from __future__ import annotations

import ast
import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from generated import write_or_compare
from trl_notes import COUNTERPARTS, NOTES, TITLES

from trimtab.config.hints import ALIASES, RENAMED
from trimtab.config.hints_trl import OF_VERB
from trimtab.config.loss_schema import loss_schemas
from trimtab.config.merge import key_path, unknown_key
from trimtab.config.schema import recipe_keys
from trimtab.config.verbs import LOSS_DEFAULTS, VERBS, Verb
from trimtab.errors import RecipeError

HERE = Path(__file__).resolve().parent
PAGE = HERE.parent / "docs" / "from-trl.md"
FIELDS = HERE / "trl_fields.json"
BEGIN, END = "<!-- from TRL's fields: scripts/from_trl_page.py -->", "<!-- to here -->"

# Configuration -> (file below site-packages, which of the two versions, the verb here).
CONFIGS: Mapping[str, tuple[str, int, str]] = {
    "SFTConfig": ("trl/trainer/sft_config.py", 0, "sft"),
    "RewardConfig": ("trl/trainer/reward_config.py", 0, "reward"),
    "DPOConfig": ("trl/trainer/dpo_config.py", 0, "dpo"),
    "KTOConfig": ("trl/trainer/kto_config.py", 0, "kto"),
    "CPOConfig": ("trl/experimental/cpo/cpo_config.py", 0, "cpo"),
    "ORPOConfig": ("trl/experimental/orpo/orpo_config.py", 0, "orpo"),
    "GRPOConfig": ("trl/trainer/grpo_config.py", 0, "grpo"),
    "RLOOConfig": ("trl/trainer/rloo_config.py", 0, "rloo"),
    "OnlineDPOConfig": ("trl/experimental/online_dpo/online_dpo_config.py", 0, "online_dpo"),
    "PPOConfig": ("trl/experimental/ppo/ppo_config.py", 1, "ppo"),
    "ModelConfig": ("trl/trainer/model_config.py", 0, "dpo"),
    "ScriptArguments": ("trl/scripts/utils.py", 0, "dpo"),
    "TrainingArguments": ("transformers/training_args.py", 0, "dpo"),
}
OFTEN = 3  # configurations that refuse a field for one reason: then it is said once, at the end
SHARED = {"_BaseConfig": "trl/trainer/base_config.py"}  # what TRL changes in TrainingArguments


class Field(NamedTuple):
    """What a field of TRL is here: a key and its default, or the reason why there is none."""

    name: str
    default: str
    key: str = ""
    ours: str = ""
    how: str = ""  # "", "taken as it is" or "renamed"
    reason: str = ""


def place_of(name: str, default: str, verb: Verb) -> Field:
    """What ``trimtab VERB --name`` does with it."""
    try:
        key = key_path(name, verb, "")
    except RecipeError:
        key = COUNTERPARTS.get((verb.name, name)) or RENAMED.get(name, ("", ""))[0]
        split = name in OF_VERB.get(verb.name, {}) and (verb.name, name) not in COUNTERPARTS
        if split or key not in recipe_keys(verb.recipe):
            _, _, reason = unknown_key(name, verb, "").partition(" (): ")
            assert reason, f"{verb.name}: {name}: nothing is said of it"
            return Field(name, default, reason=reason)
        return Field(name, default, key, default_of(key, verb), "renamed")
    loss = loss_schemas().get(verb.loss or "")
    parameter = key.removeprefix("loss.")
    if (
        loss is not None
        and key not in ("loss.name", parameter)
        and parameter not in loss.parameters
    ):
        return Field(name, default, reason=loss.refusal(parameter))
    how = "taken as it is" if name in ALIASES else ""
    return Field(name, default, key, default_of(key, verb), how)


def default_of(key: str, verb: Verb) -> str:
    """As it stands in a recipe."""
    loss = verb.loss or "dpo"
    if key == "loss.name":
        return loss
    parameters = loss_schemas()[loss].parameters
    if key.startswith("loss.") and (name := key.removeprefix("loss.")) in parameters:
        return shown(parameters[name].default)
    found = LOSS_DEFAULTS.get(verb.loss or "", {}).get(key, recipe_keys(verb.recipe)[key].default)
    return "required" if found is ... else shown(found)


def shown(value: Any) -> str:
    """A default in YAML's words."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, float):
        return f"{value:g}"
    return str(value)


def of_theirs(text: str) -> str:
    """TRL's default, written in Python, in the same words."""
    try:
        return shown(ast.literal_eval(text))
    except ValueError:
        return text.removeprefix("lambda: ").removeprefix("SchedulerType.").removeprefix("'")


def places() -> dict[str, list[Field]]:
    """Every field of every configuration; those that TRL itself changed have its defaults."""
    fields = json.loads(FIELDS.read_text(encoding="utf-8"))["fields"]
    found: dict[str, list[Field]] = {}
    for config, (_, _, verb) in CONFIGS.items():
        theirs = fields[config]
        if config == "TrainingArguments":
            theirs |= fields["_BaseConfig"]
        found[config] = [place_of(k, of_theirs(v), VERBS[verb]) for k, v in theirs.items()]
    return found


def sections() -> str:
    """A table of what is here, and a list of what is not, for each configuration."""
    lines: list[str] = []
    every = places()
    told = Counter((one.name, one.reason) for fields in every.values() for one in fields)
    often = {one for one, count in told.items() if one[1] and count >= OFTEN}
    for config, fields in every.items():
        lines += [f"## {config}", "", TITLES[config], ""]
        lines += ["| TRL | its default | here | default here | |", "|---|---|---|---|---|"]
        for one in fields:
            if not one.key:
                continue
            note = NOTES.get((config, one.name)) or NOTES.get(("", one.name), "")
            how = "; ".join(filter(None, (one.how if one.how != "renamed" else "", note)))
            cells = (f"`{one.name}`", cell(one.default), f"`{one.key}`", cell(one.ours), how)
            lines.append(f"| {' | '.join(cells)} |".replace("|  |", "| |"))
        here = ((one.name, one.reason) for one in fields)
        lines += ["", *reasons(one for one in here if one not in often), ""]
    lines += ["## In several of them", "", f"Refused in {OFTEN} configurations or more:", ""]
    lines += reasons(sorted(often, key=list(told).index))
    return "\n".join(lines) + "\n"


def cell(text: str) -> str:
    """A default in a table."""
    return f"`{text}`" if text else '`""`'


def reasons(fields: Iterable[tuple[str, str]]) -> Iterator[str]:
    """What is not here, those with one reason together."""
    by: dict[str, list[str]] = {}
    for name, reason in fields:
        if reason:
            by.setdefault(reason, []).append(f"`{name}`")
    for reason, names in by.items():
        yield f"- {', '.join(names)}: {reason.removesuffix('; remove it')}"


def page() -> str:
    """The page as it ought to be."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    return f"{before}{BEGIN}\n\n{sections()}\n{END}{rest.partition(END)[2]}"


# ---------------------------------------------------------------------- reading TRL


def read(packages: list[Path]) -> dict[str, Any]:
    """Names and defaults of all fields, from the source."""
    files = {name: (path, which) for name, (path, which, _) in CONFIGS.items()}
    files |= {name: (path, 0) for name, path in SHARED.items()}
    fields = {name: fields_of(packages[at] / path, name) for name, (path, at) in files.items()}
    versions = {
        label: next(folder.glob(f"{package}-*.dist-info")).name.split("-")[1].removesuffix(".dist")
        for label, package, folder in (
            ("TRL", "trl", packages[0]),
            ("TRL of PPOConfig", "trl", packages[1]),
            ("transformers", "transformers", packages[0]),
        )
    }
    return {"versions": versions, "fields": fields}


def fields_of(path: Path, name: str) -> dict[str, str]:
    """The annotated fields of a dataclass with their defaults as they are written."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = next(n for n in ast.walk(tree) if isinstance(n, ast.ClassDef) and n.name == name)
    fields: dict[str, str] = {}
    for node in found.body:
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        value = node.value
        if isinstance(value, ast.Call):
            given = {k.arg: k.value for k in value.keywords}
            value = given.get("default") or given.get("default_factory")
        fields[node.target.id] = "required" if value is None else ast.unparse(value)
    return fields


def main() -> int:
    """Read, write, or compare."""
    if "--read" in sys.argv:
        found = read([Path(word) for word in sys.argv[sys.argv.index("--read") + 1 :]])
        FIELDS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        return 0
    return write_or_compare(PAGE, page(), "from_trl_page")


if __name__ == "__main__":
    sys.exit(main())
