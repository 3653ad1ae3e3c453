"""Shards describe what a rank holds of a whole tensor."""

from __future__ import annotations

import math

import pytest
import torch

from launcher.contracts import UNSHARDED, Box, Shard

SHAPES = [(), (7,), (4, 5), (1, 6), (3, 4, 5), (2, 1, 3, 2)]


@pytest.mark.parametrize("shape", SHAPES)
def test_every_flat_range_holds_its_elements_in_order(shape: tuple[int, ...]) -> None:
    size = math.prod(shape)
    whole = torch.arange(size).reshape(shape)
    for start in range(size + 1):
        for stop in range(start, size + 1):
            shard = Shard.flat_range("weight", shape, start, stop - start)
            local = torch.empty(stop - start, dtype=torch.int64)
            shard.scatter(whole, local)
            assert local.tolist() == list(range(start, stop))
            assert shard.numel == stop - start
            assert shard.is_whole == (stop - start == size)
            assert len(shard.boxes) <= max(1, 2 * len(shape) - 1)


@pytest.mark.parametrize("shape", SHAPES[1:])
def test_slices_are_what_indexing_gives(shape: tuple[int, ...]) -> None:
    whole = torch.arange(math.prod(shape)).reshape(shape)
    for dim, length in enumerate(shape):
        for start in range(length + 1):
            for stop in range(start, length + 1):
                shard = Shard.slice_of("weight", shape, dim, start, stop)
                expected = whole.narrow(dim, start, stop - start)
                local = torch.empty_like(expected).contiguous()
                shard.scatter(whole, local)
                assert torch.equal(local, expected)


def test_gathered_shards_make_the_whole_tensor() -> None:
    whole = torch.arange(60).reshape(3, 4, 5)
    made = torch.full_like(whole, -1)
    for start, stop in ((0, 7), (7, 7), (7, 41), (41, 60)):
        shard = Shard.flat_range("weight", whole.shape, start, stop - start)
        shard.gather(whole.reshape(-1)[start:stop], made)
    assert torch.equal(made, whole)


def test_parts_are_views_of_a_contiguous_tensor() -> None:
    local = torch.zeros(6)
    shard = Shard.flat_range("weight", (3, 4), 2, 6)
    for number, (_, part) in enumerate(shard.parts(local), 1):
        part.fill_(number)
    assert local.tolist() == [1, 1, 2, 2, 2, 2]
    assert shard.boxes == (Box((0, 2), (1, 2)), Box((1, 0), (1, 4)))


def test_an_unsharded_tensor_is_whole() -> None:
    assert UNSHARDED.ranks == 1
    assert UNSHARDED.shard_of(torch.zeros(2, 3)).is_whole
