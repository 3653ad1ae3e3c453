"""transformers.Trainer; `tqdm` with its progress bar, which is the default."""

from __future__ import annotations

from transformers import Trainer, TrainingArguments

from scripts.bench.peers import common

flags = common.arguments()
size, model, data = common.build(flags)
arguments = TrainingArguments(
    output_dir=f"{flags.folder}/hf",
    use_cpu=True,
    report_to="none",
    disable_tqdm=flags.variant != "tqdm",
    per_device_train_batch_size=size.batch,
    gradient_accumulation_steps=flags.accumulation,
    max_steps=flags.steps,
    learning_rate=flags.lr,
    weight_decay=flags.weight_decay,
    lr_scheduler_type="cosine",
    warmup_steps=0,
    max_grad_norm=flags.clip,
    optim="adamw_torch_fused",
    logging_steps=flags.log_every,
    save_strategy="no",
    eval_strategy="no",
    train_sampling_strategy="sequential",
    dataloader_num_workers=0,
    dataloader_pin_memory=False,
    seed=flags.seed,
)
Trainer(model=model, args=arguments, train_dataset=data).train()
