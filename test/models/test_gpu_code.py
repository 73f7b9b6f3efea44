"""Every architecture on the GPU's code, its Triton kernels under the interpreter, in float32: the reference's logits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.kernels import INTERPRETED
from support.model_driver import ModelDriver
from support.model_zoo import NAMES, make_zoo_model
from support.near_tie import relative_error

from lightllm.models.registry import load_model
from lightllm.ops.attention_backends.protocol import AttentionBackends
from lightllm.ops.attention_backends.triton import TritonAttention
from lightllm.ops.packed_experts import StackedExperts
from lightllm.quantization import dense

pytestmark = pytest.mark.skipif(not INTERPRETED, reason="test/gpu/test_models.py does this on a GPU")
PROMPT = [(17 * i + 3) % 380 for i in range(20)]
SHORT = ("gemma2", "bloom", "deepseek-v3")


@pytest.mark.parametrize(
    ("name", "fields"),
    [pytest.param(name, {"num_hidden_layers": 2}, id=f"{name}, two layers") for name in SHORT]
    + [pytest.param(name, {}, id=name, marks=pytest.mark.slow) for name in NAMES],
)
def test_logits_equal_the_reference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, fields: dict[str, int]
) -> None:
    zoo_model = make_zoo_model(tmp_path, name, **fields)
    # What follows changes nothing, but makes the context long enough for "phi3, long".
    expected = zoo_model.reference(PROMPT + PROMPT)[: len(PROMPT)]
    monkeypatch.setattr(dense, "pack_experts", lambda device, count, expert: StackedExperts(count, expert))
    triton = TritonAttention()
    model = load_model(
        str(tmp_path), data_type=None, device=torch.device("cpu"), max_len=zoo_model.max_len,
        attention_backends=AttentionBackends(triton, triton, triton),
    )  # fmt: skip
    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda tensor: True), raising=False)
    driver = ModelDriver(model, shuffled=True)
    prefill = [driver.step([(1, PROMPT[:13])]), driver.step([(1, PROMPT[13:18])])]
    decode = [driver.step([(1, [token])], num_decode=1) for token in PROMPT[18:]]
    logits = torch.cat(prefill + decode)
    assert relative_error(logits, expected) <= 1e-4
