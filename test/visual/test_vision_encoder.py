"""The Visual Server's encoder: from files of images to the embeddings that the model's family has for them."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from PIL import Image
from support.near_tie import relative_error
from support.vision_models import make_vision_model, random_images

from lightllm.config import ServerConfig
from lightllm.errors import InvalidImage, InvalidModel
from lightllm.models.hf_configs.vision_language import language_name
from lightllm.models.registry import load_model
from lightllm.models.vision.registry import load_vision_model
from lightllm.protocol.images import MAX_TILES
from lightllm.visual.encoder import EncoderInput, EncoderOutput
from lightllm.visual.vision_encoder import VisionEncoder
from lightllm.weights.checkpoint import open_checkpoint


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def tensor_of(output: EncoderOutput) -> torch.Tensor:
    dtype = getattr(torch, output.dtype)
    return torch.frombuffer(bytearray(output.data), dtype=dtype).view(output.shape).float()


def encoder_of(path: Path) -> VisionEncoder:
    return VisionEncoder(ServerConfig(model_dir=str(path), device="cpu"))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_files_of_images_become_raw_tensors(tmp_path: Path, dtype: str) -> None:
    reference = make_vision_model(tmp_path, "llava", dtype)
    images = random_images(3)
    expected = reference.embeddings(images)
    inputs = [EncoderInput(png(image), {}, len(each)) for image, each in zip(images, expected)]
    outputs = encoder_of(tmp_path).encode(inputs)
    for output, each in zip(outputs, expected, strict=True):
        assert output.shape == list(each.shape)
        assert relative_error(tensor_of(output), each) < (1e-4 if dtype == "float32" else 0.05)


def test_the_most_tiles_are_a_parameter_of_each_image(tmp_path: Path) -> None:
    reference = make_vision_model(tmp_path, "internvl")
    (image,) = random_images(1)
    (whole,) = reference.embeddings([image])
    data = png(image)
    outputs = encoder_of(tmp_path).encode([EncoderInput(data, {}, 0), EncoderInput(data, {MAX_TILES: 1}, 0)])
    assert outputs[0].shape == list(whole.shape)
    assert outputs[1].shape[0] < outputs[0].shape[0]


def test_only_the_tensors_that_a_process_loads_must_fit(tmp_path: Path) -> None:
    """The folder as a whole would fit into neither."""
    make_vision_model(tmp_path, "llava")
    source = open_checkpoint(str(tmp_path))
    language = {name for name in source.names() if language_name(name) is not None}
    sizes = {
        load_model: source.nbytes(torch.float32, language),
        load_vision_model: source.nbytes(torch.float32, source.names() - language),
    }
    assert min(sizes.values()) > 10_000
    for load, size in sizes.items():
        load(str(tmp_path), data_type="fp32", device=torch.device("cpu"), memory=size)  # type: ignore[operator]
        with pytest.raises(InvalidModel, match="weights.* take 0 MiB, there are 0 MiB"):
            load(str(tmp_path), data_type="fp32", device=torch.device("cpu"), memory=size * 2 // 3)  # type: ignore[operator]


def test_what_is_no_image_and_what_is_no_vision_model_are_errors(tmp_path: Path) -> None:
    make_vision_model(tmp_path, "llava")
    with pytest.raises(InvalidImage):
        encoder_of(tmp_path).encode([EncoderInput(b"no image", {}, 16)])
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(InvalidModel):
        encoder_of(tmp_path)
