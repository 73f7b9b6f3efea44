"""The vision part of the served checkpoint as the Visual Server's `Encoder`: bytes of images -> pixels -> embeddings."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lightllm.config import ServerConfig
from lightllm.images.decode import decode
from lightllm.images.serving import most_tokens
from lightllm.ipc.child import Child
from lightllm.ipc.encoder_memory import EncoderMemory
from lightllm.models.vision.preprocess import load_preprocessor
from lightllm.protocol.images import MAX_TILES, Parameters
from lightllm.visual.encoder import BatchLimits, EncoderInput, EncoderOutput
from lightllm.visual.other_ranks import EncoderGroup, OtherRanks

GPU_BATCH = 4
"""Images of one encode on a GPU, unless told. One image fills the cores of a CPU: there more would only wait for each other."""
BATCH_TOKENS = 8192
"""Tokens of the images of one encode, unless one image has more: they fill a GPU, and its memory must have room for them."""


def make_encoder(child: Child, server: int) -> VisionEncoder:
    """In a Visual Server: with --visual_tp it starts the other ranks."""
    others = OtherRanks(child, server) if child.config.visual_tp > 1 else None
    return VisionEncoder(child.config, server, others)


class VisionEncoder:
    """Blocks while it encodes."""

    def __init__(self, config: ServerConfig, server: int = 0, others: OtherRanks | None = None) -> None:
        """Loads encoder, projector and preprocessing. server: number of the Visual Server; others: the ranks that the encoder is
        shared with. Raises `StartupError`."""
        self._group = EncoderGroup(config, server, others)
        model = self._group.model
        assert config.model_dir is not None
        self._max_pixels = config.max_image_pixels
        self._preprocess = load_preprocessor(config.model_dir)
        images = config.visual_infer_batch_size or (1 if model.device.type == "cpu" else GPU_BATCH)
        most = most_tokens(config)
        self.limits = BatchLimits(images, max(most, BATCH_TOKENS))
        largest = min(images * most, self.limits.tokens)
        self.memory = EncoderMemory(model.weight_bytes, model.activation_bytes(largest))

    def encode(self, images: Sequence[EncoderInput]) -> list[EncoderOutput]:
        pixels = [
            self._preprocess(decode(image.data, self._max_pixels), _max_tiles(image.params))
            for image in images
        ]
        return [_output(embedding) for embedding in self._group.encode(pixels)]

    def close(self) -> None:
        self._group.close()


def _max_tiles(params: Parameters) -> int | None:
    return int(params[MAX_TILES]) if MAX_TILES in params else None


def _output(embedding: torch.Tensor) -> EncoderOutput:
    """embedding: [tokens, size]."""
    tensor = embedding.detach().cpu().contiguous()
    raw = tensor.view(torch.uint8).numpy()  # numpy has no bfloat16
    return EncoderOutput(str(tensor.dtype).removeprefix("torch."), list(tensor.shape), raw.data)
