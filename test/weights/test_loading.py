"""Checkpoints of every form load to the same model; broken ones end with one line that names the culprit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.arithmetic import ARITHMETICS, compute_bf16_weights_in
from support.checkpoints import make_checkpoint
from support.model_driver import ModelDriver
from support.near_tie import assert_rounded_like

from lightllm.errors import InvalidModel
from lightllm.models.base import TpPartBaseModel
from lightllm.models.registry import load_model

PROMPT = [(17 * i + 3) % 380 for i in range(12)]


def load(path: Path, **options: Any) -> TpPartBaseModel:
    return load_model(str(path), **{"data_type": None, "device": torch.device("cpu"), **options})


def logits(model: TpPartBaseModel) -> torch.Tensor:
    return ModelDriver(model).step([(0, PROMPT)])


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "model")


def rewrite(path: Path, change: Any) -> None:
    """Applies `change` to the checkpoint's dict of tensors."""
    file = path / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


def edit_config(path: Path, **fields: Any) -> None:
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, **fields}))


def test_single_sharded_and_bin_checkpoints_are_the_same_model(checkpoint: Path, tmp_path: Path) -> None:
    sharded = make_checkpoint(tmp_path / "sharded", max_shard_size="100KB")
    assert len(list(sharded.glob("*.safetensors"))) > 2
    binary = make_checkpoint(tmp_path / "bin", weight_format="bin")
    assert not list(binary.glob("*.safetensors"))
    expected = logits(load(checkpoint))
    assert torch.equal(logits(load(sharded)), expected)
    assert torch.equal(logits(load(binary)), expected)


@pytest.mark.parametrize("arithmetic", ARITHMETICS)
def test_data_type_overrides_the_checkpoints(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, arithmetic: str
) -> None:
    from transformers import AutoModelForCausalLM

    path = make_checkpoint(tmp_path / "model", std=0.1)
    compute_bf16_weights_in(monkeypatch, arithmetic)
    whole, half = load(path), load(path, data_type="bf16")
    assert whole.dtype == torch.float32 and half.dtype == torch.bfloat16
    assert half.weight_bytes < 0.55 * whole.weight_bytes
    rounded = {name: t.bfloat16().float() for name, t in load_file(path / "model.safetensors").items()}
    rewrite(path, lambda tensors: tensors.update(rounded))
    with torch.inference_mode():
        theirs = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16)(torch.tensor([PROMPT]))
    assert_rounded_like(logits(half), theirs.logits[0], logits(load(path)))


def test_without_a_dtype_in_the_config_that_of_the_weights_is_taken(tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path / "model", dtype="float16")
    config = json.loads((path / "config.json").read_text())
    del config["dtype"]
    (path / "config.json").write_text(json.dumps(config))
    assert load(path).dtype == torch.float16


def test_dummy_weights_need_only_a_config_and_are_the_same_each_time(tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path / "model", "qwen3", dtype="bfloat16")
    for file in path.iterdir():
        if file.name != "config.json":
            file.unlink()
    model = load(path, load_way="dummy")
    assert model.dtype == torch.bfloat16
    first = logits(model)
    assert first.isfinite().all() and first.std() > 0
    assert torch.equal(first, logits(load(path, load_way="dummy")))


def test_progress_is_told_and_ends_at_the_whole(checkpoint: Path) -> None:
    told: list[str] = []
    load(checkpoint, progress=told.append)
    assert told[-1] == "weights 100 %" and len(told) > 5


