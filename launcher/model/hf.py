"""Any model that transformers supports, from a local folder."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from pydantic import Field
from typing_extensions import override

from launcher.contracts import DType, Head, ModelLimits, SavedWeight, Tokenizer
from launcher.errors import DataError, Problem, TrainctlError
from launcher.model._attention import TransformersOption, set_attention
from launcher.model._folder import check_tokenizer, read_config, read_limits, read_size, short
from launcher.model._shrunk import shrunk_config
from launcher.model._tokenizer_name import BYT5, build_tokenizer
from launcher.model._weights import (
    check_weights,
    has_weights,
    saved_weights,
    weights_dtype,
    weights_hashes,
)
from launcher.run_dir import write_atomically

if TYPE_CHECKING:
    from torch import Tensor, nn

    from launcher.contracts.config import ConfigView

_log = logging.getLogger("trainctl.model")


class HuggingFace(TransformersOption):
    """A model from a local folder that transformers saved, with the head that the task needs.

    If the folder has no weights of the task's head (as a pretrained encoder), these are drawn.

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
        super().preflight()
        limits = self.limits()
        if self.init == "pretrained":
            check_weights(self._folder)
        if self._tokenizer_name != BYT5:
            check_tokenizer(Path(self._tokenizer_name).expanduser(), limits.vocab_size)

    @override
    def problems(self, config: ConfigView) -> Iterator[Problem]:
        yield from super().problems(config)
        try:
            values = read_config(self._folder)
        except DataError:
            return  # preflight reports it
        name, *_ = values.get("architectures") or [""]
        what = ""
        # Only what config.json shows; check_module tests the built network.
        if name.endswith("ForMaskedLM") and not values.get("is_decoder"):
            what = f"an encoder ({name}), in which every token attends to those after it"
        elif values.get("is_encoder_decoder"):
            what = f"an encoder and a decoder ({name or values.get('model_type')})"
        if what and config.task.head == "causal_lm":
            yield Problem(
                "model.path",
                f"holds {what}, but task={config.task.kind} predicts the next token with a decoder "
                "alone; choose another task or model",
            )

    @property
    @override
    def has_pretrained_weights(self) -> bool:
        return self.init == "pretrained"

    @property
    @override
    def approximate_size(self) -> int | None:
        try:
            return read_size(self._folder)
        except DataError:
            return None  # preflight reports it

    @override
    def limits(self) -> ModelLimits:
        return read_limits(self._folder)

    @override
    def shrunk(self, folder: Path, seq_len: int) -> HuggingFace:
        del seq_len  # the embeddings of positions are small
        small = shrunk_config(read_config(self._folder))
        write_atomically(folder / "config.json", json.dumps(small, indent=1) + "\n")
        tokenizer = self._tokenizer_name
        update = {"path": str(folder), "init": "random", "tokenizer": tokenizer}
        return self.model_copy(update=update)

    @override
    def build(self, head: Head, device: str) -> nn.Module:
        from launcher.model._network import build_on_meta, set_pad_id

        with self._reading() as config:
            set_pad_id(config, head, self.build_tokenizer)
            set_attention(config, head, self.attention)
            # Names and shapes can be asked for without weights, too.
            if self.init == "random" or (device == "meta" and not has_weights(self._folder)):
                return build_on_meta(config, head)
            module, drawn = self._load(config, head, device)
        if drawn:
            _log.warning(
                "%s: no weights of a %s head; drawn: %s",
                self._folder,
                head.name,
                ", ".join(drawn),
            )
        return module

    @override
    def saved_weights(self, head: Head) -> Mapping[str, SavedWeight] | None:
        from launcher.model._pretrained import match_saved

        with self._reading() as config:
            module, drawn = self._load(config, head, "meta")
            # transformers merges the experts of a layer, or renames: there is no slice in a file.
            if getattr(module, "_weight_conversions", None):
                return None
            return match_saved(module, saved_weights(self._folder), set(drawn))

    @contextmanager
    def _reading(self) -> Iterator[Any]:
        """Yield transformers' config of the folder, and convert errors of loading it."""
        from transformers import AutoConfig
        from transformers.utils import logging

        read_config(self._folder)
        logging.disable_progress_bar()
        verbosity = logging.get_verbosity()
        # `_load` reports missing weights itself.
        logging.set_verbosity_error()
        try:
            yield AutoConfig.from_pretrained(
                self._folder, local_files_only=True, trust_remote_code=False
            )
        except TrainctlError:
            raise
        except Exception as error:
            # A damaged folder raises any of many exception types; lack of memory is no damage.
            if isinstance(error, MemoryError) or "memory" in str(error):
                raise
            raise DataError(
                f"{self._folder}: no model can be built from here: {short(error)}"
            ) from error
        finally:
            logging.set_verbosity(verbosity)

    @override
    def build_tokenizer(self) -> Tokenizer:
        return build_tokenizer(self._tokenizer_name, self.limits().vocab_size)

    @override
    def check_module(self, module: nn.Module, head: Head) -> None:
        from launcher.model._network import sees_later_tokens

        if head.name == "causal_lm" and sees_later_tokens(module):
            raise DataError(
                f"{self._folder}: in this model ({type(module).__name__}) a token sees those after "
                "it, but the task predicts the next token; choose another task or model, or set "
                "is_decoder to true in config.json if the architecture has it"
            )

    @override
    def source_dtype(self) -> DType | None:
        if self.init == "pretrained":
            return weights_dtype(self._folder)
        config = read_config(self._folder)
        named = config.get("dtype", config.get("torch_dtype"))
        return next((dtype for dtype in get_args(DType) if dtype == named), None)

    @override
    def weights_fingerprint(self) -> Mapping[str, str]:
        return weights_hashes(self._folder) if self.init == "pretrained" else {}

    @override
    def auxiliary_losses(self, module: nn.Module, outputs: Any) -> Mapping[str, Tensor]:
        from launcher.model._network import auxiliary_losses

        return auxiliary_losses(module, outputs)

    @property
    def _folder(self) -> Path:
        return Path(self.path).expanduser()

    @property
    def _tokenizer_name(self) -> str:
        return self.path if self.tokenizer is None else self.tokenizer

    def _load(self, config: Any, head: Head, device: str) -> tuple[nn.Module, Sequence[str]]:
        """Load the weights; return the names of those of a new head, on the meta device."""
        import torch

        from launcher.model._network import auto_class, move_to_meta

        check_weights(self._folder)
        module, report = auto_class(config, head).from_pretrained(
            self._folder,
            config=config,
            # In float32, whatever the files have: the precision option chooses the format of
            # training.
            dtype=torch.float32,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
            # Refused by _check_loaded, with all other problems in one message.
            ignore_mismatched_sizes=True,
            # On the meta device it compares names and shapes, and reads no weights.
            device_map="meta" if device == "meta" else None,
        )
        drawn = self._check_loaded(module, report)
        if device != "meta":
            module.to(device)
        move_to_meta(module, drawn)
        # from_pretrained leaves a model in evaluation mode; a new one is in training mode.
        return module.train(), drawn

    def _check_loaded(self, module: Any, report: dict[str, Any]) -> Sequence[str]:
        """Return the missing weights of a new head; raise DataError for any other difference."""
        # transformers only warns: a model with a damaged layer would train from random weights.
        base = f"{module.base_model_prefix}."
        # Only some heads read the pooled output of an encoder.
        pooler = f"{base}pooler."
        saved = read_config(self._folder).get("architectures") or [type(module).__name__]
        new_head = type(module).__name__ not in saved

        def of_head(key: str) -> bool:
            return new_head and (key.startswith(pooler) or not key.startswith(base))

        missing = set(report.get("missing_keys") or ())
        drawn = {key for key in missing if of_head(key)}
        problems = {
            "missing": missing - drawn,
            "unexpected": {key for key in report.get("unexpected_keys") or () if not of_head(key)},
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
        return sorted(drawn)
