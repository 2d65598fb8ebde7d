"""comparison.json: everything a comparison found, for ``report/`` and for whoever computes on."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from typing import Any

from trimtab.comparison.analysis import Analysis
from trimtab.comparison.cells import Plan, proxy_of
from trimtab.comparison.measured import OWN_PROXY, Setting
from trimtab.config.compare_recipe import BASE, JudgeSpec
from trimtab.config.on_policy_recipe import OnPolicyRecipe
from trimtab.intervals import Interval
from trimtab.training.environment import describe_environment

KL_ESTIMATOR = (
    "exact in the next token and summed over each model's own responses, in nats a response; of "
    "the best of n the bound log n - (n - 1) / n"
)

Json = dict[str, Any]


def judge_name(spec: JudgeSpec) -> str:
    """Reward model and functions, with their weights where there are any."""
    names = [*([spec.reward_model] if spec.reward_model else []), *spec.reward_funcs]
    weights = spec.reward_weights
    if weights is None or len(names) == 1:
        return " + ".join(names)
    used = [(w, name) for w, name in zip(weights, names, strict=True) if w]
    return " + ".join(name if w == 1 else f"{w:g} x {name}" for w, name in used)


def proxy_name(plan: Plan) -> str | None:
    """What the on-policy methods were trained on; None where there is no such thing."""
    spec = proxy_of(plan.recipe)
    return judge_name(spec) if spec.count else None


def budget_sentence(plan: Plan) -> str:
    """The budget in words."""
    amount, unit = plan.recipe.budget.amount, plan.recipe.budget.unit
    count = f"{amount:,.0f}"
    if unit == "preferences":
        return (
            f"{count} preferences each: so many pairs are read, or twice as many samples judged "
            "(two of them make one preference)"
        )
    if unit == "prompts":
        return f"{count} prompts each: so many pairs are read, or prompts sampled for"
    if unit == "tokens":
        return f"{count} tokens through the optimizer each, as a method's first steps take them"
    return f"{count} seconds of training and sampling each, as a method's first steps take them"


def record(plan: Plan, analysis: Analysis, told: Json) -> Json:
    """The whole file; ``told`` has command, seconds, failed cells and the verdict.

    And ``recipe_from``: where the values of the recipe that are no defaults were given.
    """
    base, measured = analysis.base, analysis.measured
    proxy = proxy_name(plan)
    return {
        "kind": "comparison",
        "version": 1,
        "name": plan.recipe.title,
        "command": told["command"],
        "seconds": told["seconds"],
        "environment": describe_environment(),
        "recipe": json.loads(plan.recipe.model_dump_json()),
        "recipe_from": told["recipe_from"],
        "budget": {
            "unit": plan.recipe.budget.unit,
            "amount": plan.recipe.budget.amount,
            "sentence": budget_sentence(plan),
        },
        "judge": {"name": judge_name(plan.recipe.judge), "higher_is_better": True},
        "proxy": None if proxy is None else {"name": proxy},
        "kl_estimator": KL_ESTIMATOR,
        "seeds": list(base.seeds),
        "prompts": base.cells("gold").shape[1],
        "choosing_prompts": base.cells("gold", "choose").shape[1],
        "intervals": "95 %, bootstrap over prompts, and over seeds where there are several",
        "base": {"name": BASE, **_worth(analysis, base), "run": base.runs[0]},
        "points": [
            _point(analysis, one, place)
            for own in measured.methods.values()
            for one in own
            for place in range(len(one.seeds))
        ],
        "curves": [
            {"method": name, "points": [_over_seeds(analysis, one) for one in own]}
            for name, own in measured.methods.items()
        ],
        "frontier": [
            {"method": name, "points": [_over_seeds(analysis, one) for one in own]}
            for name, own in analysis.frontiers.items()
        ],
        "chosen": [
            {
                "method": name,
                "settings": dict(one.settings),
                "label": one.label,
                "step": one.step,
                "chosen_on": f"{base.cells('gold', 'choose').shape[1]} other held-out prompts",
                **_worth(analysis, one),
                "kl": _interval(analysis.of(one, "kl")),
                "tax": _interval(analysis.tax(one)),
                "seconds": sum(one.seconds) / len(one.seconds),
                "tokens": round(sum(one.tokens) / len(one.tokens)),
            }
            for name, one in analysis.chosen.items()
        ],
        "pairs": [
            {
                "a": pair.a,
                "b": pair.b,
                "win_rate": _interval(pair.win_rate),
                "length_controlled": _interval(pair.length_controlled),
                "p": pair.p,
                "p_adjusted": pair.p_adjusted,
                "differs": pair.differs,
            }
            for pair in analysis.pairs
        ],
        "correction": "Holm",
        "at_kl": [
            {
                "kl": level.level,
                "gold": {name: _interval(found) for name, found in level.gold.items()},
                "differences": [
                    {"a": a, "b": b, "difference": _interval(found), "p_adjusted": p}
                    for a, b, found, p in level.differences
                ],
            }
            for level in analysis.at_kl
        ],
        "samples": _samples(analysis),
        "failed": told["failed"],
        "left_out": list(measured.left_out),
        "verdict": told["verdict"],
    }


def cells_of(plan: Plan) -> Json:
    """How many runs there are, and how many of them sample for themselves."""
    runs = [cell for cell in plan.cells if cell.resolved is not None]
    sampling = [c for c in runs if c.resolved and isinstance(c.resolved.recipe, OnPolicyRecipe)]
    return {"runs": len(runs), "on_policy": len(sampling)}


def _interval(found: Interval | None) -> Json | None:
    """JSON has no NaN and no infinity: an end that is not known is null."""
    if found is None or math.isnan(found.mean):
        return None
    ends = {"low": found.low, "high": found.high}
    known = {k: v if math.isfinite(v) else None for k, v in ends.items()}
    return {"mean": found.mean, **known, "n": found.n}


def _worth(analysis: Analysis, one: Setting) -> Json:
    """What stands in every entry: gold, proxy, length, end rate, loss on text, over the seeds."""
    return {
        "gold": _interval(analysis.of(one, "gold")),
        "proxy": _interval(analysis.of(one, "proxy")) if one.has("proxy") else None,
        **_own_proxy(one, lambda name: analysis.of(one, name)),
        "length": _interval(analysis.of(one, "length")),
        "end_rate": _interval(analysis.of(one, "ended")),
        "text_loss": _interval(analysis.text_loss(one)),
    }


def _own_proxy(one: Setting, of: Callable[[str], Interval]) -> Json:
    """The reward that a method had of its own, which is on no axis with the proxy's."""
    return {OWN_PROXY: _interval(of(OWN_PROXY))} if one.has(OWN_PROXY) else {}


