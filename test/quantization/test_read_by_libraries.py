"""What tools/quantize.py writes, read with compressed-tensors and transformers: `make test-quantizers`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.model_driver import ModelDriver
from support.model_zoo import make_zoo_model
from support.written_models import KINDS, TEXTS, dequantised, written

from lightllm.models.registry import load_model

CPU = torch.device("cpu")
LIBRARIES = os.environ.get("LIGHTLLM_TEST_QUANTIZERS")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not LIBRARIES, reason="compressed-tensors is not there: make test-quantizers"),
]


def read_by_library(folder: Path, out: Path, *more: str) -> dict[str, torch.Tensor]:
    script = Path(__file__).with_name("read_with_libraries.py")
    path = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(Path(LIBRARIES or "").resolve())]))
    command = [sys.executable, str(script), str(folder), str(out), *more]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return load_file(out)


@pytest.mark.parametrize("texts", [[], TEXTS], ids=["rounding", "gptq"])
@pytest.mark.parametrize("name", KINDS)
def test_the_library_decompresses_the_same_numbers(tmp_path: Path, name: str, texts: list[list[int]]) -> None:
    path = make_zoo_model(tmp_path / "model", "llama", num_hidden_layers=2, std=0.1).path
    few = written(path, tmp_path / "few", KINDS[name], texts)
    found, expected = read_by_library(few, tmp_path / "out.safetensors"), dequantised(few)
    assert len(found) == 14
    for key, tensor in found.items():
        torch.testing.assert_close(tensor, expected[key], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", ["w8a16", "w4a16"])
def test_transformers_computes_what_the_server_computes(tmp_path: Path, name: str) -> None:
    path = make_zoo_model(tmp_path / "model", "llama", num_hidden_layers=2, std=0.1, hidden_size=128).path
    few = written(path, tmp_path / "few", KINDS[name], TEXTS)
    theirs = read_by_library(few, tmp_path / "out.safetensors", "--model")["logits"]
    model = load_model(str(few), data_type=None, device=CPU)
    ours = ModelDriver(model).step([(0, list(range(5, 45)))])
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-3)


def test_transformers_quantises_activations_of_w8a8_and_stays_near(tmp_path: Path) -> None:
    path = make_zoo_model(tmp_path / "model", "llama", num_hidden_layers=2, std=0.1).path
    few = written(path, tmp_path / "few", KINDS["w8a8"])
    theirs = read_by_library(few, tmp_path / "out.safetensors", "--model")["logits"]
    ours = ModelDriver(load_model(str(few), data_type=None, device=CPU)).step([(0, list(range(5, 45)))])
    assert float((ours - theirs).norm() / theirs.norm()) < 0.05
