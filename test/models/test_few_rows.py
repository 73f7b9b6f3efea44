"""Layers for few rows, on the GPU's code under Triton's interpreter: the same logits in six launches a layer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.kernels import INTERPRETED
from support.model_driver import ModelDriver
from support.model_zoo import make_zoo_model
from support.near_tie import relative_error

from lightllm.models import builder
from lightllm.models.registry import load_model
from lightllm.ops import skinny_linear
from lightllm.ops.attention_backends.protocol import AttentionBackends
from lightllm.ops.attention_backends.triton import TritonAttention
from lightllm.ops.linear import PlainLinear
from lightllm.ops.triton import skinny_linear as kernels
from lightllm.ops.weight_rows import as_rows
from lightllm.quantization import dense

pytestmark = pytest.mark.skipif(not INTERPRETED, reason="test/gpu/test_models.py does this on a GPU")
PROMPT = [(17 * i + 3) % 380 for i in range(12)]


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Forms of the launches."""
    found, launch = [], kernels._launch

    def watched(x, weight, bias, out, **form):
        found.append(
            "+".join(sorted(name for name, value in form.items() if value is not None and name != "eps"))
        )
        launch(x, weight, bias, out, **form)

    monkeypatch.setattr(kernels, "_launch", watched)
    return found


def make_model(path: Path, monkeypatch: pytest.MonkeyPatch):
    """With weights as a GPU has them."""
    for module in (builder, dense):
        monkeypatch.setattr(
            module, "pack_linear", lambda weight, bias: PlainLinear(as_rows(weight).on_device(), bias)
        )
    triton = TritonAttention()
    backends = AttentionBackends(triton, triton, triton)
    model = load_model(
        str(path), data_type=None, device=torch.device("cpu"), max_len=64, attention_backends=backends
    )
    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda tensor: True), raising=False)
    return model


@pytest.mark.parametrize(
    ("name", "fused"),
    [
        ("qwen2", True),  # with a bias
        pytest.param("llama", True, marks=pytest.mark.slow),
        pytest.param("qwen3", True, marks=pytest.mark.slow),
        pytest.param("gemma2", False, marks=pytest.mark.slow),  # another order of its norms
        pytest.param("mixtral", False, marks=pytest.mark.slow),
    ],
)
def test_logits_are_those_of_the_reference(tmp_path, monkeypatch, launches, name, fused) -> None:
    zoo_model = make_zoo_model(tmp_path, name, num_hidden_layers=2)
    expected = zoo_model.reference(PROMPT)
    driver = ModelDriver(make_model(tmp_path, monkeypatch), shuffled=True)
    prefill = driver.step([(1, PROMPT[:9])])
    decode = [driver.step([(1, [token])], num_decode=1) for token in PROMPT[9:]]
    assert relative_error(torch.cat([prefill, *decode]), expected) <= 1e-4
    of_a_layer = ["norm", "ADD", "GATED+norm", "ADD"]
    assert launches == (of_a_layer * 2 * 4 if fused else [])


def test_many_rows_fp16_and_the_switch_take_the_way_of_all_others(monkeypatch) -> None:
    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda tensor: True), raising=False)
    few = torch.zeros(skinny_linear.MAX_ROWS, 8)
    assert skinny_linear.takes(few) and skinny_linear.MAX_ROWS == kernels.MAX_ROWS
    assert not skinny_linear.takes(torch.zeros(skinny_linear.MAX_ROWS + 1, 8))
    assert not skinny_linear.takes(few.half())
    monkeypatch.setenv(skinny_linear.VARIABLE, "0")
    monkeypatch.setattr(skinny_linear, "_switched_on", skinny_linear._switched_on.__wrapped__)
    assert not skinny_linear.takes(few)
