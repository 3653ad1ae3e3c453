"""Any causal language model that transformers knows, from a local folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field
from typing_extensions import override

from launcher.contracts import Head, ModelLimits, ModelOption, Tokenizer
from launcher.errors import DataError
from launcher.model._folder import check_tokenizer, check_weights, read_config, read_limits
from launcher.model._tokenizer_name import BYT5, build_tokenizer

if TYPE_CHECKING:
    from torch import nn


class HuggingFace(ModelOption):
    """A causal language model from a local folder that transformers saved.

    Nothing is downloaded, no code in the folder is run, and weights are read from safetensors only.
    """

    path: str = Field(min_length=1)
    """The folder: config.json, the weights and the tokenizer's files."""
    init: Literal["pretrained", "random"]
    """Start from the folder's weights, or from new ones of the same architecture."""
    tokenizer: str | None = Field(min_length=1)
    """`byt5`, or another folder to take the tokenizer from; null for the model's own."""

    @override
    def preflight(self) -> None:
        limits = self.limits()
        if self.init == "pretrained":
            check_weights(self._folder)
        if self._tokenizer_name != BYT5:
            check_tokenizer(Path(self._tokenizer_name).expanduser(), limits.vocab_size)

    @override
    def limits(self) -> ModelLimits:
        return read_limits(self._folder)

    @override
    def build(self, head: Head, device: str) -> nn.Module:
        import torch
        from safetensors import SafetensorError
        from transformers import AutoConfig, AutoModelForCausalLM
        from transformers.utils import logging

        read_config(self._folder)
        logging.disable_progress_bar()
        try:
            if self.init == "random" or device == "meta":
                config = AutoConfig.from_pretrained(
                    self._folder, local_files_only=True, trust_remote_code=False
                )
                with torch.device(device):
                    fresh: nn.Module = AutoModelForCausalLM.from_config(
                        config, dtype=torch.float32, trust_remote_code=False
                    )
                return fresh
            check_weights(self._folder)
            module, report = AutoModelForCausalLM.from_pretrained(
                self._folder,
                dtype=torch.float32,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                output_loading_info=True,
                # Reported, then refused below.
                ignore_mismatched_sizes=True,
            )
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise DataError(f"{self._folder}: no model can be built from here: {error}") from error
        self._check_loaded(report)
        loaded: nn.Module = module
        # from_pretrained leaves a model in evaluation mode; a new one is in training mode.
        return loaded.to(device).train()

    @override
    def build_tokenizer(self) -> Tokenizer:
        return build_tokenizer(self._tokenizer_name, self.limits().vocab_size)

    @property
    def _folder(self) -> Path:
        return Path(self.path).expanduser()

    @property
    def _tokenizer_name(self) -> str:
        return self.path if self.tokenizer is None else self.tokenizer

    def _check_loaded(self, report: dict[str, Any]) -> None:
        """Every weight came from the file, and every weight in the file was used."""
        problems = {
            "missing": report.get("missing_keys"),
            "left over": report.get("unexpected_keys"),
            "of another shape": report.get("mismatched_keys"),
        }
        found = [
            f"{len(keys)} {what} (such as {min(map(str, keys))})"
            for what, keys in problems.items()
            if keys
        ]
        if found:
            raise DataError(
                f"{self._folder}: the weights do not fit the model in config.json: "
                f"{'; '.join(found)}"
            )
