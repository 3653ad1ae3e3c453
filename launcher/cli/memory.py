"""`trainctl config memory`: bytes of weights, gradients and optimizer state, by arithmetic."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from launcher.cli._arguments import Arguments, add_composition_flags, composition
from launcher.cli._console import bold, print_json, table

if TYPE_CHECKING:
    from launcher.config.schema import RunConfig


def main(argv: list[str]) -> int:
    """Sum the memory of a run's state; activations are not included."""
    arguments = Arguments(
        "config memory",
        "[group=option] [key=value]",
        "What the model's state takes in memory: weights, gradients and optimizer state of the "
        "whole model, as if one rank held it all. Activations come on top. 1 GB is 10^9 bytes.",
        "trainctl config memory model=llama_8b precision=bf16_pure",
        "trainctl config memory model=llama_8b optimizer=adamw_8bit precision=bf16_pure",
        json=True,
    )
    add_composition_flags(arguments)
    flags, overrides = arguments.split(argv)
    facts = measured(composition(flags, overrides).load().config)
    if flags.json:
        print_json(facts)
    else:
        print(_as_text(facts))
    return 0


def measured(config: RunConfig) -> dict[str, Any]:
    """Return the number of parameters, and the bytes by purpose."""
    from launcher.plan import build_network

    # On the meta device: the answer for a model that does not fit into this machine.
    network = build_network(config)
    state = network.state
    dtype = config.precision.build("meta").param_dtype
    return {
        "model": config.model.kind,
        "param_dtype": str(dtype).removeprefix("torch."),
        "parameters": network.parameters,
        "trained": network.trained,
        "weights": state.weights,
        "gradients": state.gradients,
        "optimizer": dict(state.optimizer),
        "total": state.weights + state.gradients + sum(state.optimizer.values()),
    }


def _as_text(facts: dict[str, Any]) -> str:
    trained = "" if facts["trained"] == facts["parameters"] else f", {facts['trained']:,} trained"
    rows = [
        ("weights", size_text(facts["weights"]), facts["param_dtype"]),
        ("gradients", size_text(facts["gradients"]), facts["param_dtype"]),
    ]
    rows += [
        ("optimizer", size_text(size), key)
        for key, size in facts["optimizer"].items()
        # Step counts and the like are too small to be shown.
        if size * 1000 >= facts["total"] or size == max(facts["optimizer"].values())
    ]
    rows.append(("total", size_text(facts["total"]), "without activations"))
    head = bold(f"{facts['parameters']:,} parameters")
    return f"{head}{trained}\n{table(rows)}"


def size_text(size: int) -> str:
    """Return a number of bytes as people write it; 1 GB is 10^9 bytes."""
    for unit, bytes_ in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= bytes_:
            return f"{size / bytes_:.2f} {unit}"
    return f"{size} B"
