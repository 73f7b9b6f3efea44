"""Items of the image cache -> their embedding files, by an encoder of any kind."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from lightllm.ipc.image_files import EmbeddingHeader, ImageFiles
from lightllm.protocol.images import EncodeItem
from lightllm.visual.encoder import Encoder, EncoderInput, EncoderOutput

log = logging.getLogger("visual")


def encode_items(
    encoder: Encoder, files: ImageFiles, inputs: Sequence[tuple[EncodeItem, EncoderInput]]
) -> dict[int, str]:
    """Returns what went wrong, by item. What cannot be encoded together is encoded one by one: only the image to blame fails."""
    if not inputs:
        return {}
    try:
        outputs = encoder.encode([content for _, content in inputs])
        for (item, _), output in zip(inputs, outputs, strict=True):
            _write(files, item, output)
        return {}
    except Exception as error:  # whatever an encoder raises ends these images, not the process
        if len(inputs) > 1:
            alone = (encode_items(encoder, files, [one]) for one in inputs)
            return {item_id: text for errors in alone for item_id, text in errors.items()}
        item = inputs[0][0]
        log.error("image %s cannot be encoded", item.key, exc_info=error)
        return {item.item_id: f"{type(error).__name__}: {error}"}


def _write(files: ImageFiles, item: EncodeItem, output: EncoderOutput) -> None:
    if output.shape[0] != item.tokens:
        raise ValueError(f"the encoder made {output.shape[0]} tokens of an image that has {item.tokens}")
    header = EmbeddingHeader(item.key, item.first_id, item.tokens, output.dtype, output.shape)
    files.write_embedding(item.item_id, header, output.data)
