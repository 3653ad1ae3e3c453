"""Every optimizer computes the updates of its reference implementation, with all options."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import pytest
import torch

SGD: dict[str, Any] = {"lr": 0.05, "nesterov": False}
ADAM: dict[str, Any] = {"lr": 1e-2, "betas": [0.9, 0.999], "eps": 1e-8}
ADAMW: dict[str, Any] = {**ADAM, "weight_decay": 0.01}
RECTIFIED: dict[str, Any] = {**ADAM, "weight_decay": 0.0}
ADAN: dict[str, Any] = {
    "lr": 1e-2,
    "betas": [0.98, 0.92, 0.99],
    "eps": 1e-6,
    "weight_decay": 0.02,
}
MUON: dict[str, Any] = {"matrices": ["dense"], "weight_decay": 0.1}
BERT: dict[str, Any] = {**ADAM, "bias_correction": False}
BERT_DECAY: dict[str, Any] = {**BERT, "lr": 1e-3, "weight_decay": 0.01}

CASES: list[tuple[str, str, dict[str, Any]]] = [
    ("sgd", "sgd", {**SGD, "momentum": 0.0}),
    ("sgd_momentum", "sgd", SGD),
    ("sgd_nesterov", "sgd", {"lr": 0.05, "nesterov": True}),
    ("sgd_momentum_damp_wd", "sgd", {**SGD, "dampening": 0.1, "weight_decay": 0.01}),
    ("sgd_fused", "sgd", {**SGD, "implementation": "fused"}),
    ("adam", "adam", ADAM),
    ("adam_l2", "adam", {**ADAM, "weight_decay": 0.1}),
    ("adam_amsgrad", "adam", {**ADAM, "amsgrad": True, "betas": [0.9, 0.9]}),
    ("adamw", "adamw", ADAMW),
    ("adamw_b95_wd1", "adamw", {**ADAM, "betas": [0.9, 0.95], "weight_decay": 0.1}),
    ("adamw_amsgrad", "adamw", {**ADAMW, "amsgrad": True, "betas": [0.9, 0.9]}),
    ("adamw_eps", "adamw", {**ADAMW, "eps": 1e-3}),
    ("adamw_fused", "adamw", {**ADAMW, "implementation": "fused"}),
    ("adamw_foreach", "adamw", {**ADAMW, "implementation": "foreach"}),
    ("adamw", "adamw", {**ADAMW, "implementation": "loop"}),
    ("hf437_adamw_nobias", "adamw", {**BERT, "eps": 1e-6, "weight_decay": 0.0}),
    ("hf437_adamw_nobias_wd_eps", "adamw", BERT_DECAY),
    ("hf437_adamw_nobias_wd_eps", "adamw", {**BERT_DECAY, "implementation": "foreach"}),
    ("hf437_adamw_nobias_wd_eps", "adamw", {**BERT_DECAY, "implementation": "loop"}),
    ("adagrad", "adagrad", {"lr": 0.05}),
    ("adagrad", "adagrad", {"lr": 0.05, "implementation": "loop"}),
    ("rmsprop", "rmsprop", {"lr": 1e-2}),
    ("rmsprop_centered_mom", "rmsprop", {"lr": 1e-2, "centered": True, "momentum": 0.9}),
    ("rmsprop", "rmsprop", {"lr": 1e-2, "implementation": "foreach"}),
    ("radam", "radam", RECTIFIED),
    ("radam", "radam", {**RECTIFIED, "implementation": "foreach"}),
    ("nadam", "nadam", {**ADAM, "weight_decay": 0.0}),
    ("nadam_decoupled", "nadam", {**ADAM, "weight_decay": 0.1}),
    ("nadam_decoupled", "nadam", {**ADAM, "weight_decay": 0.1, "implementation": "foreach"}),
    ("adamax", "adamax", ADAM),
    ("adamax", "adamax", {**ADAM, "implementation": "foreach"}),
    ("optimi_lion", "lion", {"lr": 1e-3, "weight_decay": 0.1}),
    ("timm_lion", "lion", {"lr": 1e-3, "weight_decay": 0.1}),
    ("optimi_adan", "adan", ADAN),
    ("po_came", "came", {"lr": 1e-3, "weight_decay": 0.0}),
    ("po_came", "came", {"lr": 1e-3, "weight_decay": 0.0, "implementation": "foreach"}),
    ("po_lion", "lion", {"lr": 1e-3, "weight_decay": 0.0}),
    ("sf_adamw", "schedule_free_adamw", {**ADAMW, "warmup_steps": 5}),
    ("sf_sgd", "schedule_free_sgd", {"lr": 0.05, "warmup_steps": 5}),
    ("sf_radam", "schedule_free_radam", {**ADAM, "weight_decay": 0.0}),
    ("prodigy", "prodigy", {"betas": [0.9, 0.999]}),
    ("po_soap", "soap", {"lr": 1e-2, "precondition_frequency": 5}),
]
LIBRARIES = {
    "adan": "optimi",
    "came": "pytorch_optimizer",
    "lion": "optimi",
    "schedule_free_adamw": "schedulefree",
    "schedule_free_radam": "schedulefree",
    "schedule_free_sgd": "schedulefree",
    "prodigy": "prodigyopt",
    "soap": "pytorch_optimizer",
}


def needs(library: str | None) -> None:
    """Skip where an optional library is missing."""
    if library is not None and find_spec(library) is None:
        pytest.skip(f"{library} is not installed")


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize(("case", "preset", "changes"), CASES)
def test_trajectory_is_the_references(
    assert_golden: Callable[..., Any],
    case: str,
    preset: str,
    changes: dict[str, Any],
    dtype: str,
) -> None:
    needs(LIBRARIES.get(preset))
    assert_golden(f"{case}/{dtype}", preset, **changes, groups={"no_decay_types": []})


@pytest.mark.parametrize(
    ("case", "preset", "changes"),
    [("adamw", "adamw", ADAMW), ("optimi_lion", "lion", {"lr": 1e-3, "weight_decay": 0.1})],
)
def test_bfloat16_trajectory_is_the_references(
    assert_golden: Callable[..., Any], case: str, preset: str, changes: dict[str, Any]
) -> None:
    needs(LIBRARIES.get(preset))
    assert_golden(f"{case}/bfloat16", preset, **changes, groups={"no_decay_types": []})


MUONS: list[tuple[str, dict[str, Any]]] = [
    ("muon", {"lr": 2e-2}),
    ("muon_rms", {"lr": 1e-3, "adjust_lr": "match_rms_adamw"}),
    (
        "muon_plain",
        {"lr": 2e-2, "nesterov": False, "momentum": 0.9, "weight_decay": 0.0, "ns_steps": 3},
    ),
]


@pytest.mark.parametrize(("case", "changes"), MUONS)
def test_muon_is_torchs(
    assert_golden: Callable[..., Any], case: str, changes: dict[str, Any]
) -> None:
    assert_golden(f"{case}/float32", "muon", **(MUON | changes))


TENSORFLOW: list[tuple[str, dict[str, Any]]] = [
    ("default", {}),
    ("wd_all", {"weight_decay": 0.1}),
    ("wd_exclude", {"weight_decay": 0.1, "groups": {"no_decay": ["bias"]}}),
    (
        "wd_include_beats_exclude",
        {"weight_decay": 0.1, "groups": {"decay": ["bias"], "no_decay": ["bias", "conv"]}},
    ),
    ("clipnorm", {"clip_norm": 0.05}),
    ("clipvalue", {"clip_value": 0.02}),
    ("global_clipnorm", {"global_clip_norm": 0.1}),
    ("clipvalue_and_global", {"global_clip_norm": 0.1, "clip_value": 0.02}),
    ("amsgrad", {"amsgrad": True, "betas": [0.9, 0.9]}),
    ("eps", {"eps": 1e-3, "weight_decay": 0.05}),
    ("decay", {"weight_decay": 0.05}),
]


@pytest.mark.parametrize(("case", "changes"), TENSORFLOW)
def test_adam_weight_decay_is_tensorflows(
    assert_golden: Callable[..., Any], case: str, changes: dict[str, Any]
) -> None:
    groups = {"no_decay_types": []} | changes.get("groups", {})
    values = {"lr": 1e-2, "weight_decay": 0.0} | changes | {"groups": groups}
    # Keras' `decay` is a schedule; here schedules are not the optimizer's.
    schedule = (lambda step: 1e-2 / (1 + 0.1 * step)) if case == "decay" else None
    name = f"tf_adamweightdecay_{case}/float64"
    assert_golden(name, "adam_weight_decay", schedule=schedule, **values)


@pytest.mark.parametrize(
    # torchao compiles a kernel per shape, which takes the better part of a minute.
    "library",
    ["bitsandbytes", pytest.param("torchao", marks=pytest.mark.slow)],
)
def test_small_parameters_of_8bit_adamw_use_32_bits(
    assert_golden: Callable[..., Any], library: str
) -> None:
    needs(library)
    case = {"bitsandbytes": "bnb_adamw32", "torchao": "ao_adamw8"}[library]
    optimizer = assert_golden(
        f"{case}/float32", "adamw_8bit", **ADAMW, library=library, groups={"no_decay_types": []}
    )
    assert isinstance(optimizer, torch.optim.Optimizer)
