"""What a rank reads and holds while it loads its part of a checkpoint."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.checkpoints import make_checkpoint
from support.model_zoo import make_zoo_model

from lightllm.distributed.tp_group import TpGroup
from lightllm.models.registry import load_model
from lightllm.weights.checkpoint import Checkpoint

CPU = torch.device("cpu")


def test_each_of_four_ranks_reads_a_quarter_and_the_norms(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_checkpoint(tmp_path / "model", num_key_value_heads=4, tie_word_embeddings=True)
    whole = sum(file.stat().st_size for file in path.glob("*.safetensors"))
    read, counted = Checkpoint.read, []

    def counting(self, *arguments):  # type: ignore[no-untyped-def]
        tensor = read(self, *arguments)
        counted.append(tensor.nbytes)
        return tensor

    monkeypatch.setattr(Checkpoint, "read", counting)
    for rank in range(4):
        counted.clear()
        load_model(str(path), data_type=None, device=CPU, group=TpGroup(rank, 4))
        assert 0.2 * whole < sum(counted) < 0.26 * whole


LOADER = """
import json, sys, time, torch
from lightllm.distributed.tp_group import TpGroup
from lightllm.models.registry import load_model
from lightllm.quantization.quant_plan import read_plan

def status(field):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024

path, small, quant_type, rank, world, threads, repeats = *sys.argv[1:4], *map(int, sys.argv[4:])
torch.set_num_threads(threads)
plan = read_plan(quant_type, None)
with torch.inference_mode():
    load_model(small, data_type=None, device=torch.device("cpu"), quant_plan=plan)  # libraries and thread pools are in memory now
    open("/proc/self/clear_refs", "w").write("5")  # VmHWM begins anew
    before = status("VmRSS")
    started = time.process_time()
    model = load_model(path, data_type=None, device=torch.device("cpu"), group=TpGroup(rank, world), quant_plan=plan)
    seconds = time.process_time() - started
    peak = status("VmHWM") - before
    for _ in range(repeats):
        started = time.process_time()
        load_model(path, data_type=None, device=torch.device("cpu"), group=TpGroup(rank, world))
        seconds = min(seconds, time.process_time() - started)
print(json.dumps({"weights": model.weight_bytes, "peak": peak, "seconds": seconds}))
"""
"""Pages of the checkpoint's files count as long as they are mapped."""


def load_alone(
    path: Path, small: Path, world: int, threads: int = 1, repeats: int = 0, quant_type: str = "none"
) -> dict[str, float]:
    """What the last of `world` ranks finds in a process of its own, in which `threads` make layers; the seconds are those
    of the fastest of 1 + `repeats` loads."""
    numbers = (world - 1, world, threads, repeats)
    command = [sys.executable, "-c", LOADER, str(path), str(small), quant_type, *map(str, numbers)]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    print(world, found)
    return found