def _over_seeds(analysis: Analysis, one: Setting) -> Json:
    return {
        "settings": dict(one.settings),
        "label": one.label,
        "step": one.step,
        "kl": _interval(analysis.of(one, "kl")),
        **_worth(analysis, one),
    }


def _point(analysis: Analysis, one: Setting, place: int) -> Json:
    """A setting with one seed; intervals are over prompts."""
    return {
        "method": one.method,
        "settings": dict(one.settings),
        "label": one.label,
        "seed": one.seeds[place],
        "step": one.step,
        "final": one.final,
        "run": one.runs[place],
        "gold": _interval(analysis.of_seed(one, "gold", place)),
        "proxy": _interval(analysis.of_seed(one, "proxy", place)) if one.has("proxy") else None,
        **_own_proxy(one, lambda name: analysis.of_seed(one, name, place)),
        "kl": _interval(analysis.of_seed(one, "kl", place)),
        "length": _interval(analysis.of_seed(one, "length", place)),
        "end_rate": _interval(analysis.of_seed(one, "ended", place)),
        "text_loss": _interval(analysis.text_loss(one, place)),
        "seconds": one.seconds[place],
        "tokens": one.tokens[place],
    }


def _samples(analysis: Analysis) -> list[Json]:
    """The first prompts with the first answer of every chosen model, of the first seed."""
    players: Sequence[Setting] = [analysis.base, *analysis.chosen.values()]
    return [
        {
            "prompt": shown["prompt"],
            "answers": [
                {
                    "method": one.method,
                    "text": one.texts[place]["answer"],
                    "gold": _first(one, "gold", place),
                    "proxy": _first(one, "proxy", place) if one.has("proxy") else None,
                    "length": round(_first(one, "length", place)),
                }
                for one in players
            ],
        }
        for place, shown in enumerate(analysis.base.texts)
    ]


def _first(one: Setting, name: str, place: int) -> float:
    return float(one.columns["examine"][name][0, place, 0])