def test_bar_goes_to_stderr_only_when_wanted(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    load(checkpoint)
    assert capsys.readouterr() == ("", "")
    load(checkpoint, show_bar=True)
    out, err = capsys.readouterr()
    assert out == "" and "weights" in err


def test_old_buffers_and_the_head_of_a_tied_model_are_no_surprise(tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path / "model", tie_word_embeddings=True)
    expected = logits(load(path))

    def add(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()

    rewrite(path, add)
    assert torch.equal(logits(load(path)), expected)


def fails(path: Path, *words: str) -> None:
    with pytest.raises(InvalidModel) as caught:
        load(path)
    text = str(caught.value)
    assert "\n" not in text
    for word in words:
        assert word in text, text


def test_missing_tensor_is_named(checkpoint: Path) -> None:
    rewrite(checkpoint, lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight"))
    fails(checkpoint, "model.layers.1.mlp.up_proj.weight")


def test_tensor_without_a_place_is_named(checkpoint: Path) -> None:
    rewrite(
        checkpoint, lambda tensors: tensors.update({"model.layers.0.self_attn.q_proj.bias": torch.zeros(128)})
    )
    fails(checkpoint, "model.layers.0.self_attn.q_proj.bias", "no place")


@pytest.mark.parametrize("weight_format", ["safetensors", "bin"])
def test_wrong_shape_is_named_with_both_shapes(tmp_path: Path, weight_format: str) -> None:
    path = make_checkpoint(tmp_path / "model", weight_format=weight_format)
    edit_config(path, intermediate_size=256)
    fails(path, "mlp.", "[128, 64]", "[256, 64]")


def test_missing_shard_is_named(tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path / "model", max_shard_size="100KB")
    shard = sorted(path.glob("*.safetensors"))[1]
    shard.unlink()
    fails(path, shard.name, "model.safetensors.index.json")


@pytest.mark.parametrize("keep", [0, 5, 1000, 0.5])
@pytest.mark.parametrize("weight_format", ["safetensors", "bin"])
def test_truncated_file_is_named(tmp_path: Path, weight_format: str, keep: float) -> None:
    path = make_checkpoint(tmp_path / "model", weight_format=weight_format)
    file = next(iter([*path.glob("*.safetensors"), *path.glob("*.bin")]))
    data = file.read_bytes()
    file.write_bytes(data[: int(keep * len(data)) if isinstance(keep, float) else keep])
    fails(path, file.name)


def test_pickled_code_in_a_bin_file_is_refused_not_run(tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path / "model", weight_format="bin")
    torch.save({"model.norm.weight": _Code()}, path / "pytorch_model.bin")
    fails(path, "pytorch_model.bin")
    assert not _Code.ran


class _Code:
    ran = False

    def __reduce__(self) -> Any:
        return _run, ()


def _run() -> None:
    _Code.ran = True


def test_folder_without_weights_and_without_config(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").unlink()
    fails(checkpoint, "no weights")
    (checkpoint / "config.json").write_text("{")
    fails(checkpoint, "config.json")
    (checkpoint / "config.json").unlink()
    fails(checkpoint, "has no config.json")


def test_broken_index_is_named(tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path / "model", max_shard_size="100KB")
    (path / "model.safetensors.index.json").write_text("[]")
    fails(path, "model.safetensors.index.json")


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"architectures": ["MambaForCausalLM"]}, "MambaForCausalLM"),
        ({"architectures": ["MambaForCausalLM"]}, "LlamaForCausalLM"),
        ({"rope_parameters": {"rope_type": "spiral"}}, "spiral"),
        ({"rope_parameters": {"rope_type": "linear"}}, "factor"),
        ({"hidden_act": "relu"}, "relu"),
        ({"num_key_value_heads": 3}, "num_key_value_heads"),
        ({"hidden_size": None}, "hidden_size"),
        ({"num_hidden_layers": "2"}, "num_hidden_layers"),
        ({"quantization_config": {"quant_method": "aqlm"}}, "aqlm"),
        ({"dtype": "int8"}, "int8"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings"),
        ({"head_dim": 15}, "head_dim"),
    ],
)
def test_config_that_is_not_supported_names_the_field(
    checkpoint: Path, fields: dict[str, Any], word: str
) -> None:
    edit_config(checkpoint, **fields)
    fails(checkpoint, word)
