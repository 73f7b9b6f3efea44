"""A format of weights is one class: with one that is registered here a model computes what its dense twin computes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.checkpoints import make_checkpoint
from support.model_driver import ModelDriver
from support.model_zoo import make_zoo_model
from support.ranks import run_ranks
from support.scaled_rows import METHOD, ScaledRows, quantise_checkpoint

from lightllm.distributed.tp_group import TpGroup
from lightllm.errors import InvalidModel
from lightllm.models.registry import load_model
from lightllm.quantization.formats import FORMATS

PROMPT = [(17 * i + 3) % 380 for i in range(20)]
CPU = torch.device("cpu")

SHARDED = {
    "llama": "q, k, v and gate, up apart; the last rank's vocabulary is padded",
    "phi3": "q, k, v and gate, up in one matrix each",
    "bloom, prefixed": "q, k, v in turns; biases; a head that is the embedding",
    "phi3-small": "gate and up in turns",
    "mixtral": "experts",
    "gpt-oss": "experts in stacks, gate and up in turns, biases",
    "deepseek-v3": "latent attention, shared experts",
}


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FORMATS, METHOD, ScaledRows)


def logits(path: Path, group: TpGroup | None = None) -> tuple[torch.Tensor, int]:
    """After a prefill and two decode steps, and the bytes of the weights."""
    model = load_model(str(path), data_type=None, device=CPU, group=group)
    driver = ModelDriver(model)
    prefill = driver.step([(0, PROMPT[:-2])])
    decode = [driver.step([(0, [token])], num_decode=1) for token in PROMPT[-2:]]
    return torch.cat((prefill, *decode)), model.weight_bytes


@pytest.mark.parametrize("name", SHARDED)
def test_one_rank_and_two_compute_what_the_dense_model_of_the_same_numbers_computes(
    tmp_path: Path, name: str
) -> None:
    fields = {"vocab_size": 387} if name == "llama" else {}
    path = make_zoo_model(tmp_path / "model", name, **fields).path
    quantised, plain = tmp_path / "quantised", tmp_path / "plain"
    assert quantise_checkpoint(path, quantised, plain) > 12
    expected, dense_bytes = logits(plain)
    (alone, whole_bytes), ranks = logits(quantised), run_ranks(tmp_path, 2, lambda g: logits(quantised, g))
    (first, rank_bytes), (second, _) = ranks
    torch.testing.assert_close(alone, expected, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(first, expected, rtol=1e-4, atol=1e-3)
    assert torch.equal(first, second)
    assert whole_bytes < 0.6 * dense_bytes and rank_bytes < 0.75 * whole_bytes


def test_a_format_that_is_not_registered_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quantise_checkpoint(make_checkpoint(tmp_path / "model"), tmp_path / "quantised", tmp_path / "plain")
    monkeypatch.delitem(FORMATS, METHOD)
    with pytest.raises(InvalidModel, match=f"quantized with '{METHOD}' are not supported yet"):
        logits(tmp_path / "quantised")


def test_a_tensor_that_is_not_of_the_formats_dtype_is_named(tmp_path: Path) -> None:
    name = "model.layers.1.mlp.down_proj.weight"
    quantise_checkpoint(make_checkpoint(tmp_path / "model"), tmp_path / "quantised", tmp_path / "plain")
    for file in (tmp_path / "quantised").glob("*.safetensors"):
        tensors = load_file(file)
        if name in tensors:
            save_file({**tensors, name: tensors[name].float()}, file)
    with pytest.raises(InvalidModel, match=f"{name}.*float32.*int8"):
        logits(tmp_path / "quantised")


def test_random_weights_need_no_scales(tmp_path: Path) -> None:
    quantise_checkpoint(make_checkpoint(tmp_path / "model"), tmp_path / "quantised", tmp_path / "plain")
    model = load_model(str(tmp_path / "quantised"), data_type=None, device=CPU, load_way="dummy")
    assert ModelDriver(model).step([(0, PROMPT)]).isfinite().all()
