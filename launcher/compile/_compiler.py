"""torch.compile in place, the time that it takes, and its errors."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from torch import nn
from torch._dynamo import config as dynamo
from torch._dynamo import list_backends
from torch._dynamo.callback import callback_handler
from torch._dynamo.exc import TorchDynamoException, Unsupported, UserError
from torch._inductor.exc import InductorError
from torch._logging._internal import set_logs

from launcher.errors import ConfigError, Problem
from launcher.suggest import closest, did_you_mean


class Clock:
    """Time spent on compilation in this process.

    Attributes:
        seconds: Sum so far.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._start = 0.0

    def start(self, _: Any) -> None:
        """Begin a compilation."""
        self._start = time.perf_counter()

    def end(self, _: Any) -> None:
        """End a compilation."""
        self.seconds += time.perf_counter() - self._start

    def watch(self) -> None:
        """Let torch call this clock."""
        if self.start in callback_handler.start_callbacks:
            return
        callback_handler.register_start_callback(self.start)
        callback_handler.register_end_callback(self.end)


clock = Clock()


def check_backend(name: str) -> None:
    """Raise ConfigError if torch has no such backend."""
    known = list_backends(())
    if name not in known:
        hint = did_you_mean(closest(name, known)) or f"; it can be: {', '.join(known)}"
        raise ConfigError([Problem("compile.backend", f"no such backend: {name}{hint}")])


def compile_in_place(
    modules: Iterable[nn.Module],
    *,
    backend: str,
    mode: str,
    fullgraph: bool,
    dynamic: bool | None,
    cache_dir: str | None,
) -> None:
    """Let modules compile their next calls; parameters keep their names.

    Args:
        modules: None within another.
        backend: See `TorchCompile`, also for the rest.
        mode: A mode of inductor.
        fullgraph: A break of the graph is an error.
        dynamic: Compile for any sizes.
        cache_dir: Folder of compiled code; None for torch's.
    """
    if cache_dir is not None:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(Path(cache_dir).expanduser().absolute())
    if "TORCH_LOGS" not in os.environ:
        # `CompileReport` names every break and every repetition, with its cause.
        set_logs(dynamo=logging.ERROR)
    # It divides graphs at the buckets of DistributedDataParallel, which blocks are small enough
    # for, and knows no recomputation.
    dynamo.optimize_ddp = False
    clock.watch()
    # A mode is an argument of inductor only.
    options: dict[str, Any] = {} if mode == "default" else {"mode": mode}
    for module in modules:
        module.compile(backend=backend, fullgraph=fullgraph, dynamic=dynamic, **options)


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Replace the compiler's errors by a ConfigError that says what to write."""
    try:
        yield
    except (Unsupported, UserError) as error:
        raise ConfigError(
            [
                Problem(
                    "compile.fullgraph",
                    f"must be false, because a graph breaks: {first_lines(str(error))}",
                )
            ]
        ) from error
    except (TorchDynamoException, InductorError) as error:
        raise ConfigError(
            [
                Problem(
                    "compile.kind",
                    f"this network cannot be compiled here: {first_lines(str(error))}; write "
                    "compile=off, or compile.backend=aot_eager to see whether the backend fails",
                )
            ]
        ) from error


def first_lines(text: str) -> str:
    """Return the beginning of a reason, and the last line of the user's code that it names."""
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    places = [line for line in lines if line.startswith('File "')]
    shown = " ".join(lines[:2])
    return f"{shown[:400]} ({places[-1]})" if places else shown[:400]