def write_model(path: Path, config: dict[str, Any], tensors: dict[str, tuple[int, ...]]) -> tuple[Path, int]:
    """A bf16 checkpoint of large tensors, fast: every tensor repeats one run of random numbers. Also the largest's bytes."""
    path.mkdir()
    block = (torch.randn(1 << 16) * 0.02).bfloat16()
    filled = {}
    for name, shape in tensors.items():
        size = math.prod(shape)
        filled[name] = block.repeat(-(-size // len(block)))[:size].view(shape)
    save_file(filled, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps({"dtype": "bfloat16", "rms_norm_eps": 1e-5, **config}))
    return path, max(tensor.nbytes for tensor in filled.values())


def llama_layers(path: Path, hidden: int, inner: int, vocab: int, layers: int) -> tuple[Path, int]:
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": vocab, "hidden_size": hidden,
              "intermediate_size": inner, "num_hidden_layers": layers, "num_attention_heads": hidden // 128,
              "num_key_value_heads": hidden // 128, "head_dim": 128, "max_position_embeddings": 2048,
              "hidden_act": "silu", "tie_word_embeddings": False}  # fmt: skip
    shapes: dict[str, tuple[int, ...]] = {"lm_head.weight": (vocab, hidden)}
    shapes |= {"model.embed_tokens.weight": (vocab, hidden), "model.norm.weight": (hidden,)}
    for i in range(layers):
        layer = f"model.layers.{i}"
        shapes |= {f"{layer}.self_attn.{name}_proj.weight": (hidden, hidden) for name in "qkvo"}
        shapes |= {f"{layer}.mlp.{name}_proj.weight": (inner, hidden) for name in ("gate", "up")}
        shapes[f"{layer}.mlp.down_proj.weight"] = (hidden, inner)
        shapes |= {f"{layer}.{name}_layernorm.weight": (hidden,) for name in ("input", "post_attention")}
    return write_model(path, config, shapes)


def check_peaks(
    tmp_path: Path, path: Path, largest: int, least: float, threads: int = 1, quant_type: str = "none"
) -> None:
    """Nobody needs more than the share and one largest tensor; all the weights are more than `least` of those."""
    small = make_checkpoint(tmp_path / "small", dtype="bfloat16")
    for world in (1, 2):
        found = load_alone(path, small, world, threads, quant_type=quant_type)
        assert found["weights"] > least * largest / world
        assert found["peak"] <= found["weights"] + largest


def test_fused_matrices_are_never_held_twice(tmp_path: Path) -> None:
    path, largest = llama_layers(tmp_path / "model", hidden=2048, inner=5632, vocab=16001, layers=2)
    check_peaks(tmp_path, path, largest, 5)


def test_weights_that_are_quantised_while_loading_need_one_matrix_more_than_their_few_bits(
    tmp_path: Path,
) -> None:
    path, largest = llama_layers(tmp_path / "model", hidden=2048, inner=5632, vocab=4000, layers=1)
    found = load_alone(path, make_checkpoint(tmp_path / "small", dtype="bfloat16"), 2, quant_type="w4a16")
    assert found["weights"] > largest
    assert found["peak"] <= found["weights"] + largest


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 8])
@pytest.mark.parametrize("quant_type", ["w8a8", "w8a16", "w4a16", "fp8"])
def test_seven_billion_sized_layers_that_are_quantised_while_loading(
    tmp_path: Path, quant_type: str, threads: int
) -> None:
    path, largest = llama_layers(tmp_path / "model", hidden=4096, inner=11008, vocab=1000, layers=2)
    check_peaks(tmp_path, path, largest, 2, threads, quant_type)


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 8])
def test_seven_billion_sized_layers_and_a_small_vocabulary_need_one_matrix_more_than_the_share(
    tmp_path: Path, threads: int
) -> None:
    path, largest = llama_layers(tmp_path / "model", hidden=4096, inner=11008, vocab=1000, layers=1)
    check_peaks(tmp_path, path, largest, 4, threads)


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 8])
def test_mixtral_sized_experts_need_one_matrix_more_than_the_share(tmp_path: Path, threads: int) -> None:
    hidden, inner, experts = 4096, 14336, 2
    config = {"architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "vocab_size": 1000,
              "hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": 1, "num_attention_heads": 8,
              "num_key_value_heads": 4, "head_dim": 128, "max_position_embeddings": 2048, "hidden_act": "silu",
              "tie_word_embeddings": False, "num_local_experts": experts, "num_experts_per_tok": 1}  # fmt: skip
    shapes: dict[str, tuple[int, ...]] = {"lm_head.weight": (1000, hidden)}
    shapes |= {"model.embed_tokens.weight": (1000, hidden), "model.norm.weight": (hidden,)}
    for i in range(1):
        layer = f"model.layers.{i}"
        shapes |= {f"{layer}.self_attn.{name}_proj.weight": (size, hidden)
                   for name, size in {"q": 1024, "k": 512, "v": 512}.items()}  # fmt: skip
        shapes[f"{layer}.self_attn.o_proj.weight"] = (hidden, 1024)
        shapes[f"{layer}.block_sparse_moe.gate.weight"] = (experts, hidden)
        for expert in range(experts):
            matrices = {"w1": (inner, hidden), "w2": (hidden, inner), "w3": (inner, hidden)}
            names = f"{layer}.block_sparse_moe.experts.{expert}"
            shapes |= {f"{names}.{name}.weight": shape for name, shape in matrices.items()}
        shapes |= {f"{layer}.{name}_layernorm.weight": (hidden,) for name in ("input", "post_attention")}
    path, largest = write_model(tmp_path / "model", config, shapes)
    check_peaks(tmp_path, path, largest, 6, threads)


