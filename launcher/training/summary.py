"""The header of a run."""

from __future__ import annotations

from launcher.config.schema import RunConfig
from launcher.contracts import TrainState, World
from launcher.run_dir import RunDir
from launcher.training.parts import Parts


def summary(
    config: RunConfig, run_dir: RunDir, world: World, parts: Parts, state: TrainState
) -> list[tuple[str, str]]:
    """Return what is printed before the first step, (label, text) in order."""
    params = sum(p.numel() for p in parts.module.parameters())
    plan = parts.plan
    epochs = parts.max_steps * plan.samples_per_step / len(parts.train)
    held_out = len(parts.validation)
    limit = config.final_eval_max_samples
    scored = f" ({limit:,} of them scored at the end)" if limit and limit < held_out else ""
    lines = [
        ("model", f"{config.model.kind}, {params:,} parameters"),
        (
            "data",
            f"{config.data.kind}, {len(parts.train):,} samples, {held_out:,} held out{scored}",
        ),
        ("engine", f"{config.parallelism.kind} on {world.device}, {config.precision.kind}"),
        ("optimizer", f"{config.optimizer.kind}, schedule {config.scheduler.kind}"),
        ("batch", str(plan)),
        ("steps", f"{parts.max_steps:,} ({epochs:.2f} epochs)"),
        ("run", str(run_dir.path)),
    ]
    if parts.references:
        figures = ", ".join(f"{name} {value:.3f}" for name, value in parts.references.items())
        lines.insert(2, ("held out", figures))
    if state.step:
        lines.append(("resumed", f"from step {state.step:,}"))
    return lines
