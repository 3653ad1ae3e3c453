from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from typing_extensions import override

from launcher.contracts import PrecisionOption

Build = Callable[..., PrecisionOption]


class Tied(nn.Module):
    """A tiny language model whose head is its embedding, and that reports what it computes with."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(8, 16)
        self.mix = nn.Linear(16, 16)
        self.head = nn.Linear(16, 8, bias=False)
        self.head.weight = self.embed.weight
        self.positions = nn.Buffer(torch.arange(16.0) / 7)
        self.stream: Tensor | None = None

    @override
    def forward(self, ids: Tensor) -> Tensor:
        assert self.head.weight is self.embed.weight
        self.stream = self.embed(ids)
        logits: Tensor = self.head(self.mix(self.stream + self.positions))
        return logits


@pytest.mark.parametrize(
    ("full_eval", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
@pytest.mark.parametrize("preset", ["fp32", "bf16", "fp16"])
def test_an_evaluation_is_in_sixteen_bits_and_leaves_no_trace(
    build_option: Build, preset: str, full_eval: str, dtype: torch.dtype
) -> None:
    precision = build_option(preset, full_eval=full_eval).build("cpu")
    module = Tied()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    params = list(module.parameters())
    with torch.no_grad(), precision.evaluation(module):
        out = module(torch.arange(8))
    assert module.stream is not None
    assert module.stream.dtype == out.dtype == dtype
    assert all(a is b for a, b in zip(params, module.parameters(), strict=True))
    assert module.head.weight is module.embed.weight
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_the_weights_come_back_after_an_error(build_option: Build) -> None:
    precision = build_option("bf16_full_eval").build("cpu")
    module = Tied()
    with pytest.raises(IndexError), precision.evaluation(module):
        module(torch.tensor([99]))
    assert module.mix.weight.dtype == torch.float32


@pytest.mark.parametrize("preset", ["fp32", "bf16"])
def test_without_it_an_evaluation_is_as_training(build_option: Build, preset: str) -> None:
    precision = build_option(preset).build("cpu")
    module = Tied()
    with torch.no_grad(), precision.evaluation(module):
        evaluated = module(torch.arange(8))
    with torch.no_grad(), precision.autocast():
        trained = module(torch.arange(8))
    assert torch.equal(evaluated, trained)
    assert module.stream is not None
    assert module.stream.dtype == torch.float32
