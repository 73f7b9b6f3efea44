"""KV memory in few bits with tensor parallelism and with images."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.checkpoints import make_checkpoint
from support.model_driver import ModelDriver
from support.ranks import run_ranks

from lightllm.distributed.tp_group import TpGroup
from lightllm.models.registry import load_model
from lightllm.ops.kv_codes import FORMATS

PROMPT = [(17 * i + 3) % 380 for i in range(40)]


@pytest.mark.parametrize("kv_type", FORMATS)
def test_two_ranks_compute_what_one_does(tmp_path: Path, kv_type: str) -> None:
    """Each has the scales of its own heads. A code may be one more where a number lies between two."""
    path = make_checkpoint(tmp_path / "model", "llama")

    def logits(group: TpGroup | None, kind: str = kv_type) -> torch.Tensor:
        driver = ModelDriver(
            load_model(str(path), data_type="fp32", device=torch.device("cpu"), group=group), kv_type=kind
        )
        chunks = [driver.step([(0, PROMPT[:23])]), driver.step([(0, PROMPT[23:-2])])]
        decode = [driver.step([(0, [token])], num_decode=1) for token in PROMPT[-2:]]
        assert all((layer.scales is not None) == (kind != "None") for layer in driver.kv)
        return torch.cat((*chunks, *decode))

    alone, exact = logits(None), logits(None, "None")
    cost = (alone - exact).norm()
    assert cost > 0
    for part in run_ranks(tmp_path, 2, logits):
        assert (part - alone).norm() < cost / 4
