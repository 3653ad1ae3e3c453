"""LAMB in two passes: moments and norms, then the update."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from launcher.contracts import UNSHARDED, Sharding
from launcher.optimizer._blockwise.blocks import Blocks, Scratch, blocks_of, compute_dtype
from launcher.optimizer._blockwise.buckets import SMALL_ELEMENTS, Bucket
from launcher.optimizer._blockwise.per_tensor import PerTensor, Shapes, Sums


class LambOptimizer(PerTensor):
    """LAMB over buckets and blocks; options are those of the kind `lamb`."""

    # You et al. 2019, arXiv:1904.00962, algorithm 2, with the identity for φ.

    def __init__(
        self,
        params: Iterable[Any],
        *,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
        bias_correction: bool,
        grad_averaging: bool,
        trust_clip: bool,
        always_adapt: bool,
        sharding: Sharding = UNSHARDED,
        small_elements: int = SMALL_ELEMENTS,
        block_elements: int | None = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "bias_correction": bias_correction,
            "grad_averaging": grad_averaging,
            "trust_clip": trust_clip,
            "always_adapt": always_adapt,
        }
        super().__init__(
            params,
            defaults,
            sharding=sharding,
            small_elements=small_elements,
            block_elements=block_elements,
        )

    @override
    def _layout(self, param: Tensor, group: Mapping[str, Any]) -> dict[str, Tensor]:
        like = torch.empty(param.shape, dtype=compute_dtype(param), device="meta")
        return {"exp_avg": like, "exp_avg_sq": like}

    @override
    def _sums(self, shape: tuple[int, ...]) -> Sequence[Shapes]:
        return [{"params": (), "updates": ()}]

    @override
    def _update(
        self, bucket: Bucket, step: int, group: Mapping[str, Any], scratch: Scratch
    ) -> Iterator[Sums]:
        view_shape = (bucket.num_params, bucket.numel)
        blocks = blocks_of(bucket.params, view_shape, scratch, self._block_elements(bucket.device))
        updates = _Updates(bucket, blocks, step, group)
        updates.fold_gradients()
        # As in timm: biases and norms, which have no decay, are not scaled either.
        if group["weight_decay"] == 0 and not group["always_adapt"]:
            ratio = torch.ones(bucket.num_params, dtype=blocks.dtype, device=bucket.device)
        else:
            sums = updates.square_sums()
            yield sums
            ratio = _trust_ratio(sums["params"].sqrt(), sums["updates"].sqrt())
            if group["trust_clip"]:
                ratio.clamp_(max=1.0)
        rate = blocks.spread(ratio.mul_(group["lr"]))
        for index in range(len(blocks)):
            blocks.param(index).sub_(updates[index].mul_(rate))
            blocks.put(index)


class _Updates:
    """A bucket's updates before they are scaled, block by block."""

    # The second pass computes each update again: to keep them would take a copy of the parameters.

    def __init__(self, bucket: Bucket, blocks: Blocks, step: int, group: Mapping[str, Any]) -> None:
        self._blocks, self._group = blocks, group
        self._means = blocks.cut(bucket.state["exp_avg"].view(blocks.shape))
        self._squares = blocks.cut(bucket.state["exp_avg_sq"].view(blocks.shape))
        beta1, beta2 = group["betas"]
        corrects = group["bias_correction"]
        self._correction = 1 - beta1**step if corrects else 1.0
        self._root_correction = math.sqrt(1 - beta2**step) if corrects else 1.0

    def __getitem__(self, index: int) -> Tensor:
        # In scratch memory. Both corrections are moved to the root: one division per element.
        root = torch.sqrt(self._squares[index], out=self._blocks.buffer(index))
        root.mul_(self._correction / self._root_correction)
        root.add_(self._group["eps"] * self._correction)
        update = torch.div(self._means[index], root, out=root)
        decay = self._group["weight_decay"]
        return update.add_(self._blocks.param(index), alpha=decay) if decay else update

    def fold_gradients(self) -> None:
        beta1, beta2 = self._group["betas"]
        for index, (mean, square) in enumerate(zip(self._means, self._squares, strict=True)):
            grad = self._blocks.grad(index)
            mean.mul_(beta1).add_(grad, alpha=1 - beta1 if self._group["grad_averaging"] else 1.0)
            square.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)

    def square_sums(self) -> dict[str, Tensor]:
        params, updates = [], []
        for index in range(len(self._blocks)):
            updates.append(torch.linalg.vector_norm(self[index], dim=-1))
            params.append(torch.linalg.vector_norm(self._blocks.param(index), dim=-1))
        return {
            "params": torch.stack(params).square_().sum(0),
            "updates": torch.stack(updates).square_().sum(0),
        }


def _trust_ratio(params: Tensor, updates: Tensor) -> Tensor:
    # 1 for parameters that are 0, which would never change, and for updates that are 0.
    return torch.where((params > 0) & (updates > 0), params / updates, 1.0)
