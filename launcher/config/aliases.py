"""Settings of other tools, and the corresponding overrides."""

from __future__ import annotations

from collections.abc import Mapping

Answer = str | Mapping[str, str]

_TORCHRUN = "(leave it out: trainctl starts the ranks itself; launch.processes=N sets their number)"
_PROCESSES = "launch.processes={}"
_NO_HUB = "(leave it out: nothing is uploaded; the trained model is in RUN_DIR/export)"
_NO_WORKERS = "(leave it out: batches are made in the training process)"
_NO_CONFIG = "(leave it out: --config-dir DIR and --config-name NAME name a config file)"
_NO_ADAPTERS = "(leave it out: all parameters are trained; there are no adapters)"
_NO_WANDB = "(metrics are written to RUN_DIR/metrics.jsonl and TensorBoard, not to wandb)"
_DEVICE_LIST = "(write launch.processes=N; the variable CUDA_VISIBLE_DEVICES selects the GPUs)"
_NODES = "launch=torchrun launch.nodes={}"
_FSDP: Answer = {"false": "parallelism=ddp", "": "parallelism=fsdp"}
_DEEPSPEED: Answer = {
    "true": "parallelism=zero2",
    "false": "parallelism=ddp",
    "": "parallelism=zero2 parallelism.config_file={}",
}
_KEEP = "checkpoint.keep={}"
_DEVICES: Answer = {"gpu": "launch.device=cuda", "": "launch.device={}"}
_FP16: Answer = {"true": "precision=fp16", "false": "precision=fp32", "": "precision=fp16"}
_BF16: Answer = {"true": "precision=bf16", "false": "precision=fp32", "": "precision=bf16"}
_RECOMPUTE: Answer = {"false": "activation=none", "": "activation=full"}
_BY_LENGTH: Answer = {"false": "batching=random", "": "batching=length_grouped"}
_COMPILE: Answer = {"false": "compile=off", "": "compile=default"}
_EVERY_STEPS = "(write the number of steps: eval_every_steps=N and checkpoint.every_steps=N)"

