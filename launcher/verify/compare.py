"""Judges a cell: equal to the reference, or the first step and quantity that differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from launcher.verify.measure import Limits, allowed, largest, relative
from launcher.verify.trajectory import Trajectory, samples_of


@dataclass(frozen=True, slots=True)
class Deviation:
    """Largest relative deviations of a cell from the reference.

    Attributes:
        loss: Of a step's loss.
        norm: Of a step's gradient norm.
        weights: Of a parameter after the last step; see `measure.distance`.
        score: Of the objective in the evaluation after the last step; None without one.
    """

    loss: float
    norm: float
    weights: float
    score: float | None


@dataclass(frozen=True, slots=True)
class Difference:
    """The first quantity of a run that differs by more than is allowed.

    Attributes:
        step: The step, from 1 on.
        quantity: `steps`, `samples`, `lr`, `loss`, `update`, `norm`, `weights` or `score`.
        text: What differs, with both values.
        tensor: The first parameter of the model that differs; None if it is no parameter.
        module: Class of the module that has it.
        tensors: Number of parameters that differ.
    """

    step: int
    quantity: str
    text: str
    tensor: str | None = None
    module: str | None = None
    tensors: int = 0


@dataclass(frozen=True, slots=True)
class Floor:
    """Distance between two cuts of the same windows in one process, by quantity.

    Attributes:
        loss: Largest relative deviation of a step's loss.
        norm: Likewise of the gradient norm.
        score: Likewise of the objective; 0 without one.
        weights: Of each parameter after each step; None where a step's weights are not kept.
    """

    loss: float
    norm: float
    score: float
    weights: Sequence[Mapping[str, float] | None]

    def of(self, tensor: str) -> float:
        """Return the largest floor of a parameter after a step."""
        # Of all steps, as of loss and norm: rounding that an update amplifies (Muon orthogonalises
        # in bfloat16) shows at another step in another program.
        return max((each.get(tensor, 0.0) for each in self.weights if each), default=0.0)


NO_FLOOR = Floor(0.0, 0.0, 0.0, ())
"""Floor where the global batch is one sample: it has no second cut."""


@dataclass(frozen=True, slots=True)
class Reference:
    """The run of one process, its floor and the limits, with which all cells are compared."""

    run: Trajectory
    floor: Floor
    limits: Limits
    objective: str


def floor_of(reference: Trajectory, cut: Trajectory, objective: str) -> Floor:
    """Return the distance between two cuts of the reference."""
    score = _score(cut, reference, objective)
    return Floor(
        loss=largest(cut.losses, reference.losses),
        norm=largest(cut.norms, reference.norms),
        score=score or 0.0,
        weights=cut.distances,
    )


def deviation(ranks: Sequence[Trajectory], reference: Reference) -> Deviation:
    """Return how far a cell is from the reference; infinite if no rank took all steps."""
    expected = reference.run
    same = [own for own in ranks if len(own.losses) == len(expected.losses)]
    last = next((each for each in reversed(ranks[0].distances) if each), {})
    scores = [_score(own, expected, reference.objective) for own in ranks]
    return Deviation(
        loss=max((largest(own.losses, expected.losses) for own in same), default=float("inf")),
        norm=max((largest(own.norms, expected.norms) for own in same), default=float("inf")),
        weights=max(last.values(), default=0.0),
        score=max((each for each in scores if each is not None), default=None),
    )


def first_difference(ranks: Sequence[Trajectory], reference: Reference) -> Difference | None:
    """Return the first thing that differs by more than is allowed; None for equal runs."""
    expected = reference.run
    for step in range(len(expected.losses)):
        for rank, own in enumerate(ranks):
            if len(own.losses) <= step:
                text = f"ended after {len(own.losses)} steps, not {len(expected.losses)}"
                return Difference(step + 1, "steps", _on(rank, text, ranks))
        # Everything after the first difference follows from it, and would only hide the cause.
        if (found := next(_in_step(ranks, reference, step), None)) is not None:
            return found
    for rank, own in enumerate(ranks):
        found_score = _score(own, expected, reference.objective)
        limit = allowed(reference.limits.score, reference.floor.score)
        if found_score is not None and found_score > limit:
            values = own.scores.get(reference.objective), expected.scores.get(reference.objective)
            text = f"{reference.objective} is {values[0]}, not {values[1]}"
            return Difference(len(expected.losses), "score", _on(rank, text, ranks))
    return None


def unstable(reference: Reference) -> Difference | None:
    """Return a difference if two cuts in one process differ by more than rounding can explain."""
    # A large floor would allow every cell anything, and the certificate would be worthless.
    floor, most = reference.floor, reference.limits.floor
    for quantity, value in (("loss", floor.loss), ("norm", floor.norm)):
        # Not `value > most`: NaN must count as a difference.
        if not value <= most:
            text = (
                f"{quantity} of two cuts of the same windows in one process differs by "
                f"{value:.1e} (at most {most:.0e} is rounding): accumulation changes the training, "
                "or the model draws random numbers"
            )
            return Difference(1, quantity, text)
    return None


def _in_step(ranks: Sequence[Trajectory], reference: Reference, step: int) -> Iterator[Difference]:
    """Yield what differs in a step, in the order in which it is computed."""
    expected, limits, floor = reference.run, reference.limits, reference.floor
    # Samples first: a loss over other data differs too, and its message would blame the engine.
    if samples_of(ranks, step) != sorted(expected.samples[step]):
        yield Difference(step + 1, "samples", "the ranks did not read each sample once")
    curves = (
        ("loss", limits.curve, floor.loss, "losses"),
        ("norm", limits.curve, floor.norm, "norms"),
    )
    for rank, own in enumerate(ranks):
        for quantity, limit, of_floor, name in curves:
            values = getattr(own, name)[step], getattr(expected, name)[step]
            most = allowed(limit, of_floor)
            if not (found := relative(*values)) <= most:
                text = f"{quantity} {values[0]:.8g}, not {values[1]:.8g}: {_against(found, most)}"
                yield Difference(step + 1, quantity, _on(rank, text, ranks))
        if own.applied[step] != expected.applied[step]:
            text = "the update was applied" if own.applied[step] else "the update was skipped"
            yield Difference(step + 1, "update", _on(rank, text, ranks))
        # Exactly equal: the schedule is the same Python function of the step in every process.
        if own.lrs[step] != expected.lrs[step]:
            text = f"lr {own.lrs[step]}, not {expected.lrs[step]}"
            yield Difference(step + 1, "lr", _on(rank, text, ranks))
    yield from _in_weights(ranks[0], reference, step)


def _in_weights(own: Trajectory, reference: Reference, step: int) -> Iterator[Difference]:
    distances = own.distances[step] or {}
    limits = {
        name: allowed(reference.limits.weights, reference.floor.of(name)) for name in distances
    }
    wrong = [name for name, value in distances.items() if not value <= limits[name]]
    if not wrong:
        return
    # Parameters are in the order of the model. The first wrong one shows where the defect begins;
    # the worst one is often only the smallest tensor.
    first = wrong[0]
    worst = max(wrong, key=lambda name: distances[name] / limits[name])
    text = f"weights {first}: {_against(distances[first], limits[first])}"
    if worst != first:
        text += f"; worst {worst}: {distances[worst]:.1e}"
    text += f"; {len(wrong)} of {len(distances)} parameters differ"
    module = reference.run.modules.get(first)
    yield Difference(step + 1, "weights", text, first, module, len(wrong))


def _against(found: float, most: float) -> str:
    return f"deviation {found:.1e}, allowed {most:.1e}"


def _on(rank: int, text: str, ranks: Sequence[Trajectory]) -> str:
    return f"rank {rank}: {text}" if len(ranks) > 1 and rank else text


def _score(own: Trajectory, expected: Trajectory, objective: str) -> float | None:
    found, wanted = own.scores.get(objective), expected.scores.get(objective)
    return None if found is None or wanted is None else relative(found, wanted)
