"""`--quant_type`: a dense checkpoint that is quantised while it is loaded computes what its rounded twin computes, on any number of ranks."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from support.model_driver import ModelDriver
from support.model_zoo import make_zoo_model, read_tensors, write_checkpoint
from support.near_tie import relative_error
from support.ranks import run_ranks
from support.rounded import rounded_checkpoint

from lightllm.distributed.tp_group import TpGroup
from lightllm.errors import InvalidModel, InvalidOption
from lightllm.models.registry import load_model
from lightllm.quantization.quant_plan import QuantPlan, read_plan

PROMPT = [(17 * i + 3) % 380 for i in range(20)]
CPU = torch.device("cpu")
LEFT = ("gate", "router", "kv_b_proj")


def type_of(tensor_name: str, tensor: torch.Tensor, default: str) -> str | None:
    """Of a model's matrices that are quantised, by their names in published checkpoints."""
    module = tensor_name.removesuffix(".weight").rpartition(".")[2]
    in_layer = re.search(r"(^|\.)(layers|h)\.\d+\.", tensor_name)
    biases = tensor_name.endswith("bias")
    return default if in_layer and tensor.dim() > 1 and module not in LEFT and not biases else None


def write(folder: Path, model: str, default: str, changed: dict[str, str | None] | None = None, **fields: Any) -> tuple[Path, Path]:  # fmt: skip
    """A model of the zoo, and its rounded twin. changed: types of tensors whose names hold these parts."""
    path = make_zoo_model(folder / "model", model, **fields).path
    tensors = read_tensors(path)

    def own(name: str) -> str | None:
        for part, other in (changed or {}).items():
            if part in name:
                return other
        return type_of(name, tensors[name], default)

    twin = rounded_checkpoint(tensors, own)
    assert sum(not torch.equal(twin[name], tensors[name]) for name in tensors) > 2
    write_checkpoint(folder / "rounded", twin, json.loads((path / "config.json").read_text()))
    return path, folder / "rounded"


def logits(path: Path, plan: QuantPlan | None, group: TpGroup | None = None) -> tuple[torch.Tensor, int]:
    """After a prefill and two decode steps, and the bytes of the weights."""
    model = load_model(str(path), data_type=None, device=CPU, group=group, quant_plan=plan)
    driver = ModelDriver(model)
    prefill = driver.step([(0, PROMPT[:-2])])
    decode = [driver.step([(0, [token])], num_decode=1) for token in PROMPT[-2:]]
    return torch.cat((prefill, *decode)), model.weight_bytes


def check(folder: Path, paths: tuple[Path, Path], plan: QuantPlan | None, ranks: bool = True) -> None:
    dense, twin = paths
    expected, dense_bytes = logits(twin, None)
    found, few_bytes = logits(dense, plan)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)
    assert few_bytes < 0.85 * dense_bytes
    if ranks:
        (first, _), (second, _) = run_ranks(folder, 2, lambda group: logits(dense, plan, group))
        torch.testing.assert_close(first, expected, rtol=1e-4, atol=1e-3)
        assert torch.equal(first, second)


@pytest.mark.parametrize("name", ["w8a8", "w8a16", "w4a16", "w4a16-32", "fp8", "fp8-64"])
def test_a_llama_equals_its_rounded_twin_on_one_rank_and_on_two(tmp_path: Path, name: str) -> None:
    """Inputs of the down projection are split at 48 of 96, within a group of 32, or within the one group of an output."""
    check(tmp_path, write(tmp_path, "llama", name, num_hidden_layers=1), read_plan(name, None))


