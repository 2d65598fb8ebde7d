"""What keys of other tools are called here, or why they are not needed.

``ALIASES`` are read as ours (a note says so). Everything else of another tool is refused with the
name that is right here: a key that is accepted and does nothing would be a lie.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from trimtab.config.hints_trl import EXPLAINED_TRL, RENAMED_TRL

# Taken as they are: short forms, and TRL's names for a part of a group.
ALIASES: Mapping[str, str] = MappingProxyType(
    {
        "model": "model_name_or_path",
        "dataset": "dataset_name",
        "eval_dataset": "eval_dataset_name",
        "ref_model": "ref_model_name_or_path",
        "loss_type": "loss.name",
        "simpo_gamma": "loss.gamma",
        "rpo_alpha": "nll_weight",
        "ptx_coef": "mix.weight",
        "bf16": "precision",
        "block_size": "context_length",
    }
)

# TRL's values of loss_type for losses that have another name here.
LOSS_TYPES: Mapping[str, str] = MappingProxyType(
    {
        "sigmoid": "dpo",
        "sigmoid_norm": "ln_dpo",
        "exo_pair": "exo",
        "nca_pair": "nca",
        "sppo_hard": "sppo",
    }
)

_TRL = "TRL"
_HF = "transformers"
_AXOLOTL = "axolotl"
_FACTORY = "LLaMA-Factory"
_OLD_HF = "transformers before 5"

# Another tool's key -> (ours, whose).
RENAMED: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        # axolotl
        "base_model": ("model_name_or_path", _AXOLOTL),
        "base_model_config": ("model_name_or_path", _AXOLOTL),
        "tokenizer_config": ("tokenizer_name_or_path", _AXOLOTL),
        "revision_of_model": ("model_revision", _AXOLOTL),
        "micro_batch_size": ("per_device_train_batch_size", _AXOLOTL),
        "num_epochs": ("num_train_epochs", _AXOLOTL),
        "sequence_len": ("max_length", _AXOLOTL),
        "lr_scheduler": ("lr_scheduler_type", _AXOLOTL),
        "optimizer": ("optim", _AXOLOTL),
        "test_datasets": ("eval_datasets", _AXOLOTL),
        "lora_target_linear": ("lora_target_modules", _AXOLOTL),
        "dataset_prepared_path": ("cache_dir", _AXOLOTL),
        "rl_beta": ("loss.beta", _AXOLOTL),
        "dpo_beta": ("loss.beta", _AXOLOTL),
        "orpo_alpha": ("loss.beta", _AXOLOTL),
        "kto_desirable_weight": ("loss.desirable_weight", _AXOLOTL),
        "kto_undesirable_weight": ("loss.undesirable_weight", _AXOLOTL),
        "cosine_min_lr_ratio": ("min_lr_ratio", _AXOLOTL),
        "saves_per_epoch": ("save_steps", _AXOLOTL),
        "evals_per_epoch": ("eval_steps", _AXOLOTL),
        # LLaMA-Factory
        "cutoff_len": ("max_length", _FACTORY),
        "pref_beta": ("loss.beta", _FACTORY),
        "pref_loss": ("loss", _FACTORY),
        "lora_rank": ("lora_r", _FACTORY),
        "lora_target": ("lora_target_modules", _FACTORY),
        "ref_model_adapters": ("ref_model_name_or_path", _FACTORY),
        "adapter_name_or_path": ("model_name_or_path", _FACTORY),
        "max_samples": ("max_train_rows", _FACTORY),
        "kto_chosen_weight": ("loss.desirable_weight", _FACTORY),
        "kto_rejected_weight": ("loss.undesirable_weight", _FACTORY),
        "mix_strategy": ("datasets", _FACTORY),
        "interleave_probs": ("datasets", _FACTORY),
        # transformers, run_clm.py included
        "warmup_ratio": ("warmup_steps", _OLD_HF),
        "max_seq_length": ("max_length", _OLD_HF),
        "max_seq_len": ("max_length", "other tools"),
        "tokenizer": ("tokenizer_name_or_path", _OLD_HF),
        "tokenizer_name": ("tokenizer_name_or_path", _HF),
        "processing_class": ("tokenizer_name_or_path", _HF),
        "torch_dtype": ("precision", _OLD_HF),
        "dtype": ("precision", _HF),
        "no_cuda": ("device", _OLD_HF),
        "use_cpu": ("device", _HF),
        "use_mps_device": ("device", _OLD_HF),
        "evaluation_strategy": ("eval_steps", _OLD_HF),
        "eval_strategy": ("eval_steps", _HF),
        "save_strategy": ("save_steps", _HF),
        "logging_strategy": ("logging_steps", _HF),
        "per_gpu_train_batch_size": ("per_device_train_batch_size", _OLD_HF),
        "train_batch_size": ("per_device_train_batch_size", "other tools"),
        "batch_size": ("per_device_train_batch_size", "other tools"),
        "grad_accum": ("gradient_accumulation_steps", "other tools"),
        "train_file": ("dataset_name", _HF),
        "validation_file": ("eval_dataset_name", _HF),
        "eval_split": ("dataset_test_split", "other tools"),
        "dataset_config_name": ("dataset_config", _HF),
        "max_train_samples": ("max_train_rows", _HF),
        "max_eval_samples": ("max_eval_rows", _HF),
        "config_name": ("new_model", _HF),
        "config_overrides": ("new_model", _HF),
        "model_type": ("new_model.architecture", _HF),
        "lr": ("learning_rate", "other tools"),
        "lm_coef": ("alpha", "GPT-1's code"),
        "epochs": ("num_train_epochs", "other tools"),
        "steps": ("max_steps", "other tools"),
        "grad_clip": ("max_grad_norm", "other tools"),
        "output": ("output_dir", "other tools"),
        # TRL
        "eval_dataset_split": ("dataset_test_split", _TRL),
        "max_target_length": ("max_length", _TRL),
        "reward_model_path": ("reward_model", _TRL),
        "reward_model_name_or_path": ("reward_model", "other tools"),
        "max_new_tokens": ("max_completion_length", _TRL),
        "response_length": ("max_completion_length", _TRL),
        "sft_model_path": ("ref_model_name_or_path", _TRL),
        "ppo_epochs": ("num_ppo_epochs", "other tools"),
        "init_kl_coef": ("kl_coef", "other tools"),
        "attn_implementation": ("attn_layout", _TRL),
        "cpo_alpha": ("nll_weight", _TRL),
        "discopop_tau": ("loss.tau", _TRL),
        "alpha_coef": ("loss.alpha", _TRL),
        "simpo_beta": ("loss.beta", "other tools"),
        "reference_model": ("ref_model_name_or_path", "other tools"),
        "load_in_bf16": ("precision", "other tools"),
        **RENAMED_TRL,
    }
)

# Keys with nothing to put in their place, and why.
EXPLAINED: Mapping[str, str] = MappingProxyType(
    {
        "fp16": "fp16 is not offered: small updates and large logits leave its range, and scaling "
        "the loss only hides it; use precision=bf16 or fp32, or remove the line",
        "packing": "nothing is padded here, so there is nothing to pack; remove it (attn_layout "
        "says how rows lie in memory)",
        "sample_packing": "nothing is padded here, so there is nothing to pack; remove it",
        "pad_to_sequence_len": "nothing is padded here; remove it",
        "pad_to_multiple_of": "nothing is padded here; remove it",
        "padding_free": "nothing is padded here; remove it",
        "group_by_length": "nothing is padded here, so lengths need no grouping; remove it",
        "dataloader_num_workers": "rows are tokenised once and cached; remove it",
        "dataloader_drop_last": "the last, shorter step is trained with its own divisor; remove it",
        "dataset_num_proc": "rows are tokenised once and cached; remove it",
        "preprocessing_num_workers": "rows are tokenised once and cached; remove it",
        "remove_unused_columns": "columns that no stage needs stay with their row; remove it",
        "overwrite_output_dir": "an unfinished run is continued and a finished one refused; start "
        "over with --restart",
        "overwrite_cache": "the cache's key holds everything that shapes it; remove it",
        "logging_dir": "trackers write where they say; metrics.jsonl is in output_dir; remove it",
        "logging_first_step": "evaluation before the first step is eval_on_start; remove it",
        "save_safetensors": "weights are safetensors always; remove it",
        "save_only_model": "checkpoints are whole, so that nothing is lost; see save_total_limit",
        "do_train": "the verb says it; remove it",
        "do_eval": "give eval_dataset_name, and the run evaluates on it; remove it",
        "do_predict": "give sample_prompts, and the run generates from them; remove it",
        "plot_loss": "metrics.jsonl holds every value; remove it",
        "per_device_eval_batch_size": "evaluation fills micro-batches up to token_budget; remove "
        "it",
        "val_size": "give eval_dataset_name, a file of held-out rows",
        "val_set_size": "give eval_dataset_name, a file of held-out rows",
        "template": "the tokenizer's own chat template is used, always; remove it",
        "chat_template": "the tokenizer's own chat template is used, always; remove it",
        "chat_template_path": "the tokenizer's own chat template is used: put the file into the "
        "tokenizer's folder as chat_template.jinja",
        "pad_token": "nothing is padded here; remove it",
        "eos_token": "stop tokens are those of the tokenizer, the template and "
        "generation_config.json; remove it",
        "special_tokens": "the tokenizer's own special tokens are used; remove it",
        "adapter": "for LoRA use use_peft=true with lora_r, lora_alpha",
        "finetuning_type": "for LoRA use use_peft=true with lora_r, lora_alpha; for all weights "
        "remove it",
        "rl": "the verb says it: trimtab dpo, trimtab ipo, trimtab kto, ...",
        "stage": "the verb says it: trimtab pretrain, trimtab sft, trimtab dpo, ...",
        "dataset_dir": "dataset_name is a path by itself; no registry is needed",
        "dataset_text_field": "use columns, e.g. columns: {text: NAME}",
        "text_column_names": "use columns, e.g. columns: {text: NAME}",
        "label_column_name": "use columns, e.g. columns: {label: NAME}",
        "num_labels": "the classes are those of the rows, or those of labels; remove it",
        "field_messages": "use columns, e.g. columns: {messages: NAME}",
        "dataset_kwargs": "use the keys of datasets: path, name, data_files, split, columns",
        "train_on_inputs": "use completion_only_loss or assistant_only_loss",
        "train_on_prompt": "use completion_only_loss=false",
        "mask_history": "every assistant turn is trained; see assistant_only_loss",
        "load_in_4bit": "frozen weights are bf16 or fp32 here; use use_peft with precision=bf16",
        "load_in_8bit": "frozen weights are bf16 or fp32 here; use use_peft with precision=bf16",
        "quantization_bit": "frozen weights are bf16 or fp32 here; use use_peft with "
        "precision=bf16",
        "flash_attention": "attention is trimtab's own tree attention; see attn_layout",
        "flash_attn": "attention is trimtab's own tree attention; see attn_layout",
        "torch_compile": "not used here; remove it",
        "deepspeed": "runs are on one device here; remove it",
        "fsdp": "runs are on one device here; remove it",
        "fsdp_config": "runs are on one device here; remove it",
        "accelerate_config": "runs are on one device here; remove it",
        "ddp_find_unused_parameters": "runs are on one device here; remove it",
        "ddp_timeout": "runs are on one device here; remove it",
        "use_liger_kernel": "logits are never held whole here; remove it",
        "activation_offloading": "see gradient_checkpointing and token_budget",
        "gradient_checkpointing_kwargs": "gradient_checkpointing is true or false here; remove it",
        "neftune_noise_alpha": "not offered: the noise would break the masks' and layouts' checks; "
        "remove it",
        "disable_dropout": "dropout of the model is off always; lora_dropout is the adapters' own",
        "label_smoothing": "it is another loss and its epsilon: --loss cdpo --epsilon 0.1 (cDPO), "
        "or --loss robust --epsilon 0.1 (robust DPO)",
        "loss_weights": "use loss with weights, such as {dpo: 0.8, bco_pair: 0.2, sft: 1.0}",
        "f_divergence_type": "it is another loss: --loss fdpo_forward, fdpo_js or fdpo_alpha; dpo "
        "is the reverse KL",
        "f_alpha_divergence_coef": "the paper's alpha is 1 - TRL's coefficient a, whose f'(t) is "
        "(t^(a - 1) - 1) / (a - 1): --loss fdpo_alpha --alpha with 1 - a",
        "pref_ftx": "LLaMA-Factory's term is the mean of each chosen response: --loss irpo --alpha "
        "with its weight is that term; nll_weight is per token of the whole step",
        "use_weighting": "it is another loss: --loss wpo",
        "ld_alpha": "it is another loss and its alpha: --loss ld_dpo --alpha 0.5",
        "label_smoothing_factor": "the loss is the log-likelihood as it is; remove it",
        "label_pad_token_id": "masks come from spans, never from a token id; remove it",
        "padding_value": "nothing is padded here; remove it",
        "reference_free": "use a loss without a reference: trimtab simpo or trimtab orpo",
        "sync_ref_model": "the reference stays as it was at the start of the stage; online_dpo has "
        "ref_model_sync_steps",
        "ref_model_mixup_alpha": "the reference becomes the policy whole; use ref_model_sync_steps "
        "of online_dpo, or remove it",
        "judge": "rewards judge here: use reward_model or reward_funcs",
        "force_use_ref_model": "the reference is the policy as it was at the start of the stage; "
        "remove it",
        "use_logits_to_keep": "logits are computed where they are trained, always; remove it",
        "generate_during_eval": "use sample_prompts and sample_steps",
        "push_to_hub": "nothing is uploaded here; remove it",
        "hub_model_id": "nothing is uploaded here; remove it",
        "hub_token": "set HF_TOKEN in the environment; nothing secret belongs in a recipe",
        "wandb_project": "set WANDB_PROJECT in the environment, and report_to=wandb",
        "wandb_name": "use run_name, and report_to=wandb",
        "use_wandb": "use report_to=wandb",
        "resume_from_checkpoint": "the same command continues an unfinished run; or give --resume "
        "PATH on the command line",
        "auto_resume_from_checkpoints": "the same command continues an unfinished run; remove it",
        "data_seed": "seed is the only one; remove it",
        "cpu_threads": "use threads",
        "config": "a recipe cannot name another recipe; give one file",
        "defaults": "a recipe cannot include another; give one file",
        "_component_": "torchtune's way to name a class; keys here are plain values",
        **EXPLAINED_TRL,
    }
)

# What belongs on the command line and never in a recipe.
CONTROLS: Mapping[str, str] = MappingProxyType(
    {
        "restart": "Start over; the old run's files are set aside, never deleted.",
        "resume": "Go on from this checkpoint folder, with this recipe.",
        "dry_run": "Do everything up to the first step (rows, model, self-check); write only the "
        "cache.",
        "quiet": "Print errors and the result only.",
        "json": "Print progress and result as JSON lines.",
        "offline": "Never touch the network (sets HF_HUB_OFFLINE).",
    }
)

# Verbs of other tools, and names that users try first -> ours.
FOREIGN_VERBS: Mapping[str, str] = MappingProxyType(
    {
        "train": "trimtab has a verb per stage: trimtab pretrain, sft, reward, ppo, dpo, kto, ...",
        "finetune": "use trimtab sft",
        "finetune_lora": "use trimtab sft --use-peft",
        "pt": "use trimtab pretrain",
        "clm": "use trimtab pretrain",
        "preference": "use trimtab dpo --loss NAME",
        "online-dpo": "use trimtab online_dpo",
        "onlinedpo": "use trimtab online_dpo",
        "odpo": "use trimtab online_dpo",
        "oaif": "use trimtab online_dpo",
        "online": "use trimtab online_dpo --loss NAME",
        "iterative_dpo": "use trimtab online_dpo with ref_model_sync_steps",
        "iterative-dpo": "use trimtab online_dpo with ref_model_sync_steps",
        "rft": "use trimtab raft with min_score",
        "rejection_sampling": "use trimtab raft with min_score",
        "best_of_n": "use trimtab sample --best-of N",
        "best-of-n": "use trimtab sample --best-of N",
        "bon": "use trimtab sample --best-of N",
        "preprocess": "use trimtab data inspect FILE --model MODEL",
        "env": "every run folder has an environment.json",
    }
)

STAGES: Mapping[str, str] = MappingProxyType(
    {
        "pt": "pretrain",
        "pretrain": "pretrain",
        "classify": "classify",
        "sft": "sft",
        "rm": "reward",
        "reward": "reward",
        "ppo": "ppo",
        "grpo": "grpo",
        "rloo": "rloo",
        "online_dpo": "online_dpo",
        "raft": "raft",
        "dpo": "dpo",
        "simpo": "simpo",
        "orpo": "orpo",
        "kto": "kto",
        "ipo": "ipo",
        "cpo": "cpo",
        "bco": "bco",
    }
)
