"""What each of several ranks holds: parts that cover the whole, and two ranks that compute what one computes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.checkpoints import make_checkpoint
from support.model_driver import ModelDriver
from support.ranks import run_ranks

from lightllm.distributed.tp_group import TpGroup
from lightllm.models.registry import load_model
from lightllm.weights.split import Part, even_part, kv_head_part, vocab_part, vocab_rows


def test_even_parts_cover_the_whole_in_order() -> None:
    parts = [even_part(12, 1, rank, 3) for rank in range(3)]
    assert parts == [Part(1, 0, 4), Part(1, 4, 8), Part(1, 8, 12)]


def test_kv_heads_are_split_or_shared_by_neighbours() -> None:
    assert [kv_head_part(4, 8, rank, 2) for rank in range(2)] == [Part(0, 0, 16), Part(0, 16, 32)]
    assert [kv_head_part(2, 8, rank, 4) for rank in range(4)] == [
        Part(0, 0, 8),
        Part(0, 0, 8),
        Part(0, 8, 16),
        Part(0, 8, 16),
    ]


@pytest.mark.parametrize(("vocab", "world"), [(10, 2), (11, 2), (9, 4), (5, 4)])
def test_vocabulary_rows_cover_every_token_once(vocab: int, world: int) -> None:
    parts = [vocab_part(vocab, rank, world) for rank in range(world)]
    assert [i for part in parts for i in range(part.start, part.stop)] == list(range(vocab))
    assert all(part.stop - part.start <= vocab_rows(vocab, world) for part in parts)


@pytest.mark.parametrize(
    ("architecture", "shape"),
    [
        ("llama", {"attention_bias": True, "mlp_bias": True, "vocab_size": 385}),
        ("llama", {"num_key_value_heads": 1, "tie_word_embeddings": True}),
        ("qwen3", {"num_key_value_heads": 2}),
    ],
)
def test_two_ranks_compute_what_one_computes(tmp_path: Path, architecture: str, shape: dict) -> None:
    path = str(make_checkpoint(tmp_path / "model", architecture, **shape))
    cpu, prompt = torch.device("cpu"), [(17 * i + 3) % 380 for i in range(20)]
    whole = load_model(path, data_type=None, device=cpu)

    def work(group: TpGroup) -> tuple[int, torch.Tensor]:
        model = load_model(path, data_type=None, device=cpu, group=group)
        return model.weight_bytes, ModelDriver(model).step([(0, prompt)])

    expected = ModelDriver(whole).step([(0, prompt)])
    (part_bytes, first), (_, second) = run_ranks(tmp_path, 2, work)
    assert part_bytes < 0.75 * whole.weight_bytes
    torch.testing.assert_close(first, expected, rtol=1e-4, atol=1e-3)
    assert torch.equal(first, second)
