"""Every family of vision encoders on a GPU, in bfloat16, against its float32 reference."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.near_tie import assert_rounded_like
from support.vision_models import NAMES, make_vision_model, random_images

from lightllm.models.vision.preprocess import load_preprocessor
from lightllm.models.vision.registry import load_vision_model


@pytest.mark.parametrize("name", [name for name in NAMES if "," not in name])
def test_embeddings_are_rounded_no_more_than_those_of_transformers(
    tmp_path: Path, name: str, poisoned: None
) -> None:
    reference, images = make_vision_model(tmp_path, name, "bfloat16"), random_images(3)
    model = load_vision_model(str(tmp_path), data_type=None, device=torch.device("cuda"))
    preprocess = load_preprocessor(str(tmp_path))
    embeddings = torch.cat(model.encode([preprocess(image) for image in images]))
    assert_rounded_like(
        embeddings, torch.cat(reference.half(images)), torch.cat(reference.embeddings(images))
    )
