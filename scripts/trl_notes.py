"""What docs/from-trl.md says beside TRL's fields: why a default is another one here."""

from __future__ import annotations

from collections.abc import Mapping

# (verb, TRL's field) -> our key, where hints refuse the field because the name means two things.
COUNTERPARTS: Mapping[tuple[str, str], str] = {
    ("grpo", "beta"): "kl_coef",
    ("rloo", "beta"): "kl_coef",
    ("grpo", "loss_type"): "algorithm",
}

_PAPER = "the paper's; see [defaults.md](defaults.md)"
_STAGE = "of dpo here; every stage has its own, see [defaults.md](defaults.md)"

# (configuration, field) or ("", field) for all of them -> a note.
NOTES: Mapping[tuple[str, str], str] = {
    ("", "truncation_mode"): "the end of a long prompt is what is answered",
    ("", "shuffle_dataset"): "`shuffle: false` keeps the rows' order",
    ("", "precompute_ref_log_probs"): "the same numbers, computed once and kept on disk",
    ("", "max_completion_length"): "`completions/clipped_ratio` says when it is too short",
    ("", "num_generations_eval"): "more held-out prompts say more than more responses to each",
    ("SFTConfig", "assistant_only_loss"): "null: of a chat the assistant's turns alone",
    ("RewardConfig", "learning_rate"): "InstructGPT's",
    ("RewardConfig", "center_rewards_coefficient"): "rewards are centred after training instead",
    ("DPOConfig", "loss_type"): "TRL's names are taken: `sigmoid` is `dpo`, `sigmoid_norm` "
    "`ln_dpo`, `exo_pair` `exo`, `nca_pair` `nca`, `sppo_hard` `sppo`; lists with `loss_weights` "
    'are sums, `--loss "dpo + 0.2 bco_pair"`',
    ("DPOConfig", "discopop_tau"): "with `--loss discopop`, whose default is TRL's 0.05",
    ("KTOConfig", "loss_type"): "the verb says it; `apo_zero_unpaired` is `trimtab dpo --loss "
    "apo_zero_unpaired`",
    ("CPOConfig", "loss_type"): "the verb says it: `simpo` is `trimtab simpo`, `ipo` `trimtab "
    "ipo`, `hinge` and `alphapo` are losses of `trimtab dpo --loss`",
    ("CPOConfig", "cpo_alpha"): "a mean over the chosen tokens of the whole step",
    ("ORPOConfig", "learning_rate"): _PAPER,
    ("GRPOConfig", "beta"): "null: the algorithm's, 0.04 for grpo, 0 for dr_grpo, dapo and gspo",
    ("GRPOConfig", "epsilon"): "null: the algorithm's, 0.2 for grpo",
    ("GRPOConfig", "scale_rewards"): "null: the algorithm's, `group` for grpo, `none` for dr_grpo",
    ("GRPOConfig", "loss_type"): "the divisor comes with the algorithm: `--algorithm dapo` is "
    "TRL's default loss, `grpo` the paper's, `dr_grpo` Dr. GRPO's",
    ("RLOOConfig", "num_generations"): "the paper has 2 and 4",
    ("RLOOConfig", "beta"): "null: 0.03, in the reward, before the baseline",
    ("RLOOConfig", "epsilon"): "null: no ratios are clipped, as in the paper",
    ("OnlineDPOConfig", "max_new_tokens"): "`completions/clipped_ratio` says when it is too short",
    ("OnlineDPOConfig", "temperature"): "the loss is of the model as it is, and so are the samples",
    ("OnlineDPOConfig", "beta"): "one number: no other one for every epoch",
    ("OnlineDPOConfig", "loss_type"): "`sigmoid` is `dpo`, and `ipo` has that name here, too; any "
    "`--loss` of the family of pairs",
    (
        "PPOConfig",
        "lam",
    ): "one score, at the end: below 1 the first tokens see it through values that are still wrong",
    ("PPOConfig", "learning_rate"): "that of arXiv:1909.08593's code",
    ("PPOConfig", "temperature"): "ratios are of the distribution that was sampled",
    ("PPOConfig", "response_length"): "`completions/clipped_ratio` says when it is too short",
    ("PPOConfig", "num_sample_generations"): "steps between samples; null: at start and end",
    ("PPOConfig", "sft_model_path"): "null: the policy as it is at the start",
    ("PPOConfig", "reward_model_path"): "a folder, or a hub id; `reward_funcs` beside it or alone",
    ("ModelConfig", "model_revision"): "null: the hub's main",
    ("ModelConfig", "dtype"): "auto: bf16 where its products run at least 1.5 times as fast; "
    "weights have fp32 masters either way",
    ("ModelConfig", "attn_implementation"): "attention is trimtab's own over token trees",
    ("ModelConfig", "lora_dropout"): "dropout is off in every stage",
    ("ModelConfig", "lora_target_modules"): "all linear layers but the output head",
    ("ScriptArguments", "dataset_test_split"): "give `eval_dataset_name`, or the split's name",
    ("TrainingArguments", "per_device_train_batch_size"): "rows of an optimizer step, not what "
    "fits into memory: that is `token_budget`. " + _STAGE,
    ("TrainingArguments", "num_train_epochs"): _STAGE,
    ("TrainingArguments", "learning_rate"): _STAGE,
    ("TrainingArguments", "warmup_steps"): "below 1 a share of the run, as in transformers 5. "
    + _STAGE,
    ("TrainingArguments", "optim"): "adamw, rmsprop ...: `trimtab dpo --help` lists them",
    ("TrainingArguments", "max_grad_norm"): _STAGE,
    ("TrainingArguments", "bf16"): "`true` is `precision: bf16`, `false` `precision: fp32`",
    ("TrainingArguments", "activation_checkpointing"): "see `gradient_checkpointing`",
    ("TrainingArguments", "gradient_checkpointing"): "off: it trades speed for memory; a "
    "lower `token_budget` comes first",
    ("TrainingArguments", "logging_strategy"): "a number of steps",
    ("TrainingArguments", "report_to"): "metrics.jsonl is written always; trackers are named",
    ("TrainingArguments", "eval_strategy"): "steps, or a share of the run; null: at its end",
    ("TrainingArguments", "eval_on_start"): "what training changed is told by a number from before",
    ("TrainingArguments", "save_strategy"): "steps, or a share of the run",
    ("TrainingArguments", "save_steps"): "below 1 a share of the run",
    ("TrainingArguments", "save_total_limit"): "an older one goes when a newer one was read back",
    ("TrainingArguments", "use_cpu"): "`device: cpu`",
}

