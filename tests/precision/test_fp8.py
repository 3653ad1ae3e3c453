"""The products themselves need hardware; which layers are replaced does not."""

from collections.abc import Callable
from importlib.util import find_spec

import pytest
import torch
from torch import nn

from launcher.contracts import PrecisionOption
from launcher.errors import ConfigError, LaunchError

Build = Callable[..., PrecisionOption]

needs_torchao = pytest.mark.skipif(
    find_spec("torchao") is None, reason="torchao is an extra: pip install 'trainctl[fp8]'"
)


def network() -> nn.Module:
    module = nn.Module()
    module.body = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 20))
    module.lm_head = nn.Linear(32, 64)
    return module


@pytest.mark.skipif(find_spec("torchao") is not None, reason="torchao is installed")
def test_without_torchao_the_extra_is_named(build_option: Build) -> None:
    with pytest.raises(ConfigError, match=r"pip install 'trainctl\[fp8\]'"):
        build_option("fp8").preflight()


def test_refused_without_cuda(build_option: Build) -> None:
    with pytest.raises(LaunchError, match=r"compute capability 8\.9 or newer, this is cpu"):
        build_option("fp8").build("cpu")
    with pytest.raises(LaunchError, match=r"compute capability 9\.0"):
        build_option("fp8", recipe="rowwise").build("cpu")


@needs_torchao
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("recipe", ["tensorwise", "rowwise", "rowwise_with_gw_hp"])
def test_only_layers_that_fit_are_replaced_and_parameters_stay(recipe: str) -> None:
    from launcher.precision._autocast import Float8

    module = network()
    before = dict(module.named_parameters())
    Float8("cpu", recipe, ["lm_head"]).prepare(module)
    kinds = {name: type(part).__name__ for name, part in module.named_modules() if name}
    assert kinds["body.0"] == "Float8Linear"
    assert kinds["body.2"] == "Linear"  # 20 is no multiple of 16
    assert kinds["lm_head"] == "Linear"
    after = dict(module.named_parameters())
    assert after.keys() == before.keys()
    assert all(after[name] is before[name] for name in after)
    assert {param.dtype for param in after.values()} == {torch.float32}


@needs_torchao
@pytest.mark.filterwarnings("ignore")
def test_float8_products_are_near_those_of_bf16() -> None:
    from launcher.precision._autocast import Float8

    precision = Float8("cpu", "tensorwise", [])
    module = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32))
    inputs = torch.randn(16, 64)
    exact = module(inputs)
    precision.prepare(module)
    with precision.autocast():
        out = module(inputs)
    out.float().square().mean().backward()
    weight = module[0].weight
    assert isinstance(weight, nn.Parameter)
    assert out.dtype == torch.bfloat16
    assert weight.grad is not None
    assert weight.grad.dtype == torch.float32
    error = (out.float() - exact).norm() / exact.norm()
    assert 0.005 < error < 0.1  # eight bits: neither exact nor noise


@needs_torchao
@pytest.mark.parametrize(
    ("skip", "message"),
    [(["nothing"], "precision.skip.*matches no linear layer"), (["."], "finds no linear layer")],
)
def test_patterns_must_fit(skip: list[str], message: str) -> None:
    from launcher.precision._autocast import Float8

    with pytest.raises(ConfigError, match=message):
        Float8("cpu", "tensorwise", skip).prepare(network())
