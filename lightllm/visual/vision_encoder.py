"""The vision part of the served checkpoint as the Visual Server's `Encoder`: bytes of images -> pixels -> embeddings."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lightllm.config import ServerConfig
from lightllm.errors import DeviceError, InvalidModel
from lightllm.images.decode import decode
from lightllm.models.vision.preprocess import load_preprocessor
from lightllm.models.vision.registry import load_vision_model
from lightllm.protocol.images import MAX_TILES, Parameters
from lightllm.visual.encoder import EncoderInput, EncoderOutput


class VisionEncoder:
    """Blocks while it encodes."""

    def __init__(self, config: ServerConfig) -> None:
        """Loads encoder, projector and preprocessing. Raises `StartupError`."""
        if config.model_dir is None:
            raise InvalidModel("The Visual Server needs a model folder.", "Give --model_dir.")
        device = _choose_device(config.device)
        self._max_pixels = config.max_image_pixels
        self._preprocess = load_preprocessor(config.model_dir)
        self._model = load_vision_model(config.model_dir, data_type=config.data_type, device=device)

    def encode(self, images: Sequence[EncoderInput]) -> list[EncoderOutput]:
        pixels = [
            self._preprocess(decode(image.data, self._max_pixels), _max_tiles(image.params))
            for image in images
        ]
        return [_output(embedding) for embedding in self._model.encode(pixels)]


def _choose_device(name: str) -> torch.device:
    """name: --device. The GPU is the first one, which rank 0 of the language model has too."""
    if name == "cuda" and not torch.cuda.is_available():
        raise DeviceError("--device cuda: torch finds no usable GPU.", "Use --device cpu.")
    return torch.device("cpu" if name == "cpu" or not torch.cuda.is_available() else "cuda:0")


def _max_tiles(params: Parameters) -> int | None:
    return int(params[MAX_TILES]) if MAX_TILES in params else None


def _output(embedding: torch.Tensor) -> EncoderOutput:
    """embedding: [tokens, size]."""
    tensor = embedding.detach().cpu().contiguous()
    raw = tensor.view(torch.uint8).numpy()  # numpy has no bfloat16
    return EncoderOutput(str(tensor.dtype).removeprefix("torch."), list(tensor.shape), raw.data)
