"""Everyday mistakes on the command line, each answered with what to write instead."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.cli import main
from launcher.config.load import load_config
from launcher.errors import ConfigError

# What is typed among the words of `run`, and a part of the answer.
WORDS: dict[str, str] = {
    # Settings of Transformers' Trainer
    "learning_rate=1e-3": "write optimizer.lr=1e-3",
    "per_device_train_batch_size=8": "write accumulation.micro_batch_size=8",
    "gradient_accumulation_steps=4": "write accumulation=steps accumulation.steps=4",
    "num_train_epochs=3": "write max_epochs=3",
    "fp16=true": "write precision=fp16",
    "bf16=True": "write precision=bf16",
    "lr_scheduler_type=cosine": "write scheduler=cosine",
    "adam_beta2=0.95": "write 'optimizer.betas=[0.9,0.95]'",
    "output_dir=out": "write run_root=out",
    "logging_steps=5": "write log_every_steps=5",
    "save_steps=5": "write checkpoint.every_steps=5",
    "save_total_limit=3": "write checkpoint.keep=3",
    "eval_strategy=steps": "eval_every_steps=N",
    "report_to=none": "write logging=quiet",
    "resume_from_checkpoint=x": "trainctl resume RUN_DIR",
    "warmup_ratio=0.03": "scheduler.warmup_steps=3%",
    "model_name_or_path=gpt2": "write model=hf model.path=gpt2",
    "train_file=a.txt": "write data=text data.files=a.txt",
    "push_to_hub=true": "leave it out",
    # Lightning, Accelerate, DeepSpeed, torchrun
    "trainer.max_epochs=3": "did you mean 'max_epochs'?",
    "trainer.devices=2": "write launch.processes=2",
    "accumulate_grad_batches=2": "write accumulation=steps accumulation.steps=2",
    "gradient_clip_val=1": "write max_grad_norm=1",
    "mixed_precision=bf16": "write precision=bf16",
    "num_processes=4": "write launch.processes=4",
    "train_micro_batch_size_per_gpu=4": "write accumulation.micro_batch_size=4",
    "nproc_per_node=2": "write launch.processes=2",
    "optimizer.type=AdamW": "write optimizer=AdamW",
    "fsdp=full_shard": "write parallelism=fsdp",
    "deepspeed=ds.json": "write parallelism=zero2 parallelism.config_file=ds.json",
    "zero_stage=3": "write parallelism=zero3",
    "nnodes=2": "write launch=torchrun launch.nodes=2",
    "gpu_ids=0,1": "no such setting; write launch.processes=N",
    "launch.gpus=0,1": "no such setting; write launch.processes=N",
    "wandb.project=x": "metrics are written to RUN_DIR/metrics.jsonl",
    "dropout=0.1": "no dropout",
    "max_tokens=1e9": "write max_steps=N",
    "optimizer.no_decay=[bias]": "did you mean 'optimizer.groups.no_decay'?",
    "checkpoint.interval=100": "write checkpoint.every_steps=100",
    "checkpoint.dir=ckpts": "write run_root=ckpts",
    # Options
    "optimizer=AdamW": "did you mean 'adamw'?",
    "optimizer=adamw_torch_fused": "did you mean 'adamw'?",
    "optimizer=conf/optimizer/adamw.yaml": "did you mean 'adamw'?",
    "optimizer=1e-3": "a setting of it is written optimizer.NAME=VALUE",
    "scheduler=linear_with_warmup": "did you mean 'linear'?",
    "precision=float16": "did you mean 'fp16'?",
    "parallelism=DDP": "did you mean 'ddp'?",
    "parallelism=deepspeed": "did you mean 'zero2'?",
    "model=gpt2": "write model=hf model.path=FOLDER",
    "model=bert-base-uncased": "write model=hf model.path=FOLDER",
    "logging=wandb": "metrics are written to RUN_DIR/metrics.jsonl",
    # Keys
    "lr=1e-3": "did you mean 'optimizer.lr'?",
    "max-steps=5": "did you mean 'max_steps'?",
    "Seed=1": "did you mean 'seed'?",
    "optimizer.learning_rate=1e-3": "write optimizer.lr=1e-3",
    "optimizer.adamw.lr=1e-3": "did you mean 'optimizer.lr'?",
    "config.optimizer.lr=1e-3": "did you mean 'optimizer.lr'?",
    "accumulation.steps=2": "accumulation=steps has it",
    "task.max_seq_length=64": "write task.seq_len=64",
    "+name=x": "leave out the +",
    "+optimizer=sgd": "write optimizer=sgd",
    "~max_grad_norm": "write max_grad_norm=null",
    "model.layers=2": "did you mean 'model.num_layers'?",
    "clip=1.0": "write max_grad_norm=1.0",
    "lora_r=8": "there are no adapters",
    "patience=3": "write observer=early_stopping observer.patience=3",
    # Values
    "optimizer.betas=(0.9,0.95)": "write 'optimizer.betas=[0.9,0.95]'",
    "optimizer.eps=1e-8,": "write optimizer.eps=1e-8",
    "model.num_kv_heads==8": "write model.num_kv_heads=8",
    "launch.threads:8": "write launch.threads=8",
    "final_eval_max_samples=1,000": "without commas: final_eval_max_samples=1000",
    "max_grad_norm=0,5": "write a number with a point: max_grad_norm=0.5",
    "run_root=": "must have at least 1 character",
    "precision=16": "did you mean 'fp16'?",
    "checkpoint=false": "did you mean 'none'?",
    "data=a.txt": "write data=text data.files=a.txt",
    "model=meta-llama/Llama-3.1-8B": "write model=hf model.path=meta-llama/Llama-3.1-8B",
    "recipe=my/exp.yaml": "write --config-dir my --config-name exp",
    "optimizer.eps=“1e-8”": "write 'optimizer.eps=",
    "optimizer.lr=1e−3": "write optimizer.lr=1e-3",
    "max_steps=10k": "write 10000",
    "eval_every_steps=1e4": "write 10000",
    "data.validation_fraction=5%": "write 0.05",
    "max_epochs=-1": "write null for none",
    "max_grad_value=None": "write null",
    "checkpoint.export=yes": "write true",
    "optimizer.weight_decay=sgd": "write optimizer=sgd",
    "seed=1,2": "run one job for each with -m",
    "seed=0,7": "run one job for each with -m",
    # Words that the shell has split, or that have no `=`
    "optimizer.betas=[0.9, 0.95]": "write 'optimizer.betas=[0.9, 0.95]'",
    "optimizer.lr = 1e-3": "write optimizer.lr=1e-3",
    "log_every_steps= 5": "write log_every_steps=5",
    "optimizer: adamw": "write optimizer=adamw",
    "optimizer adamw": "write optimizer=adamw",
    "optimizer:adamw": "write optimizer=adamw",
    "optimizer/adamw": "write optimizer=adamw",
    "max_steps 8": "write max_steps=8",
    "learning_rate 1e-3": "write optimizer.lr=1e-3",
    "adamw": "write optimizer=adamw",
    "quick": "write recipe=quick",
    "fp16": "write precision=fp16",
    "name=my run": "write 'name=my run'",
    "my/exp.yaml": "write --config-dir my --config-name exp",
    "–multirun": "write --multirun",
}
# Whole command lines, which end before a config is composed or a run begins.
LINES: dict[str, str] = {
    "train": "write `trainctl run`",
    "explain optimizer.lr": "write `trainctl config explain`",
    "optimizer=sgd": "trainctl run optimizer=sgd",
    "check --optimizer adafactor": "write optimizer=adafactor",
    "check --lr 1e-3": "write optimizer.lr=1e-3",
    "check --learning-rate=1e-3": "write optimizer.lr=1e-3",
    "check --num_processes 4": "write launch.processes=4",
    "check --weight_decay=0.1": "write optimizer.weight_decay=0.1",
    "check --max_steps 5": "write max_steps=5",
    "check -max_steps=5": "write max_steps=5",
    "check optimizer.betas=[0.9]": "optimizer.betas needs at least 2 values",
    "check help": "is not of the form key=value; `trainctl config show` lists the settings",
    "check optimizer.groups.overrides={a:{lr:1}}": "must be a list, but is a mapping",
    "check -cn my/exp": "write --config-dir my --config-name exp",
    "check --config exp.yaml": "--config-name NAME",
    "check -cn quick": "write recipe=quick",
    "run --resume runs/x": "trainctl resume RUN_DIR",
    "resume default": "does not exist; a run is in run_root/<name>/<id>",
    "resume": "a word is missing: the run's directory",
    "list adamw": "write `trainctl list optimizer.adamw`",
    "list optimizer adamw": "write `trainctl list optimizer.adamw`",
    "config optimizer.lr": "write `trainctl config explain optimizer.lr`",
    "config optimizer=sgd": "write `trainctl config show optimizer=sgd`",
    "check optimizer=null": "choose one with optimizer=OPTION",
    "check launch.device=gpu": "write launch.device=cuda",
    "check launch.device=cuda:0": "did you mean 'cuda'?",
    "check checkpoint.every_minutes=30m": "write 30",
    "check launch.timeout_s=90s": "write 90",
    "check --cfg job": "write `trainctl config show`",
    "check --config-path conf": "--config-dir conf",
    "check name=": "for example my-run",
    "check --fsdp full_shard": "write parallelism=fsdp",
}


@pytest.fixture(scope="module")
def answers() -> dict[str, str]:
    """The message to each of `WORDS`, all typed at once with a good word between them."""
    typed = [part for words in WORDS for part in ("seed=0", *words.split(" "))]
    with pytest.raises(ConfigError) as caught:
        load_config(typed)
    return {
        problem.origin.removeprefix("command line: "): problem.message
        for problem in caught.value.problems
    }


@pytest.mark.parametrize("words", WORDS)
def test_words_are_answered(words: str, answers: dict[str, str]) -> None:
    found = answers.get(words) or answers.get(words.rsplit(" ", maxsplit=1)[-1], "")
    assert WORDS[words] in found, found


@pytest.mark.parametrize("line", LINES)
def test_lines_are_answered(
    line: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(line.split(" ")) in {2, 3}
    assert LINES[line] in capsys.readouterr().err


def test_a_number_is_not_answered_with_a_list(answers: dict[str, str]) -> None:
    assert answers["seed=0,7"].endswith("with -m")


@pytest.mark.parametrize(
    "line", ["optimizer=SGD optimizer.nesterov=true", "data=text data.files=a.txt,b.txt"]
)
def test_a_mistake_is_reported_without_its_consequences(line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(line.split(" "))
    assert len(caught.value.problems) == 1, caught.value


def test_there_are_more_than_sixty() -> None:
    assert len(WORDS) + len(LINES) > 60
