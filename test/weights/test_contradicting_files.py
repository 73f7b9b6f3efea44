"""Weight files that contradict each other: which one is read, what is said of it, what is refused."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.altered_checkpoints import FORMATS, edit_json, logits_of_transformers
from support.checkpoints import make_checkpoint
from support.model_driver import ModelDriver
from support.near_tie import relative_error

from lightllm.errors import InvalidModel
from lightllm.models.registry import load_model

PROMPT = [(17 * i + 3) % 380 for i in range(12)]
SINGLE = {"safetensors": "model.safetensors", "bin": "pytorch_model.bin"}
NORM = "model.norm.weight"
Tensors = dict[str, torch.Tensor]


def load(path: Path, **options: Any) -> Any:
    return load_model(str(path), **{"data_type": None, "device": torch.device("cpu"), **options})


def logits(path: Path) -> torch.Tensor:
    return ModelDriver(load(path)).step([(0, PROMPT)])


def save(tensors: Tensors, path: Path) -> None:
    if path.suffix == ".bin":
        torch.save(tensors, path)
    else:
        save_file(tensors, path, {"format": "pt"})


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("original"))


@pytest.fixture(params=FORMATS)
def folder(request: pytest.FixtureRequest, original: Path, tmp_path: Path) -> Path:
    """A checkpoint without weights; `weight_format` is its format."""
    shutil.copytree(original, tmp_path / "m", ignore=shutil.ignore_patterns("*.safetensors"))
    return tmp_path / "m"


@pytest.fixture
def weight_format(request: pytest.FixtureRequest) -> str:
    return request.node.callspec.params["folder"]


@pytest.fixture
def tensors(original: Path) -> Tensors:
    return load_file(original / "model.safetensors")


@pytest.fixture
def write(folder: Path, weight_format: str) -> Callable[..., None]:
    """write(parts, index=...): shards, and the file that the index names for each tensor; None: no index."""

    def write(parts: list[Tensors], index: dict[str, int] | None = None) -> None:
        stem, suffix = SINGLE[weight_format].split(".")
        names = [f"{stem}-{i:05d}-of-{len(parts):05d}.{suffix}" for i in range(1, len(parts) + 1)]
        for name, part in zip(names, parts, strict=True):
            save(part, folder / name)
        if index is not None:
            weight_map = {name: names[number] for name, number in index.items()}
            text = json.dumps({"metadata": {}, "weight_map": weight_map})
            (folder / f"{SINGLE[weight_format]}.index.json").write_text(text)

    return write


def halves(tensors: Tensors) -> tuple[list[Tensors], dict[str, int]]:
    index = {name: number % 2 for number, name in enumerate(tensors)}
    return [{n: t for n, t in tensors.items() if index[n] == half} for half in (0, 1)], index


def refused(path: Path, *words: str) -> None:
    with pytest.raises(InvalidModel) as caught:
        load(path)
    text = f"{caught.value} {caught.value.remedy}"
    for word in words:
        assert word in text, text


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name.startswith("lightllm")]


def test_a_tensor_in_two_shards_is_the_one_that_the_index_names(
    folder: Path, tensors: Tensors, write: Any, original: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """transformers takes that of the last file, whatever the index says."""
    parts, index = halves(tensors)
    parts[1 - index[NORM]][NORM] = torch.zeros_like(tensors[NORM])
    write(parts, index)
    assert torch.equal(logits(folder), logits(original))
    (line,) = lines(caplog)
    assert NORM in line and "index" in line


def test_a_tensor_in_two_shards_without_an_index_is_refused_if_they_differ(
    folder: Path, tensors: Tensors, write: Any, original: Path
) -> None:
    parts, index = halves(tensors)
    parts[1 - index[NORM]][NORM] = tensors[NORM].clone()
    write(parts)
    assert torch.equal(logits(folder), logits(original))
    parts[1 - index[NORM]][NORM] += 1
    write(parts)
    refused(folder, NORM, "-00001-of-00002", "-00002-of-00002")


def test_a_tensor_that_the_index_puts_elsewhere_is_read_where_it_is(
    folder: Path, tensors: Tensors, write: Any, original: Path, caplog: pytest.LogCaptureFixture
) -> None:
    parts, index = halves(tensors)
    write(parts, {**index, NORM: 1 - index[NORM]})
    assert relative_error(logits(folder), logits_of_transformers(folder, PROMPT)) <= 1e-4
    assert NORM in lines(caplog)[0]


def test_a_tensor_that_the_index_does_not_name_is_read(
    folder: Path, tensors: Tensors, write: Any, original: Path, caplog: pytest.LogCaptureFixture
) -> None:
    parts, index = halves(tensors)
    index.pop(NORM)
    write(parts, index)
    assert torch.equal(logits(folder), logits(original))
    assert NORM in lines(caplog)[0]


def test_a_tensor_that_the_index_alone_knows_is_said_and_missed(
    folder: Path, tensors: Tensors, write: Any, caplog: pytest.LogCaptureFixture
) -> None:
    parts, index = halves(tensors)
    write(parts, {**index, "model.more.weight": 0})
    load(folder)
    assert "model.more.weight is in the index and in no file" in lines(caplog)[0]
    parts[index[NORM]].pop(NORM)
    write(parts, index)
    refused(folder, NORM)


def test_the_single_file_goes_before_the_index(
    folder: Path, tensors: Tensors, write: Any, weight_format: str, caplog: pytest.LogCaptureFixture
) -> None:
    parts, index = halves({name: torch.zeros_like(tensor) for name, tensor in tensors.items()})
    write(parts, index)
    save(tensors, folder / SINGLE[weight_format])
    with caplog.at_level(logging.INFO, "lightllm"):
        served = logits(folder)
    assert relative_error(served, logits_of_transformers(folder, PROMPT)) <= 1e-4
    assert "-00001-of-00002" in lines(caplog)[0] and "not read" in lines(caplog)[0]


def test_shards_without_an_index_are_read_if_all_are_there(
    folder: Path, tensors: Tensors, write: Any, weight_format: str, original: Path
) -> None:
    write(halves(tensors)[0])
    stem, suffix = SINGLE[weight_format].split(".")
    assert torch.equal(logits(folder), logits(original))
    (folder / f"{stem}-00002-of-00002.{suffix}").unlink()
    refused(folder, "lacks part 2 of 2")


def test_two_sets_of_shards_without_an_index_are_refused(
    folder: Path, tensors: Tensors, write: Any, weight_format: str
) -> None:
    write(halves(tensors)[0])
    stem, suffix = SINGLE[weight_format].split(".")
    save(tensors, folder / f"{stem}-00001-of-00001.{suffix}")
    refused(folder, "several sets", "of-00001", "of-00002")


def test_an_index_that_leads_out_of_the_folder_is_refused(
    folder: Path, tensors: Tensors, write: Any, weight_format: str
) -> None:
    parts, index = halves(tensors)
    write(parts, index)
    edit_json(folder / f"{SINGLE[weight_format]}.index.json", weight_map={NORM: "../../secret.safetensors"})
    refused(folder, "../../secret.safetensors")


def test_integers_without_a_quantization_config_are_refused(
    folder: Path, tensors: Tensors, weight_format: str
) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    tensors[name] = tensors[name].to(torch.int8)
    save(tensors, folder / SINGLE[weight_format])
    refused(folder, name, "int8", "quantized")


def test_the_dtype_is_the_configs_then_that_of_the_first_floating_tensor(
    folder: Path, tensors: Tensors, weight_format: str
) -> None:
    halved = {name: tensor.half() for name, tensor in tensors.items()}
    buffer = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.arange(8)}
    save({**buffer, **halved}, folder / SINGLE[weight_format])
    assert load(folder).dtype == torch.float32  # config.json
    edit_json(folder / "config.json", dtype=None)
    assert load(folder).dtype == torch.float16
    assert load(folder, data_type="bf16").dtype == torch.bfloat16


def test_layers_beyond_the_configs_and_a_bias_that_it_does_not_know_are_refused(
    folder: Path, tensors: Tensors, weight_format: str
) -> None:
    save(tensors, folder / SINGLE[weight_format])
    edit_json(folder / "config.json", num_hidden_layers=1)
    refused(folder, "model.layers.1.", "no place")
    edit_json(folder / "config.json", num_hidden_layers=3)
    refused(folder, "model.layers.2.")
    edit_json(folder / "config.json", num_hidden_layers=2, attention_bias=True)
    refused(folder, "_proj.bias")


@pytest.mark.parametrize("rows", [300, 500])
def test_a_vocabulary_of_another_size_than_the_embedding_is_refused(
    folder: Path, tensors: Tensors, weight_format: str, rows: int
) -> None:
    save(tensors, folder / SINGLE[weight_format])
    edit_json(folder / "config.json", vocab_size=rows)
    refused(folder, "model.embed_tokens.weight", "[384, 64]", f"[{rows}, 64]")


def test_safetensors_go_before_bin_and_other_formats(
    original: Path, tensors: Tensors, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "m"
    shutil.copytree(original, path)
    zeros = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
    save(zeros, path / "pytorch_model.bin")
    save({f"own.{name}": tensor for name, tensor in zeros.items()}, path / "consolidated.safetensors")
    with caplog.at_level(logging.INFO, "lightllm"):
        assert torch.equal(logits(path), logits(original))
    assert "pytorch_model.bin" in lines(caplog)[0] and "consolidated.safetensors" in lines(caplog)[0]


def test_a_consolidated_file_beside_shards_without_an_index_is_not_read(
    original: Path, tensors: Tensors, tmp_path: Path
) -> None:
    path = tmp_path / "m"
    shutil.copytree(original, path)
    (path / "model.safetensors").rename(path / "model-00001-of-00001.safetensors")
    save({"tok_embeddings.weight": torch.ones(4)}, path / "consolidated.safetensors")
    assert torch.equal(logits(path), logits(original))


def test_weights_that_cannot_fit_are_refused_before_they_are_read(original: Path) -> None:
    with pytest.raises(InvalidModel, match="The weights take 0 MiB, there are 0 MiB"):
        load(original, memory=100_000)
    load(original, memory=10 << 20)


def test_random_weights_that_cannot_fit_are_refused_on_the_way(original: Path, tmp_path: Path) -> None:
    shutil.copy(original / "config.json", tmp_path)
    edit_json(tmp_path / "config.json", num_hidden_layers=9000)
    with pytest.raises(InvalidModel, match="Random weights up to"):
        load(tmp_path, load_way="dummy", memory=2 << 20)
