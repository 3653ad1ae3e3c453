"""Every leaf of data, model and task has an effect, as in `test_effects.py`."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from launcher.contracts import (
    DataOption,
    Head,
    ModelOption,
    Records,
    TaskOption,
)
from launcher.model import build_module
from tests.contract.witness import (
    CHECK,
    Hint,
    option_of,
    preset,
    presets,
    replaced,
    without_witness,
)
from tests.tables import save_to_disk
from tests.toy.shared import Rows


def records(data: DataOption) -> Any:
    """The texts of both splits."""
    splits = data.build()

    def texts(split: Records) -> list[Any]:
        return [split.record(index) for index in range(len(split))]

    return texts(splits.train), texts(splits.validation)


def test_every_leaf_changes_the_text(tmp_path: Path) -> None:
    for place in range(12):
        lines = [f"{place} {line} {'abc' * place}" for line in range(30)]
        (tmp_path / f"{place}.txt").write_text("\n".join(lines))
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n' * 9)
    (tmp_path / "broken.txt").write_bytes(b"\xff\xfe\xff")
    good, bad = str(tmp_path / "[0-9]*.txt"), str(tmp_path / "broken.txt")
    hints = {
        "files": Hint((str(tmp_path / "[0-5].txt"),)),
        "validation_files": Hint((str(tmp_path / "3.txt"),)),
        "validation_fraction": Hint((0.5,)),
        "on_error": Hint(observe=CHECK, where={"files": [good, bad]}),
        "allow_structured": Hint(
            observe=CHECK, where={"files": [good, str(tmp_path / "rows.jsonl")]}
        ),
    }
    values = replaced(preset("data", "text"), {"files": good})
    observe = {"": records, CHECK: records}
    assert without_witness(partial(option_of, "data"), values, observe, hints) == []


def test_every_leaf_changes_the_standard_library() -> None:
    hints = {"validation_fraction": Hint((0.5,))}
    found = without_witness(
        partial(option_of, "data"), preset("data", "stdlib"), {"": records}, hints
    )
    assert found == []


@pytest.mark.parametrize("name", ["stdlib_snippets", "stdlib_docstrings"])
def test_every_leaf_changes_the_built_in_set(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Parsing all of the library for each value would take a minute.
    few = ["bisect.py", "heapq.py", "shlex.py", "textwrap.py"]
    monkeypatch.setattr("launcher.data.stdlib_docstrings.names", lambda _: few)
    hints = {"validation_fraction": Hint((0.5,)), "lines": Hint((40,)), "longest": Hint((1000,))}
    values = preset("data", name)
    size = {"lines": 60} if "lines" in values else {"longest": 60}
    values = replaced(values, {**size, "validation_fraction": 0.3})
    assert without_witness(partial(option_of, "data"), values, {"": records}, hints) == []


@pytest.mark.parametrize("name", ["csv", "jsonl", "parquet", "tsv"])
def test_every_leaf_changes_the_records(name: str, tmp_path: Path) -> None:
    rows = [{"text": f"a,b {i}", "label": f"c{i % 3}"} for i in range(60)]
    values = preset("data", name)
    for file, chosen in {"a": rows, "b": rows[:20], "c": rows[40:]}.items():
        write_rows(tmp_path / file, values, chosen)
    (tmp_path / "broken").write_bytes(b"\xff\xfe\xff")
    good = str(tmp_path / "a")
    hints = {
        "files": Hint((str(tmp_path / "b"),)),
        "validation_files": Hint((str(tmp_path / "c"),)),
        "validation_fraction": Hint((0.5,)),
        "delimiter": Hint((";",), observe=CHECK),
        "columns": Hint((["x", "y"],)),
        "on_error": Hint(observe=CHECK, where={"files": [good, str(tmp_path / "broken")]}),
    }
    make = partial(option_of, "data")
    observe = {"": records, CHECK: records}
    assert without_witness(make, replaced(values, {"files": good}), observe, hints) == []


def write_rows(path: Path, values: Mapping[str, Any], rows: list[dict[str, str]]) -> None:
    """Write rows as a preset reads them."""
    if values["kind"] == "parquet":
        parquet = pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pytest.importorskip("pyarrow").Table.from_pylist(rows), path)
    elif values["kind"] == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, ["text", "label"], delimiter=values["delimiter"])
            writer.writeheader()
            writer.writerows(rows)


def test_every_leaf_changes_the_saved_data_set(tmp_path: Path) -> None:
    rows = [{"text": f"text {i}"} for i in range(60)]
    for folder in ("one", "two"):
        for split, chosen in {"train": rows, "other": rows[:9]}.items():
            save_to_disk(tmp_path / folder / split, chosen[: 40 if folder == "two" else 60])
        (tmp_path / folder / "dataset_dict.json").write_text("{}")
    hints = {
        "path": Hint((str(tmp_path / "two"),)),
        "train_split": Hint(("other",)),
        "validation_split": Hint(("other",)),
        "validation_fraction": Hint((0.5,)),
    }
    values = replaced(preset("data", "arrow"), {"path": str(tmp_path / "one")})
    make = partial(option_of, "data")
    assert without_witness(make, values, {"": records, CHECK: records}, hints) == []


LLAMA = {
    "vocab_size": 384,
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_layers": 1,
    "num_heads": 2,
    "num_kv_heads": 1,
    "max_positions": 64,
    "init_std": 0.5,
}


def network(option: ModelOption) -> Any:
    """Weights, what they compute, limits, and how text is encoded."""
    module = build_module(option, Head("causal_lm"), 0).eval()
    ids = torch.arange(12)[None] % 40
    with torch.no_grad():
        logits = module(input_ids=ids).logits
    return (
        dict(module.state_dict()),
        logits,
        option.limits(),
        option.build_tokenizer().encode("a b"),
    )


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Two saved models, with a tokenizer of words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"a": 0, "b": 1, "[UNK]": 2, "</s>": 3}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    found = []
    for seed in (1, 2):
        folder = str(tmp_path_factory.mktemp("model"))
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=384,
            hidden_size=8,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=64,
        )
        LlamaForCausalLM(config).save_pretrained(folder)
        PreTrainedTokenizerFast(
            tokenizer_object=words, eos_token="</s>", unk_token="[UNK]"
        ).save_pretrained(folder)
        found.append(folder)
    return found[0], found[1]


def models_of_a_kind() -> list[str]:
    """Presets of models, one for each kind."""
    kinds = {preset("model", name)["kind"]: name for name in reversed(presets("model"))}
    return sorted(kinds.values())


@pytest.mark.parametrize("name", models_of_a_kind())
def test_every_leaf_changes_the_model(name: str, folders: tuple[str, str]) -> None:
    values = preset("model", name)
    given = {"path": folders[0]} if values["kind"] == "hf" else LLAMA
    hints = {
        "path": Hint((folders[1],)),
        "tokenizer": Hint((folders[0], "byt5")),
        "num_heads": Hint((4,)),
        "hidden_size": Hint((16,)),
        "num_kv_heads": Hint((2,)),
        "rope_theta": Hint((100.0,)),
        "norm_eps": Hint((1.0,)),
    }
    make = partial(option_of, "model")
    assert without_witness(make, replaced(values, given), {"": network}, hints) == []


ROWS = Rows(
    [
        {
            "text": "def f():\n    return 1\n" * 3 + f"x = {i}",
            "other": f"y = {i}",
            "label": "acb"[i % 3],
            "tag": "xyz"[i % 2],
            "messages": [
                {"role": "user", "content": "hi"},
                {"role": "assistant", "content": "a" * (i + 1)},
                {"role": "user", "content": "and"},
                {"role": "assistant", "content": "bc"},
            ],
        }
        for i in range(4)
    ]
)


def samples(option: TaskOption) -> Any:
    """The samples of some records, the losses of a model on them, and the text that it writes."""
    model = option_of("model", replaced(preset("model", "llama"), LLAMA))
    assert isinstance(model, ModelOption)
    task = option.build(model.build_tokenizer())
    found = task.samples(ROWS)
    inputs = [found.micro_batch([index], 0).inputs for index in range(len(found))]
    if option.head not in model.heads:
        # The inputs alone show each setting of these tasks.
        return inputs
    torch.manual_seed(0)
    module = build_module(model, task.head, 0).eval()
    with torch.no_grad():
        losses = [task.loss(module(**task.forward_inputs(each)), each) for each in inputs]
    return inputs, task.head.labels, losses, task.sample(module)


PAIR = {"columns.prompt": "other", "columns.completion": "text"}
TASK_HINTS = {
    "seq_len": Hint((8,)),
    # Refused: bytes have no such token.
    "add_bos_token": Hint((True,), observe=CHECK),
    "sample_prompt": Hint(("x",)),
    "sample_temperature": Hint((0.0, 5.0)),
    "columns.text": Hint(("other",)),
    "columns.text_pair": Hint(("other",)),
    "columns.label": Hint(("tag",)),
    # Refused: the labels of the table are neither lists nor numbers.
    "problem_type": Hint(observe=CHECK),
    "sft:seq_len": Hint((100,)),
    "columns.messages": Hint(("other",), observe=CHECK),
    "columns.prompt": Hint(("tag",), where={"columns.messages": None, **PAIR}),
    "columns.completion": Hint(("tag",), where={"columns.messages": None, **PAIR}),
    "columns.tools": Hint(("text",), observe=CHECK),
    # Refused: there is no such file.
    "chat_template": Hint(("missing.jinja",), observe=CHECK),
    # No answer is that near to the beginning of some of the chats.
    "on_error": Hint(("skip",), where={"seq_len": 118, "train_on": "last"}, observe=CHECK),
    "hidden_share": Hint((0.5,)),
    "labels": Hint((["b", "c", "a"],)),
    "class_weights": Hint(("balanced", {"a": 2.0})),
}


@pytest.mark.parametrize("name", presets("task"))
def test_every_leaf_changes_the_samples(name: str) -> None:
    values = preset("task", name)
    small: dict[str, Any] = {"seq_len": 16, "sample_tokens": 8}
    if values["kind"] == "sft":
        small = {"seq_len": 200, "chat_template": "chatml"}
    values = replaced(values, {key: value for key, value in small.items() if key in values})
    make, observe = partial(option_of, "task"), {"": samples, CHECK: samples}
    assert without_witness(make, values, observe, TASK_HINTS) == []
