"""From the recipe of a comparison to its cells: every run as a whole recipe, before any is trained.

A cell is a method at one point of its grid, with one seed. What it is known by (``key``) is a hash
of all that its numbers depend on, so that a cell that was done before is found, whatever else has
changed in the recipe.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from trimtab.comparison.cells import (
    Cell,
    Plan,
    Rate,
    label_of,
    parts_of,
    proxy_of,
    rate_name,
)
from trimtab.comparison.digests import VERSION, Digests, key_of
from trimtab.comparison.recipe import Read
from trimtab.config.compare_recipe import BASE, BudgetSpec
from trimtab.config.on_policy_recipe import OnPolicyRecipe
from trimtab.config.recipes import PreferenceRecipe
from trimtab.config.resolve import resolve_layers
from trimtab.config.resolved import Control, Resolved
from trimtab.config.suggest import did_you_mean
from trimtab.config.values import as_list, as_mapping
from trimtab.config.verbs import VERBS
from trimtab.errors import RecipeError

BEST_OF = "best_of_n"
PILOT_STEPS = 4  # of a run that only measures what a step takes; of rollouts where there are any

# What the comparison itself decides; ``{key: why}``.
_OURS: Mapping[str, str] = {
    **dict.fromkeys(("max_steps", "num_train_epochs"), "the budget says how long a run is"),
    "model_name_or_path": "every method starts from the comparison's model",
    "seed": "the comparison has seeds",
    "output_dir": "runs lie in the comparison's folder",
    "cache_dir": "the comparison has cache_dir",
    "logging_steps": "the comparison logs what it needs",
    "max_completion_length": "it belongs at the top of the recipe, and is the same for all",
    **dict.fromkeys(
        ("save_steps", "save_total_limit", "load_best_model_at_end", "early_stopping_patience"),
        "the comparison has checkpoints, and examines them itself",
    ),
    **dict.fromkeys(
        ("eval_dataset_name", "eval_datasets", "eval_text_name", "metric_for_best_model"),
        "the comparison examines every method on its own held-out prompts",
    ),
}


def make_plan(
    read: Read, rates: Mapping[str, Rate] | None = None, digests: Digests | None = None
) -> Plan:
    """Resolve every cell. RecipeError or DataError for whatever can be known to be wrong.

    A budget in tokens or seconds wants ``rates`` by method label (``rate_name``); without them the
    plan has a pilot for each instead of runs.
    """
    return _Planner(read, rates, digests or Digests()).plan()


class _Planner:
    def __init__(self, read: Read, rates: Mapping[str, Rate] | None, digests: Digests) -> None:
        self.read = read
        self.recipe = read.recipe
        self.rates = rates
        self.digests = digests
        self.notes: list[str] = []
        assert self.recipe.output_dir is not None
        self.folder = Path(self.recipe.output_dir)
        self.proxy = proxy_of(self.recipe)

    def plan(self) -> Plan:
        """Cells of all methods, the model at the start before them."""
        methods = {name: self._method(name) for name in self.recipe.methods}
        self.examination = self._examination()
        cells = [*self._base()]
        for method in methods.values():
            cells += method
        cells = [self._keyed(cell) for cell in cells]
        return Plan(self.recipe, self.folder, tuple(cells), self.examination, tuple(self.notes))

    def _examination(self) -> dict[str, Any]:
        r, digests = self.recipe, self.digests
        names = ("max_eval_prompts", "choose_share", "samples", "max_completion_length")
        found = {name: getattr(r, name) for name in (*names, "max_eval_texts")}
        return {
            "version": VERSION,
            **found,
            "judge": digests.judge(r.judge),
            "base": digests.model(r.model_name_or_path),
            "eval_prompts": digests.data(r.eval_prompts),
            "eval_text": None if r.eval_text is None else digests.data(r.eval_text),
        }

    def _keyed(self, cell: Cell) -> Cell:
        """With the keys of its run and of what is examined of it."""
        if cell.resolved is not None:
            identity = self.digests.run(cell.resolved)
        else:
            identity = {"kind": cell.kind, "seed": cell.seed}
        if cell.kind == "pilot":
            return dataclasses.replace(cell, key=key_of({"pilot": identity}), identity=identity)
        whole = {
            "of": identity,
            "seed": cell.seed,
            "examination": self.examination,
            "proxy": self.digests.judge(cell.proxy),
        }
        examined = {at: key_of({**whole, "at": at}) for at in cell.examined}
        return dataclasses.replace(cell, key=key_of(identity), identity=identity, examined=examined)

    # ------------------------------------------------------------------ cells without training

    def _exam_cost(self) -> float:
        prompts = self.recipe.max_eval_prompts or 256
        return 0.012 * prompts * self.recipe.samples

    def _base(self) -> Iterator[Cell]:
        for seed in self.recipe.seeds:
            yield Cell("base", BASE, {}, seed, {0: ""}, self._exam_cost(), self.proxy)

    def _best_of(self, name: str, counts: Sequence[int]) -> Iterator[Cell]:
        cost = 0.7 * self._exam_cost() * max(counts)
        for seed in self.recipe.seeds:
            examined = dict.fromkeys(counts, "")
            yield Cell(BEST_OF, name, {}, seed, examined, cost, self.proxy)

    # ------------------------------------------------------------------ methods

    def _method(self, name: str) -> list[Cell]:
        """The cells of a method."""
        path = f"methods.{name}"
        given = as_mapping(self.recipe.methods[name])
        if not given:
            raise self._error(path, "has no keys; write verb: ppo, say")
        if BEST_OF in given:
            return list(self._best_of(name, self._counts(path, given)))
        verb = given.pop("verb", None)
        known = [v for v, found in VERBS.items() if _can_align(found.recipe)]
        if verb is None:
            raise self._error(path, f"verb is missing; it is one of {', '.join(known)}")
        if verb not in known:
            hint = did_you_mean(str(verb), known)
            raise self._error(
                f"{path}.verb", f"{verb!r} is not one of {', '.join(known)}, {BEST_OF}{hint}"
            )
        grid = list(self._grid(f"{path}.grid", given.pop("grid", None)))
        self._refuse_ours(path, given)
        labels = [label_of(settings) for settings in grid]
        for label in labels:
            if labels.count(label) > 1:
                raise self._error(f"{path}.grid", f"has {label} twice")
        if self.rates is None and self.recipe.budget.unit in ("tokens", "seconds"):
            return [self._run(name, verb, given, one, self.recipe.seeds[0], True) for one in grid]
        return [
            self._run(name, verb, given, one, seed, False)
            for one in grid
            for seed in self.recipe.seeds
        ]

    def _counts(self, path: str, given: dict[str, Any]) -> list[int]:
        inner = as_mapping(given.pop(BEST_OF)) or {}
        place = f"{path}.{BEST_OF}"
        for name in [*given, *(n for n in inner if n != "n")]:
            raise self._error(f"{path}.{name}", f"{BEST_OF} takes n: [1, 4, 16] and nothing else")
        words = as_list(inner.get("n"))
        if words is None:
            words = [part for part in str(inner.get("n") or "").split(",") if part.strip()]
        if not words or not all(re.fullmatch(r"\s*[1-9][0-9]*\s*", str(word)) for word in words):
            raise self._error(f"{place}.n", "is not a list of counts such as [1, 4, 16]")
        if not self.proxy.count:
            raise self._error(place, "nobody chooses; give reward_model or reward_funcs at the top")
        return sorted({int(word) for word in words})

    def _grid(self, path: str, value: Any) -> Iterator[dict[str, Any]]:
        """Every point: the product of lists, or the entries of a list of groups."""
        if value is None:
            yield {}
            return
        groups, items = as_mapping(value), as_list(value)
        if items is not None:
            for number, item in enumerate(items):
                settings = as_mapping(item)
                if not settings:
                    raise self._error(f"{path}.{number}", f"{item!r} is not a group of keys")
                yield settings
            return
        if not groups:
            raise self._error(path, f"{value!r} is neither key: [values] nor a list of groups")
        columns: list[list[Any]] = []
        for name, values in groups.items():
            column = as_list(values)
            if column is None and isinstance(values, str) and "," in values:
                column = [part.strip() for part in values.split(",")]
            if not column:
                raise self._error(f"{path}.{name}", f"{values!r} is not a list of values")
            columns.append(column)
        for point in itertools.product(*columns):
            yield dict(zip(groups, point, strict=True))

    def _refuse_ours(self, path: str, given: Mapping[str, Any]) -> None:
        for group, keys in (
            ("common", self.recipe.common),
            ("offline", self.recipe.offline),
            ("on_policy", self.recipe.on_policy),
            (path, given),
        ):
            for key in keys:
                why = _OURS.get(key.replace("-", "_"))
                if why is not None:
                    raise self._error(f"{group}.{key}", f"{why}; remove it")

    def _run(
        self,
        name: str,
        verb: str,
        keys: Mapping[str, Any],
        settings: Mapping[str, Any],
        seed: int,
        pilot: bool,
    ) -> Cell:
        on_policy = issubclass(VERBS[verb].recipe, OnPolicyRecipe)
        layers = self._layers(name, on_policy, keys, settings, seed)
        draft = resolve_layers(verb, layers)
        per = _steps_per_rollout(draft)
        if pilot:
            steps, interval = PILOT_STEPS * per, PILOT_STEPS * per
        else:
            steps = self._steps(name, draft, settings, per)
            interval = _interval(steps, per, self.recipe.checkpoints)
        length = {
            "max_steps": steps,
            "save_steps": interval,
            "save_total_limit": None,
            # Every checkpoint's time and tokens are read from the log.
            "logging_steps": max(
                d for d in range(1, max(2, interval // 4 + 1)) if not interval % d
            ),
        }
        resolved = resolve_layers(verb, [*layers, _ours(length)], Control(quiet=True))
        marks = sorted({*range(interval, steps, interval), steps})
        proxy = proxy_of(resolved.recipe) if on_policy else self.proxy
        cost = _cost(resolved) + len(marks) * self._exam_cost()
        cell = Cell(
            "pilot" if pilot else "run",
            name,
            settings,
            seed,
            {} if pilot else dict.fromkeys(marks, ""),
            cost,
            proxy,
            resolved,
        )
        return cell

    def _layers(
        self,
        name: str,
        on_policy: bool,
        keys: Mapping[str, Any],
        settings: Mapping[str, Any],
        seed: int,
    ) -> list[tuple[Mapping[str, Any], Callable[[str], str]]]:
        """Everything a run is told but how long it is."""
        r = self.recipe
        group = "on_policy" if on_policy else "offline"
        rows = {"prompts": r.prompts} if on_policy else {"preferences": r.preferences}
        ((source, path),) = rows.items()
        first: dict[str, Any] = {"precision": "fp32", "threads": "1", "self_check": "false"}
        if path is not None:
            first["dataset_name"] = path
        elif not {"dataset_name", "datasets"} & set(keys):
            raise self._error(f"methods.{name}", f"{source} is missing: the rows it trains on")
        if on_policy:
            first["max_completion_length"] = r.max_completion_length
            named = {"reward_model": r.reward_model, "reward_funcs": r.reward_funcs}
            weights = {"reward_weights": r.reward_weights}
            if not {"reward_model", "reward_funcs"} & set(keys):
                first |= {k: v for k, v in (named | weights).items() if v}
        ours: dict[str, Any] = {
            "model_name_or_path": r.model_name_or_path,
            "seed": seed,
            "eval_steps": None,
            "sample_prompts": 0,
            "cache_dir": r.cache_dir or str(parts_of(r) / "cache"),
            "output_dir": str(parts_of(r) / "runs" / "unnamed"),
        }

        def at(prefix: str) -> Callable[[str], str]:
            return lambda key: self.read.where(f"{prefix}.{key}")

        return [
            (first, lambda _: "comparison"),
            (r.common, at("common")),
            (getattr(r, group), at(group)),
            (keys, at(f"methods.{name}")),
            (settings, at(f"methods.{name}.grid")),
            _ours(ours),
        ]

    # ------------------------------------------------------------------ how long

    def _steps(self, name: str, draft: Resolved, settings: Mapping[str, Any], per: int) -> int:
        """Optimizer steps under the budget, whole rollouts; RecipeError where not even one fits."""
        budget: BudgetSpec = self.recipe.budget
        recipe: Any = draft.recipe
        rows = recipe.rows_per_step
        if budget.unit == "prompts":
            rollouts = budget.amount / rows
        elif budget.unit == "preferences":
            # Two judged responses are one preference.
            each = getattr(recipe, "num_generations", 2) / 2
            rollouts = budget.amount / (rows * each)
        else:
            assert self.rates is not None
            rate = self.rates[rate_name(name, settings)]
            rollouts = budget.amount / (getattr(rate, budget.unit) * per)
        whole = math.floor(rollouts + 1e-9)
        if whole < 1:
            raise self._error(
                "budget",
                f"{budget.amount:g} {budget.unit} are not enough for one "
                f"{'rollout' if isinstance(recipe, OnPolicyRecipe) else 'step'} of {name} "
                f"({label_of(settings)}); raise the amount, or lower per_device_train_batch_size",
            )
        if budget.unit in ("prompts", "preferences") and whole != rollouts:
            used = whole / rollouts
            note = f"{name}: {used:.0%} of the budget is whole steps, which is what it takes"
            if note not in self.notes:
                self.notes.append(note)
        return whole * per

    def _error(self, key: str, message: str) -> RecipeError:
        return RecipeError(f"{key}: {message} ({self.read.where(key)})")


def _ours(values: Mapping[str, Any]) -> tuple[Mapping[str, Any], Callable[[str], str]]:
    return values, lambda _: "comparison"


def _can_align(recipe: type) -> bool:
    return issubclass(recipe, (OnPolicyRecipe, PreferenceRecipe))


def _steps_per_rollout(resolved: Resolved) -> int:
    recipe: Any = resolved.recipe
    if isinstance(recipe, OnPolicyRecipe):
        return recipe.passes * recipe.num_mini_batches  # type: ignore[attr-defined]
    return 1


def _interval(steps: int, per: int, checkpoints: int) -> int:
    """Steps between checkpoints: whole rollouts, so that no two come from one."""
    rollouts = steps // per
    return max(1, math.ceil(rollouts / checkpoints)) * per


def _cost(resolved: Resolved) -> float:
    """Seconds of one thread, roughly, for half a million weights and responses of 80 tokens."""
    recipe: Any = resolved.recipe
    rows = recipe.rows_per_step
    mixed = 0.0
    if recipe.mix is not None:
        mixed = 0.006 * (recipe.mix.batch_size or rows) * recipe.max_steps
    if not isinstance(recipe, OnPolicyRecipe):
        return 0.018 * rows * recipe.max_steps + mixed
    responses = rows * recipe.num_generations  # type: ignore[attr-defined]
    rollouts = recipe.max_steps / _steps_per_rollout(resolved)
    learning = 0.009 if resolved.verb == "ppo" else 0.006
    sampled = 0.02 * responses * rollouts
    return sampled + learning * responses * recipe.max_steps + mixed