# By key in lower case with `_` for `-`. `{}` is the value that was typed; an answer that depends on
# the value is a mapping by value; an answer in parentheses is a reason why there is no override.
KEYS: Mapping[str, Answer] = {
    # Optimizers and schedules
    "learning_rate": "optimizer.lr={}",
    "max_lr": "optimizer.lr={}",
    "base_lr": "optimizer.lr={}",
    "peak_lr": "optimizer.lr={}",
    "lr_rate": "optimizer.lr={}",
    "wd": "optimizer.weight_decay={}",
    "optim": "optimizer={}",
    "optimizer_name": "optimizer={}",
    "optimizer_type": "optimizer={}",
    "optimizer.name": "optimizer={}",
    "optimizer.type": "optimizer={}",
    "adam_beta1": "'optimizer.betas=[{},0.999]'",
    "adam_beta2": "'optimizer.betas=[0.9,{}]'",
    "beta1": "'optimizer.betas=[{},0.999]'",
    "beta2": "'optimizer.betas=[0.9,{}]'",
    "adam_epsilon": "optimizer.eps={}",
    "epsilon": "optimizer.eps={}",
    "lr_scheduler": "scheduler={}",
    "lr_scheduler_type": "scheduler={}",
    "scheduler_type": "scheduler={}",
    "scheduler.name": "scheduler={}",
    "scheduler.type": "scheduler={}",
    "warmup": "scheduler.warmup_steps={}",
    "num_warmup_steps": "scheduler.warmup_steps={}",
    "warmup_iters": "scheduler.warmup_steps={}",
    "warmup_ratio": "(write the share of the run in percent: scheduler.warmup_steps=3%)",
    "warmup_fraction": "(write the share of the run in percent: scheduler.warmup_steps=3%)",
    "clip": "max_grad_norm={}",
    "clip_grad": "max_grad_norm={}",
    "grad_clip": "max_grad_norm={}",
    "gradient_clipping": "max_grad_norm={}",
    "gradient_clip_val": "max_grad_norm={}",
    "clip_grad_norm": "max_grad_norm={}",
    # Batches
    "batch_size": "accumulation.samples_per_step={}",
    "bs": "accumulation.samples_per_step={}",
    "effective_batch_size": "accumulation.samples_per_step={}",
    "global_batch_size": "accumulation.samples_per_step={}",
    "train_batch_size": "accumulation.samples_per_step={}",
    "per_device_train_batch_size": "accumulation.micro_batch_size={}",
    "per_gpu_train_batch_size": "accumulation.micro_batch_size={}",
    "train_micro_batch_size_per_gpu": "accumulation.micro_batch_size={}",
    "micro_batch": "accumulation.micro_batch_size={}",
    "mbs": "accumulation.micro_batch_size={}",
    "per_device_eval_batch_size": "(leave it out: evaluation uses accumulation.micro_batch_size)",
    "eval_batch_size": "(leave it out: evaluation uses accumulation.micro_batch_size)",
    "gradient_accumulation_steps": "accumulation=steps accumulation.steps={}",
    "accumulate_grad_batches": "accumulation=steps accumulation.steps={}",
    "grad_accum": "accumulation=steps accumulation.steps={}",
    "grad_accum_steps": "accumulation=steps accumulation.steps={}",
    "auto_find_batch_size": "accumulation=auto",
    "tokens_per_batch": "accumulation=tokens accumulation.tokens_per_step={}",
    "max_seq_length": "task.seq_len={}",
    "max_seq_len": "task.seq_len={}",
    "max_length": "task.seq_len={}",
    "block_size": "task.seq_len={}",
    "sequence_length": "task.seq_len={}",
    "context_length": "task.seq_len={}",
    "model_max_length": "task.seq_len={}",
    # Length, evaluation, logging, checkpoints
    "num_train_epochs": "max_epochs={}",
    "num_epochs": "max_epochs={}",
    "epochs": "max_epochs={}",
    "epoch": "max_epochs={}",
    "max_tokens": "(write max_steps=N; `trainctl check` prints the tokens of one step)",
    "steps": "max_steps={}",
    "num_steps": "max_steps={}",
    "train_steps": "max_steps={}",
    "max_train_steps": "max_steps={}",
    "total_steps": "max_steps={}",
    "iterations": "max_steps={}",
    "max_iters": "max_steps={}",
    "num_iterations": "max_steps={}",
    "eval_steps": "eval_every_steps={}",
    "val_check_interval": "eval_every_steps={}",
    "eval_interval": "eval_every_steps={}",
    "limit_val_batches": "eval_max_samples={}",
    "max_eval_samples": "eval_max_samples={}",
    "evaluation_strategy": _EVERY_STEPS,
    "eval_strategy": _EVERY_STEPS,
    "save_strategy": _EVERY_STEPS,
    "logging_strategy": "(write the number of steps: log_every_steps=N)",
    "logging_steps": "log_every_steps={}",
    "log_interval": "log_every_steps={}",
    "log_every_n_steps": "log_every_steps={}",
    "save_steps": "checkpoint.every_steps={}",
    "save_interval": "checkpoint.every_steps={}",
    "save_every": "checkpoint.every_steps={}",
    "checkpointing_steps": "checkpoint.every_steps={}",
    "checkpoint.interval": "checkpoint.every_steps={}",
    "checkpoint.steps": "checkpoint.every_steps={}",
    "checkpoint.dir": "run_root={}",
    "checkpoint.path": "run_root={}",
    "save_total_limit": _KEEP,
    "save_top_k": _KEEP,
    "keep_last": _KEEP,
    "output_dir": "run_root={}",
    "out_dir": "run_root={}",
    "save_dir": "run_root={}",
    "default_root_dir": "run_root={}",
    "logging_dir": "run_root={}",
    "run_name": "name={}",
    "experiment_name": "name={}",
    "exp_name": "name={}",
    "overwrite_output_dir": "(leave it out: every run has a directory of its own)",
    "metric_for_best_model": "observer=early_stopping observer.metric={}",
    "early_stopping": "observer=early_stopping",
    "patience": "observer=early_stopping observer.patience={}",
    "early_stopping_patience": "observer=early_stopping observer.patience={}",
    "report_to": {
        "none": "logging=quiet",
        "tensorboard": "logging.tensorboard=true",
        "wandb": _NO_WANDB,
        "": "(metrics go to RUN_DIR/metrics.jsonl and TensorBoard; write logging.tensorboard=true)",
    },
    "logger": "logging={}",
    "wandb": _NO_WANDB,
    "use_wandb": _NO_WANDB,
    "wandb_project": _NO_WANDB,
    "verbose": "logging.console=auto",
    "random_seed": "seed={}",
    "manual_seed": "seed={}",
    "data_seed": "seed={}",
    "resume": "(write `trainctl resume RUN_DIR`)",
    "resume_from_checkpoint": "(write `trainctl resume RUN_DIR`)",
    "ckpt_path": "(write `trainctl resume RUN_DIR`)",
    "load_checkpoint": "(write `trainctl resume RUN_DIR`)",
    "dry_run": "(write `trainctl run --dry-run …`)",
    "do_train": "(leave it out: `trainctl run` trains and evaluates)",
    "do_eval": "(leave it out: `trainctl run` trains and evaluates)",
    # Model and data
    "model_name_or_path": "model=hf model.path={}",
    "model_name": "model=hf model.path={}",
    "pretrained_model_name_or_path": "model=hf model.path={}",
    "base_model": "model=hf model.path={}",
    "tokenizer_name": "model.tokenizer={}",
    "tokenizer_path": "model.tokenizer={}",
    "train_file": "data=text data.files={}",
    "train_files": "data=text data.files={}",
    "data_path": "data=text data.files={}",
    "data_dir": "data=text 'data.files={}/**/*.txt'",
    "dataset": "data={}",
    "dataset_name": "data=text data.files='DIR/**/*.txt'",
    "validation_file": "data.validation_files={}",
    "eval_file": "data.validation_files={}",
    "val_file": "data.validation_files={}",
    "test_size": "data.validation_fraction={}",
    "validation_split": "data.validation_fraction={}",
    "dropout": "(leave it out: llama has no dropout; that of a folder is set in its config.json)",
    "num_hidden_layers": "model.num_layers={}",
    "n_layer": "model.num_layers={}",
    "num_attention_heads": "model.num_heads={}",
    "n_head": "model.num_heads={}",
    "d_model": "model.hidden_size={}",
    "n_embd": "model.hidden_size={}",
    "max_position_embeddings": "model.max_positions={}",
    "num_key_value_heads": "model.num_kv_heads={}",
    "tie_word_embeddings": "model.tie_embeddings={}",
    # Precision
    "fp16": _FP16,
    "half": _FP16,
    "bf16": _BF16,
    "bfloat16": _BF16,
    "amp": _BF16,
    "mixed_precision": "precision={}",
    "dtype": "precision={}",
    "torch_dtype": "precision={}",
    "tf32": {"false": "precision=fp32", "": "precision=tf32"},
    "fp16_full_eval": "precision=fp16_full_eval",
    "bf16_full_eval": "precision=bf16_full_eval",
    "loss_scale": "precision.init_scale={}",
    # Ranks and devices
    "num_processes": _PROCESSES,
    "nproc_per_node": _PROCESSES,
    "nproc": _PROCESSES,
    "num_gpus": _PROCESSES,
    "n_gpus": _PROCESSES,
    "gpus": _PROCESSES,
    "ngpus": _PROCESSES,
    "devices": _PROCESSES,
    "world_size": _PROCESSES,
    "multi_gpu": "parallelism=ddp launch.processes=N",
    "strategy": "parallelism={}",
    "accelerator": _DEVICES,
    "device": _DEVICES,
    "use_cpu": "launch.device=cpu",
    "no_cuda": "launch.device=cpu",
    "cpu": "launch.device=cpu",
    "cuda": "launch.device=cuda",
    "num_threads": "launch.threads={}",
    "timeout": "launch.timeout_s={}",
    "ddp_timeout": "launch.timeout_s={}",
    "ddp_find_unused_parameters": "parallelism=ddp parallelism.find_unused_parameters={}",
    "local_rank": _TORCHRUN,
    "rank": _TORCHRUN,
    "master_addr": _TORCHRUN,
    "master_port": _TORCHRUN,
    "gpu_ids": _DEVICE_LIST,
    "device_ids": _DEVICE_LIST,
    "cuda_visible_devices": _DEVICE_LIST,
    "nnodes": _NODES,
    "num_nodes": _NODES,
    "num_machines": _NODES,
    "deepspeed": _DEEPSPEED,
    "zero_stage": "parallelism=zero{}",
    "fsdp": _FSDP,
    "use_fsdp": _FSDP,
    "config": _NO_CONFIG,
    "config_file": _NO_CONFIG,
    "config_path": "--config-dir {}",
    "cfg": "(write `trainctl config show`)",
    # Not supported
    "num_workers": _NO_WORKERS,
    "dataloader_num_workers": _NO_WORKERS,
    "pin_memory": _NO_WORKERS,
    "dataloader_pin_memory": _NO_WORKERS,
    "push_to_hub": _NO_HUB,
    "hub_model_id": _NO_HUB,
    "lora": _NO_ADAPTERS,
    "use_lora": _NO_ADAPTERS,
    "use_peft": _NO_ADAPTERS,
    "lora_r": _NO_ADAPTERS,
    "lora_alpha": _NO_ADAPTERS,
    "lora_rank": _NO_ADAPTERS,
    "ema_decay": "ema=on ema.decay={}",
    "use_ema": {"false": "ema=off", "": "ema=on"},
    "load_best_model_at_end": "(leave it out: the model of the last step is exported)",
    "group_by_length": _BY_LENGTH,
    "length_column_name": _BY_LENGTH,
    "gradient_checkpointing": _RECOMPUTE,
    "activation_checkpointing": _RECOMPUTE,
    "gradient_checkpointing_enable": _RECOMPUTE,
    "torch_compile": _COMPILE,
    "attn_implementation": "model.attention={}",
    "use_flash_attention": {"false": "model.attention=sdpa", "": "model.attention=flash"},
    "use_torch_compile": _COMPILE,
    "torch_compile_backend": "compile=default compile.backend={}",
    "torch_compile_mode": "compile=default compile.mode={}",
}

_TRUE = {"true", "1", "yes", "on"}
_FALSE = {"false", "0", "no", "off"}


def instead_of_key(key: str, value: str) -> str:
    """Return advice for a setting of another tool; "" if it is unknown."""
    answer = KEYS.get(key.lstrip("-").replace("-", "_").lower())
    if answer is None:
        return ""
    if not isinstance(answer, str):
        answer = answer.get(_canonical(value)) or answer.get("", "")
    if answer == _PROCESSES and "," in value:
        answer = _DEVICE_LIST  # `gpus=0,1` names devices
    if answer.startswith("("):
        return answer[1:-1]
    return f"write {answer.format(value or 'VALUE')}" if answer else ""


def reason_without(key: str) -> str:
    """Return the reason why there is nothing like another tool's setting; "" if unknown."""
    answer = KEYS.get(key.replace("-", "_").lower(), "")
    return answer[1:-1] if isinstance(answer, str) and answer.startswith("(") else ""


def _canonical(value: str) -> str:
    lower = value.lower()
    return "true" if lower in _TRUE else "false" if lower in _FALSE else lower
