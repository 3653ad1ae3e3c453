"""Export a model in the format of transformers, atomically."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path
from typing import Any

from torch import nn

from launcher.contracts import Tokenizer


def export(
    module: nn.Module, tokenizer: Tokenizer, folder: Path, chat_template: str | None = None
) -> None:
    """Write config, weights (safetensors) and tokenizer, then rename them to the folder."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    # Saving makes accelerate import deepspeed, which warns of every machine without a GPU.
    logging.getLogger("DeepSpeed").addFilter(_is_news)
    folder.parent.mkdir(parents=True, exist_ok=True)
    # In the same folder as the target, because a rename works only within one file system.
    draft = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    try:
        model: Any = module
        model.save_pretrained(draft)
        tokenizer.save(draft)
        if chat_template is not None:
            (draft / "chat_template.jinja").write_text(chat_template, encoding="utf-8")
        _share(draft)
        _sync(draft)
        _replace(folder, draft)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _is_news(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith("Setting accelerator to CPU")


def _share(folder: Path) -> None:
    # safetensors writes files that only their owner can read.
    mode = (folder / "config.json").stat().st_mode
    for path in folder.glob("*.safetensors"):
        path.chmod(mode)


def _sync(folder: Path) -> None:
    # Before the rename: after a power cut the new name must not hold empty files.
    for path in [*folder.iterdir(), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _replace(folder: Path, draft: Path) -> None:
    # A folder cannot be renamed over another that has files.
    old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    if folder.exists():
        folder.rename(old)
    draft.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
