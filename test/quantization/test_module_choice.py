"""Which modules are in few bits, and how each: lists, overrides for some modules, what is refused and in which words."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from quantization.test_published_formats import check, in_few_bits, write_both
from support.few_bits import Awq, Compressed, Fp8, Gptq, quantise
from support.model_driver import ModelDriver
from support.model_zoo import make_zoo_model, read_tensors, write_checkpoint

from lightllm.errors import InvalidModel
from lightllm.models.registry import load_model
from lightllm.quantization.formats import read_quantization
from lightllm.quantization.module_names import NotConverted

CPU = torch.device("cpu")
AnyFormat = Gptq | Awq | Fp8 | Compressed


def load(path: Path, **options: Any) -> Any:
    return load_model(str(path), **{"data_type": None, "device": CPU, **options})


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_zoo_model(tmp_path_factory.mktemp("llama"), "llama", num_hidden_layers=2, vocab_size=392).path


def written(
    folder: Path,
    llama: Path,
    format_of: Callable[[str], AnyFormat | None],
    config: dict[str, Any],
    **fields: Any,
) -> tuple[Path, Path]:
    raw = json.loads((llama / "config.json").read_text())
    few, same = quantise(read_tensors(llama), format_of)
    return write_both(folder, few, same, {**raw, **fields}, config)


def test_gptq_overrides_of_single_modules(tmp_path: Path, llama: Path) -> None:
    """q in 8 bits, k and v in 4, so q, k, v are no single product; the second layer's up dense beside its gate in 4 bits."""
    four, eight = Gptq(symmetric=False), Gptq(bits=8, group=16)

    def format_of(module: str) -> AnyFormat | None:
        if not in_few_bits(module) or module.endswith("1.mlp.up_proj"):
            return None
        return eight if module.endswith("q_proj") else four

    dynamic = {r"-:.*\.1\.mlp\.up_proj": {}, r"+:.*\.q_proj": {"bits": 8, "group_size": 16}}
    check(tmp_path, *written(tmp_path, llama, format_of, {**four.config, "dynamic": dynamic}))


def test_gptq_with_a_head_and_an_order_of_its_own_for_each_matrix(tmp_path: Path, llama: Path) -> None:
    own = Gptq(act_order=True)
    few = written(
        tmp_path,
        llama,
        lambda module: own if "embed" not in module else None,
        {**own.config, "lm_head": True},
    )
    check(tmp_path, *few)


def test_a_head_in_few_bits_is_the_head_though_config_json_ties_it(tmp_path: Path, llama: Path) -> None:
    own = Gptq()

    def format_of(module: str) -> AnyFormat | None:
        return None if "embed" in module else own

    few, dense = written(
        tmp_path, llama, format_of, {**own.config, "lm_head": True}, tie_word_embeddings=True
    )
    check(tmp_path, few, dense, ranks=False)


@pytest.mark.parametrize("name", ["granite", "gemma3"])
def test_a_head_that_is_the_embedding_stays_dense(tmp_path: Path, name: str) -> None:
    path = make_zoo_model(tmp_path / "model", name, num_hidden_layers=2).path
    own = Compressed()
    few, same = quantise(read_tensors(path), lambda module: own if in_few_bits(module) else None)
    check(
        tmp_path, *write_both(tmp_path, few, same, json.loads((path / "config.json").read_text()), own.config)
    )


def test_a_padded_head_in_few_bits(tmp_path: Path) -> None:
    """387 rows on two ranks: the last one's 194th is padding."""
    path = make_zoo_model(tmp_path / "model", "llama", num_hidden_layers=1, vocab_size=387).path
    own = Compressed("int-quantized", 8, "channel", symmetric=False)
    few, same = quantise(
        read_tensors(path), lambda module: None if "embed" in module or "norm" in module else own
    )
    config = {**own.config, "ignore": []}
    check(tmp_path, *write_both(tmp_path, few, same, json.loads((path / "config.json").read_text()), config))


