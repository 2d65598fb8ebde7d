"""What each training verb says about itself; apart from the recipes, so that help is quick."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple


class VerbText(NamedTuple):
    """One sentence, the objective as a formula, and a command that runs."""

    summary: str
    objective: str
    example: str


TRAINING: Mapping[str, VerbText] = MappingProxyType(
    {
        "pretrain": VerbText(
            "Train a language model on raw text, from nothing or further.",
            "maximise L_GPT = sum_i log P(x_i | x_(i-k) ... x_(i-1))",
            "trimtab pretrain --dataset-name texts.jsonl --new-tokenizer.vocab-size 2048 "
            "--new-model.hidden-size 128",
        ),
        "classify": VerbText(
            "Fine-tune a language model to tell the classes of texts (GPT-1's fine-tune).",
            "maximise L_FT + alpha L_GPT, L_FT = sum log softmax(h_m W_y)_y at an end token",
            "trimtab classify --model-name-or-path runs/base --dataset-name labelled.jsonl",
        ),
        "sft": VerbText(
            "Fine-tune a model on prompts with responses, or on chats.",
            "maximise the log-probability of the response tokens, given the prompt",
            "trimtab sft --model-name-or-path runs/base --dataset-name answers.jsonl",
        ),
        "reward": VerbText(
            "Train a reward model on preference pairs and rankings of K responses.",
            "minimise 1/C(K,2) sum over ranked pairs of -log sigmoid(r(x,y_w) - r(x,y_l))",
            "trimtab reward --model-name-or-path runs/sft --dataset-name pairs.jsonl",
        ),
        "ppo": VerbText(
            "Align a model by RLHF: PPO with a critic, a KL penalty and (with mix) the ptx term.",
            "maximise E[r(x,y) - beta log(pi/pi_SFT)] + gamma E_pretrain[log pi(x)]",
            "trimtab ppo --model-name-or-path runs/sft --reward-model runs/reward --dataset-name "
            "prompts.jsonl",
        ),
        "grpo": VerbText(
            "Align a model without a critic: GRPO, or another group algorithm with --algorithm.",
            "maximise E[min(ratio A, clip(ratio) A)] - beta KL, A = (r - mean of group) / std",
            "trimtab grpo --model-name-or-path runs/sft --reward-funcs my_rewards.py:reward "
            "--dataset-name prompts.jsonl",
        ),
        "rloo": VerbText(
            "Align a model by REINFORCE with a leave-one-out baseline (RLOO).",
            "maximise E[(R - mean of the others' R) log pi(y)], R = r - beta log(pi/pi_ref)",
            "trimtab rloo --model-name-or-path runs/sft --reward-model runs/reward --dataset-name "
            "prompts.jsonl",
        ),
        "online_dpo": VerbText(
            "Align a model on preferences among its own fresh samples, by DPO or any --loss.",
            "minimise E_(y, y' ~ pi) of the loss, y_w the one with the higher score r(x,y)",
            "trimtab online_dpo --model-name-or-path runs/sft --reward-model runs/reward "
            "--dataset-name prompts.jsonl",
        ),
        "raft": VerbText(
            "Fine-tune a model on the best of its own samples (RAFT, rejection sampling).",
            "maximise E[log pi(y_best)], y_best the best of num_generations by score",
            "trimtab raft --model-name-or-path runs/sft --reward-funcs my_rewards.py:reward "
            "--dataset-name prompts.jsonl",
        ),
        "dpo": VerbText(
            "Align a model on preferences: DPO, or any loss of the family with --loss.",
            "minimise -log sigmoid(beta log(pi/pi_ref)(y_w) - beta log(pi/pi_ref)(y_l))",
            "trimtab dpo --model-name-or-path runs/sft --dataset-name pairs.jsonl --beta 0.1",
        ),
        "simpo": VerbText(
            "Align a model on preferences without a reference model (SimPO).",
            "minimise -log sigmoid(beta (mean log pi(y_w) - mean log pi(y_l)) - gamma)",
            "trimtab simpo --model-name-or-path runs/sft --dataset-name pairs.jsonl",
        ),
        "orpo": VerbText(
            "Fine-tune and align in one stage, without a reference model (ORPO).",
            "minimise NLL(y_w) - beta log sigmoid(log odds(y_w) - log odds(y_l))",
            "trimtab orpo --model-name-or-path runs/base --dataset-name pairs.jsonl",
        ),
        "kto": VerbText(
            "Align a model on single responses labelled good or bad (KTO).",
            "minimise 1 - sigmoid(beta (log(pi/pi_ref)(y) - z0)), mirrored for bad responses",
            "trimtab kto --model-name-or-path runs/sft --dataset-name labelled.jsonl",
        ),
        "ipo": VerbText(
            "Align a model on preferences up to a margin and no further (IPO).",
            "minimise (mean log(pi/pi_ref)(y_w) - mean log(pi/pi_ref)(y_l) - 1/(2 tau))^2",
            "trimtab ipo --model-name-or-path runs/sft --dataset-name pairs.jsonl --tau 0.1",
        ),
        "cpo": VerbText(
            "Align a model on preferences and likelihood, without a reference model (CPO).",
            "minimise -log sigmoid(beta log pi(y_w) - beta log pi(y_l)) + NLL(y_w)",
            "trimtab cpo --model-name-or-path runs/sft --dataset-name pairs.jsonl",
        ),
        "bco": VerbText(
            "Align a model on single responses labelled good or bad, as a classifier (BCO).",
            "minimise -log sigmoid(beta log(pi/pi_ref)(y) - delta), mirrored for bad responses",
            "trimtab bco --model-name-or-path runs/sft --dataset-name labelled.jsonl",
        ),
    }
)