OTHERS = [("phi3", "w4a16"), ("gpt-oss", "w4a16"), ("mixtral", "w4a16-32"), ("deepseek-v3", "w8a16")]
"""q, k, v and gate, up in one matrix; experts in stacks whose rows take turns; experts apart; latent attention."""
MORE = [
    ("phi3-small", "w4a16"), ("bloom, prefixed", "w8a8"), ("internlm2", "fp8"), ("qwen3-moe", "w8a8"),
    ("gpt-oss", "w8a8"), ("gpt-oss", "fp8"), ("qwen", "w4a16"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("model", "name"), [*OTHERS, *(pytest.param(*case, marks=pytest.mark.slow) for case in MORE)]
)
def test_other_architectures_equal_their_rounded_twins(tmp_path: Path, model: str, name: str) -> None:
    fields = {} if model in ("phi3-small", "bloom, prefixed", "qwen") else {"num_hidden_layers": 2}
    check(tmp_path, write(tmp_path, model, name, **fields), read_plan(name, None))


def test_a_tied_head_stays_dense(tmp_path: Path) -> None:
    fields = {"num_hidden_layers": 1, "tie_word_embeddings": True}
    check(tmp_path, write(tmp_path, "llama", "w4a16", **fields), read_plan("w4a16", None))


def test_a_file_gives_modules_and_layers_other_types(tmp_path: Path) -> None:
    file = tmp_path / "quant.yaml"
    file.write_text(
        "quant_type: w4a16\nmix_bits:\n"
        "  - {name: down_proj, quant_type: none, layer_nums: [1]}\n"
        "  - {name: kv_proj, quant_type: w8a8}\n  - {name: lm_head, quant_type: w8a16}\n"
    )
    changed = {"layers.1.mlp.down_proj": None, "k_proj": "w8a8", "v_proj": "w8a8", "lm_head": "w8a16"}
    plan = read_plan("none", str(file))
    assert plan is not None and plan.described == "w4a16, others none w8a16 w8a8"
    check(tmp_path, write(tmp_path, "llama", "w4a16", changed, num_hidden_layers=2), plan)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mix_bits: [{name: foo_proj, quant_type: none}]", "no module 'foo_proj' to quantise"),
        ("mix_bits: [{name: down_proj, quant_type: none, layer_nums: [0, 7]}]", "layer_nums [7] of down_proj: the model has layers 0 to 0"),
        ("mix_bits: [{name: down_proj, quant_type: w3}]", "quant_type of down_proj 'w3' is not known"),
        ("mix_bits: [{name: down_proj, quant_type: none, layers: [0]}]", "is not understood"),
        ("mix_bits: [down_proj]", "'down_proj' in mix_bits is not understood"),
        ("quant_type: w3", "quant_type 'w3' is not known"),
        ("quant_type: w8a8", "--quant_type w4a16 contradicts quant_type w8a8"),
        ("kept: 3", "kept is not understood"),
        ("[w4a16]", "holds no options"),
        ("a: [", "cannot be read"),
    ],
)  # fmt: skip
def test_a_file_that_is_not_understood_is_refused_in_one_line(
    tmp_path: Path, text: str, message: str
) -> None:
    path = make_zoo_model(tmp_path / "model", "llama", num_hidden_layers=1).path
    (tmp_path / "quant.yaml").write_text(text)
    with pytest.raises(InvalidOption) as error:
        plan = read_plan("w4a16", str(tmp_path / "quant.yaml"))
        load_model(str(path), data_type=None, device=CPU, quant_plan=plan)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_quantised_checkpoint_is_refused(tmp_path: Path) -> None:
    path = make_zoo_model(tmp_path / "model", "llama", num_hidden_layers=1).path
    raw = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(
        json.dumps({**raw, "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}})
    )
    with pytest.raises(InvalidOption, match=r"w8a8: the checkpoint is quantised already \(fp8\)"):
        load_model(str(path), data_type=None, device=CPU, quant_plan=read_plan("w8a8", None))


def test_odd_inputs_of_a_rank_are_refused_in_four_bits(tmp_path: Path) -> None:
    path = make_zoo_model(tmp_path / "model", "llama", num_hidden_layers=1, intermediate_size=98).path
    plan = read_plan("w4a16", None)
    with pytest.raises(InvalidModel, match="down_proj: 49 inputs a rank of 4 bits each are no whole bytes"):
        load_model(str(path), data_type=None, device=CPU, group=TpGroup(0, 2), quant_plan=plan)


def test_inputs_that_no_group_divides_have_a_short_last_group(tmp_path: Path) -> None:
    paths = write(tmp_path, "llama", "w4a16-32", num_hidden_layers=1, intermediate_size=84)
    check(tmp_path, paths, read_plan("w4a16-32", None))


@pytest.mark.parametrize("name", ["w8a8", "w8a16", "w4a16"])
def test_logits_in_bfloat16_are_near_those_of_the_twin_in_float32(tmp_path: Path, name: str) -> None:
    """With kernels of our own, where there are some; scales are in bfloat16 then."""
    path = make_zoo_model(tmp_path / "model", "llama", "bfloat16", std=0.1, intermediate_size=128).path
    tensors = read_tensors(path)
    twin = rounded_checkpoint(tensors, lambda own: type_of(own, tensors[own], name), torch.bfloat16)
    write_checkpoint(tmp_path / "twin", {n: t.float() for n, t in twin.items()}, json.loads((path / "config.json").read_text()))  # fmt: skip
    plan = read_plan(name, None)
    found = load_model(str(path), data_type=None, device=CPU, quant_plan=plan)
    expected = load_model(str(tmp_path / "twin"), data_type="fp32", device=CPU)
    first, second = (ModelDriver(model).step([(0, PROMPT)]).float() for model in (found, expected))
    assert relative_error(first, second) <= 2e-2
    assert found.weight_format == f"{name} (quantised while loading)" and expected.weight_format == ""


def test_random_weights_are_quantised_too(tmp_path: Path) -> None:
    path = make_zoo_model(tmp_path / "model", "llama", num_hidden_layers=1).path
    sizes = [
        load_model(
            str(path), data_type=None, device=CPU, load_way="dummy", quant_plan=read_plan(name, None)
        ).weight_bytes
        for name in ("none", "w4a16")
    ]
    assert sizes[1] < 0.7 * sizes[0]
