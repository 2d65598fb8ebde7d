"""What the remaining fields of TRL's configurations are called here, or why there is none.

``hints.py`` has what several tools share. docs/from-trl.md is made of both by
scripts/from_trl_page.py, and a test holds every field of TRL's configurations to one of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType

_TRL, _HF = "TRL", "transformers"

# TRL's or transformers' key -> (ours, whose).
RENAMED_TRL: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "shuffle_dataset": ("shuffle", _TRL),
        "num_sample_generations": ("sample_steps", _TRL),
        "activation_checkpointing": ("gradient_checkpointing", _HF),
    }
)

# Verb -> key -> what it is in this stage, where another stage has a key of that name.
OF_VERB: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "grpo": {
            "beta": "TRL's name; here it is kl_coef, whose default is the paper's (TRL: 0)",
            "loss_type": "it is the algorithm: --algorithm grpo, dr_grpo, dapo, gspo ...; TRL's "
            "default, dapo, divides by all tokens of the step, as --algorithm dapo does",
            "delta": "two-sided clipping is not offered; epsilon_high bounds the ratio from above",
        },
        "rloo": {
            "beta": "TRL's name; here it is kl_coef",
        },
        "ppo": {
            "beta": "it is kl_coef here",
            "batch_size": "it is computed in TRL; here the prompts of a rollout are "
            "per_device_train_batch_size x gradient_accumulation_steps",
            "micro_batch_size": "it is computed in TRL; micro-batches are filled up to "
            "token_budget; remove it",
        },
        "online_dpo": {
            "max_length": "a prompt is bounded by max_prompt_length, and a response by "
            "max_completion_length; remove it",
        },
        "orpo": {
            "max_completion_length": "prompt and response share max_length; max_prompt_length "
            "bounds the prompt",
        },
        "cpo": {
            "max_completion_length": "prompt and response share max_length; max_prompt_length "
            "bounds the prompt",
        },
        "sft": {
            "loss_type": "the verb says it: sft is the likelihood (nll); TRL's dft and chunked_nll "
            "have no place: logits are never held whole here",
        },
    }
)


def _all(reason: str, *names: str) -> Iterator[tuple[str, str]]:
    return ((name, reason) for name in names)


_ONE_DEVICE = "runs are on one device here; remove it"
_SAMPLER = "responses are drawn by trimtab's own sampler; remove it"
_OTHER_DRAWS = (
    "rollouts are drawn from the policy itself, at temperature: cut or bent, ratios and KL would "
    "be of another distribution (trimtab sample has top_k and top_p); remove it"
)
_COMPUTED = "it is computed, and set by nobody; remove it"
_KEPT = (
    "every rollout is a table, completions/rollout_*.parquet, beside the answers to fixed prompts, "
    "completions/completions_*.parquet; remove it"
)
_NO_ENTROPY = "an entropy term is not offered; entropy is logged, and its fall diagnosed; remove it"
_NO_HUB = "nothing is uploaded here; remove it"
_ROWS = "rows are tokenised once and cached; remove it"
_TRACKER = "trackers read their own environment variables; remove it"
_4BIT = "frozen weights are bf16 or fp32 here; use use_peft with precision=bf16"
_LORA = "plain LoRA on linear layers is what use_peft trains; remove it"
_ADAPTER = "one adapter a model here; remove it"
_EVALUATION = "evaluation needs no such choice here; remove it"

EXPLAINED_TRL: Mapping[str, str] = MappingProxyType(
    {
        # models and adapters
        "model_init_kwargs": "its contents are keys of their own: model_revision, precision, "
        "attn_layout, device; remove it",
        "router_aux_loss_coef": "the objective is its formula alone, without a balance of experts; "
        "remove it",
        "lora_modules_to_save": "the head of a reward model or a classifier is trained whole "
        "beside the adapters; nothing else is; remove it",
        "lora_task_type": "the verb says it; remove it",
        **dict(_all(_LORA, "lora_target_parameters", "use_rslora", "use_dora")),
        **dict(
            _all(_4BIT, "bnb_4bit_quant_type", "use_bnb_nested_quant", "bnb_4bit_quant_storage")
        ),
        "cast_lm_head_to_fp32": "log-probs are fp32 always; remove it",
        "is_encoder_decoder": "models are causal language models; remove it",
        **dict(
            _all("one adapter a model here; remove it", "model_adapter_name", "ref_adapter_name")
        ),
        # rows
        "packing_strategy": "nothing is padded here, so there is nothing to pack; remove it",
        "eval_packing": "nothing is padded here, so there is nothing to pack; remove it",
        "dataset_streaming": _ROWS,
        "train_sampling_strategy": "rows are shuffled anew in every epoch, or with shuffle=false "
        "in their order; remove it",
        "length_column_name": "nothing is padded here, so lengths need no grouping; remove it",
        "label_names": "columns names the columns; remove it",
        "precompute_ref_batch_size": "micro-batches are filled up to token_budget; remove it",
        "chat_template_kwargs": "the chat template is rendered without options; remove it",
        **dict(
            _all(
                _ROWS,
                "dataloader_pin_memory",
                "dataloader_persistent_workers",
                "dataloader_prefetch_factor",
                "dataloader_multiprocessing_context",
                "dataloader_in_order",
            )
        ),
        # rollouts
        "generation_batch_size": "a rollout is the prompts of per_device_train_batch_size x "
        "gradient_accumulation_steps; num_mini_batches cuts it into steps",
        "steps_per_generation": "num_mini_batches cuts a rollout into steps, num_iterations "
        "repeats it",
        **dict(
            _all(
                _OTHER_DRAWS,
                "top_p",
                "top_k",
                "min_p",
                "repetition_penalty",
                "generation_kwargs",
            )
        ),
        **dict(
            _all(
                _SAMPLER,
                "cache_implementation",
                "use_vllm",
                "vllm_mode",
                "vllm_model_impl",
                "vllm_enable_sleep_mode",
                "vllm_structured_outputs_regex",
                "vllm_server_base_url",
                "vllm_server_host",
                "vllm_server_port",
                "vllm_server_timeout",
                "vllm_group_port",
                "vllm_gpu_memory_utilization",
                "vllm_max_model_length",
                "vllm_tensor_parallel_size",
                "use_transformers_continuous_batching",
                "transformers_continuous_batching_config",
                "use_transformers_paged",
            )
        ),
        **dict(
            _all(
                "log-probs of sampler and trainer agree to rounding, and old_logprobs says which "
                "are taken; remove it",
                "vllm_importance_sampling_correction",
                "vllm_importance_sampling_mode",
                "vllm_importance_sampling_clip_max",
                "vllm_importance_sampling_clip_min",
                "vllm_importance_sampling_cap",
                "off_policy_mask_threshold",
            )
        ),
        "max_tool_calling_iterations": "a response is one turn; a row's tools are shown to the "
        "chat template; remove it",
        "stop_token": "stop tokens are those of the tokenizer, the template and "
        "generation_config.json; remove it",
        "stop_token_id": "stop tokens are those of the tokenizer, the template and "
        "generation_config.json; remove it",
        # policy gradients
        "importance_sampling_level": "it is the algorithm: --algorithm gspo has ratios of whole "
        "sequences",
        "multi_objective_aggregation": "rewards are summed by reward_weights, then compared within "
        "the group (TRL's sum_then_normalize); remove it",
        "mask_truncated_completions": "a response that was cut off is trained on; "
        "missing_eos_penalty or overlong_cache lower its score",
        "use_bias_correction_kl": "it is an estimator: kl_estimator=k3_weighted",
        "normalize_advantages": "it is another algorithm: trimtab grpo --algorithm reinforce_pp "
        "whitens advantages over the batch",
        "reward_clip_range": "clip inside a reward function; remove it",
        **dict(
            _all(
                "not offered; --algorithm has grpo, dr_grpo, dapo, gspo, rloo and reinforce_pp; "
                "remove it",
                "sapo_temperature_neg",
                "sapo_temperature_pos",
                "vespo_k_pos",
                "vespo_lambda_pos",
                "vespo_k_neg",
                "vespo_lambda_neg",
                "top_entropy_quantile",
            )
        ),
        **dict(
            _all(
                _NO_ENTROPY,
                "entropy_coef",
                "use_adaptive_entropy",
                "entropy_coef_min",
                "entropy_coef_max",
                "entropy_coef_delta",
                "entropy_target",
            )
        ),
        **dict(
            _all(
                _KEPT,
                "log_completions",
                "log_multimodal",
                "num_completions_to_print",
                "log_unique_prompts",
                "log_completions_hub_repo",
            )
        ),
        # TRL's PPO
        "total_episodes": "max_steps counts optimizer steps, num_train_epochs passes over the "
        "prompts",
        "local_rollout_forward_batch_size": "token_budget is what a forward pass holds, "
        "rollout_slots the responses that are sampled beside each other",
        **dict(
            _all(
                _COMPUTED,
                "world_size",
                "num_total_batches",
                "local_batch_size",
                "local_mini_batch_size",
                "mini_batch_size",
            )
        ),
        # transformers' TrainingArguments
        "lr_scheduler_kwargs": "min_lr_ratio is where the rate ends; schedules have no other "
        "options",
        "optim_args": "adam_beta1, adam_beta2, adam_epsilon and weight_decay are all of them; "
        "remove it",
        "optim_target_modules": "every trained weight goes through one optimizer; remove it",
        "average_tokens_across_devices": "each term is divided by its count over the whole step, "
        "always; remove it",
        "bf16_full_eval": "use precision, which is for evaluation, too",
        "fp16_full_eval": "use precision, which is for evaluation, too",
        "tf32": "use precision",
        "activation_checkpointing_kwargs": "gradient_checkpointing is true or false here; "
        "remove it",
        "torch_compile_backend": "not used here; remove it",
        "torch_compile_mode": "not used here; remove it",
        "liger_kernel_config": "logits are never held whole here; remove it",
        "use_cache": "training keeps no keys and values, sampling always does; remove it",
        "torch_empty_cache_steps": "memory is bounded by token_budget; remove it",
        "auto_find_batch_size": "token_budget is what has to fit: lower it; the batch stays",
        "logging_nan_inf_filter": "a loss that is not finite stops the run (on_nonfinite), and is "
        "never hidden; remove it",
        "include_num_input_tokens_seen": "num_tokens is logged always; remove it",
        "log_level": "give --quiet on the command line",
        "log_level_replica": _ONE_DEVICE,
        "disable_tqdm": "give --quiet on the command line",
        **dict(
            _all(
                _TRACKER,
                "project",
                "trackio_space_id",
                "trackio_bucket_id",
                "trackio_static_space_id",
            )
        ),
        **dict(
            _all(
                _EVALUATION,
                "eval_delay",
                "prediction_loss_only",
                "eval_do_concat_batches",
                "eval_use_gather_object",
                "eval_accumulation_steps",
                "include_for_metrics",
                "batch_eval_metrics",
                "skip_memory_metrics",
                "debug",
            )
        ),
        "enable_jit_checkpoint": "Ctrl-C saves a checkpoint, and a kill costs the steps since the "
        "last one (save_steps); remove it",
        **dict(
            _all(
                _NO_HUB,
                "hub_private_repo",
                "hub_strategy",
                "hub_always_push",
                "hub_revision",
            )
        ),
        "ignore_data_skip": "a run that goes on takes the row that would have been next; remove it",
        "restore_callback_states_from_checkpoint": "a checkpoint holds everything that changes; "
        "remove it",
        "full_determinism": "on a CPU in fp32 the same command gives the same bits; remove it",
        **dict(
            _all(
                _ONE_DEVICE,
                "accelerator_config",
                "parallelism_config",
                "ddp_bucket_cap_mb",
                "ddp_broadcast_buffers",
                "ddp_static_graph",
                "ddp_backend",
                "ds3_gather_for_generation",
                "ignore_bias_buffers",
                "local_rank",
                "log_on_each_node",
                "save_on_each_node",
            )
        ),
    }
)
