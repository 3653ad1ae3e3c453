import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing import event_accumulator, plugin_event_accumulator
from tensorboard.plugins.hparams import plugin_data_pb2

from launcher.contracts import LogContext
from launcher.logging._tensorboard import EventFile


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    read = event_accumulator.EventAccumulator(str(folder))
    read.Reload()
    return {
        tag: [(event.step, event.value) for event in read.Scalars(tag)]
        for tag in read.Tags()["scalars"]
    }


def test_tensorboard_reads_what_was_written(context: LogContext) -> None:
    sink = EventFile(context)
    sink.write({"step": 1, "loss": 2.5, "lr": 0.25, "grad_norm": None})
    sink.write({"step": 300, "loss": 1.5, "tokens": 2**40, "eval_loss": 1.75})
    sink.close()
    assert scalars(context.run_dir.tensorboard) == {
        "train/loss": [(1, 2.5), (300, 1.5)],
        "train/lr": [(1, 0.25)],
        "train/tokens": [(300, 2.0**40)],
        "eval/loss": [(300, 1.75)],
    }


def test_rows_are_in_the_file_before_it_is_closed(context: LogContext) -> None:
    sink = EventFile(context)
    sink.write({"step": 1, "loss": 2.5})
    assert scalars(context.run_dir.tensorboard) == {"train/loss": [(1, 2.5)]}
    sink.close()


def test_no_file_before_the_first_row(context: LogContext) -> None:
    EventFile(context).close()
    assert not context.run_dir.tensorboard.exists()


def test_numbers_beyond_float32_are_left_out(context: LogContext) -> None:
    sink = EventFile(context)
    sink.write({"step": 1, "eval_perplexity": 1e40, "loss": 3.4e38})
    sink.close()
    assert set(scalars(context.run_dir.tensorboard)) == {"train/loss"}


@pytest.mark.parametrize("torn", [b"", b"\x20\x00\x00"])
def test_a_resumed_run_shows_no_step_twice(context: LogContext, torn: bytes) -> None:
    folder = context.run_dir.tensorboard
    first = EventFile(context)
    for step in (1, 2, 3, 4):
        first.write({"step": step, "loss": 10.0 + step})
    first.close()
    with next(folder.iterdir()).open("ab") as file:
        file.write(torn)
    second = EventFile(dataclasses.replace(context, start_step=2))
    second.write({"step": 4, "loss": 24.0})
    second.close()
    expected = [(1, 11.0), (2, 12.0), (4, 24.0)]
    assert scalars(folder) == {"train/loss": expected}
    # The accumulator that the TensorBoard program itself uses.
    shown = plugin_event_accumulator.EventAccumulator(str(folder))
    shown.Reload()
    assert [event.step for event in shown.Tensors("train/loss")] == [1, 2, 4]


def test_files_sort_in_the_order_of_their_making(context: LogContext) -> None:
    for _ in range(3):
        sink = EventFile(context)
        sink.write({"step": 1, "loss": 1.0})
        sink.close()
    names = sorted(path.name for path in context.run_dir.tensorboard.iterdir())
    stamps = [int(name.split(".")[3]) for name in names]
    assert stamps == [stamps[0], stamps[0] + 1, stamps[0] + 2]


def test_the_config_is_shown_as_text_and_as_hyperparameters(context: LogContext) -> None:
    config = {"seed": 0, "optimizer": {"lr": 1e-3, "betas": [0.9, 0.95], "fused": None}}
    sink = EventFile(dataclasses.replace(context, config=config))
    sink.write({"step": 1, "loss": 2.5})
    sink.close()
    read = plugin_event_accumulator.EventAccumulator(str(context.run_dir.tensorboard))
    read.Reload()
    [shown] = read.Tensors("config/text_summary")
    text = shown.tensor_proto.string_val[0].decode()
    assert json.loads("\n".join(line[4:] for line in text.splitlines())) == config
    content = read.PluginTagToContent("hparams")["_hparams_/session_start_info"]
    found = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info.hparams
    assert found["optimizer.lr"].number_value == 1e-3
    assert found["optimizer.betas"].string_value == "[0.9, 0.95]"
    assert found["optimizer.fused"].string_value == "null"


def test_the_first_step_does_not_wait_for_tensorboard() -> None:
    program = (
        "import sys, torch\n"
        "import launcher.training.runner, launcher.logging.standard\n"
        "import launcher.logging._tensorboard\n"
        "print('tensorboard' in sys.modules or 'google.protobuf' in sys.modules)"
    )
    command = [sys.executable, "-c", program]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout == "False\n"