def test_compressed_tensors_groups_and_what_they_ignore(tmp_path: Path, llama: Path) -> None:
    """The down projections in 8 bits by a pattern, o of one layer by its name, k of all layers not at all."""
    four, eight, rows = (
        Compressed(symmetric=False),
        Compressed("int-quantized", 8, "channel"),
        Compressed(bits=8),
    )

    def format_of(module: str) -> AnyFormat | None:
        if not in_few_bits(module) or module.endswith("k_proj"):
            return None
        if module == "model.layers.1.self_attn.o_proj":
            return rows
        return eight if module.endswith("down_proj") else four

    groups = {
        "group_0": {"targets": ["Linear"], "weights": four.weights},
        "group_1": {"targets": ["re:.*down_proj$"], "weights": eight.weights, "format": "int-quantized"},
        "group_2": {"targets": ["model.layers.1.self_attn.o_proj"], "weights": rows.weights},
    }
    config = {**four.config, "config_groups": groups, "ignore": ["lm_head", "re:.*self_attn.k_proj$"]}
    check(tmp_path, *written(tmp_path, llama, format_of, config))


def test_what_the_checkpoint_holds_dense_is_dense(tmp_path: Path, llama: Path) -> None:
    own = Fp8((32, 32))

    def format_of(module: str) -> AnyFormat | None:
        return own if in_few_bits(module) and "v_proj" not in module else None

    check(tmp_path, *written(tmp_path, llama, format_of, own.config), ranks=False)


@pytest.mark.parametrize(
    ("names", "module", "skipped"),
    [
        (["lm_head"], "lm_head", True),
        (["gate"], "model.layers.3.mlp.gate", True),
        (["gate"], "model.layers.3.mlp.gate_proj", False),
        (["mlp.gate"], "model.layers.3.mlp.gate", True),
        (["model.layers.1"], "model.layers.1.self_attn.q_proj", True),
        (["model.layers.1"], "model.layers.11.self_attn.q_proj", False),
        (["model.layers.*.self_attn"], "model.layers.3.self_attn.q_proj", True),
        (["visual"], "model.visual.blocks.0.attn.qkv", True),
        ([], "lm_head", False),
    ],
)
def test_modules_that_are_not_converted(names: list[str], module: str, skipped: bool) -> None:
    assert ([module] in NotConverted(names)) == skipped


AWQ, GPTQ, FP8 = Awq().config, Gptq().config, Fp8().config
GROUP = {"targets": ["Linear"], "weights": Compressed().weights}
PACKED = {**Compressed().config, "config_groups": {"group_0": GROUP}}


def group(**weights: Any) -> dict[str, Any]:
    return {**PACKED, "config_groups": {"group_0": {**GROUP, "weights": {**GROUP["weights"], **weights}}}}


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "'bitsandbytes'.*gptq"),
        ({**AWQ, "version": "gemv"}, "AWQ.*'gemv'"),
        ({**AWQ, "bits": 8}, "AWQ.*8 bits"),
        ({**AWQ, "group_size": "all"}, "group_size 'all'"),
        ({**AWQ, "modules_to_not_convert": "lm_head"}, "modules_to_not_convert.*list"),
        ({**GPTQ, "bits": 5}, "GPTQ.*5 bits"),
        ({**GPTQ, "checkpoint_format": "marlin"}, "'marlin'"),
        ({**GPTQ, "is_marlin_format": True}, "'marlin'"),
        ({**GPTQ, "pack_dtype": "int16"}, "int16"),
        ({**GPTQ, "dynamic": {"+:.*q_proj": {"bits": 6}}}, r"6 bits of '\.\*q_proj'"),
        ({**GPTQ, "dynamic": {"+:*": {"bits": 4}}}, "regular expression"),
        ({**FP8, "fmt": "e5m2"}, "e5m2"),
        ({**FP8, "weight_block_size": [128]}, "weight_block_size"),
        ({**PACKED, "config_groups": None}, "config_groups"),
        ({**PACKED, "format": "nvfp4-pack-quantized"}, "group_0.*nvfp4"),
        ({**PACKED, "format": "marlin-24"}, "marlin-24"),
        ({**PACKED, "sparsity_config": {"format": "sparse-24-bitmask"}}, "sparse-24-bitmask"),
        ({**PACKED, "transform_config": {"config_groups": {"R1": {}}}}, "transform_config"),
        (group(num_bits=6), "6 bits"),
        (group(strategy="tensor_group"), "tensor_group"),
        (group(type="float", num_bits=4), "float of 4 bits"),
    ],
)  # fmt: skip
def test_a_form_that_is_not_read_is_refused_before_weights_are_looked_at(
    config: dict[str, Any], words: str
) -> None:
    with pytest.raises(InvalidModel, match=words):
        read_quantization(config)


