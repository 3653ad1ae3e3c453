"""StableAdamW in two passes: compute the size of the update, then apply it."""

# The first pass reads gradients and second moments and keeps nothing. The second is torch's fused
# AdamW for a large tensor, at the learning rate of the first; for small ones, gathered, and under
# Kahan summation it is written out here. Moments are kept without bias correction, as torch keeps
# them; torch-optimi, the reference, keeps corrected ones: the same updates but for rounding.

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw
from typing_extensions import override

from launcher.contracts import UNSHARDED, Sharding
from launcher.optimizer._blockwise.blocks import Blocks, Scratch, blocks_of, store
from launcher.optimizer._blockwise.buckets import SMALL_ELEMENTS, Bucket
from launcher.optimizer._blockwise.per_tensor import PerTensor, Shapes, Sums

# Devices for which torch has a fused AdamW.
FUSED_DEVICES = frozenset({"cpu", "cuda", "mps", "xpu"})


class StableAdamWOptimizer(PerTensor):
    """AdamW whose learning rate is divided by the size of the update, where that is above 1.

    The size is the root mean square of gradients over roots of second moments. Options are those of
    the kind `stable_adamw`.
    """

    # Wortsman et al. 2023, arXiv:2304.13013, algorithm 2; the rest as in torch-optimi.

    def __init__(
        self,
        params: Iterable[Any],
        *,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
        decouple_lr: bool,
        max_lr: float | None,
        kahan: bool,
        sharding: Sharding = UNSHARDED,
        small_elements: int = SMALL_ELEMENTS,
        block_elements: int | None = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "decouple_lr": decouple_lr,
            "max_lr": max_lr,
            "kahan": kahan,
        }
        super().__init__(
            params,
            defaults,
            sharding=sharding,
            small_elements=small_elements,
            block_elements=block_elements,
        )

    @override
    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        if group["max_lr"] is None:
            group["max_lr"] = group["lr"]

    @override
    def _layout(self, param: Tensor, group: Mapping[str, Any]) -> dict[str, Tensor]:
        like = torch.empty(param.shape, dtype=param.dtype, device="meta")
        keys = ["exp_avg", "exp_avg_sq", *(["kahan"] if _carries(param, group) else [])]
        return dict.fromkeys(keys, like)

    @override
    def _sums(self, shape: tuple[int, ...]) -> Sequence[Shapes]:
        return [{"updates": ()}]

    @override
    def _update(
        self, bucket: Bucket, step: int, group: Mapping[str, Any], scratch: Scratch
    ) -> Iterator[Sums]:
        view_shape = (bucket.num_params, bucket.numel)
        blocks = blocks_of(bucket.params, view_shape, scratch, self._block_elements(bucket.device))
        sums = {"updates": _update_square_sums(bucket, blocks, step, group)}
        yield sums

        rates = group["lr"] / (sums["updates"] / bucket.whole_numel).sqrt_().clamp_(min=1.0)
        # By size, not by who shares the bucket: the kernel rounds in another order than `_apply`.
        if bucket.numel > self._small_elements and _fuses(bucket.params[0], group):
            _apply_fused(bucket, step, group, rates[0])
        else:
            _apply(bucket, blocks, step, group, rates)


def _decay(group: Mapping[str, Any]) -> float:
    # At a learning rate of 1, because the step multiplies it with the rate of the update.
    weight_decay: float = group["weight_decay"]
    return weight_decay / group["max_lr"] if group["decouple_lr"] else weight_decay


def _carries(param: Tensor, group: Mapping[str, Any]) -> bool:
    return bool(group["kahan"]) and param.dtype in {torch.bfloat16, torch.float16}


def _update_square_sums(
    bucket: Bucket, blocks: Blocks, step: int, group: Mapping[str, Any]
) -> Tensor:
    # With the second moments after this step, but without writing them: the second pass does.
    beta2 = group["betas"][1]
    correction = (1 - beta2**step) / (1 - beta2)
    sums = []
    for index, chunk in enumerate(blocks.cut(bucket.state["exp_avg_sq"].view(blocks.shape))):
        grad, moment = blocks.grad(index), blocks.load(index, chunk, "exp_avg_sq")
        square = torch.mul(grad, grad, out=blocks.buffer(index))
        # The new moment divided by 1 - beta2, and its minimum in the same unit.
        moment = torch.add(
            square, moment, alpha=beta2 / (1 - beta2), out=blocks.buffer(index, "moment")
        )
        moment.clamp_(min=group["eps"] ** 2 * correction)
        sums.append(square.div_(moment).sum(-1))
    return torch.stack(sums).sum(0).mul_(correction)


def _fuses(param: Tensor, group: Mapping[str, Any]) -> bool:
    return (
        param.device.type in FUSED_DEVICES
        # CUDA's kernel takes a learning rate on the device in float32 only.
        and (param.device.type == "cpu" or param.dtype != torch.float64)
        and not _carries(param, group)
        and param.is_contiguous()
        and param.grad is not None
        and param.grad.is_contiguous()
        and param.grad.dtype == param.dtype
    )


def _apply_fused(bucket: Bucket, step: int, group: Mapping[str, Any], rate: Tensor) -> None:
    [param] = bucket.params
    assert param.grad is not None, "a bucket that is updated has gradients"  # noqa: S101 - for the type checker
    adamw(
        [param],
        [param.grad],
        [bucket.state["exp_avg"][0]],
        [bucket.state["exp_avg_sq"][0]],
        [],
        # The kernel adds 1 to it.
        [torch.full((), step - 1.0, device=bucket.device)],
        fused=True,
        amsgrad=False,
        beta1=group["betas"][0],
        beta2=group["betas"][1],
        lr=rate,
        weight_decay=_decay(group),
        eps=group["eps"],
        maximize=False,
    )


def _apply(
    bucket: Bucket,
    blocks: Blocks,
    step: int,
    group: Mapping[str, Any],
    rates: Tensor,
) -> None:
    beta1, beta2 = group["betas"]
    correction = 1 - beta1**step
    root_correction = correction / math.sqrt(1 - beta2**step)
    state = {key: blocks.cut(value.view(blocks.shape)) for key, value in bucket.state.items()}
    rate = blocks.spread(rates)
    for index in range(len(blocks)):
        grad, param = blocks.grad(index), blocks.param(index)
        mean = blocks.load(index, state["exp_avg"][index], "exp_avg").lerp_(grad, 1 - beta1)
        moment = blocks.load(index, state["exp_avg_sq"][index], "exp_avg_sq")
        moment.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        root = torch.sqrt(moment, out=blocks.buffer(index)).mul_(root_correction)
        update = torch.div(mean, root.add_(group["eps"] * correction), out=root).mul_(rate)
        store(state["exp_avg"][index], mean)
        store(state["exp_avg_sq"][index], moment)
        if group["weight_decay"]:
            param.mul_(1.0 - _decay(group) * rate)
        param.sub_(update)
        if "kahan" in state:
            _round(param, state["kahan"][index], bucket.params[0].dtype)
        blocks.put(index)


def _round(param: Tensor, kahan: Tensor, dtype: torch.dtype) -> None:
    exact = param.add_(kahan)
    rounded = exact.to(dtype)
    kahan.copy_(exact - rounded)
    param.copy_(rounded)
