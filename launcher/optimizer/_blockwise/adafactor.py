"""Adafactor with the reference's trajectory, a fraction of its traffic, and no transient memory."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from launcher.contracts import UNSHARDED, Sharding
from launcher.optimizer._blockwise.adafactor_passes import (
    Moments,
    apply_update,
    fold_squares,
    param_square_sums,
    row_column_sums,
    scaled_square_sums,
    update_factors,
)
from launcher.optimizer._blockwise.adafactor_shards import MatrixShard
from launcher.optimizer._blockwise.adafactor_small import SmallTensors
from launcher.optimizer._blockwise.blocks import Blocks, Scratch, blocks_of, compute_dtype
from launcher.optimizer._blockwise.buckets import SMALL_ELEMENTS, Bucket
from launcher.optimizer._blockwise.per_tensor import PerTensor, Shapes, Sums
from launcher.optimizer.adafactor import relative_step


class AdafactorOptimizer(PerTensor):
    """Adafactor over buckets and blocks; options are those of the kind `adafactor`."""

    # Shazeer & Stern 2018, arXiv:1804.04235, algorithms 4 to 6; where the paper is silent, as
    # `transformers.optimization.Adafactor` does it.

    # Three passes over the gradient: for the means of rows and columns, for the size of the update
    # (which clips it), to apply it. The first two end in sums that other ranks may complete.

    # Means of rows and columns are small: every rank keeps those of the whole tensor.
    whole_state = PerTensor.whole_state | {"exp_avg_sq_row", "exp_avg_sq_col"}

    def __init__(
        self,
        params: Iterable[Any],
        *,
        lr: float | None,
        eps: tuple[float, float],
        clip_threshold: float,
        decay_rate: float,
        beta1: float | None,
        weight_decay: float,
        scale_parameter: bool,
        relative_step: bool,
        warmup_init: bool,
        sharding: Sharding = UNSHARDED,
        small_elements: int = SMALL_ELEMENTS,
        block_elements: int | None = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "eps": eps,
            "clip_threshold": clip_threshold,
            "decay_rate": decay_rate,
            "beta1": beta1,
            "weight_decay": weight_decay,
            "scale_parameter": scale_parameter,
            "relative_step": relative_step,
            "warmup_init": warmup_init,
        }
        super().__init__(
            params,
            defaults,
            sharding=sharding,
            small_elements=small_elements,
            block_elements=block_elements,
        )

    def internal_lr(self) -> list[Tensor | None]:
        """Return the last learning rate of each group's first parameter, shape (); None before."""
        # Transformers' `AdafactorSchedule` reports the same.
        found = []
        for group in self.param_groups:
            param = group["params"][0]
            rate = self._first_rates.get(id(param))
            found.append(None if rate is None else torch.as_tensor(rate, device=param.device))
        return found

    @override
    def _reset_buckets(self) -> None:
        super()._reset_buckets()
        self._first_rates: dict[int, Tensor | float] = {}
        self._together: dict[int, tuple[int, SmallTensors | None]] = {}

    @override
    def _step_together(self, group: Mapping[str, Any], buckets: list[Bucket]) -> Sequence[Bucket]:
        if not buckets:
            return buckets
        first = group["params"][0]
        known, small = self._together.get(id(first), (0, None))
        # A parameter with its first gradient made another bucket.
        if known != len(buckets):
            small = SmallTensors.of(buckets, group)
            if small is not None:
                buckets[:] = [*small.buckets, *small.others]
                self._show(small.buckets)
            self._together[id(first)] = (len(buckets), small)
        if small is None:
            return buckets
        grads, step = small.gradients(), small.next_step()
        if grads is None or step is None:
            return buckets
        lr = self._relative_lr(step, group)
        rates = small.update(grads, step, lr, group)
        place = small.places.get(id(first))
        if place is not None:
            self._first_rates[id(first)] = lr if rates is None else rates[place].clone()
        return small.others

    @override
    def _layout(self, param: Tensor, group: Mapping[str, Any]) -> dict[str, Tensor]:
        # In float32 for 16-bit parameters too: means of squares have few digits to spare.
        shape = self._whole_shape(param)
        like = torch.empty(param.shape, dtype=compute_dtype(param), device="meta")
        mean = {"exp_avg": like} if group["beta1"] is not None else {}
        if len(shape) < 2:
            return {"exp_avg_sq": like, **mean}
        return {
            "exp_avg_sq_row": like.new_empty(shape[:-1]),
            "exp_avg_sq_col": like.new_empty(shape[:-2] + shape[-1:]),
            **mean,
        }

    @override
    def _sums(self, shape: tuple[int, ...]) -> Sequence[Shapes]:
        if len(shape) < 2:
            return [{"params": (), "updates": ()}]
        rows_and_columns = {"rows": shape[:-1], "columns": shape[:-2] + shape[-1:]}
        return [{**rows_and_columns, "params": ()}, {"updates": ()}]

    @override
    def _update(
        self, bucket: Bucket, step: int, group: Mapping[str, Any], scratch: Scratch
    ) -> Iterator[Sums]:
        shard = bucket.shard
        keep = 1.0 - step ** group["decay_rate"]
        lr = self._relative_lr(step, group)
        # A flat range may begin in the middle of a row: it cannot be viewed as one matrix.
        if shard is not None and len(shard.shape) > 1:
            limit = self._block_elements(bucket.device)
            matrix = MatrixShard(bucket, shard, scratch, limit)
            yield from self._factored_shard(matrix, bucket, keep, group, lr)
            return
        is_vector = shard is not None or len(bucket.shape) < 2
        if is_vector:
            view_shape: tuple[int, ...] = (bucket.num_params, bucket.numel)
        else:
            matrices = bucket.num_params * math.prod(bucket.shape[:-2])
            view_shape = (matrices, *bucket.shape[-2:])
        blocks = blocks_of(bucket.params, view_shape, scratch, self._block_elements(bucket.device))
        update = self._elementwise if is_vector else self._factored
        yield from update(bucket, blocks, keep, group, lr)

    def _elementwise(
        self, bucket: Bucket, blocks: Blocks, keep: float, group: Mapping[str, Any], lr: float
    ) -> Iterator[Sums]:
        # Vectors have no rows and columns: their second moment is kept per element.
        moment = bucket.state["exp_avg_sq"].view(blocks.shape)
        sums = {
            "updates": fold_squares(blocks, moment, keep=keep, eps=group["eps"][0]),
            **self._param_sums(bucket, blocks, group),
        }
        yield sums

        rate, clipped = self._rates(bucket, sums, group, lr)
        scale = blocks.spread(clipped)
        factors = (
            torch.rsqrt(chunk, out=blocks.buffer(index)).mul_(scale)
            for index, chunk in enumerate(blocks.cut(moment))
        )
        apply_update(blocks, factors, **self._rest(bucket, blocks, group, rate))

    def _factored(
        self, bucket: Bucket, blocks: Blocks, keep: float, group: Mapping[str, Any], lr: float
    ) -> Iterator[Sums]:
        num_rows, num_columns = bucket.shape[-2:]
        eps = group["eps"][0]
        # Span by span: tiny matrices have about as many rows and columns as elements.
        moments = Moments.of(blocks, bucket.state["exp_avg_sq_row"], bucket.state["exp_avg_sq_col"])
        for moment in moments:
            rows, columns = row_column_sums(blocks, moment.span)
            # The second moment of an element is row × column / mean of rows (algorithm 4).
            moment.row.mul_(keep).add_(rows.div_(num_columns).add_(eps), alpha=1.0 - keep)
            moment.column.mul_(keep).add_(columns.div_(num_rows).add_(eps), alpha=1.0 - keep)
            moment.mean = moment.row.sum(-1, keepdim=True).div_(num_rows)

        # Backwards: the last span of the first pass is still in the cache.
        squares = [
            scaled_square_sums(blocks, moment.span, *moment.scales())
            .view(bucket.num_params, -1)
            .sum(-1)
            for moment in reversed(moments)
        ]
        sums = {
            "updates": torch.stack(squares).sum(0),
            **self._param_sums(bucket, blocks, group),
        }
        yield sums

        rate, clipped = self._rates(bucket, sums, group, lr)
        factors = update_factors(blocks, moments, blocks.spread(clipped))
        apply_update(blocks, factors, **self._rest(bucket, blocks, group, rate))

    def _factored_shard(
        self,
        matrix: MatrixShard,
        bucket: Bucket,
        keep: float,
        group: Mapping[str, Any],
        lr: float,
    ) -> Iterator[Sums]:
        sums = matrix.gradient_sums()
        if group["scale_parameter"]:
            sums["params"] = matrix.param_square_sums()
        yield sums

        matrix.update_moments(sums, keep=keep, eps=group["eps"][0])
        sums["updates"] = matrix.update_square_sums()
        yield {"updates": sums["updates"]}

        rate, clipped = self._rates(bucket, sums, group, lr)
        decays = group["weight_decay"] != 0
        decay = 1.0 - group["weight_decay"] * rate if decays else None
        matrix.apply(clipped, beta1=group["beta1"], decay=decay)

    @staticmethod
    def _relative_lr(step: int, group: Mapping[str, Any]) -> float:
        lr: float | None = group["lr"]
        if lr is None or group["relative_step"]:
            own = relative_step(step, warmup_init=group["warmup_init"])
            lr = own * float(group.get("lr_scale", 1.0))
        return lr

    @staticmethod
    def _param_sums(bucket: Bucket, blocks: Blocks, group: Mapping[str, Any]) -> dict[str, Tensor]:
        if not group["scale_parameter"]:
            return {}
        return {"params": param_square_sums(blocks, bucket.num_params)}

    def _rates(
        self, bucket: Bucket, sums: Sums, group: Mapping[str, Any], lr: float
    ) -> tuple[Tensor, Tensor]:
        # Rates of the decay, and of the unclipped update; each of shape (N,).
        numel = bucket.whole_numel
        if group["scale_parameter"]:
            rate = (sums["params"] / numel).sqrt_().clamp_(min=group["eps"][1]).mul_(lr)
        else:
            rate = torch.full_like(sums["updates"], lr)
        if bucket.params[0] is group["params"][0]:
            self._first_rates[id(bucket.params[0])] = rate[0]
        size = (sums["updates"] / numel).sqrt_()
        return rate, rate / size.div_(group["clip_threshold"]).clamp_(min=1.0)

    @staticmethod
    def _rest(
        bucket: Bucket, blocks: Blocks, group: Mapping[str, Any], rate: Tensor
    ) -> dict[str, Any]:
        mean = bucket.state.get("exp_avg")
        decays = group["weight_decay"] != 0
        return {
            "mean": None if mean is None else mean.view(blocks.shape),
            "beta1": group["beta1"],
            "decay": blocks.spread(1.0 - group["weight_decay"] * rate) if decays else None,
        }
