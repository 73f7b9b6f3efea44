"""A model folder that is broken ends the launch within seconds, with one line that names the file and what is wrong."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from support.model_zoo import make_zoo_model
from support.server import LightLLMServer

SHARD = "model-00002-of-00002.safetensors"


def lose_shard(folder: Path) -> None:
    (folder / SHARD).unlink()


def truncate_shard(folder: Path) -> None:
    data = (folder / SHARD).read_bytes()
    (folder / SHARD).write_bytes(data[: len(data) // 2])


def cut_a_tensor(folder: Path) -> None:
    tensors = load_file(folder / SHARD)
    tensors["model.norm.weight"] = tensors["model.norm.weight"][:-1].clone()
    save_file(tensors, folder / SHARD)


def lose_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()


def edit_config(**fields: object) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        raw = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**raw, **fields}))

    return edit


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_zoo_model(tmp_path_factory.mktemp("healthy") / "model", "llama").path


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        pytest.param(lose_shard, ("lacks", SHARD, "model.safetensors.index.json"), id="missing shard"),
        # What the backends find is the same at their door: test/weights/test_loading.py.
        pytest.param(truncate_shard, (SHARD, "cannot be read"), id="truncated shard", marks=pytest.mark.slow),
        pytest.param(
            cut_a_tensor, ("model.norm.weight", SHARD, "[63]", "[64]"), id="wrong shape", marks=pytest.mark.slow
        ),
        pytest.param(lose_tokenizer, ("no tokenizer", "tokenizer.json"), id="missing tokenizer"),
        pytest.param(
            edit_config(architectures=["MambaForCausalLM"]), ("MambaForCausalLM", "not supported"),
            id="unknown architecture",
        ),
        pytest.param(edit_config(hidden_size=None), ("config.json lacks hidden_size",), id="missing key"),
    ],
)  # fmt: skip
def test_the_launch_ends_with_one_line_that_names_it(
    healthy: Path, tmp_path: Path, break_it: Callable[[Path], None], words: tuple[str, ...]
) -> None:
    folder = Path(shutil.copytree(healthy, tmp_path / "model"))
    break_it(folder)
    started = time.monotonic()
    server = LightLLMServer(["--model_dir", str(folder), "--device", "cpu", "--max_total_token_num", "256"])
    try:
        assert server.wait(40) == 2
        errors = [line for line in server.log.splitlines() if "error:" in line]
        assert len(errors) == 1 and errors[0] == server.log.splitlines()[-1], server.log
        for word in words:
            assert word in errors[0]
        assert "Traceback" not in server.log
        server.check_nothing_left()
    finally:
        server.abandon()
    assert time.monotonic() - started < 30