TITLES: Mapping[str, str] = {
    "SFTConfig": "`SFTTrainer(args=SFTConfig(...))` is `trimtab sft`. [The stage](stages/sft.md).",
    "RewardConfig": "`RewardTrainer` is `trimtab reward`. [The stage](stages/reward.md).",
    "DPOConfig": "`DPOTrainer` is `trimtab dpo`. [The stage](stages/dpo.md).",
    "KTOConfig": "`KTOTrainer` is `trimtab kto`. [The stage](stages/kto.md).",
    "CPOConfig": "In `trl.experimental.cpo`. `CPOTrainer` is `trimtab cpo`; with "
    "`loss_type=\"simpo\"` it is `trimtab simpo`. TRL's `beta` of 0.1 for SimPO is DPO's: with a "
    "mean per token it does next to nothing, so `trimtab simpo` has the paper's 2 "
    "([the stage](stages/simpo.md)).",
    "ORPOConfig": "In `trl.experimental.orpo`. `ORPOTrainer` is `trimtab orpo`. "
    "[The stage](stages/orpo.md).",
    "GRPOConfig": "`GRPOTrainer(reward_funcs=...)` is `trimtab grpo --reward-funcs "
    "FILE.py:FUNCTION`; a reward function has the same signature. "
    "[The stage](stages/grpo.md).",
    "RLOOConfig": "`RLOOTrainer` is `trimtab rloo`. [The stage](stages/grpo.md).",
    "OnlineDPOConfig": "In `trl.experimental.online_dpo`. `OnlineDPOTrainer(reward_funcs=...)` is "
    "`trimtab online_dpo`: two samples a prompt or more (`num_generations`), judged by a reward. "
    "[The stage](stages/online.md).",
    "PPOConfig": "TRL removed `PPOTrainer` in 1.13; this is 1.12's, from `trl.experimental.ppo`. "
    "`trimtab ppo` takes prompts as text or chat, not as token ids, and the value model is made "
    "of the reward model unless `value_model` says otherwise. [The stage](stages/ppo.md).",
    "ModelConfig": "Of `trl SCRIPT --...`; keys of every verb here.",
    "ScriptArguments": "Of `trl SCRIPT --...`; keys of every verb here. `datasets:` of a TRL "
    "recipe is taken as it is.",
    "TrainingArguments": "transformers' class, which every configuration above inherits; defaults "
    "are those that TRL gives it, and here those of `trimtab dpo`.",
}
