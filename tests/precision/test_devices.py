from collections.abc import Callable

import pytest
import torch

from launcher import registry
from launcher.contracts import PrecisionOption
from launcher.errors import LaunchError
from launcher.precision._options import require_cuda

Build = Callable[..., PrecisionOption]


def test_tf32_is_refused_without_cuda(build_option: Build) -> None:
    with pytest.raises(LaunchError, match=r"tf32 needs a CUDA device.*this is cpu.*precision=fp32"):
        build_option("tf32").build("cpu")


@pytest.mark.parametrize(("kind", "instead"), [("tf32", "fp32"), ("fp8", "bf16")])
def test_unsupported_device_is_refused_with_advice(
    build_option: Build, kind: str, instead: str
) -> None:
    option = build_option(kind)
    assert option.unsupported_on("cuda") == {}
    assert option.unsupported_on("cpu") == {"kind": f"{kind} needs cuda; write precision={instead}"}


@pytest.mark.parametrize("kind", registry.kinds("precision"))
def test_what_a_kind_says_of_devices_is_what_it_does(build_option: Build, kind: str) -> None:
    option = build_option(kind)
    assert option.devices <= {"cpu", "cuda", "mps"}
    if "cpu" in option.devices:
        option.preflight()
        option.build("cpu")


@pytest.mark.parametrize(("preset", "format_"), [("bf16", "bf16"), ("fp16", "fp16")])
def test_a_cpu_that_emulates_a_format_is_said_to(
    build_option: Build, caplog: pytest.LogCaptureFixture, preset: str, format_: str
) -> None:
    native = getattr(torch.ops.mkldnn, f"_is_mkldnn_{format_}_supported")()
    build_option(preset).build("cpu")
    assert (f"no instructions for {format_}" in caplog.text) == (not native)


@pytest.mark.gpu
def test_tf32_multiplies_in_tf32_and_fp32_does_not(build_option: Build) -> None:
    a = torch.full((64, 64), 1 + 2**-12, device="cuda")
    build_option("fp32").build("cuda")
    exact = a @ a
    build_option("tf32").build("cuda")
    assert not torch.equal(a @ a, exact)


@pytest.mark.gpu
def test_an_old_device_is_refused() -> None:
    with pytest.raises(LaunchError, match=r"99\.0 or newer.*precision=bf16"):
        require_cuda("fp8", "cuda", (99, 0), "bf16")
