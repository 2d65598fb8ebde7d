"""TRL's preference losses on the golden cases, by its own code, in its own virtual environment.

    build/bench/trl/bin/python -m benchmarks.trl_losses < tests/golden/losses.json

Prints one JSON object: a loss by its name here -> its values in cases A, B, C. Imports no trimtab.
The trainer's ``_compute_loss`` is called with a model that gives the cases' log-probs, in float64.
"""

# TRL is in that environment only.
# pyright: reportMissingImports=false

from __future__ import annotations

import json
import sys
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import torch

# Name here -> TRL's loss_type, and its keys from the golden hyper-parameters.
TYPES: dict[str, tuple[str, dict[str, str]]] = {
    "dpo": ("sigmoid", {"beta": "beta"}),
    "robust": ("robust", {"beta": "beta", "epsilon": "label_smoothing"}),
    "ipo": ("ipo", {"tau": "beta"}),
    "hinge": ("hinge", {"beta": "beta"}),
    "exo": ("exo_pair", {"beta": "beta", "epsilon": "label_smoothing"}),
    "nca": ("nca_pair", {"beta": "beta"}),
    "bco_pair": ("bco_pair", {"beta": "beta"}),
    "sppo": ("sppo_hard", {"eta": "1 / beta"}),
    "apo_zero": ("apo_zero", {"beta": "beta"}),
    "apo_down": ("apo_down", {"beta": "beta"}),
    "discopop": ("discopop", {"beta": "beta", "tau": "discopop_tau"}),
    "ln_dpo": ("sigmoid_norm", {"beta": "beta"}),
    "fdpo_forward": ("sigmoid", {"beta": "beta"}),
    "fdpo_js": ("sigmoid", {"beta": "beta"}),
    "fdpo_alpha": ("sigmoid", {"beta": "beta", "alpha": "1 - f_alpha_divergence_coef"}),
}
DIVERGENCES = {
    "fdpo_forward": "forward_kl",
    "fdpo_js": "js_divergence",
    "fdpo_alpha": "alpha_divergence",
}


def settings(name: str, given: dict[str, float]) -> dict[str, Any]:
    """The trainer's settings for one loss."""
    found: dict[str, Any] = {"label_smoothing": 0.0, "discopop_tau": 0.05}
    for key, theirs in TYPES[name][1].items():
        value = given[key]
        if theirs == "1 / beta":
            theirs, value = "beta", 1 / value
        if theirs.startswith("1 - "):
            theirs, value = theirs.removeprefix("1 - "), 1 - value
        found[theirs] = value
    return found


def loss_of(name: str, given: dict[str, float], case: dict[str, float]) -> float:
    """TRL's loss of one pair."""
    from trl import DPOTrainer

    keys = settings(name, given)
    lengths = [int(case["chosen_length"]), int(case["rejected_length"])]
    width = max(lengths)
    mask = torch.zeros(2, width + 1, dtype=torch.long)
    logps = torch.zeros(2, width, dtype=torch.float64)
    for row, (side, length) in enumerate(zip(("chosen", "rejected"), lengths, strict=True)):
        mask[row, 1 : length + 1] = 1
        logps[row, :length] = case[f"policy_{side}"] / length
    nothing = torch.zeros(2, width, dtype=torch.float64)
    outputs = SimpleNamespace(
        log_probs=logps, entropy=nothing, mean_logits=nothing, is_top1=nothing.bool()
    )
    accelerator = SimpleNamespace(device="cpu", gather=lambda x: x, gather_for_metrics=lambda x: x)
    trainer = SimpleNamespace(
        model=torch.nn.Linear(1, 1),
        accelerator=accelerator,
        aux_loss_enabled=False,
        ld_alpha=None,
        precompute_ref_logps=True,
        f_divergence_type=DIVERGENCES.get(name, "reverse_kl"),
        f_alpha_divergence_coef=keys.pop("f_alpha_divergence_coef", 1.0),
        loss_types=[TYPES[name][0]],
        loss_weights=[1.0],
        beta=keys["beta"],
        label_smoothing=keys["label_smoothing"],
        args=SimpleNamespace(discopop_tau=keys["discopop_tau"]),
        use_weighting=False,
        _metrics={"train": defaultdict(list), "eval": defaultdict(list)},
        _total_train_tokens=0,
        _tp_size=1,
    )
    inputs = {
        "input_ids": torch.ones(2, width + 1, dtype=torch.long),
        "attention_mask": torch.ones(2, width + 1, dtype=torch.long),
        "completion_mask": mask,
        "ref_chosen_logps": torch.tensor([case["reference_chosen"]], dtype=torch.float64),
        "ref_rejected_logps": torch.tensor([case["reference_rejected"]], dtype=torch.float64),
    }
    # The alpha-divergence has a table of limits for the dtypes of training only.
    if name == "fdpo_alpha":
        outputs.log_probs = logps.float()
        inputs = {k: v.float() if v.is_floating_point() else v for k, v in inputs.items()}
    found: Any = DPOTrainer._compute_loss(trainer, lambda **_: outputs, inputs, False)
    return float(found)


def main() -> None:
    """Golden file in, values out."""
    golden = json.load(sys.stdin)
    entries = {entry["loss"]: entry["hyperparameters"] for entry in golden["pairs"]}
    found = {
        name: {letter: loss_of(name, entries[name], golden["cases"][letter]) for letter in "ABC"}
        for name in TYPES
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
