"""Checkpoints in few bits: a model computes what its dense twin of the same numbers computes, alone and on two ranks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support.few_bits import FORMATS, Awq, Compressed, Fp8, Gptq, Mxfp4, Tensors, quantise
from support.model_driver import ModelDriver
from support.model_zoo import make_zoo_model, read_tensors, write_checkpoint
from support.near_tie import relative_error
from support.ranks import run_ranks

from lightllm.distributed.tp_group import TpGroup
from lightllm.models.registry import load_model
from lightllm.ops.packed_experts import StackedExperts
from lightllm.quantization.quantized import Quantized

PROMPT = [(17 * i + 3) % 380 for i in range(20)]
CPU = torch.device("cpu")
DENSE = ("embed", "lm_head", "norm", "gate", "router", "wte", "word_embeddings", "ln_")
"""What modules are called that no format quantises."""


def in_few_bits(name: str) -> bool:
    last = name.rpartition(".")[2]
    return not (last == "gate" or any(word in last for word in DENSE if word != "gate"))


def write(folder: Path, name: str, own: Gptq | Awq | Fp8 | Compressed, **fields: Any) -> tuple[Path, Path]:
    """A model of the zoo in few bits, and its dense twin of the same numbers."""
    path = make_zoo_model(folder / "model", name, **fields).path
    raw = json.loads((path / "config.json").read_text())
    few, same = quantise(read_tensors(path), lambda module: own if in_few_bits(module) else None)
    assert len(few) > len(same)
    return write_both(folder, few, same, raw, own.config)


def write_both(
    folder: Path, few: Tensors, same: Tensors, raw: dict[str, Any], config: dict[str, Any]
) -> tuple[Path, Path]:
    write_checkpoint(folder / "few", few, {**raw, "quantization_config": config})
    write_checkpoint(folder / "dense", same, raw)
    return folder / "few", folder / "dense"


def logits(path: Path, group: TpGroup | None = None) -> tuple[torch.Tensor, int]:
    """After a prefill and two decode steps, and the bytes of the weights."""
    model = load_model(str(path), data_type=None, device=CPU, group=group)
    driver = ModelDriver(model)
    prefill = driver.step([(0, PROMPT[:-2])])
    decode = [driver.step([(0, [token])], num_decode=1) for token in PROMPT[-2:]]
    return torch.cat((prefill, *decode)), model.weight_bytes


def greedy(path: Path) -> list[int]:
    return ModelDriver(load_model(str(path), data_type=None, device=CPU)).greedy(0, PROMPT, 12)


def check(folder: Path, few: Path, dense: Path, ranks: bool = True) -> None:
    expected, dense_bytes = logits(dense)
    found, few_bytes = logits(few)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)
    assert few_bytes < 0.85 * dense_bytes
    assert greedy(few) == greedy(dense)
    if ranks:
        (first, _), (second, _) = run_ranks(folder, 2, lambda group: logits(few, group))
        torch.testing.assert_close(first, expected, rtol=1e-4, atol=1e-3)
        assert torch.equal(first, second)


@pytest.mark.parametrize("name", FORMATS)
def test_a_llama_in_every_format_equals_its_dense_twin(tmp_path: Path, name: str) -> None:
    check(tmp_path, *write(tmp_path, "llama", FORMATS[name], num_hidden_layers=1), ranks=False)


ON_TWO_RANKS = [
    ("llama", "fp8 blocks"),
    ("llama", "fp8 tensor"),
    ("llama", "awq"),
    ("llama", "gptq, act-order"),
    ("llama", "gptq, 3 bits"),
    ("llama", "w4a16, asymmetric"),
    ("llama", "int8, asymmetric"),
    ("phi3", "fp8 blocks"),
    ("phi3", "gptq, act-order"),
    ("phi3", "awq"),
    ("bloom, prefixed", "w8a16"),
    ("phi3-small", "awq"),
    ("phi3-small", "fp8 blocks"),
    ("mixtral", "gptq, act-order"),
    ("mixtral", "float8, rows"),
    ("qwen3-moe", "awq"),
    ("deepseek-v3", "fp8 blocks"),
    ("deepseek-v3", "w4a16"),
]
"""Inputs of the down projection are split at 48 of 96, within a group of 32; q, k, v and gate, up are fused, or are already in
one matrix, or take turns in it; biases; experts, and shared ones; latent attention."""


@pytest.mark.parametrize(("model", "name"), ON_TWO_RANKS)
def test_two_ranks_equal_the_dense_twin(tmp_path: Path, model: str, name: str) -> None:
    fields = {} if model in ("phi3-small", "bloom, prefixed") else {"num_hidden_layers": 2}
    check(tmp_path, *write(tmp_path, model, FORMATS[name], **fields))


def write_gpt_oss(folder: Path, **fields: Any) -> tuple[Path, Path]:
    path = make_zoo_model(folder / "model", "gpt-oss", **fields).path
    raw, tensors, own = json.loads((path / "config.json").read_text()), read_tensors(path), Mxfp4()
    few, same = dict(tensors), dict(tensors)
    for name, tensor in tensors.items():
        if name.endswith(("gate_up_proj", "down_proj")):  # dense: [experts, in, out]
            written = own.write(few.pop(name).transpose(1, 2), torch.Generator())
            few |= {name + suffix: part for suffix, part in written.items()}
            same[name] = own.read(written, tensor.transpose(1, 2).shape).transpose(1, 2)
    assert len(few) == len(same) + 6
    return write_both(folder, few, same, raw, own.config)


@pytest.mark.parametrize("hidden", [64, 192])
def test_experts_in_mxfp4_equal_their_dense_twin(tmp_path: Path, hidden: int) -> None:
    """Ranks split 96 inputs of the down projection within a block of 32."""
    check(tmp_path, *write_gpt_oss(tmp_path, hidden_size=hidden))


def test_stacked_experts_for_a_gpu_are_the_dense_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few, dense = write(tmp_path, "mixtral", FORMATS["gptq, act-order"], num_hidden_layers=1)
    stacked = [load_model(str(path), data_type=None, device=CPU) for path in (few,)]
    monkeypatch.setattr(
        "lightllm.quantization.dense.pack_experts",
        lambda device, count, expert: StackedExperts(count, expert),
    )
    monkeypatch.setattr(Quantized, "experts", Quantized._stacked)
    found, expected = (
        load_model(str(path), data_type=None, device=CPU).layers[0].mlp.experts for path in (few, dense)
    )
    assert stacked[0].weight_bytes < found.nbytes
    torch.testing.assert_close(found.gate_up, expected.gate_up)
    torch.testing.assert_close(found.down, expected.down)


@pytest.mark.parametrize(
    "name",
    ["awq", "gptq, act-order", "w4a16", "int8", "int8, asymmetric", "w8a16", "fp8 blocks", "float8, rows"],
)
def test_logits_in_bfloat16_are_near_those_of_the_dense_twin_in_float32(tmp_path: Path, name: str) -> None:
    few, dense = write(tmp_path, "llama", FORMATS[name], std=0.1, num_hidden_layers=2, intermediate_size=128)
    found, expected = (
        ModelDriver(load_model(str(path), data_type=dtype, device=CPU)).step([(0, PROMPT)]).float()
        for path, dtype in ((few, "bf16"), (dense, "fp32"))
    )
    assert relative_error(found, expected) <= 2e-2