def refused(path: Path, *words: str) -> None:
    with pytest.raises(InvalidModel) as error:
        load(path)
    for word in words:
        assert re.search(word, f"{error.value} {error.value.remedy}"), error.value


@pytest.fixture
def few(tmp_path: Path, llama: Path) -> Any:
    """Rewrites the tensors of a checkpoint in AWQ."""
    raw, own = json.loads((llama / "config.json").read_text()), Awq()
    tensors, _ = quantise(read_tensors(llama), lambda module: own if in_few_bits(module) else None)

    def write(changes: dict[str, torch.Tensor | None], config: dict[str, Any] = own.config) -> Path:
        kept = {name: tensor for name, tensor in {**tensors, **changes}.items() if tensor is not None}
        write_checkpoint(tmp_path / "few", kept, {**raw, "quantization_config": config})
        return tmp_path / "few"

    return write


DOWN = "model.layers.1.mlp.down_proj"


def test_a_module_without_its_tensors_is_named(few: Any) -> None:
    refused(
        few({f"{DOWN}.qweight": None, f"{DOWN}.scales": None, f"{DOWN}.qzeros": None}),
        DOWN,
        "qweight",
        "weight",
    )
    refused(few({f"{DOWN}.qzeros": None}), f"{DOWN}.qzeros")
    refused(few({f"{DOWN}.scales": None}), DOWN, "with its scales")


def test_a_tensor_of_another_shape_or_dtype_is_named(few: Any) -> None:
    refused(few({f"{DOWN}.scales": torch.zeros(2, 64)}), rf"{DOWN}.scales.*\[2, 64\].*\[3, 64\]")
    refused(few({f"{DOWN}.qweight": torch.zeros(96, 8)}), f"{DOWN}.qweight.*float32.*int32")
    refused(few({f"{DOWN}.qweight": torch.zeros(12, 64, dtype=torch.int32)}), rf"{DOWN}.qweight.*\[12, 64\]")


def test_a_bias_of_zeros_that_a_tool_added_is_passed_over_and_another_is_refused(few: Any) -> None:
    load(few({f"{DOWN}.bias": torch.zeros(64)}))
    refused(few({f"{DOWN}.bias": torch.ones(64)}), f"{DOWN}.*bias")


def test_a_group_that_there_is_not_is_refused(tmp_path: Path, llama: Path) -> None:
    own = Gptq(act_order=True)
    path, _ = written(tmp_path, llama, lambda module: own if in_few_bits(module) else None, own.config)
    raw, tensors = json.loads((path / "config.json").read_text()), read_all(path)
    tensors[f"{DOWN}.g_idx"][5] = 3
    write_checkpoint(path, tensors, raw)
    refused(path, f"{DOWN}.*groups 0 to 3.*of 3")


def read_all(path: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return {name: tensor for file in path.glob("*.safetensors") for name, tensor in load_file(file).items()}


def test_scales_of_kv_memory_and_of_activations_are_passed_over(
    few: Any, llama: Path, tmp_path: Path
) -> None:
    own = Fp8(None, "static")
    path, dense = written(tmp_path, llama, lambda module: own if in_few_bits(module) else None, own.config)
    raw, tensors = json.loads((path / "config.json").read_text()), read_all(path)
    tensors |= {f"model.layers.0.self_attn.{name}_scale": torch.ones(()) for name in "kv"}
    write_checkpoint(path, tensors, raw)
    check(tmp_path, path, dense, ranks=False)


@pytest.mark.parametrize("config", [AWQ, GPTQ, FP8, PACKED, {**PACKED, "format": "int-quantized", "config_groups": {"a": {
    "targets": ["Linear"], "weights": Compressed("int-quantized", 8, "channel").weights}}}])  # fmt: skip
def test_random_weights_are_in_the_bits_that_config_json_says(
    tmp_path: Path, llama: Path, config: dict[str, Any]
) -> None:
    raw = json.loads((llama / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**raw, "quantization_config": config}))
    model, dense = load(tmp_path, load_way="dummy"), load(llama, load_way="dummy")
    assert model.weight_bytes < 0.75 * dense.weight_bytes
    assert ModelDriver(model).step([(0, list(range(20)))]).isfinite().all()
