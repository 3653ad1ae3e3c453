import torch
from torch import nn

from launcher.precision.bf16 import Bf16
from launcher.precision.fp32 import Fp32


def test_fp32_computes_in_fp32() -> None:
    precision = Fp32(kind="fp32", full_eval=None).build("cpu")
    layer = nn.Linear(4, 4, dtype=precision.param_dtype)
    with precision.autocast():
        out = layer(torch.ones(2, 4))
    assert out.dtype == torch.float32


def test_bf16_computes_products_in_bf16_and_keeps_fp32_weights_and_gradients() -> None:
    precision = Bf16(kind="bf16", full_eval=None).build("cpu")
    layer = nn.Linear(4, 4, dtype=precision.param_dtype)
    with precision.autocast():
        out = layer(torch.ones(2, 4))
    out.float().sum().backward()
    assert out.dtype == torch.bfloat16
    assert layer.weight.dtype == torch.float32
    assert layer.weight.grad is not None
    assert layer.weight.grad.dtype == torch.float32
