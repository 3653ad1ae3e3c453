"""torch.compile, block by block or for the whole network."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Literal

from pydantic import Field
from typing_extensions import override

from launcher.contracts import CompileOption, ConfigView, Observer, Pattern, RunContext
from launcher.errors import Problem

if TYPE_CHECKING:
    from torch import nn

_GRAPHS = ("reduce-overhead", "max-autotune")


class TorchCompile(CompileOption):
    """Compile forward and backward passes with torch.compile.

    Each block of the network is compiled by itself: equal blocks share one compilation, which takes
    a fraction of the time that the whole network takes. Compiled operations round differently, and
    inductor draws other dropout masks.

    The time is logged apart from that of the steps. Compiled code is kept in torch's cache, which
    later runs use.

    Source: Ansel et al. 2024, doi:10.1145/3620665.3640366.
    """

    scope: Literal["blocks", "model"]
    """Compile each block by itself, or the whole network as one."""
    blocks: tuple[Pattern, ...] | None = Field(min_length=1)
    """Patterns of the names of the blocks. null: the layers that the model repeats."""
    backend: str = Field(min_length=1)
    """`inductor`, or another backend that torch knows: `aot_eager` needs no compiler."""
    mode: Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"]
    """Additional work of inductor: `reduce-overhead` records CUDA graphs, `max-autotune` also
    measures several kernels for each operation."""
    fullgraph: bool
    """Refuse what cannot be compiled as one graph, instead of dividing it into several."""
    dynamic: bool | None
    """Compile for any sizes. null: once a size has changed. False: again for every size."""
    cache_dir: str | None = Field(min_length=1)
    """Folder of compiled code. null: TORCHINDUCTOR_CACHE_DIR, or one in the temporary folder."""

    @override
    def problems(self, config: ConfigView) -> Iterator[Problem]:
        yield from super().problems(config)
        if self.mode != "default" and self.backend != "inductor":
            yield Problem(
                "compile.mode",
                f"is a mode of inductor, but compile.backend is {self.backend}; write "
                "compile.mode=default or compile.backend=inductor",
            )
        try:
            is_sharded = config.parallelism.layout(config.launch.ranks).is_sharded
        except ValueError:
            return  # the engine reports it
        if is_sharded and self.mode in _GRAPHS:
            yield Problem(
                "compile.mode",
                f"{self.mode} records CUDA graphs, in which parameters keep their place in memory, "
                f"but parallelism={config.parallelism.kind} gathers them for each pass; write "
                "compile.mode=default or compile.mode=max-autotune-no-cudagraphs",
            )

    @override
    def unsupported_on(self, device_type: str) -> Mapping[str, str]:
        if device_type != "cuda" and self.mode == "reduce-overhead":
            return {"mode": "reduce-overhead records CUDA graphs; write compile.mode=default"}
        return {}

    @override
    def not_applicable(self, config: ConfigView) -> Mapping[str, str]:
        found = dict(super().not_applicable(config))
        if self.scope == "model":
            found["blocks"] = "scope is model"
        if self.backend != "inductor":
            found["cache_dir"] = f"{self.backend} has no cache"
        return found

    @property
    @override
    def compiles(self) -> bool:
        return True

    @property
    @override
    def compiles_root(self) -> bool:
        return self.scope == "model"

    @property
    @override
    def seconds(self) -> float:
        from launcher.compile._compiler import clock

        return clock.seconds

    @override
    def apply(self, module: nn.Module) -> None:
        from launcher.blocks import repeated_blocks
        from launcher.compile._compiler import check_backend, compile_in_place

        check_backend(self.backend)
        if self.scope == "model":
            modules = [module]
        else:
            modules = list(repeated_blocks(module, self.blocks, "compile.blocks").values())
        compile_in_place(
            modules,
            backend=self.backend,
            mode=self.mode,
            fullgraph=self.fullgraph,
            dynamic=self.dynamic,
            cache_dir=self.cache_dir if self.backend == "inductor" else None,
        )

    @override
    def suspended(self) -> AbstractContextManager[object]:
        import torch

        context: AbstractContextManager[object] = torch.compiler.set_stance("force_eager")
        return context

    @override
    def explained(self) -> AbstractContextManager[object]:
        from launcher.compile._compiler import explained

        return explained()

    @override
    def observers(self, context: RunContext) -> Sequence[Observer]:
        if context.world.rank:
            return ()
        from launcher.compile._report import CompileReport

        return [CompileReport()]
