"""torch._dynamo is loaded by what compiles, and by nothing that only trains."""

from __future__ import annotations

import subprocess
import sys

_TRAINS = """
import sys
from launcher.launch._lazy_dynamo import import_torch

import_torch()
import torch

weight = torch.nn.Parameter(torch.ones(3))
optimizer = torch.optim.AdamW([weight], lr=0.1)
weight.grad = torch.ones(3)
optimizer.step()
optimizer.zero_grad()
optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(2))]})
optimizer.load_state_dict(optimizer.state_dict())
import inspect
inspect.getmodule(AssertionError)  # reads every module's file name
assert "sympy" not in sys.modules
"""

_COMPILES = """
kept_out = torch.optim.Optimizer.add_param_group.__wrapped__
assert kept_out.__dynamo_disable is kept_out
seen = []

def backend(graph, inputs):
    seen.append(graph)
    return graph.forward

@torch.compiler.disable
def plain(x):
    return x * 3

@torch.compile(backend=backend)
def compiled(x):
    return plain(x * 2) + 1

assert compiled(torch.ones(2)).tolist() == [7.0, 7.0]
assert len(seen) == 2  # split around what must not be compiled
assert all("3" not in graph.code for graph in seen), [graph.code for graph in seen]
assert not hasattr(kept_out, "__dynamo_disable")
optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(2))]})
assert kept_out.__dynamo_disable is not kept_out
assert type(sys.modules["torch._dynamo"]) is type(sys)
"""

_SUBMODULE = """
import sys
from launcher.launch._lazy_dynamo import import_torch

import_torch()
import torch._dynamo.config

assert torch._dynamo.config.recompile_limit > 0
assert torch._dynamo.is_compiling() is False
before = sys.modules["torch._dynamo"]
import_torch()
assert sys.modules["torch._dynamo"] is before
"""


def _python(program: str) -> None:
    subprocess.run([sys.executable, "-c", program], check=True, timeout=300)


def test_training_does_not_load_it_and_compiling_does() -> None:
    _python(_TRAINS + _COMPILES)


def test_its_submodules_can_be_imported_first() -> None:
    _python(_SUBMODULE)
