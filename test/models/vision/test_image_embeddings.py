"""Every family embeds images as transformers does, from checkpoints in each of its published formats."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from support.arithmetic import ARITHMETICS, compute_bf16_weights_in
from support.near_tie import assert_rounded_like, relative_error
from support.ranks import run_ranks
from support.vision_models import NAMES, make_vision_model, random_images

from lightllm.distributed.tp_group import TpGroup
from lightllm.errors import InvalidModel
from lightllm.images.layouts.registry import layout_of
from lightllm.models.vision.preprocess import load_preprocessor
from lightllm.models.vision.registry import load_vision_model, vision_model_of

CPU = torch.device("cpu")
PLAIN = [name for name in NAMES if "," not in name]
"""One case of each family."""


def embed(path: Path, images: list[Image.Image], group: TpGroup | None = None) -> list[torch.Tensor]:
    model = load_vision_model(str(path), data_type=None, device=CPU, group=group)
    preprocess = load_preprocessor(str(path))
    return [each.float() for each in model.encode([preprocess(image) for image in images])]


@pytest.mark.parametrize("name", NAMES)
def test_embeddings_of_one_two_and_four_images_of_odd_sizes_equal_transformers(
    tmp_path: Path, name: str
) -> None:
    reference = make_vision_model(tmp_path, name)
    model = load_vision_model(str(tmp_path), data_type=None, device=CPU)
    preprocess = load_preprocessor(str(tmp_path))
    images = random_images(4)
    expected = reference.embeddings(images)
    layout = layout_of(str(tmp_path), lambda token: 1)
    assert layout is not None
    counted = [layout.footprint(*image.size, "auto").tokens for image in images]
    assert counted == [len(embedding) for embedding in expected], (
        "prompts have as many tokens as the encoder gives"
    )
    means = torch.stack([embedding.mean(0) for embedding in expected])
    assert relative_error(means[:1].expand(3, -1), means[1:]) > 0.02, "all images look alike"
    assert relative_error(expected[0].mean(0).expand_as(expected[0]), expected[0]) > 0.02, (
        "all tokens are alike"
    )
    for batch in ([0], [2, 1], [0, 1, 2, 3]):
        embeddings = model.encode([preprocess(images[number]) for number in batch])
        for number, embedding in zip(batch, embeddings, strict=True):
            assert relative_error(embedding, expected[number]) < 1e-4


@pytest.mark.parametrize("arithmetic", ARITHMETICS)
@pytest.mark.parametrize("name", PLAIN)
def test_embeddings_in_bfloat16_are_rounded_no_more_than_those_of_transformers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, arithmetic: str
) -> None:
    compute_bf16_weights_in(monkeypatch, arithmetic)
    reference, images = make_vision_model(tmp_path, name, "bfloat16"), random_images(2)
    embeddings = torch.cat(embed(tmp_path, images))
    assert_rounded_like(
        embeddings, torch.cat(reference.half(images)), torch.cat(reference.embeddings(images))
    )


@pytest.mark.parametrize("name", PLAIN)
def test_two_ranks_embed_what_one_does(tmp_path: Path, name: str) -> None:
    make_vision_model(tmp_path, name)
    images = random_images(2)
    (tmp_path / "group").mkdir()
    for rank in run_ranks(tmp_path / "group", 2, lambda group: embed(tmp_path, images, group)):
        for ours, alone in zip(rank, embed(tmp_path, images), strict=True):
            assert relative_error(ours, alone) < 1e-4


def test_a_text_model_has_no_vision_model(tmp_path: Path) -> None:
    assert vision_model_of({"model_type": "llama"}) is None
    assert vision_model_of({"model_type": "qwen"}) is None
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(InvalidModel, match="no vision encoder"):
        load_vision_model(str(tmp_path), data_type=None, device=CPU)


def test_a_tensor_that_the_encoder_has_no_place_for_is_named(tmp_path: Path) -> None:
    """Those of the language model are not looked at, whatever they are."""
    make_vision_model(tmp_path, "qwen2-vl")
    shard = next(tmp_path.glob("model-00001*.safetensors"))
    more = {"model.visual.blocks.7.norm1.weight": torch.zeros(3), "model.language_model.x": torch.zeros(2)}
    save_file(load_file(shard) | more, shard)
    with pytest.raises(InvalidModel, match=r"no place for: blocks\.7\.norm1\.weight\."):
        load_vision_model(str(tmp_path), data_type=None, device=CPU)
