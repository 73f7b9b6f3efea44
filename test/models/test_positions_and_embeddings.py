"""Vectors in the place of token embeddings, and rotary positions that are not the context's indices."""

from pathlib import Path

import pytest
import torch
from support.model_driver import ModelDriver
from support.model_zoo import make_zoo_model

from lightllm.models.base import TpPartBaseModel
from lightllm.models.registry import load_model
from lightllm.ops.batch import Batch, Embeds, make_batch

PROMPT = [(17 * i + 3) % 380 for i in range(12)]
PLACED = [2, 3, 4, 9]
ANY_ID = 1


def load(folder: Path, name: str) -> TpPartBaseModel:
    return load_model(str(make_zoo_model(folder, name).path), data_type="fp32", device=torch.device("cpu"))


@pytest.mark.parametrize("name", ["llama", "gemma2", "bloom"])
def test_placed_embeddings_compute_what_the_same_vectors_looked_up_as_tokens_do(
    tmp_path: Path, name: str
) -> None:
    """Of a model that scales its embeddings, and of one that normalises them."""
    model = load(tmp_path, name)
    expected = ModelDriver(model).step([(0, PROMPT)])
    what = model.embed_tokens(torch.tensor(PROMPT)[PLACED]) * model.config.embedding_scale
    ids = [ANY_ID if position in PLACED else token for position, token in enumerate(PROMPT)]
    assert not torch.equal(ModelDriver(model).step([(0, ids)]), expected)
    placed = ModelDriver(model).step([(0, ids)], embeds=Embeds(torch.tensor(PLACED), what))
    assert torch.equal(placed, expected)


def test_rotary_positions_turn_queries_and_keys_whatever_the_context_index_is(tmp_path: Path) -> None:
    """Attention by rotary positions depends on their differences alone: all of them moved change nothing, one does."""
    model = load(tmp_path, "llama")

    def logits(rope_positions: torch.Tensor) -> torch.Tensor:
        driver = ModelDriver(model)
        count = len(PROMPT)
        driver.req_to_token[0, :count] = driver.slots[0, :count]
        batch: Batch = make_batch(
            torch.tensor(PROMPT), [0], [count], [count], 0, driver.req_to_token, driver.kv
        )
        batch.rope_positions, batch.attention.max_kv_len = rope_positions, 100
        return model.forward(batch)

    indices = torch.arange(len(PROMPT))
    expected = logits(indices)
    torch.testing.assert_close(logits(indices + 7), expected, rtol=1e-3, atol=1e-3)
    later = indices.clone()
    later[5:] -= 3
    assert (logits(later) - expected).abs().max() > 1e-2
