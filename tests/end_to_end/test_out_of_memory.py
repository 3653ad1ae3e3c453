"""Out of memory on the CPU: an error with its own exit status, and no traceback."""

from __future__ import annotations

import resource
import sys

import pytest

from tests.conftest import Console, toy_words

LIMIT_BYTES = 3 * 2**30


def test_a_model_that_does_not_fit(trainctl: Console) -> None:
    _, err = trainctl.toy("model.width=10000000000000", status=11)
    assert "before the first step: out of memory; choose a smaller model" in err
    assert "Traceback" not in err


@pytest.mark.skipif(sys.platform != "linux", reason="prlimit is Linux's")
def test_a_step_that_does_not_fit(trainctl: Console) -> None:
    """A gigabyte and a half for the output of each layer; the model takes a fifth of one."""
    words = ["accumulation.micro_batch_size=80", "accumulation.samples_per_step=80"]
    process = trainctl.start("run", *toy_words("model.width=400000", "data.documents=90", *words))
    resource.prlimit(process.pid, resource.RLIMIT_DATA, (LIMIT_BYTES, LIMIT_BYTES))
    _, err = process.communicate()
    assert process.returncode == 11, err
    assert "step 1: out of memory; lower accumulation.micro_batch_size" in err
    assert "accumulation=auto" in err
    assert "Traceback" not in err
