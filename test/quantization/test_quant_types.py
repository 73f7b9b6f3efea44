"""`--quant_type`: its names, and which checkpoints it is for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.checkpoints import make_checkpoint

from lightllm.config import ServerConfig
from lightllm.errors import InvalidOption
from lightllm.quantization.quant_plan import read_plan
from lightllm.quantization.quant_types import ALSO_CALLED, QUANT_TYPES, quant_type
from lightllm.server.prepare import resolve_config


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("dense") / "model", num_hidden_layers=1)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [("w8a8", "w8a8"), ("vllm-w8a8", "w8a8"), ("ao-w4a16-128", "w4a16"), ("fp8w8a8", "fp8"), ("fp8w8a8g64", "fp8-64")],
)  # fmt: skip
def test_lightllms_names_mean_ours(theirs: str, ours: str) -> None:
    assert quant_type(theirs) == QUANT_TYPES[ours]


def test_every_other_name_means_one_that_there_is() -> None:
    assert all(name == "none" or name in QUANT_TYPES for name in ALSO_CALLED.values())
    assert not ALSO_CALLED.keys() & QUANT_TYPES.keys()
    assert quant_type("none") is None and read_plan("none", None) is None


@pytest.mark.parametrize(("inputs", "group"), [(256, 128), (192, 64), (96, 32), (80, 16), (100, 128)])
def test_a_group_is_halved_until_it_divides_the_inputs(inputs: int, group: int) -> None:
    assert QUANT_TYPES["w4a16"].group_of(inputs) == group
    assert QUANT_TYPES["w8a8"].group_of(inputs) == 0


def launched(folder: Path, **options: str) -> ServerConfig:
    return resolve_config(ServerConfig(model_dir=str(folder), **options))  # type: ignore[arg-type]


def test_an_unknown_name_ends_the_launch(checkpoint: Path) -> None:
    with pytest.raises(InvalidOption, match=r"--quant_type 'w3' is not known; none, w8a8, w8a16, w4a16"):
        launched(checkpoint, quant_type="w3")
    with pytest.raises(InvalidOption, match="--quant_cfg /none.yaml cannot be read: .*No such file"):
        launched(checkpoint, quant_cfg="/none.yaml")
    assert launched(checkpoint, quant_type="int4").quant_type == "int4"


def test_a_checkpoint_that_is_quantised_already_ends_the_launch(tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path / "model", num_hidden_layers=1)
    raw = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(
        json.dumps({**raw, "quantization_config": {"quant_method": "awq", "bits": 4}})
    )
    with pytest.raises(
        InvalidOption, match=r"--quant_type w4a16: the checkpoint is quantised already \(awq\)"
    ):
        launched(path, quant_type="w4a16")
    assert launched(path, quant_type="awq").quant_type == "awq"  # as LightLLM wants it


def test_lightllms_names_of_published_formats_are_refused_for_a_dense_checkpoint(checkpoint: Path) -> None:
    with pytest.raises(
        InvalidOption, match="--quant_type awq is for checkpoints that are quantised so; this one is dense"
    ):
        launched(checkpoint, quant_type="awq")