@pytest.mark.slow
def test_more_ranks_hold_less_and_load_faster_and_never_hold_more_than_a_share_and_one_tensor(
    tmp_path: Path,
) -> None:
    path = make_checkpoint(
        tmp_path / "model", dtype="bfloat16", vocab_size=32768, hidden_size=1024, intermediate_size=4096,
        num_hidden_layers=12, num_attention_heads=16, num_key_value_heads=8, head_dim=64, std=0.02,
    )  # fmt: skip
    small = make_checkpoint(tmp_path / "small", dtype="bfloat16")
    largest = 32768 * 1024 * 2
    seconds = []
    for world in (1, 2, 4):
        found = load_alone(path, small, world, repeats=1)
        assert found["weights"] > 4 * largest / world
        assert found["peak"] <= found["weights"] + largest
        seconds.append(found["seconds"])  # of the processor: the machine may be busy
    assert seconds[1] < 0.7 * seconds[0] and seconds[2] < 0.7 * seconds[1]


def in_few_bits(name: str, shape: tuple[int, ...], kind: str) -> dict[str, torch.Tensor]:
    """A matrix [out, in] of random codes, in groups of 128; act-order: inputs of any group."""
    (outputs, inputs), module = shape, name.removesuffix(".weight")
    words, scales = (
        torch.randint(-(1 << 31), 1 << 31, (outputs * inputs // 8,)).int(),
        torch.rand(outputs * inputs // 128) * 0.01,
    )
    if kind == "fp8":
        codes = words[: outputs * inputs // 4].repeat(2).view(torch.uint8)[: outputs * inputs] % 120
        blocks = scales[: outputs * inputs >> 14].view(outputs // 128, inputs // 128)
        return {name: codes.view(torch.float8_e4m3fn).view(shape), f"{name}_scale_inv": blocks}
    if kind == "w4a16":
        scales = scales.bfloat16().view(outputs, inputs // 128)
        return {f"{module}.weight_packed": words.view(outputs, inputs // 8), f"{module}.weight_scale": scales}
    qweight = words.view(inputs, outputs // 8) if kind == "awq" else words.view(inputs // 8, outputs)
    zeros = words[: outputs * inputs // 1024].clone().view(inputs // 128, outputs // 8)
    found = {
        f"{module}.qweight": qweight,
        f"{module}.qzeros": zeros,
        f"{module}.scales": scales.half().view(inputs // 128, outputs),
    }
    if kind == "gptq":
        found[f"{module}.g_idx"] = (torch.randperm(inputs) // 128).int()
    return found


FEW_BITS: dict[str, dict[str, Any]] = {
    "awq": {"quant_method": "awq", "bits": 4, "group_size": 128},
    "gptq": {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": True},
    "fp8": {"quant_method": "fp8", "weight_block_size": [128, 128]},
    "w4a16": {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {"group_0": {
        "targets": ["Linear"], "weights": {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 128}}}},
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 8])
@pytest.mark.parametrize("kind", FEW_BITS)
def test_weights_in_few_bits_need_one_matrix_more_than_the_share(
    tmp_path: Path, kind: str, threads: int
) -> None:
    path, _ = llama_layers(tmp_path / "model", hidden=4096, inner=11008, vocab=4000, layers=2)
    tensors = load_file(path / "model.safetensors")
    for name in [name for name in tensors if name.endswith("_proj.weight")]:
        tensors |= in_few_bits(name, tuple(tensors.pop(name).shape), kind)
    save_file(tensors, path / "model.safetensors")
    raw = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**raw, "quantization_config": FEW_BITS[kind]}))
    check_peaks(tmp_path, path, max(tensor.nbytes for tensor in tensors.values()), 4, threads)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mixtral", "gpt-oss"])
def test_a_layer_of_experts_is_never_held_twice(tmp_path: Path, name: str) -> None:
    shape = {"hidden_size": 1024, "intermediate_size": 2048, "num_hidden_layers": 3, "head_dim": 64}
    path = make_zoo_model(tmp_path / "model", name, "bfloat16", std=0.02, vocab_size=32768, **shape).path
    small = make_checkpoint(tmp_path / "small", dtype="bfloat16")
    largest = 32768 * 1024 * 2
    for world in (1, 2):
        found = load_alone(path, small, world)
        assert found["weights"] > 3 * largest / world
        assert found["peak"] <= found["weights"] + largest
