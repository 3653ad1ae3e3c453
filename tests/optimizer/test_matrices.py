"""Optimizers that treat matrices as matrices: what they take, and that they are their authors'."""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from launcher.contracts import OptimizerOption, OptimizerTarget
from launcher.errors import ConfigError

Build = Callable[..., OptimizerOption]
DIM, HEADS = 8, 2


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q_proj = nn.Linear(DIM, DIM, bias=False)
        self.k_proj = nn.Linear(DIM, DIM // 2, bias=False)
        self.v_proj = nn.Linear(DIM, DIM)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = Attention()
        self.mlp = nn.Linear(DIM, 3 * DIM, bias=False)
        self.norm = nn.LayerNorm(DIM)
        self.positions = nn.Embedding(4, DIM)
        self.experts = nn.Parameter(torch.randn(2, DIM, DIM))


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(16, DIM)
        self.layers = nn.ModuleList([Block(), Block()])
        self.lm_head = nn.Linear(DIM, 16, bias=False)


def network() -> Network:
    torch.manual_seed(0)
    return Network()


def set_gradients(module: nn.Module, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for param in module.parameters():
        noise = torch.randn(param.shape, generator=generator, dtype=param.dtype)
        param.grad = param.detach() - 0.3 + 0.1 * noise


def run_steps(module: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> list[Tensor]:
    for step in range(steps):
        set_gradients(module, step)
        optimizer.step()
    return [param.detach().clone() for param in module.parameters()]


def names_in(optimizer: torch.optim.Optimizer, module: nn.Module, group: str) -> set[str]:
    taken = {
        id(param)
        for entry in optimizer.param_groups
        if entry["name"].startswith(group)
        for param in entry["params"]
    }
    return {name for name, param in module.named_parameters() if id(param) in taken}


def test_muon_takes_the_matrices_of_numbered_blocks(build_option: Build) -> None:
    module = network()
    optimizer = build_option("muon").build(OptimizerTarget(module, "cpu"))
    assert names_in(optimizer, module, "muon") == {
        f"layers.{i}.{name}.weight"
        for i in (0, 1)
        for name in ("attention.q_proj", "attention.k_proj", "attention.v_proj", "mlp")
    }
    everything = {name for name, _ in module.named_parameters()}
    assert names_in(optimizer, module, "adamw") == everything - names_in(optimizer, module, "muon")


def test_patterns_overrule_what_is_a_hidden_matrix(build_option: Build) -> None:
    module = network()
    option = build_option("muon", matrices=["lm_head"], not_matrices=[r"\.1\.", "mlp"])
    names = names_in(option.build(OptimizerTarget(module, "cpu")), module, "muon")
    assert "lm_head.weight" in names
    assert "layers.0.attention.q_proj.weight" in names
    assert not any(name.startswith("layers.1") or "mlp" in name for name in names)


def test_norms_heads_and_tables_in_numbered_blocks_are_no_hidden_matrices(
    build_option: Build,
) -> None:
    class HeadwiseNorm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4, 8))

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mlp = nn.Linear(8, 8)
            self.q_norm = HeadwiseNorm()
            self.A_log = nn.Parameter(torch.ones(8, 4))
            self.attention = nn.MultiheadAttention(8, 2)

    module = nn.ModuleDict(
        {
            "layers": nn.ModuleList([Block()]),
            "lm_heads": nn.ModuleList([nn.Linear(8, 16, bias=False)]),
        }
    )
    assert names_in(build_option("muon").build(OptimizerTarget(module, "cpu")), module, "muon") == {
        "layers.0.mlp.weight",
        "layers.0.attention.in_proj_weight",
        "layers.0.attention.out_proj.weight",
    }


@pytest.mark.parametrize("key", ["matrices", "not_matrices"])
def test_a_pattern_of_matrices_must_match(build_option: Build, key: str) -> None:
    with pytest.raises(ConfigError, match="'lm_haed' matches no parameter; nearest: lm_head"):
        build_option("muon", **{key: ["lm_haed"]}).build(OptimizerTarget(network(), "cpu"))


@pytest.mark.parametrize(
    ("frozen", "trained"), [("^layers", "adamw"), (r"^(?!layers\.\d\.mlp\.weight)", "muon")]
)
def test_muon_may_be_left_with_one_half(build_option: Build, frozen: str, trained: str) -> None:
    module = network()
    option = build_option("muon", groups={"frozen": [frozen]})
    optimizer = option.build(OptimizerTarget(module, "cpu"))
    names = {name for name, p in module.named_parameters() if re.search(frozen, name) is None}
    assert names_in(optimizer, module, trained) == names
    before = [param.detach().clone() for param in module.parameters()]
    after = run_steps(module, optimizer, 2)
    assert sum(not torch.equal(a, b) for a, b in zip(before, after, strict=True)) == len(names)


def test_a_model_without_blocks_has_no_hidden_matrices(build_option: Build) -> None:
    with pytest.raises(ConfigError, match="no numbered blocks"):
        build_option("muon").build(OptimizerTarget(nn.Linear(2, 2), "cpu"))


def test_the_rest_of_muon_follows_the_schedule_at_its_own_rate(build_option: Build) -> None:
    overrides = [{"pattern": "embed", "lr": 1e-4}]
    option = build_option("muon", lr=0.02, adamw_lr=0.003, groups={"overrides": overrides})
    scales = {
        group["name"].partition(",")[0] if "embed" not in group["name"] else "embed": group
        for group in option.build(OptimizerTarget(network(), "cpu")).param_groups
    }
    assert scales["muon"]["lr_scale"] == 1
    assert scales["adamw"]["lr_scale"] == pytest.approx(0.15)
    assert scales["embed"]["lr_scale"] == pytest.approx(0.005)


def test_muon_survives_its_own_state_dict(build_option: Build) -> None:
    option = build_option("muon")
    one, other = network(), network()
    first, second = (
        option.build(OptimizerTarget(one, "cpu")),
        option.build(OptimizerTarget(other, "cpu")),
    )
    run_steps(one, first, 3)
    # torch hands the tensors on without copying them.
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    other.load_state_dict(one.state_dict())
    for left, right in zip(run_steps(one, first, 2), run_steps(other, second, 2), strict=True):
        assert torch.equal(left, right)


def reference(package: str, build: Callable[[Any], torch.optim.Optimizer]) -> torch.optim.Optimizer:
    if find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return build(pytest.importorskip(package))


def hidden_first(module: nn.Module, **options: Any) -> list[dict[str, Any]]:
    """Groups as the authors' packages want them: matrices with a rank, then the rest."""
    hidden = [
        param
        for name, param in module.named_parameters()
        if param.ndim == 2 and name.startswith("layers") and "positions" not in name
    ]
    rest = [p for p in module.parameters() if not any(p is h for h in hidden)]
    return [{"params": hidden, **options}, {"params": rest}]


def galore_and_its_authors(
    build_option: Build, *, side: str = "std", dtype: torch.dtype = torch.float32
) -> tuple[list[Tensor], list[Tensor]]:
    """Weights after eight steps, of this package and of the authors'."""
    ours, theirs = network().to(dtype), network().to(dtype)
    projected = {"rank": 2, "update_proj_gap": 3, "scale": 0.25, "proj_type": side}
    expected = reference(
        "galore_torch",
        lambda package: package.GaLoreAdamW(
            hidden_first(theirs, **projected),
            lr=1e-2,
            weight_decay=0.1,
            no_deprecation_warning=True,
        ),
    )
    option = build_option(
        "galore",
        rank=2,
        update_every=3,
        side=side,
        weight_decay=0.1,
        groups={"no_decay_types": []},
    )
    return run_steps(ours, option.build(OptimizerTarget(ours, "cpu")), 8), run_steps(
        theirs, expected, 8
    )


@pytest.mark.parametrize("side", ["std", "reverse_std", "left", "right"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_galore_is_its_authors(build_option: Build, side: str, dtype: torch.dtype) -> None:
    left, right = galore_and_its_authors(build_option, side=side, dtype=dtype)
    tolerance = 1e-6 if dtype == torch.float32 else 1e-12
    for a, b in zip(left, right, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance)


def apollo_and_its_authors(
    build_option: Build, *, scaling: str, limited: bool = True, side: str = "std"
) -> tuple[list[Tensor], list[Tensor]]:
    """Weights after eight steps, of this package and of the authors'."""
    ours, theirs = network(), network()
    projected = {
        "rank": 2,
        "update_proj_gap": 3,
        "scale": 4.0,
        "proj_type": side,
        "proj": "svd",
        "scale_type": scaling,
    }
    expected = reference(
        "apollo_torch",
        lambda package: package.APOLLOAdamW(
            hidden_first(theirs, **projected), lr=1e-2, weight_decay=0.1, disable_nl=not limited
        ),
    )
    option = build_option(
        "apollo",
        rank=2,
        update_every=3,
        scale=4.0,
        scaling=scaling,
        side=side,
        projection="svd",
        growth_limit=1.01 if limited else None,
        weight_decay=0.1,
        groups={"no_decay_types": []},
    )
    return run_steps(ours, option.build(OptimizerTarget(ours, "cpu")), 8), run_steps(
        theirs, expected, 8
    )


@pytest.mark.parametrize("scaling", ["channel", "tensor"])
@pytest.mark.parametrize("limited", [True, False])
def test_apollo_is_its_authors(build_option: Build, scaling: str, limited: bool) -> None:
    left, right = apollo_and_its_authors(build_option, scaling=scaling, limited=limited)
    for a, b in zip(left, right, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


@pytest.mark.parametrize("side", ["std", "reverse_std", "left", "right"])
def test_apollo_scales_the_channels_that_its_side_leaves(build_option: Build, side: str) -> None:
    for shape in [(24, 48), (48, 24)]:
        linear = nn.Linear(*shape, bias=False)
        module = nn.ModuleList([linear])
        option = build_option("apollo", side=side, rank=4, growth_limit=None)
        optimizer = option.build(OptimizerTarget(module, "cpu"))
        before = linear.weight.detach().clone()
        grad = linear.weight.grad = torch.randn_like(before)
        optimizer.step()
        update = before - linear.weight.detach()
        rows, columns = before.shape
        right = side == "right" or (side != "left" and (rows >= columns) == (side == "std"))
        # One factor for each row where columns are projected, for each column otherwise.
        dim = int(right)
        factor = (update * grad).sum(dim, keepdim=True) / grad.square().sum(dim, keepdim=True)
        torch.testing.assert_close(update, grad * factor, rtol=1e-4, atol=1e-6)


def test_apollos_random_projection_needs_neither_order_nor_global_seed(
    build_option: Build,
) -> None:
    option = build_option("apollo", rank=2, update_every=2)
    one, other = network(), network()
    torch.manual_seed(1)
    first = run_steps(one, option.build(OptimizerTarget(one, "cpu")), 5)
    torch.manual_seed(2)
    for a, b in zip(
        first, run_steps(other, option.build(OptimizerTarget(other, "cpu")), 5), strict=True
    ):
        assert torch.equal(a, b)


def adam_mini_and_its_authors(
    build_option: Build, *, weight_decay: float = 0.1
) -> tuple[list[Tensor], list[Tensor]]:
    """Weights after eight steps, of this package and of the authors'."""
    # The authors' code has no rule for stacked experts, and takes other unknown matrices whole.
    ours, theirs = network(), network()
    for module in (ours, theirs):
        for block in module.layers:
            del block.experts, block.positions
    expected = reference(
        "adam_mini",
        lambda package: package.Adam_mini(
            theirs.named_parameters(),
            lr=1e-2,
            betas=(0.9, 0.95),
            weight_decay=weight_decay,
            dim=DIM,
            n_heads=HEADS,
            verbose=False,
        ),
    )
    option = build_option("adam_mini", lr=1e-2, weight_decay=weight_decay, head_dim=DIM // HEADS)
    return run_steps(ours, option.build(OptimizerTarget(ours, "cpu")), 8), run_steps(
        theirs, expected, 8
    )


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_adam_mini_is_its_authors(build_option: Build, weight_decay: float) -> None:
    left, right = adam_mini_and_its_authors(build_option, weight_decay=weight_decay)
    for a, b in zip(left, right, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


def test_adam_mini_asks_the_models_config_for_its_heads(build_option: Build) -> None:
    module = network()
    with pytest.raises(ConfigError, match="has no head size"):
        build_option("adam_mini").build(OptimizerTarget(module, "cpu"))

    class Config:
        hidden_size, num_attention_heads = DIM, HEADS

    module.config = Config()  # type: ignore[assignment]
    optimizer = build_option("adam_mini").build(OptimizerTarget(module, "cpu"))
    run_steps(module, optimizer, 1)
    queries = optimizer.state[module.layers[0].attention.q_proj.weight]  # type: ignore[union-attr,index]
    assert queries["exp_avg_sq"].shape == (HEADS,)


def test_adam_mini_refuses_heads_that_do_not_fit(build_option: Build) -> None:
    with pytest.raises(ConfigError, match="3-row heads do not fit"):
        build_option("adam_mini", head_dim=3).build(OptimizerTarget(network(), "cpu"))
