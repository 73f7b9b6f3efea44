"""Messages to bytes and back: msgpack through msgspec, typed on both ends."""

from __future__ import annotations

from typing import Any

import msgspec

from lightllm.protocol import images, messages, nodes, rounds
from lightllm.protocol.arrays import decode_array, encode_array

_encoder = msgspec.msgpack.Encoder(enc_hook=encode_array)


def encode(message: msgspec.Struct) -> bytes:
    return _encoder.encode(message)


class Decoder:
    """Decodes one message type or a union of tagged ones; raises `msgspec.MsgspecError` on anything else."""

    def __init__(self, kind: Any) -> None:
        self._decode = msgspec.msgpack.Decoder(kind, dec_hook=decode_array).decode

    def decode(self, data: bytes) -> Any:
        try:
            return self._decode(data)
        except UnicodeDecodeError as error:  # msgspec lets this one through for text that is not UTF-8
            raise msgspec.DecodeError(str(error)) from error


to_router = Decoder(messages.ToRouter)
to_detokenizer = Decoder(messages.ToDetokenizer)
to_http = Decoder(messages.ToHttp)
to_visual = Decoder(images.ToVisual)
to_encoder_rank = Decoder(images.ToEncoderRank)
to_backend = Decoder(rounds.ToBackend)
to_constraints = Decoder(messages.PrepareConstraint)
from_backend = Decoder(rounds.RoundResult)
to_rank = Decoder(nodes.ToRank)
to_node = Decoder(nodes.ToNode)
from_nodes = Decoder(nodes.FromNodes)
