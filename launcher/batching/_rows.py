"""Rows of several samples, as samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from typing_extensions import override

from launcher.batching._packing import best_fit_decreasing, members, positions
from launcher.contracts import MicroBatch, Samples, Task
from launcher.errors import ConfigError, Problem

# Most names of samples in the description of a row.
_NAMED = 3
# Tokens of each of the two samples of the check.
_CHECKED = 8
# Relative. Without isolation it is above 1e-3, with it 1e-7.
_LIMIT = 1e-5


class PackedRows(Samples):
    """Rows of up to `capacity` tokens from several samples, which do not see each other.

    Args:
        samples: What is packed. All inputs have a value for each token.
        capacity: Tokens of a row.

    Attributes:
        lengths: Tokens of each row without padding. Shape (N,).
    """

    # Position ids restart at each sample, and there is no attention mask: from that the models of
    # transformers make the mask that keeps samples apart, for each implementation of attention.

    def __init__(self, samples: Samples, capacity: int) -> None:
        self._samples = samples
        self._check_inputs()
        row_of = best_fit_decreasing(np.asarray(samples.lengths, dtype=np.int64), capacity)
        self._order, self._ends = members(row_of)
        self.lengths = np.bincount(row_of, weights=samples.lengths).astype(np.int64)
        self.fingerprint = f"{samples.fingerprint}, packed {capacity}"

    @override
    def __len__(self) -> int:
        return len(self._ends)

    def members(self, row: int) -> list[int]:
        """Return the samples of a row."""
        found: list[int] = self._order[self._ends[row - 1] if row else 0 : self._ends[row]].tolist()
        return found

    @override
    def num_targets(self, indices: Sequence[int]) -> int:
        return self._samples.num_targets([each for row in indices for each in self.members(row)])

    @override
    def micro_batch(self, indices: Sequence[int], draw: int) -> MicroBatch:
        empty = self._samples.micro_batch((), draw)
        if not indices:
            return MicroBatch(packed(empty.inputs, [[_width(empty.inputs)]], empty.inputs), 0, ())
        rows = [self.members(row) for row in indices]
        inner = self._samples.micro_batch([each for row in rows for each in row], draw)
        lengths = [[int(self._samples.lengths[each]) for each in row] for row in rows]
        inputs = packed(inner.inputs, lengths, empty.inputs)
        return MicroBatch(inputs, inner.num_targets, indices)

    @override
    def describe(self, index: int) -> str:
        inside = self.members(index)
        names = [self._samples.describe(each) for each in inside[:_NAMED]]
        more = f" and {len(inside) - _NAMED} more" if len(inside) > _NAMED else ""
        return f"a row of {', '.join(names)}{more}"

    def _check_inputs(self) -> None:
        inputs = self._samples.micro_batch([0], 0).inputs
        length = int(self._samples.lengths[0])
        for name, tensor in inputs.items():
            if tensor.shape != (1, length):
                raise _refused(
                    f"needs a task whose inputs have one value per token, but {name} has the shape "
                    f"{tuple(tensor.shape)} for a sample of {length} tokens; choose "
                    "batching=length_grouped"
                )

    def check_isolation(self, task: Task, network: nn.Module) -> None:
        """Refuse a network in which a sample changes with the samples before it in its row.

        Args:
            task: Knows the inputs of the forward pass.
            network: A network of the same architecture, on the CPU.

        Raises:
            ConfigError: It does.
        """
        first = max(range(len(self)), key=lambda row: len(self.members(row)))
        inside = self.members(first)[:2]
        if len(inside) == 1:
            return
        inner = self._samples.micro_batch(inside, 0).inputs
        count = min(_CHECKED, *(int(self._samples.lengths[each]) for each in inside))
        apart = {name: tensor[:, :count] for name, tensor in inner.items()}
        together = packed(apart, [[count, count]], apart)
        apart.pop("attention_mask", None)
        task.prepare_module(network)
        network.eval()
        with torch.no_grad():
            outputs = [network(**task.forward_inputs(each)).logits for each in (apart, together)]
        # Logits, or the losses of tokens where the task computes them in the network.
        expected, found = (each.reshape(2, count, -1)[1] for each in outputs)
        if (found - expected).norm() > _LIMIT * expected.norm():
            raise _refused(
                f"cannot keep samples apart in {type(network).__name__}: the second sample of a "
                "row changes with the first; choose batching=length_grouped, or another "
                "implementation of attention"
            )


def packed(
    inputs: Mapping[str, Tensor], lengths: Sequence[Sequence[int]], padding: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Join samples to rows.

    Args:
        inputs: Tensors of the samples, in the order of the rows. Shape (samples, longest).
        lengths: Tokens of each sample, by row.
        padding: Tensors of the same names, whose first value fills the rows up.

    Returns:
        Tensors of shape (rows, width), with `position_ids` instead of `attention_mask`.
    """
    width = max(sum(row) for row in lengths)
    found = {
        name: torch.full((len(lengths), width), padding[name].flatten()[-1].item(), dtype=t.dtype)
        for name, t in inputs.items()
        if name != "attention_mask"
    }
    sample = 0
    for number, row in enumerate(lengths):
        start = 0
        for length in row:
            for name, target in found.items():
                target[number, start : start + length] = inputs[name][sample, :length]
            sample, start = sample + 1, start + length
    found["position_ids"] = torch.from_numpy(np.stack([positions(row, width) for row in lengths]))
    return found


def packed_rows(
    samples: Samples, task: Task, *, capacity: int, network: Callable[[], nn.Module]
) -> PackedRows:
    """Pack samples, and check that the network keeps them apart."""
    rows = PackedRows(samples, capacity)
    rows.check_isolation(task, network())
    return rows


def _width(inputs: Mapping[str, Tensor]) -> int:
    return max(tensor.shape[1] for tensor in inputs.values())


def _refused(why: str) -> ConfigError:
    return ConfigError([Problem("batching.kind", f"batching=packed {why}")])
