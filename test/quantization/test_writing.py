"""tools/quantize.py: what it writes is what the format's description says, the server reads it, and error feedback pays."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from support.model_driver import ModelDriver
from support.model_zoo import make_zoo_model, read_tensors, write_checkpoint
from support.rounded import rounded
from support.written_models import KINDS, ROOT, TEXTS, dequantised, quantise_folder, tensors_of, written

from lightllm.errors import InvalidModel
from lightllm.models.registry import load_model
from lightllm.quantization.error_feedback import codes_with_feedback
from lightllm.quantization.quant_plan import read_plan
from lightllm.quantization.quant_types import QuantType
from lightllm.quantization.rounding import codes_of, grid_of, values_of

PROMPT = [(17 * i + 3) % 380 for i in range(20)]
CPU = torch.device("cpu")


def logits(path: Path, **options: Any) -> torch.Tensor:
    return ModelDriver(load_model(str(path), data_type=None, device=CPU, **options)).step([(0, PROMPT)])


@pytest.mark.parametrize("name", KINDS)
def test_a_written_model_is_read_as_its_description_says(tmp_path: Path, name: str) -> None:
    path = make_zoo_model(tmp_path / "model", "llama", num_hidden_layers=2).path
    few = written(path, tmp_path / "few", KINDS[name])
    dense = dequantised(few)
    original = read_tensors(path)
    assert dense.keys() == original.keys()
    changed = {key for key in dense if not torch.equal(dense[key], original[key])}
    assert changed == {key for key in dense if key.endswith("_proj.weight")}
    write_checkpoint(tmp_path / "dense", dense, json.loads((path / "config.json").read_text()))
    torch.testing.assert_close(logits(few), logits(tmp_path / "dense"), rtol=1e-4, atol=1e-3)
    assert (few / "tokenizer.json").read_bytes() == (path / "tokenizer.json").read_bytes()


@pytest.mark.parametrize("name", ["w8a8", "w8a16", "w4a16, zeros"])
def test_plain_rounding_gives_what_the_server_makes_while_loading(tmp_path: Path, name: str) -> None:
    path = make_zoo_model(tmp_path / "model", "phi3", "bfloat16", num_hidden_layers=1).path
    few = written(path, tmp_path / "few", KINDS[name])
    original, found = read_tensors(path), dequantised(few)
    for key in ("model.layers.0.self_attn.qkv_proj.weight", "model.layers.0.mlp.down_proj.weight"):
        expected = rounded(original[key], name.partition(",")[0], torch.bfloat16)
        torch.testing.assert_close(found[key], expected, rtol=1e-6, atol=1e-7)
    plan = read_plan(name.partition(",")[0], None)
    assert torch.equal(logits(few), logits(path, quant_plan=plan))


def test_several_sizes_of_groups_are_told_apart_and_experts_are_written(tmp_path: Path) -> None:
    """Inputs of 64 and of 96: groups of 64 and of 32; routers stay dense."""
    path = make_zoo_model(tmp_path / "model", "mixtral", num_hidden_layers=1).path
    few = written(path, tmp_path / "few", KINDS["w4a16"])
    config = json.loads((few / "config.json").read_text())["quantization_config"]
    sizes = {group["weights"]["group_size"] for group in config["config_groups"].values()}
    assert sizes == {64, 32} and "model.layers.0.block_sparse_moe.gate" in config["ignore"]
    write_checkpoint(tmp_path / "dense", dequantised(few), json.loads((path / "config.json").read_text()))
    torch.testing.assert_close(logits(few), logits(tmp_path / "dense"), rtol=1e-4, atol=1e-3)


def test_matrices_that_no_group_divides_stay_dense(tmp_path: Path) -> None:
    path = make_zoo_model(tmp_path / "model", "llama", num_hidden_layers=1, intermediate_size=84).path
    lines = list(quantise_folder(path, tmp_path / "few", KINDS["w4a16"]))
    assert lines[0] == "dense, because no group divides their inputs: model.layers.0.mlp.down_proj"
    assert "model.layers.0.mlp.down_proj.weight" in tensors_of(tmp_path / "few")
    logits(tmp_path / "few")


@pytest.mark.parametrize("kind", [KINDS["w4a16"], KINDS["w4a16, zeros"], KINDS["w8a8"]])
def test_error_feedback_changes_products_less_than_plain_rounding(kind: QuantType) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(24, 192, generator=generator)
    inputs = torch.randn(600, 20, generator=generator) @ torch.randn(20, 192, generator=generator)
    inputs += 0.1 * torch.randn(600, 192, generator=generator)
    inputs[:, 7] = 0
    group = kind.group_of(192)

    def error(codes: torch.Tensor, grid: Any) -> float:
        return float((inputs @ (weight - values_of(codes, kind, group, grid)).T).square().sum())

    plain = grid_of(weight, kind, group, torch.float32)
    codes, grid = codes_with_feedback(weight, inputs.T @ inputs, kind, group, torch.float32)
    assert (
        codes.dtype == codes_of(weight, kind, group, plain).dtype and grid.scales.shape == plain.scales.shape
    )
    assert error(codes, grid) < 0.5 * error(codes_of(weight, kind, group, plain), plain)


def test_without_calibration_inputs_error_feedback_is_plain_rounding() -> None:
    weight, kind = torch.randn(8, 64, generator=torch.Generator().manual_seed(0)), KINDS["w4a16, zeros"]
    codes, grid = codes_with_feedback(weight, torch.zeros(64, 64), kind, 32, torch.float32)
    plain = grid_of(weight, kind, 32, torch.float32)
    assert torch.equal(grid.scales, plain.scales) and torch.equal(codes, codes_of(weight, kind, 32, plain))


@pytest.mark.parametrize("model", ["llama", pytest.param("phi3-small", marks=pytest.mark.slow), pytest.param("deepseek-v3", marks=pytest.mark.slow),
                                   pytest.param("bloom, prefixed", marks=pytest.mark.slow), pytest.param("qwen3-moe", marks=pytest.mark.slow)])  # fmt: skip
def test_calibration_brings_a_whole_model_nearer_to_the_original(tmp_path: Path, model: str) -> None:
    """Also where rows of a matrix take turns, where the latent attention of DeepSeek runs, and where experts see few tokens."""
    path = make_zoo_model(tmp_path / "model", model, std=0.1).path
    driver = ModelDriver(load_model(str(path), data_type=None, device=CPU))
    expected = torch.cat([driver.step([(row, TEXTS[row])]) for row in range(3)])
    known = expected.isfinite()  # Phi-3-small has tokens that are never chosen
    errors = []
    for name, texts in (("plain", []), ("fed back", TEXTS)):
        few = written(path, tmp_path / name, KINDS["w4a16"], texts)
        driver = ModelDriver(load_model(str(few), data_type=None, device=CPU))
        found = torch.cat([driver.step([(row, TEXTS[row])]) for row in range(3)])
        errors.append(float((found - expected)[known].square().mean()))
    assert errors[1] < 0.75 * errors[0]


def test_what_cannot_be_quantised_is_refused(tmp_path: Path) -> None:
    path = make_zoo_model(tmp_path / "model", "llama", num_hidden_layers=1).path
    few = written(path, tmp_path / "few", KINDS["w8a8"])
    with pytest.raises(InvalidModel, match=r"is quantised already \(compressed-tensors\)"):
        list(quantise_folder(few, tmp_path / "again", KINDS["w8a8"]))
    with pytest.raises(FileExistsError, match="is not empty"):
        list(quantise_folder(path, few, KINDS["w8a8"]))


@pytest.mark.slow
def test_the_command_writes_the_demo_model(tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text("What is the capital of France? The capital of France is Paris. " * 40)
    command = [
        sys.executable,
        str(ROOT / "tools/quantize.py"),
        str(ROOT / "lightllm/demo"),
        str(tmp_path / "few"),
    ]
    more = ["--quant_type", "w4a16-32", "--zeros", "--method", "gptq", "--text", str(text), "--tokens", "600"]
    done = subprocess.run([*command, *more], check=True, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "layer 4 of 4"
    assert ModelDriver(load_model(str(tmp_path / "few"), data_type=None, device=CPU)).greedy(0, PROMPT, 4)
