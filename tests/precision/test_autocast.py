from collections.abc import Callable

import pytest
import torch
from torch import nn

from launcher.contracts import PrecisionOption

Build = Callable[..., PrecisionOption]


@pytest.mark.parametrize(
    ("preset", "computed"),
    [
        ("fp32", torch.float32),
        ("bf16", torch.bfloat16),
        ("fp16", torch.float16),
        ("bf16_full_eval", torch.bfloat16),
        ("fp16_full_eval", torch.float16),
    ],
)
def test_products_are_in_the_format_and_weights_and_gradients_in_float32(
    build_option: Build, preset: str, computed: torch.dtype
) -> None:
    precision = build_option(preset).build("cpu")
    layer = nn.Linear(4, 4, dtype=torch.float64)
    precision.prepare(layer)
    with precision.autocast():
        out = layer(torch.ones(2, 4))
    out.float().sum().backward()
    assert out.dtype == computed
    assert layer.weight.dtype == precision.param_dtype == torch.float32
    assert layer.weight.grad is not None
    assert layer.weight.grad.dtype == torch.float32


def test_buffers_keep_their_format(build_option: Build) -> None:
    layer = nn.BatchNorm1d(4, dtype=torch.float64)
    build_option("bf16_pure").build("cpu").prepare(layer)
    assert layer.weight.dtype == torch.bfloat16
    assert layer.running_mean is not None
    assert layer.running_mean.dtype == torch.float64
    assert layer.num_batches_tracked is not None
    assert layer.num_batches_tracked.dtype == torch.int64


def test_fp32_has_no_shortcut_on_any_device(build_option: Build) -> None:
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    build_option("fp32").build("cpu")
    assert torch.get_float32_matmul_precision() == "highest"
    assert not torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize("preset", ["fp32", "bf16", "bf16_full_eval"])
def test_formats_without_memory_have_no_state(build_option: Build, preset: str) -> None:
    precision = build_option(preset).build("cpu")
    assert precision.loss_scale is None
    assert precision.state() == {}
    precision.load_state({})
    with pytest.raises(KeyError, match="odd"):
        precision.load_state({"odd": torch.zeros(())})
